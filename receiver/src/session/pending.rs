//! What waits for its fsync: the only way from "appended" to "acknowledged".
//!
//! Positions only grow, and durable never passes appended; both are asserted where they move.

use std::collections::{HashMap, VecDeque};

use tidelock_proto::{ChunkId, PointId};

/// Names one append of a session, in the order of appending, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(pub u64);

/// Where a session stands: chunk frames counted from its beginning, and a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// `Chunk` frames of this session.
    pub chunks: u64,
    /// The newest point, of this session or what it began with.
    pub point: Option<PointId>,
}

/// Appends that are not durable yet, in order.
#[derive(Debug, Default)]
pub(super) struct Pending {
    waiting: VecDeque<Waiting>,
    /// Chunks of this session that are not known to be durable, and their lengths. Two frames may carry the same chunk,
    /// so each id is counted.
    chunks: HashMap<ChunkId, (u32, usize)>,
    bytes: usize,
    appended: Ticket,
    durable: Position,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    position: Position,
    chunks: Vec<ChunkId>,
    bytes: usize,
}

impl Pending {
    pub(super) fn new(point: Option<PointId>) -> Self {
        Self { durable: Position { chunks: 0, point }, ..Self::default() }
    }

    /// Remembers a chunk from now until the append that holds it is durable.
    pub(super) fn add_chunk(&mut self, id: ChunkId, len: u32) {
        self.chunks.entry(id).or_insert((len, 0)).1 += 1;
    }

    /// The length of a chunk that is on its way to the log.
    pub(super) fn chunk_len(&self, id: &ChunkId) -> Option<u32> {
        self.chunks.get(id).map(|(len, _)| *len)
    }

    /// An append that brings the log to `position`.
    pub(super) fn append(&mut self, position: Position, chunks: Vec<ChunkId>, bytes: usize) -> Ticket {
        let before = self.waiting.back().map_or(self.durable, |waiting| waiting.position);
        assert!(
            position.chunks >= before.chunks && position.point >= before.point,
            "an append moves forward: {before:?} to {position:?}"
        );
        self.appended.0 += 1;
        self.bytes += bytes;
        self.waiting.push_back(Waiting { ticket: self.appended, position, chunks, bytes });
        self.appended
    }

    /// Everything up to this append is durable. Returns whether that is news.
    pub(super) fn on_durable(&mut self, ticket: Ticket) -> bool {
        assert!(ticket <= self.appended, "what is durable was appended: {ticket:?}");
        let before = self.durable;
        while self.waiting.front().is_some_and(|waiting| waiting.ticket <= ticket)
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.durable = waiting.position;
            self.bytes -= waiting.bytes;
            waiting.chunks.iter().for_each(|id| self.forget(id));
        }
        self.durable != before
    }

    fn forget(&mut self, id: &ChunkId) {
        let Some((_, count)) = self.chunks.get_mut(id) else { return };
        *count -= 1;
        if *count == 0 {
            self.chunks.remove(id);
        }
    }

    /// The newest durable position.
    pub(super) fn durable(&self) -> Position {
        self.durable
    }

    /// Bytes appended and not durable.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
