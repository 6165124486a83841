//! Promotion: the standby becomes the primary.
//!
//! ```text
//! select ─▶ check ─▶ raise the epoch ─▶ write the directory ─▶ report
//!   nothing changed so far │ the old writer is fenced from here on, durably
//! ```
//! Everything that can be refused is refused before the epoch rises. After it, the only way is on: a promotion that was
//! interrupted while it wrote is completed by running it again, and finds its own epoch by the base it chose. It needs
//! nothing from the failed site. If the old primary still writes, `latest` is what is durable when it has been stopped, which may be
//! later than the point that was checked.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use serde::Serialize;
use tidelock_proto::{Epoch, VolumeName, point::Consistency};
use tidelock_receiver::reconcile::{self, Report};

use crate::{
    access::Access,
    at::{At, to_ns},
    error::FailoverError,
    report::{Choice, PointReport, choose},
    restore::{Event, Step, millis, target_options, write},
};

/// What to promote, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromoteOptions {
    /// Which point.
    pub at: At,
    /// A fuzzy point may be promoted.
    pub accept_fuzzy: bool,
    /// The target may hold something: what differs is changed, what is not in the point is deleted.
    pub overwrite: bool,
    /// Files of the right size and time are not read.
    pub trust_mtime: bool,
}

/// What was lost and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recovery {
    /// Recovery point: from the newest instant that the promoted point is known to cover to the start of this
    /// promotion, in milliseconds. What was written in between is lost.
    pub rpo_ms: f64,
    /// Whether a running receiver said what is covered. If not, the age of the point stands in, which is more than was
    /// lost if the volume was idle, and is off by the difference of two clocks.
    pub rpo_known: bool,
    /// Age of the point's cut by this machine's clock, in milliseconds.
    pub point_age_ms: f64,
    /// Choosing the point, in milliseconds.
    pub select_ms: f64,
    /// Reading its tree and looking for its content, in milliseconds.
    pub check_ms: f64,
    /// Raising the epoch, in milliseconds.
    pub fence_ms: f64,
    /// Writing the directory, in milliseconds.
    pub restore_ms: f64,
    /// Recovery time: all of it, in milliseconds.
    pub rto_ms: f64,
}

/// A promotion that is complete.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromoteReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point that is the primary now.
    pub point: PointReport,
    /// The epoch that was ended.
    pub old_epoch: u64,
    /// The epoch of the new primary.
    pub epoch: u64,
    /// The epoch had been raised by an earlier run, which this one completed.
    pub resumed: bool,
    /// Where the volume is now.
    pub directory: PathBuf,
    /// Chunks looked for before the epoch was raised.
    pub chunks_checked: u64,
    /// What was lost and how long it took.
    pub recovery: Recovery,
    /// What was done to the directory.
    pub work: Report,
    /// The command that protects the new primary.
    pub next_command: String,
}

/// Raises the epoch of a volume and makes `directory` equal to the chosen point.
pub fn promote(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    options: &PromoteOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<PromoteReport, FailoverError> {
    let (begun, now) = (Instant::now(), SystemTime::now());
    events(Event::Step(Step::Select));
    let mut choice = choose(access, volume, &options.at, options.accept_fuzzy, now)?;
    if choice.point.cut.consistency == Consistency::Fuzzy && !options.accept_fuzzy {
        return Err(FailoverError::Fuzzy(choice.point.id));
    }
    let mut target = target_options(volume, choice.point.id, options.overwrite, options.trust_mtime);
    reconcile::check_target(directory, &target)?;
    let select_ms = millis(begun);

    events(Event::Step(Step::Check));
    let mut tree = access.tree(volume, &choice.point)?;
    let probe = access.probe(volume, &tree)?;
    if probe.missing > 0 {
        return Err(FailoverError::Unrestorable { point: choice.point.id, missing: probe.missing });
    }
    let check_ms = millis(begun) - select_ms;

    events(Event::Step(Step::Fence));
    let resumed = is_promoted_to(&choice);
    let (rpo_ms, rpo_known) = rpo(&choice, now);
    let old_epoch = if resumed { choice.volume.epoch.0 - 1 } else { choice.volume.epoch.0 };
    let checked_ns = choice.point.cut.time_ns;
    let (epoch, later) = match resumed {
        true => (choice.volume.epoch, None),
        false => fence(access, volume, &choice, options)?,
    };
    if let Some(later) = later {
        tree = access.tree(volume, &later.point)?;
        target = target_options(volume, later.point.id, options.overwrite, options.trust_mtime);
        choice = later;
    }
    let gained_ms = choice.point.cut.time_ns.saturating_sub(checked_ns) as f64 / 1e6;
    let fence_ms = millis(begun) - select_ms - check_ms;

    let work = write(access, volume, &tree, directory, &target, events).map_err(|source| {
        FailoverError::AfterFence { epoch, point: choice.point.id, source: Box::new(source) }
    })?;
    let rto_ms = millis(begun);
    let restore_ms = rto_ms - select_ms - check_ms - fence_ms;
    let point_age_ms = age_ms(&choice, now);
    Ok(PromoteReport {
        volume: volume.to_string(),
        point: choice.report(),
        old_epoch,
        epoch: epoch.0,
        resumed,
        directory: directory.to_owned(),
        chunks_checked: probe.looked_for,
        recovery: Recovery {
            rpo_ms: (rpo_ms - gained_ms).max(0.0),
            rpo_known,
            point_age_ms,
            select_ms,
            check_ms,
            fence_ms,
            restore_ms,
            rto_ms,
        },
        work,
        next_command: command([(volume.to_string(), directory)].into_iter(), epoch.0),
    })
}

/// Raises the epoch. A live volume goes on until its writer is stopped, and `latest` means what is there then: a point
/// that came after the chosen one is told. If it is fuzzy and must not be, the epoch is raised once more, upon the
/// newest that is not.
fn fence(
    access: &Access,
    volume: &VolumeName,
    choice: &Choice,
    options: &PromoteOptions,
) -> Result<(Epoch, Option<Choice>), FailoverError> {
    let newest = choice.volume.last.as_ref().map(|last| last.id);
    let open = options.at == At::Latest && newest == Some(choice.point.id);
    let wanted = (!open).then_some(choice.point.id);
    let (epoch, base) = access.raise_epoch(volume, choice.volume.epoch, wanted)?;
    if base == choice.point.id {
        return Ok((epoch, None));
    }
    let later = choose(access, volume, &At::Latest, options.accept_fuzzy, SystemTime::now())?;
    let epoch = match later.point.id == base {
        true => epoch,
        false => access.raise_epoch(volume, epoch, Some(later.point.id))?.0,
    };
    Ok((epoch, Some(later)))
}

/// Whether an earlier run raised the epoch to build on this very point, and no writer of it has come yet.
fn is_promoted_to(choice: &Choice) -> bool {
    let base = choice.volume.last.as_ref().map(|last| last.id);
    choice.volume.promoted && base == Some(choice.point.id)
}

/// What lies between the point and the start, in milliseconds, and whether a receiver said so.
fn rpo(choice: &Choice, now: SystemTime) -> (f64, bool) {
    match (&choice.volume.live, &choice.volume.last) {
        (Some(live), Some(last)) if choice.current => {
            let earlier_ns = last.cut.time_ns.saturating_sub(choice.point.cut.time_ns);
            ((live.lag_ns + earlier_ns) as f64 / 1e6, true)
        }
        _ => (age_ms(choice, now), false),
    }
}

fn age_ms(choice: &Choice, now: SystemTime) -> f64 {
    to_ns(now).saturating_sub(choice.point.cut.time_ns) as f64 / 1e6
}

/// The command that protects these volumes together from now on. They may be at different epochs; the highest is taken, and
/// the receiver raises the others to it.
pub fn next_command(reports: &[PromoteReport]) -> String {
    let epoch = reports.iter().map(|report| report.epoch).max().unwrap_or(1);
    let line =
        command(reports.iter().map(|report| (report.volume.clone(), report.directory.as_path())), epoch);
    let raise = reports.iter().any(|report| report.epoch < epoch);
    if raise { format!("{line} --raise-epoch") } else { line }
}

fn command<'a>(volumes: impl Iterator<Item = (String, &'a Path)>, epoch: u64) -> String {
    let volumes: String =
        volumes.map(|(volume, directory)| format!(" --volume {volume}={}", directory.display())).collect();
    format!("tidelock sidecar{volumes} --epoch {epoch} --receiver HOST:PORT --identity DIR")
}

impl PromoteReport {
    /// The promoted point, for the other volumes of its group.
    pub fn at(&self) -> At {
        self.point.id.parse().map_or(At::Latest, At::Point)
    }
}
