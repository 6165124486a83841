//! Verification: what is asked, how far it is, what it found.

use prost::Message;

use super::point::PointId;

#[derive(Clone, PartialEq, Message)]
pub struct VerifyRequest {
    /// Absent, all that the operator may see.
    #[prost(string, optional, tag = "1")]
    pub volume: Option<String>,
    /// What is damaged is fetched again from where it still is. What is told is what is left then.
    #[prost(bool, tag = "2")]
    pub repair: bool,
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
