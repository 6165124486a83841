//! The catalogue of everything in the log: one kind for each, with a tag that is never used twice.
//!
//! | tag | kind | body |
//! | --- | --- | --- |
//! | 1 | chunk | tenant length u8, tenant, id 32 bytes, codec u8, content length u32, payload |
//! | 2 | ops | part of a commit's operations: a `proto::wire::messages::Ops` |
//! | 3 | commit | [`CommitBody`] |
//! | 4 | checkpoint | [`CheckpointBody`] |
//! | 5 | epoch | [`EpochBody`] |
//! | 6 | tag | [`TagBody`] |
//! | 7 | merged | [`CommitBody`] with `merged` |
//! | 8 | drop | [`DropBody`] |
//! | 9 | volume | [`VolumeBody`] |
//! | 10 | journal | [`JournalBody`] |
//! | 11 | retired | [`RetiredBody`] |
//! | 12 | release | [`ReleaseBody`] |
//!
//! An `ops` record means nothing by itself: the commit that seals it names it by its place.

use bytes::Bytes;
use prost::Message;
use tidelock_proto::{
    ChunkId, Epoch, PointId, Seq, VolumeName,
    chunk::Codec,
    point::Point,
    wire::{self, messages},
};

use super::Place;

/// The kinds, by their tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Content.
    Chunk = 1,
    /// A part of the operations of the commit that follows.
    Ops = 2,
    /// A recovery point.
    Commit = 3,
    /// The whole tree of a point.
    Checkpoint = 4,
    /// A promotion.
    Epoch = 5,
    /// A name for a point.
    Tag = 6,
    /// A point that is there already, from now on with other operations upon another point.
    Merged = 7,
    /// Points are gone.
    Drop = 8,
    /// What is known of a volume that was copied.
    Volume = 9,
    /// What is known of a volume and which points it has.
    Journal = 10,
    /// Segments that may be gone.
    Retired = 11,
    /// A point is held no more.
    Release = 12,
}

impl Kind {
    /// The kind with this tag.
    pub fn from_tag(tag: u8) -> Option<Self> {
        use Kind::{
            Checkpoint, Chunk, Commit, Drop, Epoch, Journal, Merged, Ops, Release, Retired, Tag, Volume,
        };
        [Chunk, Ops, Commit, Checkpoint, Epoch, Tag, Merged, Drop, Volume, Journal, Retired, Release]
            .into_iter()
            .find(|kind| *kind as u8 == tag)
    }
}

/// A chunk as it rests in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Whose it is.
    pub tenant: String,
    /// Its name.
    pub id: ChunkId,
    /// How the payload is stored.
    pub codec: Codec,
    /// Length of the content, in bytes.
    pub len: u32,
    /// The stored bytes.
    pub payload: Bytes,
}

impl ChunkEntry {
    /// What comes before the payload in the body.
    pub fn encode_head(&self) -> Vec<u8> {
        let tenant = self.tenant.as_bytes();
        let mut head = Vec::with_capacity(tenant.len() + 38);
        head.push(u8::try_from(tenant.len()).expect("a tenant's name has at most 63 bytes"));
        head.extend_from_slice(tenant);
        head.extend_from_slice(&self.id.0);
        head.push(self.codec as u8);
        head.extend_from_slice(&self.len.to_le_bytes());
        head
    }

    /// Reads a body; `None` if it is none.
    pub fn decode(mut body: Bytes) -> Option<Self> {
        let tenant_len = usize::from(*body.first()?);
        let head = 1 + tenant_len;
        if body.len() < head + 37 {
            return None;
        }
        let tenant = std::str::from_utf8(&body[1..head]).ok()?.to_owned();
        let id = ChunkId::from_slice(&body[head..head + 32])?;
        let codec = Codec::from_number(u32::from(body[head + 32]))?;
        let len = u32::from_le_bytes(body[head + 33..head + 37].try_into().ok()?);
        let payload = body.split_off(head + 37);
        Some(Self { tenant, id, codec, len, payload })
    }
}

/// Where a record is, as a message.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PlaceMessage {
    #[prost(uint32, tag = "1")]
    pub segment: u32,
    #[prost(fixed32, tag = "2")]
    pub offset: u32,
    #[prost(uint32, tag = "3")]
    pub len: u32,
    /// Of a chunk in the index: the length of its content. 0 for all else.
    #[prost(uint32, tag = "4")]
    pub content_len: u32,
}

impl From<Place> for PlaceMessage {
    fn from(place: Place) -> Self {
        Self { segment: place.segment, offset: place.offset, len: place.len, content_len: 0 }
    }
}

impl From<PlaceMessage> for Place {
    fn from(place: PlaceMessage) -> Self {
        Self { segment: place.segment, offset: place.offset, len: place.len }
    }
}

/// A recovery point and how its tree differs from its parent's.
#[derive(Clone, PartialEq, Message)]
pub struct CommitBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<messages::Point>,
    /// The operations as one `Ops` message, if there are few.
    #[prost(bytes = "bytes", tag = "3")]
    pub ops: Bytes,
    /// The `ops` records with the operations, in order, if there are many.
    #[prost(message, repeated, tag = "4")]
    pub parts: Vec<PlaceMessage>,
    /// Length of all operations, encoded.
    #[prost(uint64, tag = "5")]
    pub ops_bytes: u64,
    /// Of a merged point: what its operations apply to. Without it, to nothing: its tree is in its checkpoint.
    #[prost(message, optional, tag = "6")]
    pub on: Option<messages::PointId>,
}

/// Points that are gone.
#[derive(Clone, PartialEq, Message)]
pub struct DropBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// What goes, in order.
    #[prost(message, repeated, tag = "2")]
    pub runs: Vec<RunMessage>,
    /// How many points these are.
    #[prost(uint64, tag = "3")]
    pub count: u64,
    /// When the oldest point that stays was cut, in nanoseconds since 1970.
    #[prost(fixed64, tag = "4")]
    pub oldest_ns: u64,
}

/// What the records that a compaction left out have made of a volume. It comes behind all points of the volume.
#[derive(Clone, PartialEq, Message)]
pub struct VolumeBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// As the catalogue has it in the index.
    #[prost(bytes = "bytes", tag = "2")]
    pub info: Bytes,
}

/// What is known of a volume, whatever came before: the records that said so may be gone.
#[derive(Clone, PartialEq, Message)]
pub struct JournalBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// As the catalogue has it in the index.
    #[prost(bytes = "bytes", tag = "2")]
    pub info: Bytes,
    /// The points there are, in order.
    #[prost(message, repeated, tag = "3")]
    pub kept: Vec<RunMessage>,
    /// The newest of them. Of later ones this says nothing.
    #[prost(message, optional, tag = "4")]
    pub upto: Option<messages::PointId>,
}

/// Segments of which nothing is needed any more. Each such record names all of them.
#[derive(Clone, PartialEq, Message)]
pub struct RetiredBody {
    #[prost(message, repeated, tag = "1")]
    pub runs: Vec<SegmentsMessage>,
}

/// Segments one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SegmentsMessage {
    #[prost(uint32, tag = "1")]
    pub first: u32,
    /// How many follow the first.
    #[prost(uint32, tag = "2")]
    pub more: u32,
}

impl RetiredBody {
    /// These segments and more of them.
    pub fn with(&self, more: &[u32]) -> Self {
        let one = |segment: &u32| SegmentsMessage { first: *segment, more: 0 };
        let mut all: Vec<SegmentsMessage> = self.runs.iter().copied().chain(more.iter().map(one)).collect();
        all.sort_by_key(|run| run.first);
        let mut runs: Vec<SegmentsMessage> = Vec::new();
        for run in all {
            match runs.last_mut() {
                Some(last) if run.first <= last.end() => {
                    last.more = last.more.max(run.end().saturating_sub(last.first + 1));
                }
                _ => runs.push(run),
            }
        }
        Self { runs }
    }

    /// Whether this segment is among them.
    pub fn contains(&self, segment: u32) -> bool {
        self.runs.iter().any(|run| (run.first..run.end()).contains(&segment))
    }
}

impl SegmentsMessage {
    /// The first segment behind it.
    fn end(&self) -> u32 {
        self.first.saturating_add(self.more).saturating_add(1)
    }
}

/// All points of an epoch from one to another, both included.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RunMessage {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(uint64, tag = "2")]
    pub first: u64,
    /// How many numbers follow the first.
    #[prost(uint64, tag = "3")]
    pub more: u64,
}

impl RunMessage {
    /// The run from one point to another of its epoch.
    pub fn of(run: &(PointId, PointId)) -> Self {
        let (first, last) = run;
        Self { epoch: first.epoch.0, first: first.seq.0, more: last.seq.0.saturating_sub(first.seq.0) }
    }

    fn points(&self) -> Option<(PointId, PointId)> {
        let id = |seq| PointId::new(Epoch(self.epoch), Seq(seq));
        Some((id(self.first), id(self.first.checked_add(self.more)?)))
    }
}

/// A tree as chunks.
#[derive(Clone, PartialEq, Message)]
pub struct CheckpointBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<messages::PointId>,
    /// Ids of 32 bytes, one after the other: the tenant's chunks that hold the snapshot.
    #[prost(bytes = "bytes", tag = "3")]
    pub chunks: Bytes,
    /// Length of the snapshot.
    #[prost(uint64, tag = "4")]
    pub snapshot_bytes: u64,
}

/// The epoch of a volume was raised.
#[derive(Clone, PartialEq, Message)]
pub struct EpochBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The point that the epoch builds on.
    #[prost(message, optional, tag = "3")]
    pub base: Option<messages::PointId>,
}

/// A point was given a name.
#[derive(Clone, PartialEq, Message)]
pub struct TagBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<messages::PointId>,
    #[prost(string, tag = "3")]
    pub tag: String,
}

/// The names of a point that hold it are gone.
#[derive(Clone, PartialEq, Message)]
pub struct ReleaseBody {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<messages::PointId>,
}

/// What a record says to the index and the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A chunk is here. In what is handed to the catalogue the id is blinded.
    Chunk { tenant: String, id: ChunkId, len: u32 },
    /// A point is sealed here.
    Commit { volume: VolumeName, point: Point, ops_bytes: u64 },
    /// A point is here from now on, with operations upon `on`.
    Merged { volume: VolumeName, point: Point, on: Option<PointId> },
    /// These points are gone: all from the first to the last of each run.
    Drop { volume: VolumeName, runs: Vec<(PointId, PointId)>, count: u64, oldest_ns: u64 },
    /// What is known of a volume, whatever came before.
    Volume { volume: VolumeName, info: Bytes },
    /// What is known of a volume, and which points up to `upto` it has, whatever came before.
    Journal { volume: VolumeName, info: Bytes, kept: Vec<(PointId, PointId)>, upto: PointId },
    /// These segments, and no others, may be gone.
    Retired(RetiredBody),
    /// The tree of a point is listed here.
    Checkpoint { volume: VolumeName, point: PointId, snapshot_bytes: u64 },
    /// The epoch rises here.
    Epoch { volume: VolumeName, epoch: Epoch, base: PointId },
    /// A point has another name from here on.
    Tag { volume: VolumeName, point: PointId, tag: String },
    /// A point loses the names that hold it.
    Release { volume: VolumeName, point: PointId },
    /// Nothing by itself.
    Ops,
}

impl Fact {
    /// The volume it is about.
    pub fn volume(&self) -> Option<&VolumeName> {
        match self {
            Self::Commit { volume, .. }
            | Self::Merged { volume, .. }
            | Self::Volume { volume, .. }
            | Self::Journal { volume, .. }
            | Self::Drop { volume, .. }
            | Self::Checkpoint { volume, .. }
            | Self::Epoch { volume, .. }
            | Self::Release { volume, .. }
            | Self::Tag { volume, .. } => Some(volume),
            Self::Chunk { .. } | Self::Ops | Self::Retired(_) => None,
        }
    }

    /// The tenant it is about.
    pub fn tenant(&self) -> Option<&str> {
        match self {
            Self::Chunk { tenant, .. } => Some(tenant),
            other => other.volume().map(VolumeName::tenant),
        }
    }

    /// Reads a record's body; `None` if the body does not make sense for its kind, or the kind is not known.
    pub fn decode(tag: u8, body: Bytes) -> Option<Self> {
        match Kind::from_tag(tag)? {
            Kind::Chunk => {
                let chunk = ChunkEntry::decode(body)?;
                Some(Self::Chunk { tenant: chunk.tenant, id: chunk.id, len: chunk.len })
            }
            Kind::Ops => Some(Self::Ops),
            Kind::Commit => {
                let body = CommitBody::decode(body).ok()?;
                let point = wire::point_from_wire(body.point?).ok()?;
                Some(Self::Commit { volume: body.volume.parse().ok()?, point, ops_bytes: body.ops_bytes })
            }
            Kind::Merged => {
                let body = CommitBody::decode(body).ok()?;
                let point = wire::point_from_wire(body.point?).ok()?;
                let on = match body.on {
                    Some(on) => Some(wire::point_id_from_wire(Some(on)).ok()?),
                    None => None,
                };
                Some(Self::Merged { volume: body.volume.parse().ok()?, point, on })
            }
            Kind::Volume => {
                let body = VolumeBody::decode(body).ok()?;
                Some(Self::Volume { volume: body.volume.parse().ok()?, info: body.info })
            }
            Kind::Drop => {
                let body = DropBody::decode(body).ok()?;
                let runs = body.runs.iter().map(RunMessage::points).collect::<Option<_>>()?;
                let volume = body.volume.parse().ok()?;
                Some(Self::Drop { volume, runs, count: body.count, oldest_ns: body.oldest_ns })
            }
            Kind::Journal => {
                let body = JournalBody::decode(body).ok()?;
                let kept = body.kept.iter().map(RunMessage::points).collect::<Option<_>>()?;
                let upto = wire::point_id_from_wire(body.upto).ok()?;
                Some(Self::Journal { volume: body.volume.parse().ok()?, info: body.info, kept, upto })
            }
            Kind::Retired => Some(Self::Retired(RetiredBody::decode(body).ok()?)),
            Kind::Checkpoint => {
                let body = CheckpointBody::decode(body).ok()?;
                let point = wire::point_id_from_wire(body.point).ok()?;
                let volume = body.volume.parse().ok()?;
                Some(Self::Checkpoint { volume, point, snapshot_bytes: body.snapshot_bytes })
            }
            Kind::Epoch => {
                let body = EpochBody::decode(body).ok()?;
                let base = wire::point_id_from_wire(body.base).ok()?;
                Some(Self::Epoch { volume: body.volume.parse().ok()?, epoch: Epoch(body.epoch), base })
            }
            Kind::Release => {
                let body = ReleaseBody::decode(body).ok()?;
                let point = wire::point_id_from_wire(body.point).ok()?;
                Some(Self::Release { volume: body.volume.parse().ok()?, point })
            }
            Kind::Tag => {
                let body = TagBody::decode(body).ok()?;
                let point = wire::point_id_from_wire(body.point).ok()?;
                Some(Self::Tag { volume: body.volume.parse().ok()?, point, tag: body.tag })
            }
        }
    }
}
