//! Promotion, and the hot image that it may take.

use bytes::Bytes;
use prost::Message;

use super::point::PointId;

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
    pub root: Vec<crate::wire::ops::OpMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Promoted {
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    #[prost(message, optional, tag = "2")]
    pub base: Option<PointId>,
}
