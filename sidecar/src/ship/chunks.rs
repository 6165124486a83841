//! The chunks that are not known to be durable on the other side, and the questions that spare sending them.
//!
//! ```text
//! acknowledged ≤ sent ≤ asked ≤ given
//!      │           │      │       └ by the cutter
//!      │           │      └ up to here every question was asked
//!      │           └ up to here everything was sent, or need not be
//!      └ the front of the queue: what is before it is forgotten
//! ```
//! Chunks leave in the order they came, so the receiver's count of durable `Chunk` frames tells which ones those are. A
//! chunk waiting for the answer to its question holds back those behind it: the price of one order, paid only while seeding
//! and scanning.

use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
};

use bytes::{BufMut, Bytes, BytesMut};
use tidelock_proto::{
    ChunkId,
    limits::HAVE_BATCH_MAX,
    wire::{
        chunk_to_wire,
        messages::{Chunk, Have},
    },
};

use super::SessionError;
use crate::{limits, pack::Packed};

/// How many chunks were given before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct ChunkPos(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The receiver may have it; it has not been asked.
    Unasked,
    /// It has been asked and has not answered.
    Asked,
    /// To be sent.
    Ready,
    /// Sent as this `Chunk` frame of the session, counted from 1.
    Sent(u64),
    /// The receiver has it; the payload is gone.
    Held,
}

struct Entry {
    id: ChunkId,
    /// Gone once held.
    packed: Option<Packed>,
    state: State,
}

#[derive(Default)]
pub(super) struct ChunkQueue {
    entries: VecDeque<Entry>,
    /// Ids of the entries that have a payload: a chunk given twice within the window is sent once.
    waiting: HashSet<ChunkId>,
    acknowledged: ChunkPos,
    sent: ChunkPos,
    asked: ChunkPos,
    /// Entries from `asked` on that want to be asked about.
    unasked: usize,
    questions: VecDeque<Range<ChunkPos>>,
    frames_sent: u64,
    frames_acknowledged: u64,
    bytes: usize,
    unsent_bytes: usize,
}

impl ChunkQueue {
    /// What counts against the window, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The part of it that was not sent yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// The position after the last chunk given: what comes after it on the wire may refer to it.
    pub(super) fn given(&self) -> ChunkPos {
        ChunkPos(self.acknowledged.0 + self.entries.len() as u64)
    }

    /// Everything before this was sent, or need not be.
    pub(super) fn sent(&self) -> ChunkPos {
        self.sent
    }

    pub(super) fn push(&mut self, packed: Packed, ask: bool) {
        // The earlier one is before everything that will refer to this one.
        if !self.waiting.insert(packed.id) {
            return;
        }
        self.bytes += cost(&packed);
        self.unsent_bytes += cost(&packed);
        self.unasked += usize::from(ask);
        let state = if ask { State::Unasked } else { State::Ready };
        self.entries.push_back(Entry { id: packed.id, packed: Some(packed), state });
    }

    /// The next question: at once while none waits for its reply, else only a large one.
    pub(super) fn next_question(&mut self) -> Option<Have> {
        let wanted = if self.questions.is_empty() { 1 } else { limits::HAVE_BATCH_MIN };
        if self.unasked < wanted || self.questions.len() >= limits::HAVE_IN_FLIGHT_MAX {
            return None;
        }
        let mut ids = BytesMut::with_capacity(self.unasked.min(HAVE_BATCH_MAX) * size_of::<ChunkId>());
        let first = self.asked;
        while self.asked < self.given() && ids.len() < HAVE_BATCH_MAX * size_of::<ChunkId>() {
            let entry = &mut self.entries[(self.asked.0 - self.acknowledged.0) as usize];
            if entry.state == State::Unasked {
                entry.state = State::Asked;
                ids.put_slice(&entry.id.0);
                self.unasked -= 1;
            }
            self.asked.0 += 1;
        }
        self.questions.push_back(first..self.asked);
        Some(Have { ids: ids.freeze() })
    }

    /// The reply to the oldest question.
    pub(super) fn on_reply(&mut self, held: &Bytes) -> Result<(), SessionError> {
        let question = self.questions.pop_front().ok_or(SessionError::Unexpected("answer to no question"))?;
        let first = question.start.max(self.acknowledged);
        let mut answers = held.iter().flat_map(|byte| (0..8).map(move |bit| byte & (1 << bit) != 0));
        for pos in first.0..question.end.0 {
            let entry = &mut self.entries[(pos - self.acknowledged.0) as usize];
            if entry.state != State::Asked {
                continue;
            }
            let held = answers.next().ok_or(SessionError::Unexpected("answer too short"))?;
            entry.state = if held { State::Held } else { State::Ready };
            if held && let Some(packed) = entry.packed.take() {
                self.waiting.remove(&entry.id);
                self.bytes -= cost(&packed);
                self.unsent_bytes -= cost(&packed);
            }
        }
        self.advance_sent();
        self.forget();
        Ok(())
    }

    /// The next chunk to send.
    pub(super) fn next_chunk(&mut self) -> Option<Chunk> {
        self.advance_sent();
        let entry = self.entries.get_mut((self.sent.0 - self.acknowledged.0) as usize)?;
        if entry.state != State::Ready {
            return None;
        }
        let packed = entry.packed.clone()?;
        self.frames_sent += 1;
        entry.state = State::Sent(self.frames_sent);
        self.unsent_bytes -= cost(&packed);
        self.advance_sent();
        Some(chunk_to_wire(packed.id, packed.codec, packed.len, packed.payload))
    }

    fn advance_sent(&mut self) {
        while let Some(entry) = self.entries.get((self.sent.0 - self.acknowledged.0) as usize)
            && matches!(entry.state, State::Sent(_) | State::Held)
        {
            self.sent.0 += 1;
        }
    }

    /// The receiver says how many `Chunk` frames of this session are durable.
    pub(super) fn on_acknowledged(&mut self, frames: u64) -> Result<(), SessionError> {
        if frames > self.frames_sent {
            return Err(SessionError::Unexpected("acknowledgement of chunks that were not sent"));
        }
        self.frames_acknowledged = self.frames_acknowledged.max(frames);
        self.forget();
        Ok(())
    }

    /// A durable point covers every chunk given before `pos`.
    pub(super) fn on_covered(&mut self, pos: ChunkPos) {
        while self.acknowledged < pos && self.pop() {}
        self.forget();
    }

    /// Removes from the front what is durable.
    fn forget(&mut self) {
        while let Some(entry) = self.entries.front() {
            let durable = match entry.state {
                State::Held => true,
                State::Sent(frame) => frame <= self.frames_acknowledged,
                State::Unasked | State::Asked | State::Ready => false,
            };
            if !durable || !self.pop() {
                return;
            }
        }
    }

    fn pop(&mut self) -> bool {
        let Some(entry) = self.entries.pop_front() else { return false };
        if let Some(packed) = entry.packed {
            self.waiting.remove(&entry.id);
            self.bytes -= cost(&packed);
            if !matches!(entry.state, State::Sent(_)) {
                self.unsent_bytes -= cost(&packed);
            }
        }
        self.unasked -= usize::from(entry.state == State::Unasked);
        self.acknowledged.0 += 1;
        self.sent = self.sent.max(self.acknowledged);
        self.asked = self.asked.max(self.acknowledged);
        true
    }

    /// A new session goes on from what was acknowledged. What was sent and not acknowledged may have arrived, so it is
    /// asked about before it is sent again.
    pub(super) fn rewind(&mut self) {
        self.sent = self.acknowledged;
        self.asked = self.acknowledged;
        self.unsent_bytes = self.bytes;
        self.unasked = 0;
        self.questions.clear();
        (self.frames_sent, self.frames_acknowledged) = (0, 0);
        for entry in &mut self.entries {
            if matches!(entry.state, State::Sent(_) | State::Asked) {
                entry.state = State::Unasked;
            }
            self.unasked += usize::from(entry.state == State::Unasked);
        }
    }

    /// Forgets everything; positions go on.
    pub(super) fn clear(&mut self) {
        let given = self.given();
        *self = Self { acknowledged: given, sent: given, asked: given, ..Self::default() };
    }
}

fn cost(packed: &Packed) -> usize {
    packed.payload.len() + limits::ENTRY_BYTES
}
