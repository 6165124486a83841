//! What is written together, and the receipt for it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use prost::Message;
use tidelock_proto::{
    ChunkId, Epoch, PointId, VolumeName,
    chunk::Codec,
    point::Point,
    wire::{self, messages},
};
use tokio::sync::oneshot;

use super::StoreError;
use crate::log::{
    entry::{ChunkEntry, RetiredBody},
    writer::Spend,
};

/// One thing to be written.
#[derive(Debug, Clone)]
pub enum Record {
    /// A chunk. The caller has checked that the payload is what the id says.
    Chunk(ChunkEntry),
    /// A recovery point.
    Commit(Commit),
    /// The tree of a point as chunks of its tenant, which come before it.
    Checkpoint {
        /// The volume.
        volume: VolumeName,
        /// The point.
        point: PointId,
        /// The chunks, in order.
        chunks: Vec<ChunkId>,
        /// Length of the snapshot, in bytes.
        snapshot_bytes: u64,
    },
    /// Raises the epoch of a volume, if it is still `expected`.
    Epoch {
        /// The volume.
        volume: VolumeName,
        /// What the epoch must be before.
        expected: Epoch,
        /// What it is afterwards; above `expected`.
        epoch: Epoch,
        /// The point that the new epoch builds on.
        base: PointId,
    },
    /// Gives a point other operations: those that lead to its tree from an older point's. What is between the two can be dropped
    /// then.
    Merged {
        /// The volume.
        volume: VolumeName,
        /// The point; it is in the store.
        point: PointId,
        /// The older point, which is in the store; `None` if the point has a checkpoint.
        on: Option<PointId>,
        /// The operations, as in a [`Commit`].
        ops: Vec<Bytes>,
    },
    /// Drops points, which nothing must build on any more.
    Drop {
        /// The volume.
        volume: VolumeName,
        /// Its epoch, as it was when the points were chosen.
        epoch: Epoch,
        /// All points from a first to a last one, in order.
        runs: Vec<(PointId, PointId)>,
        /// When the oldest point that stays was cut, in nanoseconds since 1970.
        oldest_ns: u64,
    },
    /// Deletes a volume with its points up to one, or goes on with that. Whoever writes it is fenced by the first.
    /// Where the name has begun anew nothing goes on.
    Delete {
        /// The volume.
        volume: VolumeName,
        /// Its epoch; `None` to go on.
        expected: Option<Epoch>,
        /// The last of the points that go now.
        upto: PointId,
    },
    /// Says anew what is known of a volume.
    Journal {
        /// The volume.
        volume: VolumeName,
        /// The points it has up to `upto`, as runs.
        kept: Vec<(PointId, PointId)>,
        /// The newest of them.
        upto: PointId,
    },
    /// Segments may be gone: what is needed of them was written again.
    Retired {
        /// All of them, and those that went before.
        all: RetiredBody,
        /// Keys of the chunks in them that are not needed.
        chunks: Vec<Vec<u8>>,
    },
    /// Takes the names from a point that hold it.
    Release {
        /// The volume.
        volume: VolumeName,
        /// The point.
        point: PointId,
        /// It is a copy of an older record: the names that hold the point now are written again behind it.
        copy: bool,
    },
    /// Names a point.
    Tag {
        /// The volume.
        volume: VolumeName,
        /// The point.
        point: PointId,
        /// The name.
        tag: String,
    },
}

/// A recovery point to be written.
#[derive(Debug, Clone)]
pub struct Commit {
    /// Whose.
    pub volume: VolumeName,
    /// The point; its tags are ignored, they are records of their own.
    pub point: Point,
    /// Its operations, in order: each part an encoded [`messages::Ops`], made by [`encode_ops`].
    pub ops: Vec<Bytes>,
}

/// Encodes operations as a part of a [`Commit`].
pub fn encode_ops(ops: messages::Ops) -> Bytes {
    ops.encode_to_vec().into()
}

/// Encodes operations of the model as parts of a [`Commit`].
pub fn encode_model_ops(ops: impl IntoIterator<Item = tidelock_proto::Op>) -> Vec<Bytes> {
    wire::split_ops(ops).map(|ops| encode_ops(messages::Ops { ops })).collect()
}

/// Records that are written in order and become durable together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(crate) records: Vec<Record>,
    bytes: usize,
    /// See [`Batch::bind`].
    pub(super) generation: Option<u64>,
    /// See [`Room`].
    room: Room,
}

/// What of the reserve of a full store a batch may use, unless it is of promotions and tags alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Room {
    /// None of it.
    #[default]
    Usual,
    /// Half of it: space can be given back only after it.
    Upkeep,
    /// Half of what upkeep leaves besides: space is given back right after it. What can be planned is planned to fit into upkeep's part
    /// ([`super::space`]), so that this is there for what cannot be.
    Relief,
}

impl Batch {
    /// A batch without records.
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch of one.
    pub fn of(record: Record) -> Self {
        let mut batch = Self::new();
        batch.push(record);
        batch
    }

    /// Adds a record.
    pub fn push(&mut self, record: Record) {
        self.bytes += 128
            + match &record {
                Record::Chunk(chunk) => chunk.payload.len(),
                Record::Commit(commit) => commit.ops.iter().map(Bytes::len).sum(),
                Record::Checkpoint { chunks, .. } => chunks.len() * 32,
                Record::Merged { ops, .. } => ops.iter().map(Bytes::len).sum(),
                Record::Drop { runs, .. } | Record::Journal { kept: runs, .. } => runs.len() * 24,
                Record::Retired { chunks, .. } => chunks.len() * 64,
                Record::Epoch { .. } | Record::Tag { .. } | Record::Release { .. } => 0,
                Record::Delete { .. } => 0,
            };
        self.records.push(record);
    }

    /// Adds a chunk. `len` is the length of its content.
    pub fn push_chunk(&mut self, tenant: &str, id: ChunkId, codec: Codec, len: u32, payload: Bytes) {
        self.push(Record::Chunk(ChunkEntry { tenant: tenant.to_owned(), id, codec, len, payload }));
    }

    /// Has the batch refused if the store was full since this generation began. Whoever left out chunks because they were pending must
    /// bind what rests on them to the generation in which he asked: pending chunks of a full store are never written.
    pub fn bind(&mut self, generation: u64) {
        self.generation = Some(generation);
    }

    /// It is how space is given back, and may use some of the reserve.
    pub(super) fn within(mut self, room: Room) -> Self {
        self.room = room;
        self
    }

    /// What of the reserve of a full disk it is worth: all of it for promotions and tags, which are small.
    pub(super) fn spends(&self) -> Spend {
        let urgent = |record: &Record| {
            matches!(record, Record::Epoch { .. } | Record::Tag { .. } | Record::Release { .. })
        };
        if !self.records.is_empty() && self.records.iter().all(urgent) {
            return Spend::All;
        }
        match self.room {
            Room::Usual => Spend::Nothing,
            Room::Upkeep => Spend::Half,
            Room::Relief => Spend::Most,
        }
    }

    /// Whether it can be written after a time without space: it may use the reserve, and counts on nothing that was refused.
    pub(super) fn outlasts_full(&self) -> bool {
        self.spends() != Spend::Nothing && self.generation.is_none()
    }

    /// About how many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Resolves when the batch is durable and visible, or will never be.
///
/// Receipts resolve in the order of the batches. One that is dropped loses the answer, not the batch.
#[derive(Debug)]
#[must_use = "a batch may be refused"]
pub struct Receipt(pub(super) oneshot::Receiver<Result<(), StoreError>>);

impl Receipt {
    /// Waits for the answer on a thread that may block.
    pub fn wait(self) -> Result<(), StoreError> {
        super::block_on(self)
    }
}

impl Future for Receipt {
    type Output = Result<(), StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(StoreError::Closed)))
    }
}
