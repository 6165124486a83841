//! What a point, or all points of a volume, take in the store.

use serde::Serialize;
use tidelock_proto::VolumeName;
use tidelock_receiver::history::Usage;

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    report::{PointReport, choose},
};

/// Sizes and ratios.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatsReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point; none if all were looked at, and then files and sizes are of the newest.
    pub point: Option<PointReport>,
    /// Files and sizes.
    #[serde(flatten)]
    pub usage: Usage,
    /// Data of one point by distinct content. Of a single point only: below 1 where chunks are referred to in part.
    pub dedup_ratio: Option<f64>,
    /// Distinct content by what it takes.
    pub compression_ratio: Option<f64>,
}

/// Asks for the sizes of a point, or of all points together.
pub fn stats(access: &Access, volume: &VolumeName, at: Option<&At>) -> Result<StatsReport, FailoverError> {
    let choice = match at {
        Some(at) => Some(choose(access, volume, at, true, std::time::SystemTime::now())?),
        None => None,
    };
    let usage = access.usage(volume, choice.as_ref().map(|choice| choice.point.id))?;
    let ratio = |of: u64, by: u64| (by > 0).then(|| of as f64 / by as f64);
    Ok(StatsReport {
        volume: volume.to_string(),
        dedup_ratio: choice.as_ref().and_then(|_| ratio(usage.data_bytes, usage.chunk_bytes)),
        compression_ratio: ratio(usage.chunk_bytes, usage.stored_bytes),
        point: choice.map(|choice| choice.report()),
        usage,
    })
}
