//! Questions over many points.

use prost::Message;

use super::point::PointId;

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
