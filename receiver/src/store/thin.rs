//! Thinning: points go, and those that stay open to the same trees as before.
//!
//! ```text
//! choose → every point that stays and builds on one that goes: its operations merged upon the nearest one that stays
//!        → durable → drop
//! ```
//! **Each step leaves a whole journal.** A merged point no longer needs what is between it and the point it now builds on, and
//! what is between does not need it: so after any of the merges, and after any of the drops, every point that is still there opens.
//! A drop comes only after all merges are durable. If the process dies in between, the next thinning goes on.
//!
//! **Nothing is trusted.** The merged operations are applied to a tree of their own, whose digest must be the one that
//! was committed with the point. If it is not, nothing is dropped.
//!
//! A point whose way back goes through dropped points alone gets a checkpoint, and builds on nothing.

use std::collections::{BTreeMap, HashSet};

use tidelock_proto::{Epoch, Op, PointId, Seq, Tree, VolumeName, point::Consistency};

use super::{
    Batch, Cause, Record, Shared, Store, StoreError, VolumeInfo, batch::Room, checkpoint, encode_model_ops,
};
use crate::{
    catalogue::{Step, decode_step},
    index::key,
    limits,
    retention::{Candidate, Policy, Touched, Verdict, choose},
};

/// What a thinning did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thinned {
    /// Points that are gone.
    pub dropped: u64,
    /// Points that were given other operations.
    pub merged: u64,
}

impl Store {
    /// What a policy makes of each point of a volume now, oldest first.
    pub fn judge(
        &self,
        volume: &VolumeName,
        policy: &Policy,
        now_ns: u64,
    ) -> Result<Vec<(PointId, Verdict)>, StoreError> {
        let info = self.volume(volume).ok_or_else(|| self.no_volume(volume))?;
        let (candidates, _) = self.shared().candidates(volume, &info)?;
        let verdicts = choose(&candidates, policy, now_ns);
        Ok(candidates.iter().map(|candidate| candidate.id).zip(verdicts).collect())
    }

    /// Drops the points of a volume that the policy does not keep, at `now_ns` by the clock that received them. Reads and replays
    /// what is dropped: not for a thread that must not block. One at a time; a second one waits.
    pub fn thin(&self, volume: &VolumeName, policy: &Policy, now_ns: u64) -> Result<Thinned, StoreError> {
        let _alone = self.shared().thinning.lock();
        self.thin_to(volume, Room::Upkeep, &|candidates| {
            let verdicts = choose(candidates, policy, now_ns);
            let judged = candidates.iter().zip(&verdicts);
            judged.filter(|(_, verdict)| verdict.is_drop()).map(|(candidate, _)| candidate.id).collect()
        })
    }

    /// Drops these points for room, but those that are protected by now.
    pub(super) fn drop_chosen(
        &self,
        volume: &VolumeName,
        chosen: &HashSet<PointId>,
    ) -> Result<Thinned, StoreError> {
        let _alone = self.shared().thinning.lock();
        self.thin_to(volume, Room::Relief, &|candidates| {
            let goes = |point: &&Candidate| !point.protected && chosen.contains(&point.id);
            candidates.iter().filter(goes).map(|point| point.id).collect()
        })
    }

    /// A volume's points as retention sees them, oldest first.
    pub(super) fn candidates(&self, volume: &VolumeName) -> Result<Vec<Candidate>, StoreError> {
        let info = self.volume(volume).ok_or_else(|| self.no_volume(volume))?;
        Ok(self.shared().candidates(volume, &info)?.0)
    }

    /// Drops what is chosen, while nothing else is thinned or compacted.
    fn thin_to(
        &self,
        volume: &VolumeName,
        room: Room,
        choose: &dyn Fn(&[Candidate]) -> HashSet<PointId>,
    ) -> Result<Thinned, StoreError> {
        let shared = self.shared();
        let info = self.volume(volume).ok_or_else(|| self.no_volume(volume))?;
        let (candidates, steps) = shared.candidates(volume, &info)?;
        let gone = choose(&candidates);
        if gone.is_empty() {
            return Ok(Thinned::default());
        }
        let (steps, gone) = (&steps, &gone);
        let mut append = Append { shared, volume, room, batch: Batch::new(), merged: 0 };
        merge(shared, volume, steps, gone, &mut append)?;
        append.flush()?;
        let merged = append.merged;
        drop_points(shared, volume, room, &info, steps, gone)?;
        Ok(Thinned { dropped: gone.len() as u64, merged })
    }
}

impl Shared {
    /// The points of a volume as they are built.
    pub(super) fn steps(&self, volume: &VolumeName) -> Result<BTreeMap<PointId, Step>, StoreError> {
        let info = self.volumes.read().get(volume).cloned();
        Ok(self.candidates(volume, &info.ok_or_else(|| self.no_volume(volume))?)?.1)
    }

    /// All points of a volume as retention sees them, and as they are built.
    pub(super) fn candidates(
        &self,
        volume: &VolumeName,
        info: &VolumeInfo,
    ) -> Result<(Vec<Candidate>, BTreeMap<PointId, Step>), StoreError> {
        let (first, end) = (PointId::default(), PointId::new(Epoch(u64::MAX), Seq(u64::MAX)));
        let tags = self.tags(volume, first, end)?;
        let (mut next, end) = (key::point(key::POINT, volume, first), key::point(key::POINT, volume, end));
        let (mut candidates, mut steps) = (Vec::new(), BTreeMap::new());
        loop {
            let page = self.index.range(&next, &end, false, limits::POINTS_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok((candidates, steps)) };
            next = [last, &[0][..]].concat();
            for (entry, value) in &page {
                let id = key::read_point(entry).map_or(first, |(id, _)| id);
                let step = decode_step(value).filter(|step| step.point.id == id).ok_or_else(|| {
                    let cause = Cause::Unreadable("index entry");
                    StoreError::Damaged { volume: volume.clone(), point: id, cause }
                })?;
                candidates.push(Candidate {
                    id,
                    time_ns: step.point.received_ns,
                    fuzzy: step.point.cut.consistency == Consistency::Fuzzy,
                    protected: tags.contains_key(&id) || id >= info.last.id || self.pins.holds(volume, id),
                });
                steps.insert(id, step);
            }
        }
    }
}

/// Where merged points go: to the log, or into a calculation.
pub(super) trait Outlet {
    /// The point has these operations upon an older one that stays; or none, and a checkpoint, which was given before. Tells how many bytes the operations have.
    fn merged(&mut self, point: PointId, on: Option<PointId>, ops: Vec<Op>) -> Result<u64, StoreError>;

    /// The point gets a checkpoint, of this tree.
    fn checkpoint(&mut self, point: PointId, tree: &Tree) -> Result<(), StoreError>;
}

/// Merges, point by point, oldest first: what a volume's points that stay need so that others can go.
pub(super) fn merge(
    shared: &Shared,
    volume: &VolumeName,
    steps: &BTreeMap<PointId, Step>,
    gone: &HashSet<PointId>,
    outlet: &mut dyn Outlet,
) -> Result<(), StoreError> {
    Merge { shared, volume, steps, gone, outlet, at: None }.run()
}

struct Merge<'a> {
    shared: &'a Shared,
    volume: &'a VolumeName,
    steps: &'a BTreeMap<PointId, Step>,
    gone: &'a HashSet<PointId>,
    outlet: &'a mut dyn Outlet,
    at: Option<Walk>,
}

/// The tree of a point that stays, twice: as it was, and by merged operations.
struct Walk {
    at: PointId,
    tree: Tree,
    merged: Tree,
    /// What opening this point replays since the last checkpoint, in the measure of checkpoints.
    replay_bytes: u64,
}

impl<'a> Merge<'a> {
    fn run(&mut self) -> Result<(), StoreError> {
        let staying = self.steps.iter().filter(|(id, _)| !self.gone.contains(*id));
        for (id, step) in staying.filter(|(_, step)| step.on.is_some_and(|on| self.gone.contains(&on))) {
            self.shared.check_stop()?;
            let (on, way) = self.way_back(step)?;
            match on {
                Some(on) => self.merge(*id, on, &way)?,
                None => self.anchor(*id)?,
            }
        }
        Ok(())
    }

    /// The nearest point that stays on the way back, and what lies between, oldest first, the point itself included.
    fn way_back(&self, step: &'a Step) -> Result<(Option<PointId>, Vec<&'a Step>), StoreError> {
        let mut way = vec![step];
        let mut on = step.on;
        while let Some(id) = on.filter(|id| self.gone.contains(id)) {
            let next = self.steps.get(&id).ok_or_else(|| self.damaged(step.point.id, Cause::Missing(id)))?;
            way.push(next);
            on = next.on;
        }
        way.reverse();
        Ok((on, way))
    }

    fn merge(&mut self, id: PointId, on: PointId, way: &[&Step]) -> Result<(), StoreError> {
        let mut walk = match self.at.take().filter(|walk| walk.at == on) {
            Some(walk) => walk,
            None => {
                let tree = self.shared.tree_at(self.volume, on)?;
                Walk { at: on, merged: tree.clone(), tree, replay_bytes: 0 }
            }
        };
        let mut touched = Touched::default();
        for step in way {
            self.shared.replay(self.volume, step, &mut walk.tree, &mut |op| touched.add(op))?;
        }
        let ops = touched.merge(&walk.merged, &walk.tree);
        let applied = ops.iter().try_for_each(|op| walk.merged.apply(op));
        applied
            .and_then(|()| walk.merged.seal().map(drop))
            .map_err(|error| self.damaged(id, error.into()))?;
        let digest = self.steps[&id].point.cut.digest;
        if walk.tree.digest() != digest || walk.merged.digest() != digest {
            return Err(self.damaged(id, Cause::Digest));
        }
        walk.at = id;
        walk.replay_bytes += limits::CHECKPOINT_COMMIT_BYTES + self.outlet.merged(id, Some(on), ops)?;
        if walk.replay_bytes >= limits::CHECKPOINT_REPLAY_BYTES {
            self.outlet.checkpoint(id, &walk.merged)?;
            walk.replay_bytes = 0;
        }
        self.at = Some(walk);
        Ok(())
    }

    /// Nothing older stays on the way back of this point.
    fn anchor(&mut self, id: PointId) -> Result<(), StoreError> {
        let tree = self.shared.tree_at(self.volume, id)?;
        self.outlet.checkpoint(id, &tree)?;
        self.outlet.merged(id, None, Vec::new())?;
        self.at = Some(Walk { at: id, merged: tree.clone(), tree, replay_bytes: 0 });
        Ok(())
    }

    fn damaged(&self, point: PointId, cause: Cause) -> StoreError {
        StoreError::Damaged { volume: self.volume.clone(), point, cause }
    }
}

/// To the log.
struct Append<'a> {
    shared: &'a Shared,
    volume: &'a VolumeName,
    room: Room,
    batch: Batch,
    merged: u64,
}

impl Append<'_> {
    /// Waits until everything merged so far is durable.
    fn flush(&mut self) -> Result<(), StoreError> {
        let batch = std::mem::take(&mut self.batch).within(self.room);
        if batch.is_empty() { Ok(()) } else { self.shared.inbox.push(batch, None).wait() }
    }
}

impl Outlet for Append<'_> {
    fn merged(&mut self, point: PointId, on: Option<PointId>, ops: Vec<Op>) -> Result<u64, StoreError> {
        let ops = encode_model_ops(ops);
        let bytes = ops.iter().map(|part| part.len() as u64).sum();
        self.merged += 1;
        self.batch.push(Record::Merged { volume: self.volume.clone(), point, on, ops });
        if self.batch.bytes() >= limits::THIN_BATCH_BYTES {
            self.flush()?;
        }
        Ok(bytes)
    }

    fn checkpoint(&mut self, point: PointId, tree: &Tree) -> Result<(), StoreError> {
        self.flush()?;
        checkpoint::write_tree(self.shared, self.volume, point, tree, self.room).map(drop)
    }
}

/// Drops points that nothing builds on any more, newest first: what is left builds on what is left, whenever this ends.
fn drop_points(
    shared: &Shared,
    volume: &VolumeName,
    room: Room,
    info: &VolumeInfo,
    steps: &BTreeMap<PointId, Step>,
    gone: &HashSet<PointId>,
) -> Result<(), StoreError> {
    let mut runs = runs_of(steps.keys().copied(), gone);
    let staying = steps.iter().filter(|(id, _)| !gone.contains(*id));
    let kept_oldest = staying.map(|(_, step)| step.point.cut.time_ns).min().unwrap_or(info.oldest_ns);
    while !runs.is_empty() {
        let rest = runs.len().saturating_sub(limits::THIN_RUNS);
        let runs = runs.split_off(rest);
        let oldest_ns = if rest == 0 { kept_oldest } else { info.oldest_ns };
        let drop = Record::Drop { volume: volume.clone(), epoch: info.epoch, runs, oldest_ns };
        shared.check_stop()?;
        shared.inbox.push(Batch::of(drop).within(room), None).wait()?;
    }
    Ok(())
}

/// Neighbours that go, as first and last.
fn runs_of(points: impl Iterator<Item = PointId>, gone: &HashSet<PointId>) -> Vec<(PointId, PointId)> {
    let mut runs: Vec<(PointId, PointId)> = Vec::new();
    let mut open = false;
    for id in points {
        let goes = gone.contains(&id);
        match runs.last_mut() {
            Some((first, last)) if goes && open && first.epoch == id.epoch => *last = id,
            _ if goes => runs.push((id, id)),
            _ => {}
        }
        open = goes;
    }
    runs
}
