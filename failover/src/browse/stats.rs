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
    /// Points that were looked at.
    pub points: u64,
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Links, pipes, devices.
    pub others: u64,
    /// The lengths of all files, holes included, in bytes.
    pub size_bytes: u64,
    /// Without holes, in bytes.
    pub data_bytes: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// Their content, in bytes.
    pub chunk_bytes: u64,
    /// What they take in the log, in bytes. Other volumes of the tenant may share them.
    pub stored_bytes: u64,
    /// Chunks that are not in the store: `tidelock verify` says what that touches.
    pub missing_chunks: u64,
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
    let Usage { points, files, directories, others, size_bytes, data_bytes, .. } = usage;
    let Usage { chunks, chunk_bytes, stored_bytes, missing_chunks, .. } = usage;
    let ratio = |of: u64, by: u64| (by > 0).then(|| of as f64 / by as f64);
    Ok(StatsReport {
        volume: volume.to_string(),
        dedup_ratio: choice.as_ref().and_then(|_| ratio(data_bytes, chunk_bytes)),
        compression_ratio: ratio(chunk_bytes, stored_bytes),
        point: choice.map(|choice| choice.report()),
        points,
        files,
        directories,
        others,
        size_bytes,
        data_bytes,
        chunks,
        chunk_bytes,
        stored_bytes,
        missing_chunks,
    })
}
