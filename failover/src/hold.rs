//! Holds: a point that stays until somebody says otherwise, whatever retention and the store's cap say.
//!
//! A hold is a name of the point that begins with `held: `, so it is durable and shown as any name is; only a release takes it away.

use std::time::SystemTime;

use serde::Serialize;
use tidelock_proto::VolumeName;
use tidelock_receiver::store::{HOLD, is_hold};

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    report::{PointReport, choose},
};

/// A point that was held or released.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HoldReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point, as it was before.
    pub point: PointReport,
    /// Why it is held, or was.
    pub reasons: Vec<String>,
}

/// Holds a point. Reasons of earlier holds stay.
pub fn hold(
    access: &Access,
    volume: &VolumeName,
    at: &At,
    reason: &str,
) -> Result<HoldReport, FailoverError> {
    let choice = choose(access, volume, at, true, SystemTime::now())?;
    access.tag(volume, choice.point.id, &format!("{HOLD}{reason}"))?;
    let reasons = reasons(&choice.point.tags).chain([reason.to_owned()]).collect();
    Ok(HoldReport { volume: volume.to_string(), point: choice.report(), reasons })
}

/// Takes all holds from a point, which has one.
pub fn release(access: &Access, volume: &VolumeName, at: &At) -> Result<HoldReport, FailoverError> {
    let choice = choose(access, volume, at, true, SystemTime::now())?;
    let reasons: Vec<_> = reasons(&choice.point.tags).collect();
    if reasons.is_empty() {
        return Err(FailoverError::NotHeld { volume: volume.clone(), point: choice.point.id });
    }
    access.release(volume, choice.point.id)?;
    Ok(HoldReport { volume: volume.to_string(), point: choice.report(), reasons })
}

fn reasons(tags: &[String]) -> impl Iterator<Item = String> {
    tags.iter().filter(|tag| is_hold(tag)).map(|tag| tag[HOLD.len()..].to_owned())
}
