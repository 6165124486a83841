//! Questions about single points, and what is done to them and to volumes.

use bytes::Bytes;
use prost::Message;

use super::point::PointId;

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
pub struct CloneRequest {
    #[prost(string, tag = "1")]
    pub volume: String,
    #[prost(message, optional, tag = "2")]
    pub point: Option<PointId>,
    /// The new volume, of the same tenant; it must not exist.
    #[prost(string, tag = "3")]
    pub to: String,
}
