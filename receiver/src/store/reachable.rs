//! What the points of a store need: which chunks, and how many bytes of each segment.
//!
//! Every point that is there is read: the chunks that its operations name, those of the tree that a chain begins with, and the checkpoints. That
//! is all a point can ever ask for, because its tree is the first tree of its chain changed by these operations.
//!
//! Chunks go by the ids that the index has for them, which are blinded where a tenant is encrypted. Memory does not grow with the store: they are remembered in a Bloom filter of at most [`limits::COMPACT_FILTER_BYTES`] (B. H. Bloom, "Space/Time Trade-offs in
//! Hash Coding with Allowable Errors", 1970). It may say that a chunk is needed which is not, never the other way round: the price is some garbage that stays.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message;
use tidelock_proto::{
    ChunkId, Epoch, Op, PointId, Seq, VolumeName,
    wire::{self, messages},
};

use super::{Cause, Shared, StoreError};
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
        let filter = Filter::new(log_bytes);
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
                    self.checkpoint(shared, volume, decode_place(value).ok_or_else(unreadable)?)
                        .ok_or_else(unreadable)?;
                }
            }
        }
    }

    fn point(&mut self, shared: &Shared, volume: &VolumeName, step: &Step) -> Result<(), StoreError> {
        let id = step.point.id;
        let (body, parts) = shared.operations(volume, step)?;
        let blind = |id: &ChunkId| shared.vault.blind(volume.tenant(), id);
        self.weigh(step.place);
        for part in &body.parts {
            let place = Place::from(*part);
            self.weigh(place);
            if place.segment != step.place.segment {
                self.strays.push((place.segment, volume.clone(), id));
            }
        }
        for part in parts {
            let unreadable = || {
                let cause = Cause::Unreadable("a part of its operations");
                StoreError::Damaged { volume: volume.clone(), point: id, cause }
            };
            let ops = messages::Ops::decode(part).map_err(|_| unreadable())?;
            for op in wire::decode_ops(ops.ops).map_err(|_| unreadable())? {
                let Op::Write { pieces, .. } = op else { continue };
                pieces
                    .iter()
                    .filter_map(|piece| piece.chunk)
                    .for_each(|chunk| self.filter.insert(&blind(&chunk.id)));
            }
        }
        if step.on.is_none() {
            let tree = shared.tree_at(volume, id)?;
            let extents = tree.iter().filter_map(|(_, inode)| inode.extents());
            extents
                .flat_map(|extents| extents.iter())
                .for_each(|(_, extent)| self.filter.insert(&blind(&extent.chunk.id)));
        }
        Ok(())
    }

    fn checkpoint(&mut self, shared: &Shared, volume: &VolumeName, place: Place) -> Option<()> {
        // One that cannot be read is not used either, but then the store is not to be touched.
        let body = shared.log.read(place, Kind::Checkpoint).ok()?;
        self.weigh(place);
        for id in CheckpointBody::decode(body).ok()?.chunks.chunks(32) {
            self.filter.insert(&shared.vault.blind(volume.tenant(), &ChunkId::from_slice(id)?));
        }
        Some(())
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

impl Shared {
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

struct Filter {
    words: Vec<u64>,
}

impl Filter {
    /// Sixteen bits for each 4 KiB of the log, as far as the limit goes.
    fn new(log_bytes: u64) -> Self {
        let words = (log_bytes / 4096 / 4).clamp(1024, limits::COMPACT_FILTER_BYTES / 8);
        Self { words: vec![0; words.next_power_of_two() as usize] }
    }

    fn bits(&self, id: &ChunkId) -> impl Iterator<Item = (usize, u64)> + use<> {
        let number = |at: usize| u64::from_le_bytes(id.0[at..at + 8].try_into().expect("eight bytes"));
        let (first, step, mask) = (number(8), number(16) | 1, self.words.len() as u64 * 64 - 1);
        (0..6u64).map(move |turn| {
            let bit = first.wrapping_add(step.wrapping_mul(turn)) & mask;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    fn insert(&mut self, id: &ChunkId) {
        self.bits(id).for_each(|(word, bit)| self.words[word] |= bit);
    }

    fn contains(&self, id: &ChunkId) -> bool {
        self.bits(id).all(|(word, bit)| self.words[word] & bit != 0)
    }
}
