//! Recovery points.

use bytes::Bytes;
use prost::Message;

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

/// A point, and what is said of it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PointName {
    #[prost(message, optional, tag = "1")]
    pub point: Option<PointId>,
    #[prost(string, tag = "2")]
    pub name: String,
}
