//! Checkpoints: so that no point is far from a tree that is stored whole.
//!
//! The thread here builds the tree from the log itself, as opening the point would: it never touches the trees of the
//! sessions, takes no lock of theirs, and proves on the way that the point can be opened. The price is the memory of one
//! more tree while it works, and its time; one volume at a time, and only when a checkpoint is no dearer than what it
//! saves ([`limits::CHECKPOINT_REPLAY_BYTES`]).
//!
//! The snapshot's bytes are cut by FastCDC and written as chunks of the tenant, so what did not change since the last
//! checkpoint is already there. They are the concatenation of one-operation `Ops` messages, which is itself an `Ops`
//! message: no other framing, so an inserted operation moves no boundary behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use fastcdc::v2020::FastCDC;
use parking_lot::{Condvar, Mutex};
use prost::Message;
use tidelock_proto::{
    ChunkId, ChunkKey, Op, PointId, Tree, VolumeName,
    chunk::Codec,
    limits as model,
    wire::{encode_op, messages},
};

use super::{Batch, Cause, Lease, Record, Shared, StoreError, batch::Room};
use crate::limits;

/// Volumes that want a checkpoint.
#[derive(Default)]
pub(super) struct Wanted {
    state: Mutex<State>,
    arrived: Condvar,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// For every volume the point, and whether it is asked for by itself: the base of a promotion.
    volumes: BTreeMap<VolumeName, (PointId, bool)>,
    /// Volumes whose newest points cannot be opened, so that nothing is tried again at every commit.
    failed: BTreeSet<VolumeName>,
    /// One is being written.
    busy: bool,
    closed: bool,
}

impl Wanted {
    /// The volume's newest point is far from its last checkpoint.
    pub(super) fn want(&self, volume: VolumeName, point: PointId) {
        let mut state = self.state.lock();
        if state.failed.contains(&volume) {
            return;
        }
        let wanted = state.volumes.entry(volume).or_insert((point, false));
        if !wanted.1 {
            wanted.0 = point;
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// A new epoch builds on this point.
    pub(super) fn want_base(&self, volume: VolumeName, point: PointId) {
        self.state.lock().volumes.insert(volume, (point, true));
        self.arrived.notify_one();
    }

    fn on_failed(&self, volume: VolumeName, failed: bool) {
        let mut state = self.state.lock();
        if failed {
            state.failed.insert(volume);
        } else {
            state.failed.remove(&volume);
        }
    }

    /// A point of the volume builds on nothing: whatever could not be opened before is no reason against a checkpoint any more.
    pub(super) fn on_begun_anew(&self, volume: &VolumeName) {
        self.state.lock().failed.remove(volume);
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.arrived.notify_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(super) fn wait_idle(&self) {
        let mut state = self.state.lock();
        while state.busy || !state.volumes.is_empty() {
            self.idle.wait(&mut state);
        }
    }

    fn take(&self) -> Option<(VolumeName, PointId, bool)> {
        let mut state = self.state.lock();
        state.busy = false;
        self.idle.notify_all();
        loop {
            if state.closed {
                return None;
            }
            if let Some((volume, (point, base))) = state.volumes.pop_first() {
                state.busy = true;
                return Some((volume, point, base));
            }
            self.arrived.wait(&mut state);
        }
    }
}

/// The checkpoint thread, until closed.
pub(super) fn run(shared: &Arc<Shared>) {
    while let Some((volume, point, base)) = shared.checkpoints.take() {
        let wanted = shared.volumes.read().get(&volume).is_some_and(|info| base || info.wants_checkpoint());
        if !wanted {
            continue;
        }
        match write(shared, &volume, point) {
            Ok(chunks) => tracing::debug!(%volume, %point, chunks, "checkpoint written"),
            Err(StoreError::Closed | StoreError::Poisoned(_)) => return,
            // Dropped before its turn came.
            Err(StoreError::NoSuchPoint(..) | StoreError::NoSuchVolume(_)) => {
                tracing::debug!(%volume, %point, "checkpoint not needed any more")
            }
            // It is asked for again by the next commit that is taken.
            Err(StoreError::Full { .. }) => tracing::debug!(%volume, %point, "no space for a checkpoint"),
            Err(error) if error.is_absent() => tracing::debug!(%volume, %point, %error, "no checkpoint now"),
            Err(error) => {
                tracing::error!(%volume, %point, %error, "checkpoint not written; none until a session gives its tree");
                shared.checkpoints.on_failed(volume, true);
            }
        }
    }
}

/// Writes a checkpoint of a point, unless there is one; the answer is how many chunks it added.
pub(super) fn write(shared: &Shared, volume: &VolumeName, point: PointId) -> Result<usize, StoreError> {
    let newest = shared.checkpoint_before(volume, point, &Default::default())?;
    if newest.is_some_and(|(id, _)| id == point) {
        return Ok(0);
    }
    write_tree(shared, volume, point, &shared.tree_at(volume, point)?, Room::Usual)
}

/// Writes a checkpoint from a tree that somebody has already.
pub(super) fn write_tree(
    shared: &Shared,
    volume: &VolumeName,
    point: PointId,
    tree: &Tree,
    room: Room,
) -> Result<usize, StoreError> {
    if shared.point(volume, point)?.1.cut.digest != tree.digest() {
        return Err(StoreError::Damaged { volume: volume.clone(), point, cause: Cause::Digest });
    }
    let mut writer = Cut {
        shared,
        tenant: volume.tenant(),
        key: ChunkKey::of_tenant(volume.tenant()),
        chunks: Vec::new(),
        generation: shared.inbox.generation(),
        lease: shared.lease(volume.tenant()),
        batch: Batch::new(),
        room,
        bytes: 0,
        added: 0,
    };
    each_chunk(tree, &mut |content| writer.add(content))?;
    let Cut { chunks, mut batch, generation, bytes: snapshot_bytes, added, lease: _lease, .. } = writer;
    batch.bind(generation);
    batch.push(Record::Checkpoint { volume: volume.clone(), point, chunks, snapshot_bytes });
    shared.inbox.push(batch.within(room), None).wait()?;
    shared.checkpoints.on_failed(volume.clone(), false);
    Ok(added)
}

/// A snapshot being cut.
struct Cut<'a> {
    shared: &'a Shared,
    tenant: &'a str,
    key: ChunkKey,
    chunks: Vec<ChunkId>,
    generation: u64,
    /// Until the checkpoint is durable.
    lease: Lease,
    batch: Batch,
    room: Room,
    bytes: u64,
    added: usize,
}

impl Cut<'_> {
    fn add(&mut self, content: &[u8]) -> Result<(), StoreError> {
        let id = self.key.id(content);
        self.chunks.push(id);
        self.bytes += content.len() as u64;
        self.lease.count_on(&id);
        if self.shared.has_chunk_or_pending(self.tenant, id)? {
            return Ok(());
        }
        let (codec, payload) = packed(content);
        self.batch.push_chunk(self.tenant, id, codec, content.len() as u32, payload.into());
        self.added += 1;
        if self.batch.bytes() >= limits::CHECKPOINT_WINDOW_BYTES {
            if self.shared.checkpoints.is_closed() {
                return Err(StoreError::Closed);
            }
            let mut batch = std::mem::take(&mut self.batch);
            batch.bind(self.generation);
            self.shared.inbox.push(batch.within(self.room), None).wait()?;
        }
        Ok(())
    }
}

/// Hands over the contents of the chunks that a checkpoint of this tree has, in order.
pub(super) fn each_chunk(
    tree: &Tree,
    add: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut buffer = Vec::with_capacity(3 * model::CHUNK_MAX_BYTES);
    for op in tree.snapshot() {
        encode(&op, &mut buffer);
        if buffer.len() >= 2 * model::CHUNK_MAX_BYTES {
            let cut = first_cut(&buffer);
            add(&buffer[..cut])?;
            buffer.drain(..cut);
        }
    }
    while !buffer.is_empty() {
        let cut = first_cut(&buffer);
        add(&buffer[..cut])?;
        buffer.drain(..cut);
    }
    Ok(())
}

/// The content of a checkpoint's chunk as it is stored.
pub(super) fn packed(content: &[u8]) -> (Codec, Vec<u8>) {
    match zstd::bulk::compress(content, 1) {
        Ok(small) if small.len() < content.len() => (Codec::Zstd, small),
        _ => (Codec::Raw, content.to_vec()),
    }
}

fn encode(op: &Op, buffer: &mut Vec<u8>) {
    messages::Ops { ops: vec![encode_op(op)] }.encode(buffer).expect("a vector grows");
}

fn first_cut(buffer: &[u8]) -> usize {
    let max = model::CHUNK_MAX_BYTES;
    FastCDC::new(buffer, max / 16, max / 4, max).next().map_or(buffer.len(), |chunk| chunk.length)
}
