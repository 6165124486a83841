//! What a sidecar says.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::point::{Cut, PointId};

#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(string, tag = "2")]
    pub volume: String,
    /// The writer epoch the sidecar was given; 1 for a volume that was never promoted.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Random at every start of a sidecar: tells a reconnecting writer from another one.
    #[prost(fixed64, tag = "4")]
    pub instance: u64,
    /// The sidecar's build version, for logs and status.
    #[prost(string, tag = "5")]
    pub build: String,
    #[prost(string, tag = "6")]
    pub tracker: String,
    /// The epoch was granted by a promotion at another receiver, or of another volume of the group, so it may not be known
    /// for this volume yet. Without this, an epoch above the volume's is taken for a mistake.
    #[prost(bool, tag = "7")]
    pub raise_epoch: bool,
    /// An operator imports a directory at rest. Refused while the volume has a writer.
    #[prost(bool, tag = "8")]
    pub import: bool,
}

/// Sidecar to receiver, after `Hello`.
#[derive(Clone, PartialEq, Message)]
pub struct ToReceiver {
    #[prost(oneof = "ToReceiverKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub kind: Option<ToReceiverKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum ToReceiverKind {
    /// Answers `Welcome`: the sidecar does not hold the receiver's last tree and wants it.
    #[prost(message, tag = "1")]
    WantManifest(WantManifest),
    #[prost(message, tag = "2")]
    Have(Have),
    #[prost(message, tag = "3")]
    Chunk(Chunk),
    #[prost(message, tag = "4")]
    Ops(Ops),
    #[prost(message, tag = "5")]
    Commit(Commit),
    #[prost(message, tag = "6")]
    Heartbeat(Heartbeat),
    /// Answers `Leave`.
    #[prost(message, tag = "7")]
    Left(Left),
    /// Answers `Resend`, behind the chunks.
    #[prost(message, tag = "8")]
    Resent(Resent),
    #[prost(message, tag = "9")]
    WantPages(WantPages),
}

#[derive(Clone, PartialEq, Message)]
pub struct WantManifest {}

/// "Which of these chunks do you hold?" Answered in order by `HaveReply`.
#[derive(Clone, PartialEq, Message)]
pub struct Have {
    /// Ids of 32 bytes, one after the other.
    #[prost(bytes = "bytes", tag = "1")]
    pub ids: Bytes,
}

/// "What are the pages of these chunks?" Answered in order by `Pages`.
#[derive(Clone, PartialEq, Message)]
pub struct WantPages {
    /// Ids of 32 bytes, one after the other.
    #[prost(bytes = "bytes", tag = "1")]
    pub ids: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Chunk {
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(uint32, tag = "2")]
    pub codec: u32,
    /// Length of the content, uncompressed, in bytes.
    #[prost(uint32, tag = "3")]
    pub len: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub payload: Bytes,
}

/// Operations of the commit that comes next, in order.
#[derive(Clone, PartialEq, Message)]
pub struct Ops {
    #[prost(message, repeated, tag = "1")]
    pub ops: Vec<crate::wire::ops::OpMessage>,
}

/// Seals all operations since the last commit as one recovery point.
#[derive(Clone, PartialEq, Message)]
pub struct Commit {
    #[prost(message, optional, tag = "1")]
    pub id: Option<PointId>,
    #[prost(message, optional, tag = "2")]
    pub cut: Option<Cut>,
    /// Names that the point has from the beginning.
    #[prost(string, repeated, tag = "3")]
    pub tags: Vec<String>,
}

/// What the sidecar knows between commits; never more often than a few times a second.
#[derive(Clone, PartialEq, Message)]
pub struct Heartbeat {
    /// The sidecar's clock, in nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    pub now_ns: u64,
    /// If not zero: at this time nothing had changed since the last commit sent before this frame.
    #[prost(fixed64, tag = "2")]
    pub clean_at_ns: u64,
    /// Bytes known to have changed and not yet committed.
    #[prost(uint64, tag = "3")]
    pub behind_bytes: u64,
    /// `seeding`, `replicating`, `scanning`, or another state of the sidecar.
    #[prost(string, tag = "4")]
    pub state: String,
    #[prost(string, repeated, tag = "5")]
    pub conditions: Vec<String>,
    /// The tracker in use.
    #[prost(string, tag = "6")]
    pub tracker: String,
    /// Whether it may stop its application for a planned move; older sidecars do not tell.
    #[prost(bool, optional, tag = "7")]
    pub leaves: Option<bool>,
}

/// The application stands still, and a point holds everything that it wrote; or why not.
#[derive(Clone, PartialEq, Message)]
pub struct Left {
    /// The point, which is durable.
    #[prost(message, optional, tag = "1")]
    pub point: Option<PointId>,
    /// Without a point: the reason, for people.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// The chunks that were asked for again and that the volume still has are sent.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Resent {
    /// How many.
    #[prost(uint32, tag = "1")]
    pub found: u32,
}
