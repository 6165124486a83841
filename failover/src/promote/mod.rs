//! Promotion: the standby becomes the primary.
//!
//! ```text
//! select ─▶ check ─▶ copy ─▶ raise the epoch ─▶ write the difference ─▶ complete ─▶ report
//!     the target alone was changed so far │ the old writer is fenced from here on, durably
//! ```
//! The copy is written and every byte of it checked before the epoch rises, so a damaged store or a target that cannot be
//! written is found while the old primary still is the primary. Only what came meanwhile is written after the fence. The price is that
//! the fence comes later; a primary that still runs is not lost in that time, and one that is gone writes nothing.
//!
//! Where the receiver keeps a hot image of the newest point and this is its machine, the image takes the place of the copy: it is looked at before the fence and taken after it
//! ([`handover`]). Where it cannot be, or another point is promoted, the copy takes of it what is equal, by reflink, before the rest is fetched.
//!
//! Until it is complete the target carries the marker of an unfinished copy, with a label that names the volume and not the
//! point. So the same command goes on after an interruption at any step, whatever the newest point is by then; after the fence it
//! finds its own epoch by the base it chose, and a target that was completed is recognised as long as nothing has touched it.
//! It needs nothing from the failed site.

mod fence;
mod finish;
mod group;
mod handover;
mod instant;
mod plan;
mod prepare;
mod target;

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;
use tidelock_proto::VolumeName;
use tidelock_receiver::reconcile::Report;

pub use fence::{FenceReport, fence_without_copy};
pub use group::check_group;
pub(crate) use group::check_places;
pub(crate) use handover::is_here;
#[cfg(test)]
pub(crate) use instant::complete::complete as complete_instant;
pub use instant::{Instant, InstantEnd, InstantReport, hydration, instant, is_begun};
pub use plan::{PromotePlan, plan, plan_all};
pub use prepare::{Prepared, prepare};

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    report::{Choice, PointReport},
    restore::Event,
    window::{self, WindowReport},
};

/// What to promote, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromoteOptions {
    /// Which point.
    pub at: At,
    /// A fuzzy point may be promoted.
    pub accept_fuzzy: bool,
    /// A volume may be promoted though its sidecar had lost events and was comparing it.
    pub accept_unverified: bool,
    /// The target may hold something: what differs is changed, what is not in the point is deleted.
    pub overwrite: bool,
    /// Files of the right size and time are not read.
    pub trust_mtime: bool,
    /// The target may be one that somebody has files open in, that lies within a volume that is replicated, or that has no room.
    pub force: bool,
    /// A copy is written even if the receiver has a hot image that could be taken.
    pub copy: bool,
    /// A planned move: the old primary's sidecar stops its application and takes a last cut, which is what is promoted.
    pub planned: bool,
    /// For how long it can be taken back; see [`crate::unpromote`].
    pub window: Option<Duration>,
}

/// What was lost and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recovery {
    /// Recovery point: from the newest instant that the promoted point is known to cover to the start of this
    /// promotion, in milliseconds. What was written in between is lost.
    pub rpo_ms: f64,
    /// Whether a running receiver said what is covered. If not, the age of the point stands in, which is more than was
    /// lost if the volume was idle, and is off by the difference of two clocks. Nor is it known once an earlier run has fenced, since when
    /// nothing more was lost.
    pub rpo_known: bool,
    /// Bytes that the old primary had changed and not committed when it was last heard, if a receiver knows.
    pub behind_bytes: Option<u64>,
    /// Age of the point's cut by this machine's clock at the start, in milliseconds.
    pub point_age_ms: f64,
    /// Choosing the point, in milliseconds.
    pub select_ms: f64,
    /// Reading its tree and looking for its content, in milliseconds.
    pub check_ms: f64,
    /// Writing the copy before the fence, in milliseconds.
    pub copy_ms: f64,
    /// Raising the epoch, in milliseconds.
    pub fence_ms: f64,
    /// Writing what came meanwhile and completing the directory, in milliseconds.
    pub difference_ms: f64,
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
    /// An earlier run had completed the directory, too; nothing was written.
    pub already: bool,
    /// Where the volume is now.
    pub directory: PathBuf,
    /// Chunks looked for before the copy was begun.
    pub chunks_checked: u64,
    /// What was lost and how long it took.
    pub recovery: Recovery,
    /// What was done to the directory before the fence, the last time if it was written several times.
    pub work: Report,
    /// What was done to it after the fence, if anything had come.
    pub difference: Option<Report>,
    /// The hot image that became the directory; then nothing was copied.
    pub image: Option<PathBuf>,
    /// Why a hot image did not, if the receiver keeps them.
    pub image_missed: Option<String>,
    /// Until when it can be taken back, if that was asked for.
    pub window: Option<WindowReport>,
    /// Why it cannot be, although that was asked for.
    pub window_missed: Option<String>,
    /// Processes that could not be looked at, where it mattered who has files of the directory open.
    pub unseen: u64,
    /// The command that protects the new primary.
    pub next_command: String,
}

impl PromoteReport {
    /// The promoted point, for the other volumes of its group.
    pub fn at(&self) -> At {
        self.point.id.parse().map_or(At::Latest, At::Point)
    }
}

/// Makes `directory` equal to the chosen point and raises the epoch of the volume.
pub fn promote(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    options: &PromoteOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<PromoteReport, FailoverError> {
    prepare(access, volume, directory, options, events)?.finish(access, None, events)
}

/// Whether an earlier run raised the epoch to build on this very point, and no writer of it has come yet. An epoch that was raised to give the volume back
/// is the old primary's: whoever took it over would fence nobody, and two would be told to go on in it.
fn is_promoted_to(choice: &Choice) -> bool {
    let base = choice.volume.last.as_ref().map(|last| last.id);
    choice.volume.promoted
        && base == Some(choice.point.id)
        && !window::is_given_back(&choice.point, choice.volume.epoch)
}

/// The command that protects these volumes together from now on. They may be at different epochs; the highest is taken, and
/// the receiver raises the others to it.
pub fn next_command(reports: &[PromoteReport]) -> String {
    let volumes =
        reports.iter().map(|report| (report.volume.clone(), report.directory.as_path(), report.epoch));
    together(volumes.collect())
}

/// The command for volumes, their directories, and the epochs they are at.
pub(crate) fn together(volumes: Vec<(String, &Path, u64)>) -> String {
    let epoch = volumes.iter().map(|(.., epoch)| *epoch).max().unwrap_or(1);
    let raise = volumes.iter().any(|(.., at)| *at < epoch);
    let line = command(volumes.into_iter().map(|(volume, directory, _)| (volume, directory)), epoch);
    if raise { format!("{line} --raise-epoch") } else { line }
}

pub(crate) fn command<'a>(volumes: impl Iterator<Item = (String, &'a Path)>, epoch: u64) -> String {
    let volumes: String =
        volumes.map(|(volume, directory)| format!(" --volume {volume}={}", quoted(directory))).collect();
    // Where nobody could be asked.
    let epoch = if epoch == 0 { "EPOCH".to_owned() } else { epoch.to_string() };
    format!("tidelock sidecar{volumes} --epoch {epoch} --receiver HOST:PORT --identity DIR")
}

/// A path as a word of a command line.
pub fn quoted(path: &Path) -> String {
    let word = shlex::bytes::try_quote(path.as_os_str().as_bytes());
    // What has a zero in it is no path.
    word.map_or_else(|_| path.display().to_string(), |word| String::from_utf8_lossy(&word).into_owned())
}

/// Wherever the command is run that it is told in.
pub(crate) fn whole(directory: &Path) -> PathBuf {
    std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned())
}
