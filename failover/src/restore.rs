//! Restore: a point as a directory, beside the running replication and without a trace in it.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use serde::Serialize;
use tidelock_proto::{ChunkKey, PointId, Tree, VolumeName};
use tidelock_receiver::reconcile::{self, Options, Progress, Report};

use crate::{
    access::Access,
    at::At,
    donor::write_beside,
    error::FailoverError,
    openers::not_in_use,
    part::Part,
    report::{Choice, PointReport, choose},
    room::Room,
};

/// What to restore, and how.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Which point.
    pub at: At,
    /// `latest` and times may mean a fuzzy point.
    pub accept_fuzzy: bool,
    /// The target may hold something: what differs is changed, what is not in the point is deleted.
    pub overwrite: bool,
    /// Files of the right size and time are not read.
    pub trust_mtime: bool,
    /// Though somebody has files of the target open, or there is no room for it.
    pub force: bool,
    /// Only these names.
    pub part: Part,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Choosing the point.
    Select,
    /// Reading its tree and looking for its content.
    Check,
    /// Of an instant promotion: taking the directory.
    Place,
    /// Raising the epoch.
    Fence,
    /// Writing the directory.
    Restore,
    /// The epoch was raised: writing what came since the copy was begun.
    Difference,
    /// Of an instant promotion: the epoch was raised, and its journal is made; from then on it needs nobody.
    Journal,
    /// Of an instant promotion: mounting.
    Mount,
    /// The receiver has let go of its image: it is renamed.
    Handover,
    /// The directory is equal to the point: its marker goes. Of an instant promotion: everything is local, and is put together.
    Complete,
    /// Of an instant promotion: it is whole, and takes the mount's place.
    Move,
    /// Of an instant promotion: the plain directory is there, and how it was made goes.
    Clear,
    /// Nothing is left to do.
    Done,
}

/// How a restore or promotion goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A step begins.
    Step(Step),
    /// Within [`Step::Restore`].
    Progress(Progress),
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestoreReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point.
    pub point: PointReport,
    /// Where it is now.
    pub directory: PathBuf,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
    /// Processes that could not be looked at, where it mattered who has files of the directory open.
    pub unseen: u64,
    /// What was done to the directory.
    pub work: Report,
}

/// Makes `directory` equal to a point. An interrupted one is continued by running it again with the same point.
pub fn restore(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    options: &RestoreOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<RestoreReport, FailoverError> {
    restore_if(access, (volume, directory), options, events, &|_, _| Ok(()))
}

/// The same, unless the judge of what is to be written says no.
pub(crate) fn restore_if(
    access: &Access,
    (volume, directory): (&VolumeName, &Path),
    options: &RestoreOptions,
    events: &(dyn Fn(Event) + Sync),
    judge: &dyn Fn(&Choice, &Tree) -> Result<(), FailoverError>,
) -> Result<RestoreReport, FailoverError> {
    let begun = Instant::now();
    events(Event::Step(Step::Select));
    let choice = choose(access, volume, &options.at, options.accept_fuzzy, SystemTime::now())?;
    let mut target = target_options(volume, choice.point.id, options.overwrite, options.trust_mtime);
    // A run with other patterns does not go on where this one was interrupted.
    target.label.push_str(&options.part.to_string());
    if options.overwrite && !options.part.is_whole() {
        return Err(FailoverError::PartOverwrites);
    }
    reconcile::check_target(directory, &target)?;
    let unseen = if options.force { 0 } else { not_in_use(directory)? };
    events(Event::Step(Step::Check));
    let tree = options.part.of(access.tree(volume, &choice.point)?)?;
    judge(&choice, &tree)?;
    if !options.force {
        Room::default().check(directory, &tree, (access, &choice))?;
    }
    let work = write_beside(access, &choice, &tree, directory, &target, events)?;
    Ok(RestoreReport { unseen, ..restored(volume, &choice, directory, begun, work) })
}

pub(crate) fn restored(
    volume: &VolumeName,
    choice: &Choice,
    directory: &Path,
    begun: Instant,
    work: Report,
) -> RestoreReport {
    RestoreReport {
        volume: volume.to_string(),
        point: choice.report(),
        directory: directory.to_owned(),
        took_ms: millis(begun),
        unseen: 0,
        work,
    }
}

/// The label names the point, so that an interrupted copy is never continued as one of another.
pub(crate) fn target_options(
    volume: &VolumeName,
    point: PointId,
    overwrite: bool,
    trust_mtime: bool,
) -> Options {
    let key = ChunkKey::of_tenant(volume.tenant());
    Options { overwrite, trust_mtime, ..Options::new(key, format!("{volume} {point}")) }
}

pub(crate) fn write(
    access: &Access,
    volume: &VolumeName,
    tree: &Tree,
    directory: &Path,
    target: &Options,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Report, FailoverError> {
    events(Event::Step(Step::Restore));
    let chunks = access.chunks(volume);
    let progress = |progress| events(Event::Progress(progress));
    Ok(reconcile::reconcile(directory, tree, &*chunks, target, &progress)?)
}

pub(crate) fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
