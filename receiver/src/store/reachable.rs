//! What the points of a store need: which chunks, and how many bytes of each segment.
//!
//! Every point that is there is read: the chunks that its operations name, those of the tree that a chain begins with, and the checkpoints. That
//! is all a point can ever ask for, because its tree is the first tree of its chain changed by these operations.
//!
//! Chunks go by the ids that the index has for them, which are blinded where a tenant is encrypted. They are remembered in a [`Filter`] of at most
//! [`limits::COMPACT_FILTER_BYTES`], so memory does not grow with the store. The price is some garbage that stays.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use tidelock_proto::{
    ChunkId, Epoch, Op, PointId, Seq, Tree, VolumeName,
    wire::{self, messages},
};

use super::{Cause, Shared, StoreError, filter::Filter};
use crate::{
    catalogue::{Step, decode_place, decode_step},
    index::key,
    limits,
    log::{
        Place,
        entry::{CheckpointBody, CommitBody, Kind},
        frame::stride,
    },
};

/// What is needed.
pub(super) struct Reachable {
    filter: Filter,
    /// Bytes that are needed, by segment.
    pub(super) bytes: HashMap<u32, u64>,
    /// Bytes that no point needs and somebody counts on, by segment.
    pub(super) owed: HashMap<u32, u64>,
    /// Points with operations in another segment than their record: that segment, and the point.
    pub(super) strays: Vec<(u32, VolumeName, PointId)>,
}

impl Reachable {
    /// Reads the journals of all volumes. Takes as long as reading all their operations.
    pub(super) fn read(shared: &Shared, log_bytes: u64) -> Result<Self, StoreError> {
        let filter = Filter::new(log_bytes, limits::COMPACT_FILTER_BYTES);
        let mut found = Self { filter, bytes: HashMap::new(), owed: HashMap::new(), strays: Vec::new() };
        let volumes: Vec<VolumeName> = shared.volumes.read().iter().map(|(name, _)| name.clone()).collect();
        for volume in &volumes {
            for space in [key::POINT, key::CHECKPOINT] {
                found.space(shared, volume, space)?;
            }
        }
        found.weigh_chunks(shared)?;
        Ok(found)
    }

    /// Whether a chunk of this blinded id is needed, or looks like one that is.
    pub(super) fn needs(&self, id: &ChunkId) -> bool {
        self.filter.contains(id)
    }

    fn space(&mut self, shared: &Shared, volume: &VolumeName, space: u8) -> Result<(), StoreError> {
        let end = PointId::new(Epoch(u64::MAX), Seq(u64::MAX));
        let (mut next, end) = (key::point(space, volume, PointId::default()), key::point(space, volume, end));
        loop {
            shared.check_stop()?;
            let page = shared.index.range(&next, &end, false, limits::POINTS_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            next = [last, &[0][..]].concat();
            for (entry, value) in &page {
                let id = key::read_point(entry).map_or_else(PointId::default, |(id, _)| id);
                let unreadable = || {
                    let cause = Cause::Unreadable("index entry");
                    StoreError::Damaged { volume: volume.clone(), point: id, cause }
                };
                if space == key::POINT {
                    self.point(shared, volume, &decode_step(value).ok_or_else(unreadable)?)?;
                } else if shared.find_point(volume, id)?.is_some() {
                    let place = decode_place(value).ok_or_else(unreadable)?;
                    shared.needs_of_checkpoint(volume, id, place, &mut |need| match need {
                        Need::Chunk(id) => self.filter.insert(&id),
                        Need::Record(place) => self.weigh(place),
                    })?;
                }
            }
        }
    }

    fn point(&mut self, shared: &Shared, volume: &VolumeName, step: &Step) -> Result<(), StoreError> {
        shared.needs_of_point(volume, step, &mut |need| match need {
            Need::Chunk(id) => self.filter.insert(&id),
            Need::Record(place) => {
                self.weigh(place);
                if place.segment != step.place.segment {
                    self.strays.push((place.segment, volume.clone(), step.point.id));
                }
            }
        })
    }

    fn weigh_chunks(&mut self, shared: &Shared) -> Result<(), StoreError> {
        let mut next = Vec::new();
        loop {
            shared.check_stop()?;
            let page = shared.index.chunks_from(&next, limits::POINTS_PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            next = [last, &[0][..]].concat();
            let found: Vec<(ChunkId, Place)> = page
                .iter()
                .filter_map(|(entry, value)| Some((key::chunk_id(entry)?, decode_place(value)?)))
                .collect();
            let owed = shared.owed.counts_on(found.iter().map(|(id, _)| id));
            for ((id, place), owed) in found.into_iter().zip(owed) {
                if self.needs(&id) {
                    self.weigh(place);
                } else if owed {
                    *self.owed.entry(place.segment).or_default() += stride(place.len as usize);
                }
            }
        }
    }

    fn weigh(&mut self, place: Place) {
        *self.bytes.entry(place.segment).or_default() += stride(place.len as usize);
    }
}

/// Something that a point or a checkpoint needs.
pub(super) enum Need {
    /// A record of its own.
    Record(Place),
    /// A chunk, by the id that the index has for it; the same one may come again.
    Chunk(ChunkId),
}

impl Shared {
    /// What a point needs, its checkpoint left out: its record first, then the parts of its operations and their chunks, and those of the tree that a chain begins with.
    pub(super) fn needs_of_point(
        &self,
        volume: &VolumeName,
        step: &Step,
        each: &mut dyn FnMut(Need),
    ) -> Result<(), StoreError> {
        let id = step.point.id;
        let (body, parts) = self.operations(volume, step)?;
        each(Need::Record(step.place));
        body.parts.iter().for_each(|part| each(Need::Record(Place::from(*part))));
        for part in parts {
            let unreadable = || {
                let cause = Cause::Unreadable("a part of its operations");
                StoreError::Damaged { volume: volume.clone(), point: id, cause }
            };
            let ops = messages::Ops::decode(part).map_err(|_| unreadable())?;
            for op in wire::decode_ops(ops.ops).map_err(|_| unreadable())? {
                self.needs_of_op(volume, &op, each);
            }
        }
        if step.on.is_none() {
            self.needs_of_tree(volume, &self.tree_at(volume, id)?, each);
        }
        Ok(())
    }

    /// The chunks that an operation names.
    pub(super) fn needs_of_op(&self, volume: &VolumeName, op: &Op, each: &mut dyn FnMut(Need)) {
        let Op::Write { pieces, .. } = op else { return };
        let chunks = pieces.iter().filter_map(|piece| piece.chunk);
        chunks.for_each(|chunk| each(Need::Chunk(self.vault.blind(volume.tenant(), &chunk.id))));
    }

    /// The chunks of a tree.
    pub(super) fn needs_of_tree(&self, volume: &VolumeName, tree: &Tree, each: &mut dyn FnMut(Need)) {
        let extents = tree.iter().filter_map(|(_, inode)| inode.extents());
        let chunks = extents.flat_map(|extents| extents.iter().map(|(_, extent)| extent.chunk.id));
        chunks.for_each(|id| each(Need::Chunk(self.vault.blind(volume.tenant(), &id))));
    }

    /// What a checkpoint needs. One that cannot be read is an error: it is not used either, but then the store is not to be touched.
    pub(super) fn needs_of_checkpoint(
        &self,
        volume: &VolumeName,
        point: PointId,
        place: Place,
        each: &mut dyn FnMut(Need),
    ) -> Result<(), StoreError> {
        let unreadable = || {
            let cause = Cause::Unreadable("checkpoint");
            StoreError::Damaged { volume: volume.clone(), point, cause }
        };
        let body = self.log.read(place, Kind::Checkpoint).map_err(StoreError::from);
        let body = body.map_err(|error| if error.is_absent() { error } else { unreadable() })?;
        each(Need::Record(place));
        for id in CheckpointBody::decode(body).map_err(|_| unreadable())?.chunks.chunks(32) {
            let id = ChunkId::from_slice(id).ok_or_else(unreadable)?;
            each(Need::Chunk(self.vault.blind(volume.tenant(), &id)));
        }
        Ok(())
    }

    /// The record of a point, and the parts of its operations.
    pub(super) fn operations(
        &self,
        volume: &VolumeName,
        step: &Step,
    ) -> Result<(CommitBody, Vec<Bytes>), StoreError> {
        let unreadable = |_| {
            let cause = Cause::Unreadable("commit");
            StoreError::Damaged { volume: volume.clone(), point: step.point.id, cause }
        };
        let body = CommitBody::decode(self.log.read(step.place, step.kind)?).map_err(unreadable)?;
        let mut parts = Vec::new();
        if !body.ops.is_empty() {
            parts.push(body.ops.clone());
        }
        for part in &body.parts {
            parts.push(self.log.read((*part).into(), Kind::Ops)?);
        }
        Ok((body, parts))
    }
}
