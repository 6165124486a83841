//! Rollback: a live directory is made what it was at a point, in place, while nobody works in it.
//!
//! No epoch rises: the volume stays where it is, and its sidecar sends what the rollback changed as the next point, so it can be
//! rolled forward again. It must not run meanwhile, or there would be points of a half-done rollback.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tidelock_proto::VolumeName;
use tidelock_receiver::reconcile::{ReconcileError, Report};

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    openers::{Openers, at_rest},
    report::PointReport,
    restore::{Event, RestoreOptions, restore},
};

/// To which point, and whatever may be in the way.
#[derive(Debug, Clone, Default)]
pub struct RollbackOptions {
    /// Which point.
    pub at: At,
    /// `latest` and times may mean a fuzzy point.
    pub accept_fuzzy: bool,
    /// Files of the right size and time are not read.
    pub trust_mtime: bool,
    /// Though processes have files open there, or the sidecar is connected.
    pub force: bool,
}

/// A rollback that is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RollbackReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point that the directory is now.
    pub point: PointReport,
    /// The newest point, which is the way forward again.
    pub newest: Option<PointReport>,
    /// The directory.
    pub directory: PathBuf,
    /// Who had files open there.
    pub openers: Openers,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// What was done to the directory.
    pub work: Report,
}

/// Makes `directory` equal to a point: what differs is changed, what is not in the point is deleted. An interrupted one is
/// continued by running it again.
pub fn rollback(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    options: &RollbackOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<RollbackReport, FailoverError> {
    if !directory.is_dir() {
        return Err(ReconcileError::NotDirectory(directory.to_owned()).into());
    }
    let known = access.volume(volume)?;
    if known.live.as_ref().is_some_and(|live| live.connected) && !options.force {
        return Err(FailoverError::Connected(volume.clone()));
    }
    let openers = at_rest(directory, options.force)?;
    let whole = RestoreOptions {
        at: options.at.clone(),
        accept_fuzzy: options.accept_fuzzy,
        overwrite: true,
        trust_mtime: options.trust_mtime,
        // It was looked at.
        force: true,
        ..RestoreOptions::default()
    };
    let done = restore(access, volume, directory, &whole, events)?;
    Ok(RollbackReport {
        volume: done.volume,
        point: done.point,
        newest: known.last.as_ref().map(|last| PointReport::new(last, true)),
        directory: done.directory,
        openers,
        took_ms: done.took_ms,
        work: done.work,
    })
}
