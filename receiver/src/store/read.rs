//! Points, trees and chunks: everything a store is asked for.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use tidelock_proto::{
    ChunkId, ChunkKey, Epoch, Op, PointId, Seq, Tree, VolumeName,
    chunk::{self, Codec},
    point::Point,
    tree::TreeError,
    wire::{self, messages},
};

use super::{Cause, Shared, StoreError};
use crate::{
    catalogue::{Step, decode_place, decode_point, decode_step, is_hold},
    index::{Index, KvError, Table, key},
    log::{
        LogError, Place,
        entry::{CheckpointBody, ChunkEntry, CommitBody, Kind},
    },
};

/// A chunk as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChunk {
    /// How the payload is stored.
    pub codec: Codec,
    /// Length of the content, in bytes.
    pub len: u32,
    /// The stored bytes.
    pub payload: Bytes,
}

/// Points fetched from the index at once.
const PAGE: usize = 4096;

/// How a tree is built: from a checkpoint or from nothing, by these commits, oldest first.
struct Plan {
    checkpoint: Option<(PointId, Place)>,
    commits: Vec<Step>,
}

impl Shared {
    pub(super) fn find_point(
        &self,
        volume: &VolumeName,
        id: PointId,
    ) -> Result<Option<(Place, Point)>, StoreError> {
        let value = self.index.get(Table::Catalogue, &key::point(key::POINT, volume, id))?;
        value
            .map(|value| decode_point(&value).ok_or_else(|| unreadable(volume, id, "index entry")))
            .transpose()
    }

    /// The point, or why there is none.
    pub(super) fn point(&self, volume: &VolumeName, id: PointId) -> Result<(Place, Point), StoreError> {
        // A deleted one may have points in the index for a while.
        if self.volumes.read().get(volume).is_none() {
            return Err(self.no_volume(volume));
        }
        if let Some(found) = self.find_point(volume, id)? {
            return Ok(found);
        }
        let after = key::point(key::POINT, volume, PointId::new(id.epoch, id.seq.next()));
        let end = key::point(key::POINT, volume, PointId::new(id.epoch.next(), Seq(0)));
        // Where a later one builds on this one or on what came between, this one should be there.
        let later = self.index.range(&after, &end, false, 1)?;
        let step = later.first().and_then(|(_, value)| decode_step(value));
        if id.seq.0 > 0 && step.is_some_and(|step| step.on.is_some_and(|on| on >= id)) {
            return Err(damaged(volume, id, Cause::Missing(id)));
        }
        Err(StoreError::NoSuchPoint(volume.clone(), id))
    }

    /// The points from `first` to `last`, both included: the newest or the oldest `limit` of them, oldest first, with their
    /// tags.
    pub(super) fn points(
        &self,
        volume: &VolumeName,
        first: PointId,
        last: PointId,
        newest: bool,
        limit: usize,
    ) -> Result<Vec<Point>, StoreError> {
        if self.volumes.read().get(volume).is_none() {
            return Err(self.no_volume(volume));
        }
        let (from, to) = (key::point(key::POINT, volume, first), end_key(key::POINT, volume, last));
        let mut points = Vec::new();
        let mut pairs = self.index.range(&from, &to, newest, limit)?;
        if newest {
            pairs.reverse();
        }
        for (entry, value) in &pairs {
            let id = key::read_point(entry).map_or_else(PointId::default, |(id, _)| id);
            points.push(decode_point(value).ok_or_else(|| unreadable(volume, id, "index entry"))?.1);
        }
        if let (Some(oldest), Some(newest)) = (points.first(), points.last()) {
            let mut tags = self.tags(volume, oldest.id, newest.id)?;
            for point in &mut points {
                point.tags = tags.remove(&point.id).unwrap_or_default();
            }
        }
        Ok(points)
    }

    /// The tags of the points from `first` to `last`, both included.
    pub(super) fn tags(
        &self,
        volume: &VolumeName,
        first: PointId,
        last: PointId,
    ) -> Result<BTreeMap<PointId, Vec<String>>, StoreError> {
        let (from, to) = (key::point(key::TAG, volume, first), end_key(key::TAG, volume, last));
        let mut tags: BTreeMap<PointId, Vec<String>> = BTreeMap::new();
        for (entry, _) in self.index.range(&from, &to, false, usize::MAX)? {
            if let Some((id, tag)) = key::read_point(&entry) {
                tags.entry(id).or_default().push(String::from_utf8_lossy(tag).into_owned());
            }
        }
        Ok(tags)
    }

    /// The tree of a point: the nearest checkpoint that can be read, and the commits after it.
    pub(super) fn tree_at(&self, volume: &VolumeName, id: PointId) -> Result<Tree, StoreError> {
        self.again(|| self.tree_once(volume, id))
    }

    fn tree_once(&self, volume: &VolumeName, id: PointId) -> Result<Tree, StoreError> {
        let mut unread = None;
        match self.build(volume, id, &mut unread) {
            // It may be whole: what it was to be built from could not be read this time.
            Err(error) if error.is_damage() => Err(unread.unwrap_or(error)),
            built => built,
        }
    }

    /// See [`Self::tree_at`]. In `unread` is why a checkpoint was passed over that is not known to be damaged.
    fn build(
        &self,
        volume: &VolumeName,
        id: PointId,
        unread: &mut Option<StoreError>,
    ) -> Result<Tree, StoreError> {
        let moves = self.moves.count();
        let (_, point) = self.point(volume, id)?;
        let mut unusable = BTreeSet::new();
        loop {
            let plan = self.plan(volume, &point, &unusable)?;
            let mut tree = match plan.checkpoint {
                None => Tree::new(),
                Some((at, place)) => match self.load_checkpoint(volume, at, place) {
                    Ok(tree) => tree,
                    // It is elsewhere by now.
                    Err(error) if error.is_damage() && self.moves.since(moves) => {
                        return Err(error);
                    }
                    Err(error) if error.is_damage() || error.is_lost() => {
                        tracing::error!(%volume, point = %at, %error, "checkpoint is damaged; replaying from an older one");
                        unusable.insert(at);
                        continue;
                    }
                    Err(error) if error.is_unread() => {
                        tracing::error!(%volume, point = %at, %error, "checkpoint cannot be read; replaying from an older one");
                        unusable.insert(at);
                        unread.get_or_insert(error);
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            for step in &plan.commits {
                self.replay(volume, step, &mut tree, &mut |_| {})
                    .map_err(|error| self.blame(error, volume, id))?;
            }
            if tree.digest() != point.cut.digest {
                return Err(damaged(volume, id, Cause::Digest));
            }
            return Ok(tree);
        }
    }

    /// Walks from the point back to a checkpoint or the volume's beginning, epoch by epoch.
    fn plan(
        &self,
        volume: &VolumeName,
        point: &Point,
        unusable: &BTreeSet<PointId>,
    ) -> Result<Plan, StoreError> {
        let mut at = point.id;
        let mut commits = Vec::new();
        let checkpoint = loop {
            let checkpoint = self.checkpoint_before(volume, at, unusable)?;
            let first = checkpoint.map_or(Seq(1), |(id, _)| id.seq.next());
            let parent = self.commits_back(volume, at, first, point.id, &mut commits)?;
            match (checkpoint, parent) {
                (Some(checkpoint), parent) if parent == Some(checkpoint.0) => break Some(checkpoint),
                // Without a checkpoint in this epoch, or past one of a point that is about to be dropped.
                (_, None) => break None,
                (_, Some(parent)) => at = parent,
            }
        };
        commits.reverse();
        Ok(Plan { checkpoint, commits })
    }

    /// Adds the points from `last` back to number `first` of its epoch, as they build on each other; the answer is what the
    /// last one added builds on.
    fn commits_back(
        &self,
        volume: &VolumeName,
        last: PointId,
        first: Seq,
        wanted: PointId,
        commits: &mut Vec<Step>,
    ) -> Result<Option<PointId>, StoreError> {
        let from = key::point(key::POINT, volume, PointId::new(last.epoch, first));
        let mut next = Some(last);
        while let Some(id) = next.filter(|id| id.epoch == last.epoch && id.seq >= first) {
            let page = self.index.range(&from, &end_key(key::POINT, volume, id), true, PAGE)?;
            if page.is_empty() {
                return Err(damaged(volume, wanted, Cause::Missing(id)));
            }
            for (_, value) in page {
                // A page may reach beyond where the chain leaves the epoch.
                let Some(id) = next.filter(|id| id.epoch == last.epoch && id.seq >= first) else { break };
                let step = decode_step(&value).ok_or_else(|| unreadable(volume, id, "index entry"))?;
                if step.point.id > id {
                    // It is about to be dropped: what follows it builds on an older one already.
                    continue;
                }
                if step.point.id < id || step.on.is_some_and(|on| on >= id) {
                    return Err(damaged(volume, wanted, Cause::Missing(id)));
                }
                next = step.on;
                commits.push(step);
            }
        }
        Ok(next)
    }

    /// The newest checkpoint of the point's epoch at or before it.
    pub(super) fn checkpoint_before(
        &self,
        volume: &VolumeName,
        id: PointId,
        unusable: &BTreeSet<PointId>,
    ) -> Result<Option<(PointId, Place)>, StoreError> {
        let from = key::point(key::CHECKPOINT, volume, PointId::new(id.epoch, Seq(0)));
        let to = end_key(key::CHECKPOINT, volume, id);
        for (entry, value) in self.index.range(&from, &to, true, 1 + unusable.len())? {
            let read = key::read_point(&entry).zip(decode_place(&value));
            if let Some(((id, _), place)) = read.filter(|((id, _), _)| !unusable.contains(id)) {
                return Ok(Some((id, place)));
            }
        }
        Ok(None)
    }

    pub(super) fn load_checkpoint(
        &self,
        volume: &VolumeName,
        id: PointId,
        place: Place,
    ) -> Result<Tree, StoreError> {
        let (_, point) = self.point(volume, id)?;
        let body = self.log.read(place, Kind::Checkpoint)?;
        let body = CheckpointBody::decode(body).map_err(|_| unreadable(volume, id, "checkpoint"))?;
        let mut tree = Tree::new();
        let mut bytes = BytesMut::new();
        for chunk in body.chunks.chunks(32) {
            let chunk = ChunkId::from_slice(chunk).ok_or_else(|| unreadable(volume, id, "checkpoint"))?;
            let content = self.read_content(volume.tenant(), chunk).map_err(|error| match error {
                StoreError::NoSuchChunk(_) => damaged(volume, id, Cause::Chunk(chunk)),
                bad if bad.is_damage() || bad.is_lost() => damaged(volume, id, Cause::Chunk(chunk)),
                other => other,
            })?;
            bytes.extend_from_slice(&content);
            apply_delimited(&mut bytes, &mut tree).map_err(|cause| damaged(volume, id, cause))?;
        }
        if !bytes.is_empty() {
            return Err(unreadable(volume, id, "checkpoint"));
        }
        tree.seal().map_err(|error| damaged(volume, id, error.into()))?;
        if tree.digest() == point.cut.digest { Ok(tree) } else { Err(damaged(volume, id, Cause::Digest)) }
    }

    /// Applies the operations of one point, and shows them.
    pub(super) fn replay(
        &self,
        volume: &VolumeName,
        step: &Step,
        tree: &mut Tree,
        show: &mut dyn FnMut(&Op),
    ) -> Result<(), StoreError> {
        self.each_op(volume, step, &mut |op| {
            tree.apply(op)?;
            show(op);
            Ok(())
        })?;
        tree.seal().map(drop).map_err(|error| damaged(volume, step.point.id, error.into()))
    }

    /// Hands the operations of one point to whoever applies them.
    pub(super) fn each_op(
        &self,
        volume: &VolumeName,
        step: &Step,
        apply: &mut dyn FnMut(&Op) -> Result<(), TreeError>,
    ) -> Result<(), StoreError> {
        let id = step.point.id;
        let body = CommitBody::decode(self.log.read(step.place, step.kind)?)
            .map_err(|_| unreadable(volume, id, "commit"))?;
        let mut part = |part: Bytes| apply_ops(part, apply).map_err(|cause| damaged(volume, id, cause));
        if !body.ops.is_empty() {
            part(body.ops)?;
        }
        body.parts.into_iter().try_for_each(|place| part(self.log.read(place.into(), Kind::Ops)?))
    }

    /// Damage below a point is told as damage of the point.
    fn blame(&self, error: StoreError, volume: &VolumeName, point: PointId) -> StoreError {
        match error {
            StoreError::Log(LogError::Damaged(damage)) => damaged(volume, point, Cause::Log(damage)),
            StoreError::Damaged { cause, .. } => damaged(volume, point, cause),
            other => other,
        }
    }

    pub(super) fn read_chunk(&self, tenant: &str, id: ChunkId) -> Result<StoredChunk, StoreError> {
        self.again(|| self.read_chunk_once(tenant, id))
    }

    fn read_chunk_once(&self, tenant: &str, id: ChunkId) -> Result<StoredChunk, StoreError> {
        let value = self.index.get(Table::Chunks, &self.chunk_key(tenant, &id))?;
        let value = value.ok_or(StoreError::NoSuchChunk(id))?;
        let place = decode_place(&value).ok_or(StoreError::NoSuchChunk(id))?;
        let entry = ChunkEntry::decode(self.log.read(place, Kind::Chunk)?)
            .filter(|entry| entry.id == id && entry.tenant == tenant)
            .ok_or(StoreError::BadChunk(id, chunk::ChunkError::Id(id)))?;
        Ok(StoredChunk { codec: entry.codec, len: entry.len, payload: entry.payload })
    }

    pub(super) fn read_content(&self, tenant: &str, id: ChunkId) -> Result<Bytes, StoreError> {
        let stored = self.read_chunk(tenant, id)?;
        let key = ChunkKey::of_tenant(tenant);
        match chunk::open_checked(&key, id, stored.codec, stored.len as usize, &stored.payload) {
            Ok(std::borrow::Cow::Owned(content)) => Ok(content.into()),
            Ok(std::borrow::Cow::Borrowed(_)) => Ok(stored.payload),
            Err(error) => Err(StoreError::BadChunk(id, error)),
        }
    }
}

fn apply_ops(part: Bytes, apply: &mut dyn FnMut(&Op) -> Result<(), TreeError>) -> Result<(), Cause> {
    let ops = messages::Ops::decode(part).map_err(|_| Cause::Unreadable("a part of its operations"))?;
    for op in wire::decode_ops(ops.ops)? {
        apply(&op)?;
    }
    Ok(())
}

/// Applies the operations at the front that are whole, and leaves the rest.
fn apply_delimited(bytes: &mut BytesMut, tree: &mut Tree) -> Result<(), Cause> {
    let mut whole = 0;
    while let Some(len) = first_op_len(&bytes[whole..]) {
        whole += len;
    }
    apply_ops(bytes.split_to(whole).freeze(), &mut |op| tree.apply(op))
}

/// Length of the first field of an `Ops` message with its tag and length, if all of it is there.
fn first_op_len(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    prost::encoding::decode_key(&mut rest).ok()?;
    let len = usize::try_from(prost::encoding::decode_varint(&mut rest).ok()?).ok()?;
    (rest.remaining() >= len).then(|| bytes.len() - rest.len() + len)
}

/// The names that hold a point.
pub(super) fn holds_of(index: &Index, volume: &VolumeName, id: PointId) -> Result<Vec<String>, KvError> {
    let (from, to) = (key::point(key::TAG, volume, id), end_key(key::TAG, volume, id));
    let pairs = index.range(&from, &to, false, usize::MAX)?;
    let name = |(entry, _): &(Vec<u8>, Vec<u8>)| {
        Some(String::from_utf8_lossy(key::read_point(entry)?.1).into_owned()).filter(|tag| is_hold(tag))
    };
    Ok(pairs.iter().filter_map(name).collect())
}

/// The points there are in these runs, both ends included.
pub(super) fn points_in(
    index: &Index,
    volume: &VolumeName,
    runs: &[(PointId, PointId)],
) -> Result<Vec<PointId>, KvError> {
    let mut points = Vec::new();
    for (first, last) in runs {
        let (from, to) = (key::point(key::POINT, volume, *first), end_key(key::POINT, volume, *last));
        let pairs = index.range(&from, &to, false, usize::MAX)?;
        points.extend(pairs.iter().filter_map(|(key, _)| Some(key::read_point(key)?.0)));
    }
    Ok(points)
}

/// Keys of everything else that is known of points up to this one: names, and checkpoints.
pub(super) fn rest_of(index: &Index, volume: &VolumeName, upto: PointId) -> Result<Vec<Vec<u8>>, KvError> {
    let mut keys = Vec::new();
    for space in [key::TAG, key::CHECKPOINT] {
        let (from, to) = (key::point(space, volume, PointId::default()), end_key(space, volume, upto));
        keys.extend(index.range(&from, &to, false, usize::MAX)?.into_iter().map(|(key, _)| key));
    }
    Ok(keys)
}

pub(super) fn end_key(space: u8, volume: &VolumeName, last: PointId) -> Vec<u8> {
    let after = match last.seq.0.checked_add(1) {
        Some(seq) => PointId::new(last.epoch, Seq(seq)),
        None => PointId::new(Epoch(last.epoch.0.saturating_add(1)), Seq(0)),
    };
    key::point(space, volume, after)
}

fn damaged(volume: &VolumeName, point: PointId, cause: Cause) -> StoreError {
    StoreError::Damaged { volume: volume.clone(), point, cause }
}

fn unreadable(volume: &VolumeName, point: PointId, what: &'static str) -> StoreError {
    damaged(volume, point, Cause::Unreadable(what))
}
