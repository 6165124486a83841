//! Clone: a new volume in the receiver's log whose first point is a point of another one. No content is copied.

use std::time::SystemTime;

use serde::Serialize;
use tidelock_proto::VolumeName;

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    report::{PointReport, choose},
};

/// A clone that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CloneReport {
    /// The volume it was made of.
    pub volume: String,
    /// The point it was made of.
    pub point: PointReport,
    /// The new volume.
    pub clone: String,
    /// Its first point.
    pub first: PointReport,
}

/// Makes the volume `to`, which must not exist and is of the same tenant, of a point.
pub fn clone(
    access: &Access,
    volume: &VolumeName,
    at: &At,
    accept_fuzzy: bool,
    to: &VolumeName,
) -> Result<CloneReport, FailoverError> {
    let choice = choose(access, volume, at, accept_fuzzy, SystemTime::now())?;
    let first = access.clone_volume(volume, choice.point.id, to)?;
    Ok(CloneReport {
        volume: volume.to_string(),
        point: choice.report(),
        clone: to.to_string(),
        first: PointReport::new(&first, true),
    })
}
