//! The messages, as prost types. See `docs/protocol.md` for who sends which when.

#![allow(missing_docs, reason = "the fields are drawn in docs/protocol.md")]

use bytes::Bytes;
use prost::{Message, Oneof};

/// The first frame on every stream that a client opens; it decides what the stream is for.
#[derive(Clone, PartialEq, Message)]
pub struct Open {
    #[prost(oneof = "OpenKind", tags = "1, 2")]
    pub kind: Option<OpenKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum OpenKind {
    /// A sidecar begins to replicate a volume.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// An operator asks one question.
    #[prost(message, tag = "2")]
    Request(OperatorRequest),
}

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
    pub ops: Vec<super::ops::OpMessage>,
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

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PointId {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(uint64, tag = "2")]
    pub seq: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Cut {
    #[prost(fixed64, tag = "1")]
    pub time_ns: u64,
    /// 1 crash, 2 app, 3 fuzzy.
    #[prost(uint32, tag = "2")]
    pub consistency: u32,
    #[prost(string, tag = "3")]
    pub tracker: String,
    #[prost(string, repeated, tag = "4")]
    pub conditions: Vec<String>,
    #[prost(uint32, tag = "5")]
    pub rounds: u32,
    #[prost(bytes = "bytes", tag = "6")]
    pub digest: Bytes,
    /// 0 optimistic, 1 pause.
    #[prost(uint32, tag = "7")]
    pub how: u32,
    /// The names of the volumes cut at the same instant, if there are several.
    #[prost(string, repeated, tag = "8")]
    pub group: Vec<String>,
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
    pub ops: Vec<super::ops::OpMessage>,
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
pub struct PlanRequest {
    /// Absent, all that the operator may see.
    #[prost(string, optional, tag = "1")]
    pub volume: Option<String>,
    /// Absent, the receiver's own policy.
    #[prost(string, optional, tag = "2")]
    pub keep: Option<String>,
    /// Absent, the receiver's own cap.
    #[prost(uint64, optional, tag = "3")]
    pub cap_bytes: Option<u64>,
}

/// What becomes of a volume.
#[derive(Clone, PartialEq, Message)]
pub struct VolumePlan {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, repeated, tag = "2")]
    pub rules: Vec<RulePlan>,
    /// Bytes that are needed and would not be, and what is written for that. 0 where sizes are not known.
    #[prost(uint64, tag = "3")]
    pub freed_bytes: u64,
    #[prost(uint64, tag = "4")]
    pub written_bytes: u64,
    /// Points that the policy keeps and the cap does not.
    #[prost(uint64, tag = "5")]
    pub capped: u64,
}

/// What one rule makes of a volume's points.
#[derive(Clone, PartialEq, Message)]
pub struct RulePlan {
    /// `STEP:AGE`, `protected` or `expired`.
    #[prost(string, tag = "1")]
    pub rule: String,
    #[prost(uint64, tag = "2")]
    pub kept: u64,
    #[prost(uint64, tag = "3")]
    pub dropped: u64,
}

/// Comes last: what becomes of the store.
#[derive(Clone, PartialEq, Message)]
pub struct StorePlan {
    /// The policy that was applied.
    #[prost(string, tag = "1")]
    pub keep: String,
    /// Why there are no sizes; absent if there are.
    #[prost(string, optional, tag = "2")]
    pub unknown: Option<String>,
    /// Absent for an operator who may not see all volumes, and where sizes are not known.
    #[prost(message, optional, tag = "3")]
    pub sizes: Option<PlanSizes>,
}

/// Sizes in bytes; see `docs/operations.md`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct PlanSizes {
    #[prost(uint64, tag = "1")]
    pub log: u64,
    #[prost(uint64, tag = "2")]
    pub needed: u64,
    #[prost(uint64, tag = "3")]
    pub owed: u64,
    #[prost(uint64, tag = "4")]
    pub freed: u64,
    #[prost(uint64, tag = "5")]
    pub written: u64,
    #[prost(uint64, tag = "6")]
    pub needed_after: u64,
    #[prost(uint64, tag = "7")]
    pub stopped: u64,
    #[prost(uint64, tag = "8")]
    pub running: u64,
    #[prost(uint64, tag = "9")]
    pub begins: u64,
    /// The part of what goes that may be counted among what stays.
    #[prost(double, tag = "10")]
    pub doubt: f64,
    #[prost(message, optional, tag = "11")]
    pub cap: Option<PlanCap>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PlanCap {
    #[prost(uint64, tag = "1")]
    pub cap: u64,
    #[prost(uint64, tag = "2")]
    pub acts_beyond: u64,
    #[prost(uint64, tag = "3")]
    pub fits: u64,
    #[prost(bool, tag = "4")]
    pub acts: bool,
    #[prost(uint64, tag = "5")]
    pub dropped: u64,
    #[prost(uint64, tag = "6")]
    pub needed: u64,
    #[prost(bool, tag = "7")]
    pub exhausted: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct DeleteRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// The epoch it must have.
    #[prost(uint64, tag = "2")]
    pub expected_epoch: u64,
    /// Although its sidecar is connected.
    #[prost(bool, tag = "3")]
    pub force: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Deleted {
    /// How many points it had.
    #[prost(uint64, tag = "1")]
    pub points: u64,
    /// From which epoch on a volume of this name may begin.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct PointsRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// At most this many of the newest; 0 is all.
    #[prost(uint64, tag = "2")]
    pub newest: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct TreeRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<PointId>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ChunksRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub ids: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct PromoteRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// The point that the new epoch builds on; absent, the newest that is durable once the old writer was stopped.
    #[prost(message, optional, tag = "2")]
    pub base: Option<PointId>,
    /// The epoch the operator saw. If it is no longer the current one the promotion is refused, so that two
    /// operators cannot both win.
    #[prost(uint64, tag = "3")]
    pub expected_epoch: u64,
    /// A planned move: the sidecar stops its application and takes a last cut first, and that is the base.
    #[prost(bool, tag = "4")]
    pub planned: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// It is to be given away: the receiver does not write to it any more until the volume moves on.
    #[prost(bool, tag = "2")]
    pub release: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct TagRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<PointId>,
    #[prost(string, tag = "3")]
    pub tag: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReleaseRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<PointId>,
}

#[derive(Clone, PartialEq, Message)]
pub struct VerifyRequest {
    /// Absent, all that the operator may see.
    #[prost(string, optional, tag = "1")]
    pub volume: Option<String>,
    /// What is damaged is fetched again from where it still is. What is told is what is left then.
    #[prost(bool, tag = "2")]
    pub repair: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct FindRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// See `docs/operations.md`.
    #[prost(string, tag = "2")]
    pub pattern: String,
    /// The points from here (absent, from the oldest)...
    #[prost(message, optional, tag = "3")]
    pub first: Option<PointId>,
    /// ...to here, along the line that leads there.
    #[prost(message, optional, tag = "4")]
    pub last: Option<PointId>,
    /// Every change is told, and not only how many there were.
    #[prost(bool, tag = "5")]
    pub changes: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct UsageRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    /// Absent, all points together.
    #[prost(message, optional, tag = "2")]
    pub point: Option<PointId>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CloneRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<PointId>,
    /// The new volume, of the same tenant; it must not exist.
    #[prost(string, tag = "3")]
    pub to: String,
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

#[derive(Clone, PartialEq, Message)]
pub struct VolumeStatus {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(bool, tag = "3")]
    pub connected: bool,
    /// Set while the epoch was raised by a promotion and no writer of the new epoch has come yet.
    #[prost(bool, tag = "4")]
    pub promoted: bool,
    #[prost(message, optional, tag = "5")]
    pub last: Option<Point>,
    /// The newest heartbeat; none since the receiver started if absent.
    #[prost(message, optional, tag = "6")]
    pub heartbeat: Option<Heartbeat>,
    /// Receiver's now minus the newest instant known to be covered by a durable point, in nanoseconds; `u64::MAX` without
    /// any point.
    #[prost(uint64, tag = "7")]
    pub lag_ns: u64,
    #[prost(uint64, tag = "8")]
    pub points: u64,
    #[prost(uint64, tag = "9")]
    pub inodes: u64,
    #[prost(uint64, tag = "10")]
    pub data_bytes: u64,
    /// When the oldest point was cut, in nanoseconds since 1970.
    #[prost(fixed64, tag = "11")]
    pub oldest_ns: u64,
    /// The receiver's disk is full: no commit is taken, of any volume.
    #[prost(bool, tag = "12")]
    pub store_full: bool,
    /// The condition that the receiver's archive is in; empty if there is none.
    #[prost(string, tag = "13")]
    pub archive: String,
    /// What the receiver has to say of its store: `store-full`, `store-cap`, `store-near-cap`.
    #[prost(string, repeated, tag = "14")]
    pub store_conditions: Vec<String>,
    /// What the hot image is doing, in one word; absent if none is kept.
    #[prost(string, optional, tag = "30")]
    pub image: Option<String>,
    /// The point it is equal to.
    #[prost(message, optional, tag = "31")]
    pub image_point: Option<PointId>,
    /// Why it failed.
    #[prost(string, optional, tag = "32")]
    pub image_failure: Option<String>,
}

/// A hot image, durable and equal to a point.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    /// Its path on the receiver's machine, as bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub path: Bytes,
    /// Device and inode there.
    #[prost(uint64, tag = "2")]
    pub device: u64,
    #[prost(uint64, tag = "3")]
    pub inode: u64,
    #[prost(message, optional, tag = "4")]
    pub point: Option<PointId>,
    /// A tree of the root alone, whose attributes are still to be set.
    #[prost(message, repeated, tag = "5")]
    pub root: Vec<super::ops::OpMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Points {
    #[prost(message, repeated, tag = "1")]
    pub points: Vec<Point>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Point {
    #[prost(message, optional, tag = "1")]
    pub id: Option<PointId>,
    #[prost(message, optional, tag = "2")]
    pub parent: Option<PointId>,
    #[prost(message, optional, tag = "3")]
    pub cut: Option<Cut>,
    #[prost(fixed64, tag = "4")]
    pub received_ns: u64,
    #[prost(string, repeated, tag = "5")]
    pub tags: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Promoted {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(message, optional, tag = "2")]
    pub base: Option<PointId>,
}

/// How far a verification has come.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VerifyProgress {
    /// Points are counted, and not bytes of the log.
    #[prost(bool, tag = "1")]
    pub points: bool,
    #[prost(uint64, tag = "2")]
    pub done: u64,
    #[prost(uint64, tag = "3")]
    pub total: u64,
}

/// Something that is damaged. One that touches several volumes is told for each.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct VerifyFinding {
    /// `log`, `chunk`, `lost-chunks`, `index` or `point`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// In words.
    #[prost(string, tag = "2")]
    pub what: String,
    #[prost(uint32, optional, tag = "3")]
    pub segment: Option<u32>,
    /// Where in the segment, in bytes.
    #[prost(uint64, optional, tag = "4")]
    pub offset: Option<u64>,
    /// Absent if it touches no point that was looked at.
    #[prost(string, optional, tag = "5")]
    pub volume: Option<String>,
    /// The first and the last point that cannot be restored whole.
    #[prost(message, optional, tag = "6")]
    pub first: Option<PointId>,
    #[prost(message, optional, tag = "7")]
    pub last: Option<PointId>,
    /// How many there are.
    #[prost(uint64, tag = "8")]
    pub points: u64,
    /// Checkpoints that cannot be used.
    #[prost(uint64, tag = "9")]
    pub checkpoints: u64,
    /// A damaged file of the first of these points.
    #[prost(string, optional, tag = "10")]
    pub file: Option<String>,
}

/// What a verification has looked at.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VerifySummary {
    #[prost(uint64, tag = "1")]
    pub records: u64,
    #[prost(uint64, tag = "2")]
    pub log_bytes: u64,
    #[prost(uint64, tag = "3")]
    pub chunks: u64,
    #[prost(uint64, tag = "4")]
    pub volumes: u64,
    #[prost(uint64, tag = "5")]
    pub points: u64,
    #[prost(uint64, tag = "6")]
    pub checkpoints: u64,
    /// Points that cannot be restored whole.
    #[prost(uint64, tag = "7")]
    pub damaged_points: u64,
    /// Chunks that a sidecar has sent again.
    #[prost(uint64, tag = "8")]
    pub resent_chunks: u64,
    /// Bytes of the log that were written again from the archive.
    #[prost(uint64, tag = "9")]
    pub restored_bytes: u64,
}

/// Something that happened to a name.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Found {
    /// From the root, without a leading slash.
    #[prost(bytes = "vec", tag = "1")]
    pub path: Vec<u8>,
    /// 1 there at the first point, 2 created, 3 changed, 4 removed, 5 there at the last point.
    #[prost(uint32, tag = "2")]
    pub what: u32,
    #[prost(message, optional, tag = "3")]
    pub point: Option<PointId>,
    /// The time of its cut, in nanoseconds since 1970.
    #[prost(fixed64, tag = "4")]
    pub time_ns: u64,
    /// The size of a regular file after it, in bytes.
    #[prost(uint64, tag = "5")]
    pub size_bytes: u64,
    /// How often it changed since it came, and where last.
    #[prost(uint64, tag = "6")]
    pub changes: u64,
    #[prost(message, optional, tag = "7")]
    pub changed: Option<PointId>,
}

/// What points take.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Usage {
    #[prost(uint64, tag = "1")]
    pub points: u64,
    /// Of the last of these points: files, directories and all else.
    #[prost(uint64, tag = "2")]
    pub files: u64,
    #[prost(uint64, tag = "3")]
    pub directories: u64,
    #[prost(uint64, tag = "4")]
    pub others: u64,
    /// The sizes of its files, and without holes.
    #[prost(uint64, tag = "5")]
    pub size_bytes: u64,
    #[prost(uint64, tag = "6")]
    pub data_bytes: u64,
    /// Distinct chunks of all these points, their content, and what they take in the log.
    #[prost(uint64, tag = "7")]
    pub chunks: u64,
    #[prost(uint64, tag = "8")]
    pub chunk_bytes: u64,
    #[prost(uint64, tag = "9")]
    pub stored_bytes: u64,
    /// Those that are nowhere.
    #[prost(uint64, tag = "10")]
    pub missing_chunks: u64,
}
