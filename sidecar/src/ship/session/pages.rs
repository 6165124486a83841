//! One question that the cutter waits for: what the pages of some chunks are.
//!
//! ```text
//! Idle ──ask──▶ Asked ──sent──▶ Sent ──reply──▶ Answered
//!                 └───────┬───────┘                └──taken──▶ Idle
//!                         └─ connection or tree lost ─▶ Lost ──taken──▶ Idle
//! ```
//! Whoever asks waits, so there is one question at a time, and a connection that is gone answers it.

use bytes::{Bytes, BytesMut};
use tidelock_proto::{
    ChunkId,
    limits::PAGES_BATCH_MAX,
    wire::messages::{Pages, ToReceiverKind, WantPages},
};

use super::Session;
use crate::ship::{Frame, SessionError};

#[derive(Debug, Default)]
pub(super) enum Question {
    #[default]
    Idle,
    Asked(Vec<ChunkId>),
    /// How many were asked about.
    Sent(usize),
    Answered(Vec<Bytes>),
    Lost,
}

impl Session {
    /// Asks what the pages of these chunks are, at most [`PAGES_BATCH_MAX`]; the receiver must have them.
    pub fn handle_question(&mut self, ids: Vec<ChunkId>) {
        assert!(ids.len() <= PAGES_BATCH_MAX, "a question has a limit");
        self.question = if self.accepting && self.is_open() { Question::Asked(ids) } else { Question::Lost };
    }

    /// Nobody waits for the answer any more. It may still come, so the connection begins again.
    pub fn handle_impatience(&mut self) {
        if matches!(self.question, Question::Sent(_)) {
            self.reset = Some("the receiver did not answer a question".to_owned());
        }
        self.question = Question::Idle;
    }

    /// The answer, once it is known: a list of sums for each chunk (see [`tidelock_proto::chunk::page_sums`]), or that there is none.
    pub fn take_answer(&mut self) -> Option<Option<Vec<Bytes>>> {
        match std::mem::take(&mut self.question) {
            Question::Answered(sums) => Some(Some(sums)),
            Question::Lost => Some(None),
            waiting => {
                self.question = waiting;
                None
            }
        }
    }

    /// Whether [`Session::take_answer`] has something.
    pub(in crate::ship) fn has_answer(&self) -> bool {
        matches!(self.question, Question::Answered(_) | Question::Lost)
    }

    pub(super) fn next_page_question(&mut self) -> Option<Frame> {
        let Question::Asked(ids) = &self.question else { return None };
        let mut bytes = BytesMut::with_capacity(ids.len() * size_of::<ChunkId>());
        ids.iter().for_each(|id| bytes.extend_from_slice(&id.0));
        self.question = Question::Sent(ids.len());
        Some(Frame::of(ToReceiverKind::WantPages(WantPages { ids: bytes.freeze() })))
    }

    pub(super) fn on_pages(&mut self, pages: Pages) -> Result<(), SessionError> {
        match self.question {
            Question::Sent(asked) if asked == pages.sums.len() => {
                self.question = Question::Answered(pages.sums);
                Ok(())
            }
            _ => Err(SessionError::Unexpected("answer about pages")),
        }
    }

    /// Whatever was asked will not be answered.
    pub(super) fn lose_question(&mut self) {
        if matches!(self.question, Question::Asked(_) | Question::Sent(_)) {
            self.question = Question::Lost;
        }
    }
}
