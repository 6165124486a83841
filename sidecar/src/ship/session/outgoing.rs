//! The connection's side: what is to be sent and done.

use std::time::Instant;

use tidelock_proto::{
    PointId,
    wire::{
        cut_to_wire,
        messages::{Commit, Heartbeat, ToReceiverKind},
        point_id_to_wire,
    },
};

use super::{End, Phase, Session};
use crate::{
    limits,
    ship::{Frame, records::Record},
};

impl Session {
    /// The next frame to send. To be called until there is none, after anything was handled.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Frame> {
        if self.end.is_some() || self.reset.is_some() {
            return None;
        }
        if let Some(frame) = self.greeting.take() {
            return Some(frame);
        }
        if !matches!(self.phase, Phase::Open) {
            return None;
        }
        if let Some(left) = self.left.take() {
            return Some(Frame::of(ToReceiverKind::Left(left)));
        }
        if let Some((resent, _)) = self.resent.take_if(|(_, behind)| *behind <= self.chunks.sent()) {
            return Some(Frame::of(ToReceiverKind::Resent(resent)));
        }
        if let Some(beat) = self.next_heartbeat(now) {
            return Some(Frame::of(ToReceiverKind::Heartbeat(beat)));
        }
        if let Some(question) = self.next_page_question() {
            return Some(question);
        }
        if let Some(have) = self.chunks.next_question() {
            return Some(Frame::of(ToReceiverKind::Have(have)));
        }
        if let Some(frame) = self.next_record() {
            return Some(frame);
        }
        self.chunks.next_chunk().map(|chunk| Frame::of(ToReceiverKind::Chunk(chunk)))
    }

    fn next_record(&mut self) -> Option<Frame> {
        let frame = match self.records.next(self.chunks.sent())? {
            Record::Ops(frame) => Frame::Encoded(frame.clone()),
            Record::Commit(id, cut, tags) => Frame::of(ToReceiverKind::Commit(Commit {
                id: Some(point_id_to_wire(*id)),
                cut: Some(cut_to_wire(cut)),
                tags: tags.clone(),
            })),
            Record::Gone => unreachable!("a session is not resumed across a gap"),
        };
        self.records.shed();
        self.check_window();
        Some(frame)
    }

    /// A heartbeat speaks of the commits given before it, so it waits for them; after a while it goes without its claim.
    fn next_heartbeat(&mut self, now: Instant) -> Option<Heartbeat> {
        let (_, after, since) = self.heartbeat.as_ref()?;
        let (in_place, stale) = (self.records.sent() >= *after, now >= *since + limits::HEARTBEAT_WAIT_MAX);
        let (mut beat, ..) = self.heartbeat.take_if(|_| in_place || stale)?;
        if !in_place {
            beat.clean_at_ns = 0;
        }
        Some(beat)
    }

    /// When to call [`Session::handle_timeout`], and then [`Session::poll_transmit`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let open = matches!(self.phase, Phase::Open);
        let beat =
            self.heartbeat.as_ref().filter(|_| open).map(|(.., since)| *since + limits::HEARTBEAT_WAIT_MAX);
        self.deadline.into_iter().chain(beat).min()
    }

    /// Why the stream is to be given up, if it is; a new one may be tried.
    pub fn poll_reset(&mut self) -> Option<String> {
        self.reset.take()
    }

    /// Whether to finish the stream now; true once a stream.
    pub fn poll_finish(&mut self) -> bool {
        let due = self.finishing && matches!(self.phase, Phase::Open) && !self.stream_finished;
        let finish = due && self.records.commits_sent();
        self.stream_finished |= finish;
        finish
    }

    /// Why there will be no further session, once that is so.
    pub fn poll_end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Whether both sides have agreed on a tree and changes flow.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// The newest point that became durable through this process, and the time of its cut in nanoseconds since 1970.
    pub fn durable(&self) -> Option<(PointId, u64)> {
        self.durable
    }
}
