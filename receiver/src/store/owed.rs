//! Chunks that somebody counts on although no durable point refers to them yet.
//!
//! A sidecar that was told "I have this chunk" does not send it, and a sidecar that has sent one does not send it again: its next commits refer to
//! it. Until they are durable nothing in the log says that the chunk is needed. So whoever asks, or appends a chunk, holds a [`Lease`] on it.
//!
//! **Ask and remove cannot cross.** Who asks counts on the chunk first and looks it up then; compaction decides under the same lock which chunks
//! nobody counts on, and from that instant on they count as absent ([`Owed::leave`]). So either the chunk stays, or the answer is "no" and it is sent.
//!
//! **Given up is not gone.** A lease ends when the commit is durable, but a compaction that is under way may have read the journal before that. So while
//! one is, what is given up is kept in mind until its end.
//!
//! **When a commit has used it.** A sidecar sends what refers to a chunk before any later chunk, so a chunk is used by the first commit after it, if ever; it is
//! held for one commit more. A chunk that it only asked about may be used several commits later: that one is held until operations refer to it,
//! or the sidecar says that nothing is left uncommitted. Ids are those of the index, blinded where a tenant is encrypted, so that the index can be asked how
//! much of a segment is owed; they are remembered by eight bytes of them, and two that agree in these keep each other.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tidelock_proto::{ChunkId, PointId};

use super::{Shared, Store};
use crate::{limits, vault::Vault};

/// What one asker counts on, until it is dropped.
pub struct Lease {
    owed: Arc<Owed>,
    vault: Arc<Vault>,
    tenant: String,
    ids: Mutex<Ids>,
}

#[derive(Default)]
struct Ids {
    /// Told to be held, and not used so far.
    told: Set,
    /// Asked for or sent since the last commit.
    staged: Set,
    /// The same before each of the last commits.
    commits: VecDeque<(PointId, Set)>,
}

/// Some ids, or all there are.
#[derive(Default)]
struct Set {
    ids: HashSet<u64>,
    all: bool,
}

#[derive(Default)]
pub(super) struct Owed {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often each is counted on.
    ids: HashMap<u64, u32>,
    /// How many count on all chunks.
    all: u32,
    /// A compaction is under way.
    cycle: bool,
    /// Given up since it began.
    given_up: HashSet<u64>,
    given_up_all: bool,
    /// Segments whose chunks count as absent.
    leaving: BTreeSet<u32>,
}

impl Store {
    /// Begins to count on chunks of a tenant: see [`Lease`].
    pub fn lease(&self, tenant: &str) -> Lease {
        self.shared().lease(tenant)
    }
}

impl Shared {
    pub(super) fn lease(&self, tenant: &str) -> Lease {
        let (owed, vault) = (self.owed.clone(), self.vault.clone());
        Lease { owed, vault, tenant: tenant.to_owned(), ids: Mutex::default() }
    }
}

impl Lease {
    /// As the id is remembered.
    fn short(&self, id: &ChunkId) -> u64 {
        short(&self.vault.blind(&self.tenant, id))
    }

    /// To be called before the chunk is looked up or appended.
    pub fn count_on(&self, id: &ChunkId) {
        let (ids, id) = (&mut *self.ids.lock(), self.short(id));
        if ids.told.ids.remove(&id) {
            // It changes its place, and is counted once.
            if !ids.staged.ids.insert(id) {
                self.owed.release(&[id]);
            }
            return;
        }
        if ids.staged.all || !ids.staged.ids.insert(id) {
            return;
        }
        self.owed.hold(id);
        if ids.staged.ids.len() > limits::OWED_PER_LEASE {
            self.overflow(&mut ids.staged);
        }
    }

    /// The sidecar was told that the chunk is held, after [`Lease::count_on`].
    pub fn on_told(&self, id: &ChunkId) {
        let (ids, id) = (&mut *self.ids.lock(), self.short(id));
        if !ids.staged.ids.remove(&id) {
            return;
        }
        if ids.told.all || !ids.told.ids.insert(id) {
            self.owed.release(&[id]);
        } else if ids.told.ids.len() > limits::OWED_PER_LEASE {
            self.overflow(&mut ids.told);
        }
    }

    /// A commit was taken; it is not durable yet.
    pub fn on_commit(&self, point: PointId) {
        let ids = &mut *self.ids.lock();
        let staged = std::mem::take(&mut ids.staged);
        ids.commits.push_back((point, staged));
    }

    /// Everything up to this point is durable.
    pub fn on_durable(&self, point: PointId) {
        let ids = &mut *self.ids.lock();
        while ids.commits.get(1).is_some_and(|(next, _)| *next <= point)
            && let Some((_, set)) = ids.commits.pop_front()
        {
            self.give_up(set);
        }
    }

    /// The sidecar says that nothing is left uncommitted.
    pub fn on_clean(&self) {
        let told = std::mem::take(&mut self.ids.lock().told);
        self.give_up(told);
    }

    fn overflow(&self, set: &mut Set) {
        self.owed.hold_all();
        let ids: Vec<u64> = std::mem::take(&mut set.ids).into_iter().collect();
        set.all = true;
        self.owed.release(&ids);
    }

    fn give_up(&self, set: Set) {
        let ids: Vec<u64> = set.ids.into_iter().collect();
        self.owed.release(&ids);
        if set.all {
            self.owed.release_all();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Ids { told, staged, commits } = std::mem::take(&mut *self.ids.lock());
        self.give_up(told);
        self.give_up(staged);
        commits.into_iter().for_each(|(_, set)| self.give_up(set));
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

impl Owed {
    fn hold(&self, id: u64) {
        *self.state.lock().ids.entry(id).or_default() += 1;
    }

    fn release(&self, ids: &[u64]) {
        if ids.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        for id in ids {
            match state.ids.get_mut(id) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(state.ids.remove(id)),
            }
        }
        if state.cycle {
            state.given_up.extend(ids);
            if state.given_up.len() > limits::OWED_PER_LEASE {
                (state.given_up, state.given_up_all) = (HashSet::new(), true);
            }
        }
    }

    fn hold_all(&self) {
        self.state.lock().all += 1;
    }

    fn release_all(&self) {
        let mut state = self.state.lock();
        state.all -= 1;
        state.given_up_all |= state.cycle;
    }

    /// From now on until the answer is dropped, what is given up is kept in mind.
    pub(super) fn begin_cycle(&self) -> Cycle<'_> {
        self.state.lock().cycle = true;
        Cycle(self)
    }

    /// Whether somebody counts on a chunk, for each of these.
    pub(super) fn counts_on<'a>(&self, ids: impl Iterator<Item = &'a ChunkId>) -> Vec<bool> {
        let state = self.state.lock();
        ids.map(|id| state.counts_on(id)).collect()
    }

    /// Has the chunks in these segments count as absent from now on, if nobody counts on one of `unneeded`. If somebody does, the answer is which
    /// of them, by their index, and nothing has changed.
    pub(super) fn leave(&self, segments: &BTreeSet<u32>, unneeded: &[ChunkId]) -> Result<(), Vec<usize>> {
        let mut state = self.state.lock();
        let counted: Vec<usize> =
            unneeded.iter().enumerate().filter(|(_, id)| state.counts_on(id)).map(|(at, _)| at).collect();
        if !counted.is_empty() {
            return Err(counted);
        }
        state.leaving = segments.clone();
        Ok(())
    }

    /// The segments are gone, or stay after all.
    pub(super) fn end_leaving(&self) {
        self.state.lock().leaving.clear();
    }

    pub(super) fn is_leaving(&self, segment: u32) -> bool {
        self.state.lock().leaving.contains(&segment)
    }
}

impl State {
    fn counts_on(&self, id: &ChunkId) -> bool {
        let id = short(id);
        self.all > 0 || self.given_up_all || self.ids.contains_key(&id) || self.given_up.contains(&id)
    }
}

/// A compaction that is under way.
pub(super) struct Cycle<'a>(&'a Owed);

impl Drop for Cycle<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.cycle = false;
        (state.given_up, state.given_up_all) = (HashSet::new(), false);
        state.leaving.clear();
    }
}

fn short(id: &ChunkId) -> u64 {
    u64::from_le_bytes(*id.0.first_chunk().expect("an id has 32 bytes"))
}
