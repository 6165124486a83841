//! What waits for the writer, and which chunks are on their way.
//!
//! **Dedup against what is not durable yet.** The log is ordered and the queue is first in, first out: whatever is in a batch
//! queued before another one is before it in the log, and one `fdatasync` never covers the later without the earlier. So a
//! commit may refer to a chunk that is only queued. A chunk counts as pending from the moment its batch *is in* the queue
//! (the same lock covers both), until it is durable and in the index: nobody can see it and still get ahead of it. Refused
//! batches break nothing: their chunks are written all the same. If the writer fails, everything after it fails too.
//!
//! **A full disk** breaks that rule for a while: what was queued is refused, chunks and all. So it ends a *generation*, and whoever counted
//! on a pending chunk of it is refused as well, though he comes when there is space again ([`Batch::bind`]).

use std::collections::{HashMap, VecDeque};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    StoreError,
    batch::{Batch, Receipt, Record},
};
use crate::{index::key, limits, log::writer::Spend};

/// A batch and who waits for it.
pub(super) struct Waiting {
    pub(super) batch: Batch,
    pub(super) reply: oneshot::Sender<Result<(), StoreError>>,
    /// Its share of [`crate::limits::QUEUE_BYTES`], given back when the batch is done.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Chunks queued or written and not yet durable: the length of the content, and how often.
    pending: HashMap<Vec<u8>, (u32, u32)>,
    /// Why nothing more is taken.
    refusal: Option<StoreError>,
    /// There is no space: only what is urgent is taken.
    full: Option<StoreError>,
    /// How often there was none, and the last time's reason.
    generation: u64,
    last_full: Option<StoreError>,
}

impl Inbox {
    /// Queues a batch behind all others.
    pub(super) fn push(&self, batch: Batch, room: Option<OwnedSemaphorePermit>) -> Receipt {
        let (reply, receipt) = oneshot::channel();
        let mut state = self.state.lock();
        if let Some(refusal) = &state.refusal {
            let _ = reply.send(Err(refusal.clone()));
            return Receipt(receipt);
        }
        let outlived = batch.generation.is_some_and(|generation| generation != state.generation);
        // What counted on a pending chunk is refused even if it may use the reserve.
        let full = state.full.as_ref().filter(|_| batch.spends() == Spend::Nothing);
        let full = if outlived { state.last_full.as_ref() } else { full };
        if let Some(full) = full {
            let _ = reply.send(Err(full.clone()));
            return Receipt(receipt);
        }
        for (key, len) in chunk_keys(&batch) {
            state.pending.entry(key).or_insert((len, 0)).1 += 1;
        }
        state.waiting.push_back(Waiting { batch, reply, room });
        drop(state);
        self.arrived.notify_one();
        Receipt(receipt)
    }

    /// Waits for something to write, and takes what has arrived, in order, up to about `bytes`. `None` when closed and empty. While the
    /// store is full there may be nothing after a pause: it is time to look for space.
    pub(super) fn take(&self, bytes: usize) -> Option<Vec<Waiting>> {
        let mut state = self.state.lock();
        while state.waiting.is_empty() {
            if state.refusal.is_some() {
                return None;
            }
            if state.full.is_none() {
                self.arrived.wait(&mut state);
            } else if self.arrived.wait_for(&mut state, limits::FULL_RETRY).timed_out() {
                return Some(Vec::new());
            }
        }
        let mut taken = Vec::new();
        let mut sum = 0;
        while let Some(next) = state.waiting.front()
            && (taken.is_empty() || sum + next.batch.bytes() <= bytes)
        {
            sum += next.batch.bytes();
            taken.extend(state.waiting.pop_front());
        }
        Some(taken)
    }

    /// The length of a pending chunk's content.
    pub(super) fn pending_len(&self, key: &[u8]) -> Option<u32> {
        self.state.lock().pending.get(key).map(|(len, _)| *len)
    }

    /// The chunks of these batches are durable and in the index.
    pub(super) fn settle(&self, keys: impl Iterator<Item = Vec<u8>>) {
        let mut state = self.state.lock();
        for key in keys {
            match state.pending.get_mut(&key) {
                Some((_, count)) if *count > 1 => *count -= 1,
                _ => drop(state.pending.remove(&key)),
            }
        }
    }

    /// Takes nothing more; what is queued is still written.
    pub(super) fn close(&self) {
        self.state.lock().refusal.get_or_insert(StoreError::Closed);
        self.arrived.notify_all();
    }

    /// Takes nothing more and gives back what is queued, unwritten.
    pub(super) fn poison(&self, why: StoreError) -> Vec<Waiting> {
        let mut state = self.state.lock();
        state.refusal = Some(why);
        state.pending.clear();
        state.waiting.drain(..).collect()
    }

    /// There is no space: gives back what is queued and not urgent, unwritten, and takes no more of that until [`Inbox::refill`].
    pub(super) fn fill(&self, why: StoreError) -> Vec<Waiting> {
        let mut state = self.state.lock();
        state.generation += 1;
        state.full = Some(why.clone());
        state.last_full = Some(why);
        state.pending.clear();
        let (urgent, refused) = state.waiting.drain(..).partition(|waiting| waiting.batch.outlasts_full());
        state.waiting = urgent;
        refused.into()
    }

    /// There is space again.
    pub(super) fn refill(&self) {
        self.state.lock().full = None;
    }

    /// Why there is no space.
    pub(super) fn full(&self) -> Option<StoreError> {
        self.state.lock().full.clone()
    }

    /// How often there was none.
    pub(super) fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Why nothing more is taken.
    pub(super) fn refusal(&self) -> Option<StoreError> {
        self.state.lock().refusal.clone()
    }
}

/// The chunks in a batch: their keys in the index, and the lengths of their content.
pub(super) fn chunk_keys(batch: &Batch) -> impl Iterator<Item = (Vec<u8>, u32)> {
    batch.records.iter().filter_map(|record| match record {
        Record::Chunk(chunk) => Some((key::chunk(&chunk.tenant, &chunk.id), chunk.len)),
        _ => None,
    })
}
