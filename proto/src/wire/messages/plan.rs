//! What retention, compaction and the size cap would do.

use prost::Message;

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
