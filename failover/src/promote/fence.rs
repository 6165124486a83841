//! A promotion whose copy is made by others: pods elsewhere fill their own volumes from the point.
//!
//! The old writer is fenced first and what can be checked is checked before: that the point is there, and that its content is. The
//! price of leaving the copy to others is that a damaged chunk which the look-up did not meet is found after the fence; the point and the old
//! primary's directory are still there then.

use std::time::{Instant, SystemTime};

use serde::Serialize;
use tidelock_proto::VolumeName;

use super::{
    PromoteOptions,
    finish::fence,
    is_promoted_to,
    prepare::{judge, loss},
};
use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    report::{PointReport, choose},
    restore::millis,
};

/// A volume whose old writer is fenced, or would be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FenceReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point that the next writer builds on.
    pub point: PointReport,
    /// The epoch that was ended.
    pub old_epoch: u64,
    /// The epoch of the next writer.
    pub epoch: u64,
    /// The epoch had been raised by an earlier run.
    pub resumed: bool,
    /// Nothing was done.
    pub dry_run: bool,
    /// What is lost, in milliseconds; see [`super::Recovery::rpo_ms`].
    pub rpo_ms: f64,
    /// Whether a running receiver said so.
    pub rpo_known: bool,
    /// Chunks that were looked for.
    pub chunks_checked: u64,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
}

impl FenceReport {
    /// The point, for the other volumes of its group.
    pub fn at(&self) -> At {
        self.point.id.parse().map_or(At::Latest, At::Point)
    }
}

/// Raises the epoch of a volume upon the chosen point, without a copy; with `dry_run` it only says what it would do. Running it
/// again, before the next writer has come, finds what it has done.
pub fn fence_without_copy(
    access: &Access,
    volume: &VolumeName,
    options: &PromoteOptions,
    dry_run: bool,
) -> Result<FenceReport, FailoverError> {
    let (begun, now) = (Instant::now(), SystemTime::now());
    let mut choice = choose(access, volume, &options.at, options.accept_fuzzy, now)?;
    judge(&choice, options)?;
    let loss = loss(&choice, now);
    let tree = access.tree(volume, &choice.point)?;
    let probe = access.probe(volume, &tree)?;
    if probe.missing > 0 {
        return Err(FailoverError::Unrestorable { point: choice.point.id, missing: probe.missing });
    }
    let current = choice.volume.epoch;
    let resumed = is_promoted_to(&choice);
    let old_epoch = if resumed { current.0 - 1 } else { current.0 };
    let epoch = match (resumed, dry_run) {
        (true, _) => current,
        (false, true) => current.next(),
        (false, false) => {
            let (epoch, later) = fence(access, volume, &choice, options)?;
            if let Some(later) = later {
                choice = later;
            }
            epoch
        }
    };
    Ok(FenceReport {
        volume: volume.to_string(),
        point: choice.report(),
        old_epoch,
        epoch: epoch.0,
        resumed,
        dry_run,
        rpo_ms: loss.rpo_ms,
        rpo_known: loss.known && !resumed,
        chunks_checked: probe.looked_for,
        took_ms: millis(begun),
    })
}
