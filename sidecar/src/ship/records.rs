//! Operations and commits that no durable point covers yet, in order.
//!
//! ```text
//! covered ≤ sent ≤ given
//! ```
//! Each record knows which chunks were given before it and is sent after them. What was sent of a commit that is still being
//! built is kept for a resume, but does not fill the window: the commit could never come otherwise. Past
//! [`limits::OPEN_OPS_KEPT_MAX_BYTES`] it is let go, and a disconnect then costs a new beginning of that commit.

use std::collections::VecDeque;

use bytes::Bytes;
use tidelock_proto::{PointId, TreeDigest, point::Cut};

use super::chunks::ChunkPos;
use crate::limits;

/// How many records were given before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct RecordPos(u64);

pub(super) enum Record {
    /// An `Ops` frame, encoded.
    Ops(Bytes),
    /// An `Ops` frame that was sent and let go.
    Gone,
    /// The end of a commit, with the names of its point.
    Commit(PointId, Cut, Vec<String>),
}

struct Entry {
    record: Record,
    /// The chunks it may refer to are before this.
    after: ChunkPos,
}

/// A commit that became durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Covered {
    pub(super) time_ns: u64,
    /// All chunks given before this are durable with it.
    pub(super) chunks: ChunkPos,
}

#[derive(Default)]
pub(super) struct RecordQueue {
    entries: VecDeque<Entry>,
    covered: RecordPos,
    sent: RecordPos,
    /// Where the commit being built begins.
    open: RecordPos,
    commits: usize,
    bytes: usize,
    unsent_bytes: usize,
    /// Of the commit being built, sent and kept.
    open_sent_bytes: usize,
}

impl RecordQueue {
    /// What counts against the window, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes - self.open_sent_bytes
    }

    /// The part of it that was not sent yet.
    pub(super) fn unsent_bytes(&self) -> usize {
        self.unsent_bytes
    }

    /// Commits that no acknowledgement covers.
    pub(super) fn commits(&self) -> usize {
        self.commits
    }

    /// Whether every commit given was sent.
    pub(super) fn commits_sent(&self) -> bool {
        self.sent >= self.open
    }

    /// The position after the last record given.
    pub(super) fn given(&self) -> RecordPos {
        RecordPos(self.covered.0 + self.entries.len() as u64)
    }

    pub(super) fn sent(&self) -> RecordPos {
        self.sent
    }

    pub(super) fn push_ops(&mut self, frame: Bytes, after: ChunkPos) {
        self.bytes += cost(&frame);
        self.unsent_bytes += cost(&frame);
        self.entries.push_back(Entry { record: Record::Ops(frame), after });
    }

    pub(super) fn push_commit(&mut self, id: PointId, cut: Cut, tags: Vec<String>, after: ChunkPos) {
        self.entries.push_back(Entry { record: Record::Commit(id, cut, tags), after });
        self.commits += 1;
        self.open = self.given();
        self.open_sent_bytes = 0;
    }

    /// The next record, if all chunks before it were sent.
    pub(super) fn next(&mut self, chunks_sent: ChunkPos) -> Option<&Record> {
        let index = (self.sent.0 - self.covered.0) as usize;
        let entry = self.entries.get(index).filter(|entry| entry.after <= chunks_sent)?;
        if let Record::Ops(frame) = &entry.record {
            self.unsent_bytes -= cost(frame);
            if self.sent >= self.open {
                self.open_sent_bytes += cost(frame);
            }
        }
        self.sent.0 += 1;
        Some(&self.entries[index].record)
    }

    /// Lets go of what was sent of a commit that has outgrown its bound. To be called after every [`RecordQueue::next`].
    pub(super) fn shed(&mut self) {
        if self.open_sent_bytes <= limits::OPEN_OPS_KEPT_MAX_BYTES {
            return;
        }
        let open = (self.open.0 - self.covered.0) as usize..(self.sent.0 - self.covered.0) as usize;
        for entry in self.entries.range_mut(open) {
            if let Record::Ops(frame) = &entry.record {
                self.bytes -= cost(frame);
                entry.record = Record::Gone;
            }
        }
        self.open_sent_bytes = 0;
    }

    /// Whether `point` was given and is not covered, and with which digest.
    pub(super) fn digest_of(&self, point: PointId) -> Option<TreeDigest> {
        self.commit(point).map(|(_, cut, _)| cut.digest)
    }

    /// Whether everything after `point` (or everything, if it is none of these commits) could be sent again.
    pub(super) fn whole_after(&self, point: Option<PointId>) -> bool {
        let first = point.and_then(|point| self.commit(point)).map_or(0, |(index, ..)| index + 1);
        !self.entries.range(first..).any(|entry| matches!(entry.record, Record::Gone))
    }

    fn commit(&self, point: PointId) -> Option<(usize, &Cut, ChunkPos)> {
        self.entries.iter().enumerate().find_map(|(index, entry)| match &entry.record {
            Record::Commit(id, cut, _) if *id == point => Some((index, cut, entry.after)),
            _ => None,
        })
    }

    /// `point` is durable: forgets it and everything before it. `None` if it is none of these, or, when `sent_only`,
    /// was not sent.
    pub(super) fn on_durable(&mut self, point: PointId, sent_only: bool) -> Option<Covered> {
        let (index, cut, chunks) = self.commit(point)?;
        let covered = Covered { time_ns: cut.time_ns, chunks };
        if sent_only && self.covered.0 + index as u64 >= self.sent.0 {
            return None;
        }
        for (passed, entry) in self.entries.drain(..=index).enumerate() {
            match entry.record {
                Record::Ops(frame) => {
                    self.bytes -= cost(&frame);
                    if self.covered.0 + passed as u64 >= self.sent.0 {
                        self.unsent_bytes -= cost(&frame);
                    }
                }
                Record::Gone => {}
                Record::Commit(..) => self.commits -= 1,
            }
        }
        self.covered.0 += index as u64 + 1;
        self.sent = self.sent.max(self.covered);
        assert!(
            self.sent <= self.given() && self.open >= self.covered,
            "a point ends a commit that was given"
        );
        Some(covered)
    }

    /// A new session goes on from what is covered.
    pub(super) fn rewind(&mut self) {
        self.sent = self.covered;
        self.unsent_bytes = self.bytes;
        self.open_sent_bytes = 0;
    }

    /// Forgets everything; positions go on.
    pub(super) fn clear(&mut self) {
        let given = self.given();
        *self = Self { covered: given, sent: given, open: given, ..Self::default() };
    }
}

fn cost(frame: &Bytes) -> usize {
    frame.len() + limits::ENTRY_BYTES
}
