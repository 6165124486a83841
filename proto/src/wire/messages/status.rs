//! How a volume is now.

use prost::Message;

use super::{
    point::{Point, PointId, PointName},
    to_receiver::Heartbeat,
};

#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

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
    /// Content that the sidecar sends, uncompressed, and all that it sends, in bytes a second over the last seconds.
    #[prost(uint64, optional, tag = "50")]
    pub content_bytes_per_s: Option<u64>,
    #[prost(uint64, optional, tag = "51")]
    pub wire_bytes_per_s: Option<u64>,
    /// The point that was tested last, and the name that says how it went.
    #[prost(message, optional, tag = "52")]
    pub tested: Option<PointName>,
    /// Points that instant promotions still fetch from, with the directory of each.
    #[prost(message, repeated, tag = "53")]
    pub instants: Vec<PointName>,
}
