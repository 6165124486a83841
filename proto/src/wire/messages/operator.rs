//! An operator's question and the frames of its answer.

use prost::{Message, Oneof};

use super::{
    history::{FindRequest, Found, Usage, UsageRequest},
    plan::{PlanRequest, StorePlan, VolumePlan},
    point::{Point, Points},
    promote::{Image, ImageRequest, PromoteRequest, Promoted},
    requests::{
        ChunksRequest, CloneRequest, DeleteRequest, Deleted, PointsRequest, ReleaseRequest, TagRequest,
        TreeRequest,
    },
    status::{StatusRequest, VolumeStatus},
    to_receiver::Chunk,
    to_sidecar::Manifest,
    verify::{VerifyFinding, VerifyProgress, VerifyRequest, VerifySummary},
};

/// An operator's question. The answer is a series of `OperatorReply`.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorRequest {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The answer can wait behind what else the receiver does.
    #[prost(bool, tag = "9")]
    pub patient: bool,
    #[prost(oneof = "RequestKind", tags = "2, 3, 4, 5, 6, 7, 8, 20, 21, 22, 27, 30, 34, 40")]
    pub kind: Option<RequestKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum RequestKind {
    /// All volumes the operator may see.
    #[prost(message, tag = "2")]
    Status(StatusRequest),
    /// The points of a volume, oldest first.
    #[prost(message, tag = "3")]
    Points(PointsRequest),
    /// The tree of a point, as a snapshot.
    #[prost(message, tag = "4")]
    Tree(TreeRequest),
    /// Chunks by id, answered in order.
    #[prost(message, tag = "5")]
    Chunks(ChunksRequest),
    /// Raises the epoch: the old writer is fenced from then on.
    #[prost(message, tag = "6")]
    Promote(PromoteRequest),
    /// Adds a tag to a point.
    #[prost(message, tag = "7")]
    Tag(TagRequest),
    /// Re-reads the log and replays volumes.
    #[prost(message, tag = "8")]
    Verify(VerifyRequest),
    /// At which points names exist.
    #[prost(message, tag = "20")]
    Find(FindRequest),
    /// What points take in the store.
    #[prost(message, tag = "21")]
    Usage(UsageRequest),
    /// Makes a new volume of a point.
    #[prost(message, tag = "22")]
    Clone(CloneRequest),
    /// Takes the names from a point that hold it.
    #[prost(message, tag = "27")]
    Release(ReleaseRequest),
    /// Brings the hot image to the newest point.
    #[prost(message, tag = "30")]
    Image(ImageRequest),
    /// Deletes a volume with all its points.
    #[prost(message, tag = "34")]
    Delete(DeleteRequest),
    /// What retention, compaction and the size cap would do.
    #[prost(message, tag = "40")]
    Plan(PlanRequest),
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorReply {
    #[prost(oneof = "ReplyKind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 21, 22, 30, 34, 40, 41")]
    pub kind: Option<ReplyKind>,
}

#[derive(Clone, PartialEq, Oneof)]
#[allow(
    clippy::large_enum_variant,
    reason = "one is alive at a time, and a box would not be shorter to read"
)]
pub enum ReplyKind {
    /// The request failed; nothing follows.
    #[prost(message, tag = "1")]
    Failed(Failed),
    /// The answer is complete.
    #[prost(message, tag = "2")]
    Done(Done),
    #[prost(message, tag = "3")]
    Volume(VolumeStatus),
    #[prost(message, tag = "4")]
    Points(Points),
    #[prost(message, tag = "5")]
    Tree(Manifest),
    #[prost(message, tag = "6")]
    Chunk(Chunk),
    #[prost(message, tag = "7")]
    Promoted(Promoted),
    #[prost(message, tag = "8")]
    VerifyProgress(VerifyProgress),
    #[prost(message, tag = "9")]
    VerifyFinding(VerifyFinding),
    /// Comes last.
    #[prost(message, tag = "10")]
    VerifySummary(VerifySummary),
    #[prost(message, tag = "20")]
    Found(Found),
    #[prost(message, tag = "21")]
    Usage(Usage),
    /// The first point of the new volume.
    #[prost(message, tag = "22")]
    Cloned(Point),
    #[prost(message, tag = "30")]
    Image(Image),
    #[prost(message, tag = "34")]
    Deleted(Deleted),
    #[prost(message, tag = "40")]
    VolumePlan(VolumePlan),
    /// Comes last.
    #[prost(message, tag = "41")]
    StorePlan(StorePlan),
}

#[derive(Clone, PartialEq, Message)]
pub struct Failed {
    #[prost(string, tag = "1")]
    pub reason: String,
    /// What kind of failure, for exit codes: see `docs/protocol.md`.
    #[prost(uint32, tag = "2")]
    pub code: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Done {}
