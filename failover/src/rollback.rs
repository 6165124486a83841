//! Rollback: a live directory is made what it was at a point, in place, while nobody works in it.
//!
//! No epoch rises: the volume stays where it is, and its sidecar sends what the rollback changed as the next point, so it can be
//! rolled forward again. It must not run meanwhile, or there would be points of a half-done rollback.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Serialize;
use tidelock_proto::{FileId, Tree, VolumeName};
use tidelock_receiver::reconcile::{self, ReconcileError, Report, Vacancy};

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    openers::{Openers, at_rest},
    report::{Choice, PointReport, choose},
    restore::{Event, RestoreOptions, restore_if},
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
    /// Though processes have files open there, the sidecar is connected, or the directory has nothing in common with the volume.
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
    let judge = |choice: &Choice, tree: &Tree| match options.force {
        true => Ok(()),
        false => check_resembles(access, volume, directory, (choice, tree)),
    };
    let done = restore_if(access, (volume, directory), &whole, events, &judge)?;
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

/// A mistyped directory must not become the volume: what is to be gone back from has a name in common with the point, or with the newest one. One that is empty, or was
/// begun, has nothing to lose.
fn check_resembles(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    (choice, tree): (&Choice, &Tree),
) -> Result<(), FailoverError> {
    if reconcile::vacancy(directory)? != Vacancy::Occupied {
        return Ok(());
    }
    let named = |tree: &Tree| {
        let names = tree.entries(FileId::ROOT).into_iter().flatten();
        let mut names = names.map(|(name, _)| OsStr::from_bytes(name.as_bytes()));
        names.any(|name| name != "lost+found" && directory.join(name).symlink_metadata().is_ok())
    };
    if named(tree) {
        return Ok(());
    }
    let newest = choose(access, volume, &At::Latest, true, SystemTime::now())?;
    if named(&access.tree(volume, &newest.point)?) {
        return Ok(());
    }
    let point = choice.point.id;
    Err(FailoverError::NotThatVolume { directory: directory.to_owned(), volume: volume.clone(), point })
}
