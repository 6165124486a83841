//! What a receiver says to a sidecar.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::point::PointId;

/// Receiver to sidecar.
#[derive(Clone, PartialEq, Message)]
pub struct ToSidecar {
    #[prost(oneof = "ToSidecarKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub kind: Option<ToSidecarKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum ToSidecarKind {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// A newer epoch exists: this writer must stop for good.
    #[prost(message, tag = "2")]
    Fenced(Fenced),
    /// The session ends here, and why. `retry` says whether trying again can help.
    #[prost(message, tag = "3")]
    Denied(Denied),
    #[prost(message, tag = "4")]
    Manifest(Manifest),
    #[prost(message, tag = "5")]
    HaveReply(HaveReply),
    #[prost(message, tag = "6")]
    Ack(Ack),
    /// A planned move: stop the application, take a last cut, and say when it is durable.
    #[prost(message, tag = "7")]
    Leave(Leave),
    /// These chunks are damaged here: send those again that the volume still has, then `Resent`.
    #[prost(message, tag = "8")]
    Resend(Resend),
    #[prost(message, tag = "9")]
    Pages(Pages),
}

#[derive(Clone, PartialEq, Message)]
pub struct Resend {
    /// Ids of 32 bytes, one after the other.
    #[prost(bytes = "bytes", tag = "1")]
    pub ids: Bytes,
    /// The length of each one's content, in bytes; 0 where it is not known any more.
    #[prost(uint32, repeated, tag = "2")]
    pub lens: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Leave {}

#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// The newest durable point that a commit of this epoch builds on; none for a new volume.
    #[prost(message, optional, tag = "2")]
    pub last: Option<PointId>,
    /// The digest of its tree.
    #[prost(bytes = "bytes", tag = "3")]
    pub digest: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct Fenced {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Denied {
    #[prost(string, tag = "1")]
    pub reason: String,
    #[prost(bool, tag = "2")]
    pub retry: bool,
}

/// Part of the receiver's last tree as a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct Manifest {
    #[prost(message, repeated, tag = "1")]
    pub ops: Vec<crate::wire::ops::OpMessage>,
    #[prost(bool, tag = "2")]
    pub last: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct HaveReply {
    /// One bit an id, lowest bit first, in the order asked: 1 is held.
    #[prost(bytes = "bytes", tag = "1")]
    pub held: Bytes,
}

/// What the pages of chunks are, in the order asked.
#[derive(Clone, PartialEq, Message)]
pub struct Pages {
    /// One for each chunk: the sums of its pages, see `chunk::page_sums`; empty if it cannot be said.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub sums: Vec<Bytes>,
}

/// Everything up to here is durable.
#[derive(Clone, PartialEq, Message)]
pub struct Ack {
    /// How many `Chunk` frames of this session are durable.
    #[prost(uint64, tag = "1")]
    pub chunks: u64,
    /// The newest durable point, if a commit of this session is.
    #[prost(message, optional, tag = "2")]
    pub point: Option<PointId>,
}
