//! What [`crate::verify`] and [`crate::history`] ask a store, beyond what it offers to everybody: places, and the log as it is.

use std::collections::BTreeSet;

use bytes::Bytes;
use tidelock_proto::{ChunkId, Op, PointId, Tree, VolumeName, tree::TreeError};

use super::{Store, StoreError, open::store_id};
use crate::{
    catalogue::{Step, decode_content_len, decode_place, decode_step},
    index::{Table, key},
    limits,
    log::{
        Mark, Place,
        entry::Kind,
        frame::RECORD_HEADER_BYTES,
        outline::Outline,
        part::PartDisk,
        scan::{Bound, Found, Outcome, scan_until},
    },
    vault::Vault,
};

/// A point of the index, with where its operations are; without it if its entry cannot be read.
pub(crate) type PlacedPoint = (PointId, Option<Step>);

impl Store {
    /// No segment is removed until the answer is dropped.
    pub(crate) fn keep_segments(&self) -> parking_lot::RwLockReadGuard<'_, ()> {
        self.shared().segments.read()
    }

    /// Whether any segments were retired.
    pub(crate) fn has_retired(&self) -> Result<bool, StoreError> {
        Ok(!self.shared().retired()?.runs.is_empty())
    }

    /// Whether a segment may be missing.
    pub(crate) fn is_retired(&self, segment: u32) -> Result<bool, StoreError> {
        Ok(self.shared().retired()?.contains(segment))
    }

    /// The segments before this one that are not among these and should be.
    pub(crate) fn lost_segments(
        &self,
        there: &BTreeSet<u32>,
        before: u32,
    ) -> Result<BTreeSet<u32>, StoreError> {
        let retired = self.shared().retired()?;
        let missing = (1..before).filter(|segment| !there.contains(segment));
        Ok(missing.filter(|segment| !retired.contains(*segment)).collect())
    }

    /// The keys of this store.
    pub(crate) fn vault(&self) -> &Vault {
        &self.shared().vault
    }

    /// Up to where the log is durable now; `None` if there is none.
    pub(crate) fn durable_mark(&self) -> Option<Mark> {
        self.shared().index.covered().filter(|mark| mark.number > 0)
    }

    /// Where the log's segments are.
    pub(crate) fn log_disk(&self) -> &dyn crate::log::disk::Disk {
        self.shared().log.disk()
    }

    /// The identity in the log's segments.
    pub(crate) fn log_id(&self) -> Result<Option<[u8; 16]>, StoreError> {
        store_id(self.shared().log.disk())
    }

    /// The index lacks what the log has by now: it is made anew when the store is opened the next time.
    pub(crate) fn forget_index(&self) -> Result<(), StoreError> {
        Ok(self.shared().index.set_stale()?)
    }

    /// The number of the newest record that is durable; 0 if there is none.
    pub(crate) fn durable_number(&self) -> u64 {
        self.durable_mark().map_or(0, |mark| mark.number)
    }

    /// Refuses while parts of the log are only in the archive.
    pub(super) fn check_whole(&self, what: &'static str) -> Result<(), StoreError> {
        match self.log_disk().parts().is_some_and(PartDisk::is_filling) {
            true => Err(StoreError::Filling(what)),
            false => Ok(()),
        }
    }

    /// The segments that are only partly here, if there may be any.
    pub(crate) fn parts(&self) -> Option<PartDisk> {
        self.log_disk().parts().cloned()
    }

    /// Fetches all that is only in the archive, if it can be had. What the archive has lost reads like a bad sector from then on.
    pub(crate) fn complete(&self) -> Result<(), StoreError> {
        if let Some(parts) = self.log_disk().parts() {
            while parts.fill()? {
                self.shared().check_stop()?;
            }
        }
        Ok(())
    }

    /// The outline of a sealed segment; `None` if something in it is damaged or a key is not here.
    pub(crate) fn outline(&self, segment: u32) -> Result<Option<Bytes>, StoreError> {
        let shared = self.shared();
        match store_id(shared.log.disk())? {
            Some(store) => Ok(Outline::make(shared.log.disk(), store, segment, &shared.vault)?),
            None => Ok(None),
        }
    }

    /// Bytes of the log up to a mark.
    pub(crate) fn log_bytes(&self, until: Mark) -> u64 {
        let disk = self.shared().log.disk();
        let segments = disk.list().unwrap_or_default().into_iter().filter(|at| *at < until.segment);
        let len = |segment| disk.open(segment).and_then(|file| file.len()).unwrap_or(0);
        segments.map(len).sum::<u64>() + u64::from(until.offset)
    }

    /// Reads the log as it is on disk.
    pub(crate) fn scan_log(
        &self,
        bound: Bound<'_>,
        visit: &mut dyn FnMut(Found),
    ) -> Result<Outcome, StoreError> {
        let disk = self.shared().log.disk();
        let Some(store) = store_id(disk)? else {
            // Not one header can be read: the reading says so of each segment.
            return Ok(scan_until(disk, [0; 16], bound, visit)?);
        };
        Ok(scan_until(disk, store, bound, visit)?)
    }

    /// Where the index says a chunk is.
    pub(crate) fn chunk_place(&self, tenant: &str, id: &ChunkId) -> Result<Option<Place>, StoreError> {
        let value = self.shared().index.get(Table::Chunks, &self.shared().chunk_key(tenant, id))?;
        Ok(value.and_then(|value| decode_place(&value)))
    }

    /// Those of the places at which the index has a chunk.
    pub(crate) fn chunks_at(
        &self,
        places: &BTreeSet<(u32, u32)>,
    ) -> Result<BTreeSet<(u32, u32)>, StoreError> {
        let (mut found, mut next) = (BTreeSet::new(), Vec::new());
        loop {
            let page = self.shared().index.chunks_from(&next, limits::POINTS_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            next = [last, &[0][..]].concat();
            let at =
                page.iter().filter_map(|(_, value)| decode_place(value)).map(|at| (at.segment, at.offset));
            found.extend(at.filter(|at| places.contains(at)));
        }
    }

    /// Reads a segment anew from now on: it was written.
    pub(crate) fn forget_segment(&self, segment: u32) {
        self.shared().log.forget(segment);
    }

    /// The length of a chunk's content, and of its record in the log, in bytes, as the index has them.
    pub(crate) fn chunk_size(&self, tenant: &str, id: &ChunkId) -> Result<Option<(u64, u64)>, StoreError> {
        let value = self.shared().index.get(Table::Chunks, &self.shared().chunk_key(tenant, id))?;
        let size = |value: Vec<u8>| {
            let stored = RECORD_HEADER_BYTES as u64 + u64::from(decode_place(&value)?.len);
            Some((u64::from(decode_content_len(&value)?), stored))
        };
        Ok(value.and_then(size))
    }

    /// Whether the index knows a point whose record was found at a place: by that record, or by another one that is intact.
    /// One that was dropped needs not to be known.
    pub(crate) fn knows_point(
        &self,
        volume: &VolumeName,
        id: PointId,
        found: Place,
    ) -> Result<bool, StoreError> {
        let value = self.shared().index.get(Table::Catalogue, &key::point(key::POINT, volume, id))?;
        if let Some(value) = value {
            let intact = |step: Step| step.place == found || self.is_intact(step.place, step.kind);
            return Ok(decode_step(&value).is_some_and(intact));
        }
        if self.deleted(volume).is_some_and(|epoch| id.epoch < epoch) {
            return Ok(true);
        }
        if self.volume(volume).is_none_or(|info| info.last.id == id) {
            return Ok(false);
        }
        Ok(matches!(self.shared().point(volume, id), Err(StoreError::NoSuchPoint(..))))
    }

    /// Whether an intact record of this kind is at a place.
    pub(crate) fn is_intact(&self, place: Place, kind: Kind) -> bool {
        self.shared().log.is_intact(place, kind)
    }

    /// At most `limit` points from `first` on, oldest first, with the places of their commits.
    pub(crate) fn placed_points(
        &self,
        volume: &VolumeName,
        first: PointId,
        limit: usize,
    ) -> Result<Vec<PlacedPoint>, StoreError> {
        let end = PointId::new(tidelock_proto::Epoch(u64::MAX), tidelock_proto::Seq(u64::MAX));
        let (from, to) = (key::point(key::POINT, volume, first), key::point(key::POINT, volume, end));
        let pairs = self.shared().index.range(&from, &to, false, limit)?;
        let read =
            |(entry, value): &(Vec<u8>, Vec<u8>)| Some((key::read_point(entry)?.0, decode_step(value)));
        Ok(pairs.iter().filter_map(read).collect())
    }

    /// Where the index says a point's checkpoint is.
    pub(crate) fn checkpoint_place(
        &self,
        volume: &VolumeName,
        id: PointId,
    ) -> Result<Option<Place>, StoreError> {
        let value = self.shared().index.get(Table::Catalogue, &key::point(key::CHECKPOINT, volume, id))?;
        Ok(value.and_then(|value| decode_place(&value)))
    }

    /// The tree of a checkpoint, which has the digest of its point.
    pub(crate) fn checkpoint_at(
        &self,
        volume: &VolumeName,
        id: PointId,
        place: Place,
    ) -> Result<Tree, StoreError> {
        self.shared().load_checkpoint(volume, id, place)
    }

    /// Applies the operations of a point to the tree of what it builds on, and shows each of them.
    pub(crate) fn replay_commit(
        &self,
        volume: &VolumeName,
        step: &Step,
        tree: &mut Tree,
        each: &mut dyn FnMut(&Op),
    ) -> Result<(), StoreError> {
        self.shared().replay(volume, step, tree, each)
    }

    /// Hands the operations of a point to whoever applies them and seals the tree after them.
    pub(crate) fn ops_of(
        &self,
        volume: &VolumeName,
        step: &Step,
        apply: &mut dyn FnMut(&Op) -> Result<(), TreeError>,
    ) -> Result<(), StoreError> {
        self.shared().each_op(volume, step, apply)
    }
}

#[cfg(test)]
impl Store {
    /// Makes the index wrong about a chunk.
    pub(super) fn misplace_chunk(&self, tenant: &str, id: ChunkId, place: Place) {
        use prost::Message;
        let value = crate::log::entry::PlaceMessage::from(place).encode_to_vec();
        let put = crate::index::Put {
            table: Table::Chunks,
            key: self.shared().chunk_key(tenant, &id),
            value: Some(value),
        };
        let mark = self.durable_mark().expect("something was written");
        self.shared().index.put(vec![put], mark).expect("the index takes it");
    }
}
