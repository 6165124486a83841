//! Deleting a volume while the receiver runs. Compaction gives the space back.
//!
//! A deleted volume is a journal in which no point stays, and whose entry of the catalogue says from which epoch on it may begin anew: one above its last.
//! So whoever wrote it is refused, and does not seed it again at once because he finds it empty; and points of before and after can be told apart by their numbers alone, whatever
//! order compaction has brought their records into. Entries of deleted volumes stay for good: about 200 bytes each.
//!
//! **The first record decides.** With it the volume is gone for everybody, and for a log that is read anew. Its points leave the index some at a time, so that no group of
//! records is much larger than another; what a crash leaves of them is removed before the next compaction looks at what is needed, and by the first commit of a new volume of
//! the name.
//!
//! **No chunk of another volume goes.** A deletion removes no chunk. It only takes points away, and compaction takes chunks that no point of any volume needs, and nobody counts on:
//! - What other volumes' points need is read from these points themselves, whoever sent the chunk first ([`super::reachable`]).
//! - A session that was told "I have it" of a chunk which only this volume needed has a lease on it ([`super::owed`]) until its commit is durable, and until the end of a compaction that
//!   was under way. So have checkpoints, and clones: a clone may be made behind the back of a compaction that looks at its origin after this was deleted.
//! - A compaction that comes to a volume while it goes finds less than there was, and what it does not find is not needed. One that finds a contradiction ends, and is begun anew.
//!
//! A volume one of whose points somebody has open is not deleted: he needs its chunks until he is done, and only the point says so.
//!
//! **Space.** The first record begins a segment, if there is room for one: so that all that the volume had is in segments which can be removed, and in the archive, which follows.

use tidelock_proto::{Epoch, PointId, Seq, VolumeName};

use super::{Batch, Record, Shared, Store, StoreError, batch::Room, read::rest_of};
use crate::{index::key, limits};

/// What a deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// Points that are gone.
    pub points: u64,
    /// The epoch from which on a volume of this name may begin.
    pub epoch: Epoch,
}

impl Store {
    /// Deletes a volume, whose epoch must be `expected`, with all its points, durably. Nobody may be writing it. Not for a thread that must not block.
    pub fn delete(&self, volume: &VolumeName, expected: Epoch) -> Result<Deleted, StoreError> {
        self.volume(volume).ok_or_else(|| self.no_volume(volume))?;
        let points =
            self.shared().delete_points(volume, Some(expected), limits::DELETE_POINTS, usize::MAX)?;
        let epoch = self.deleted(volume).unwrap_or_else(|| expected.next());
        Ok(Deleted { points, epoch })
    }

    /// Of a volume that was deleted: from which epoch on it may begin anew.
    pub fn deleted(&self, volume: &VolumeName) -> Option<Epoch> {
        self.shared().volumes.read().entry(volume).filter(|info| info.deleted).map(|info| info.epoch)
    }

    /// Those that were deleted and did not begin anew.
    pub(crate) fn deleted_volumes(&self) -> Vec<VolumeName> {
        let volumes = self.shared().volumes.read();
        volumes.iter().filter(|(_, info)| info.deleted).map(|(name, _)| name.clone()).collect()
    }

    /// Takes from the index what interrupted deletions have left there.
    pub(super) fn finish_deletions(&self) -> Result<(), StoreError> {
        let shared = self.shared();
        let all = shared.volumes.read().clone();
        for (volume, info) in all.iter().filter(|(_, info)| info.deleted) {
            let end = info.end_of_deleted();
            if shared.next_points(volume, end, 1)?.is_some()
                || !rest_of(&shared.index, volume, end)?.is_empty()
            {
                shared.delete_points(volume, None, limits::DELETE_POINTS, usize::MAX)?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Deletes a volume's points, at most `steps` times so many; how many went.
    pub(super) fn delete_points(
        &self,
        volume: &VolumeName,
        mut expected: Option<Epoch>,
        limit: usize,
        steps: usize,
    ) -> Result<u64, StoreError> {
        let mut gone = 0;
        for _ in 0..steps {
            let end = match expected {
                Some(_) => Some(PointId::new(Epoch(u64::MAX), Seq(u64::MAX))),
                None => self.volumes.read().end_of_deleted(volume),
            };
            let Some(end) = end else { break };
            let (count, last) = self.next_points(volume, end, limit)?.unwrap_or_default();
            // With the last points goes whatever else is left.
            let upto = if count < limit { end } else { last };
            let record = Record::Delete { volume: volume.clone(), expected, upto };
            self.inbox.push(Batch::of(record).within(Room::Relief), None).wait()?;
            gone += count as u64;
            if count < limit {
                break;
            }
            expected = None;
        }
        Ok(gone)
    }

    /// The oldest points in the index up to `end`: how many, and the last of them.
    fn next_points(
        &self,
        volume: &VolumeName,
        end: PointId,
        limit: usize,
    ) -> Result<Option<(usize, PointId)>, StoreError> {
        let (from, to) =
            (key::point(key::POINT, volume, PointId::default()), key::point(key::POINT, volume, end));
        let page = self.index.range(&from, &to, false, limit)?;
        Ok(page.last().and_then(|(last, _)| Some((page.len(), key::read_point(last)?.0))))
    }
}
