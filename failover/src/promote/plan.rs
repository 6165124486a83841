//! What a promotion would do: everything that it does before it changes something.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tidelock_proto::VolumeName;

use super::{
    PromoteOptions,
    instant::check_begin,
    is_promoted_to,
    prepare::{Checked, Selected, select},
    whole,
};
use crate::{
    access::Access,
    error::FailoverError,
    report::PointReport,
    restore::{Event, Step},
    room::Room,
};

/// What a promotion would do now. It would also be refused now, if it is to be refused: then there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromotePlan {
    /// Always true: nothing was done.
    pub dry_run: bool,
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point; with `latest` and a primary that still writes, one that is newer by then.
    pub point: PointReport,
    /// The epoch now.
    pub epoch: u64,
    /// The epoch afterwards.
    pub new_epoch: u64,
    /// The epoch was raised by an earlier run, which would be completed.
    pub resumes: bool,
    /// An earlier run has completed the directory, too.
    pub already: bool,
    /// Whether the old primary's sidecar is connected, and would be fenced while it works; not known without a receiver.
    pub connected: Option<bool>,
    /// Where the volume would be.
    pub directory: PathBuf,
    /// What the directory would hold: inodes, and bytes without holes.
    pub inodes: u64,
    /// See `inodes`.
    pub data_bytes: u64,
    /// What is free there, with what the directory holds now, in bytes.
    pub free_bytes: Option<u64>,
    /// It would be mounted at once, and be fetched while it is used.
    pub instant: bool,
    /// For how long it could be taken back, in seconds.
    pub window_s: Option<u64>,
    /// Chunks that were looked for.
    pub chunks_checked: u64,
    /// What would be lost, in milliseconds, and whether a receiver said so, as in [`super::Recovery`].
    pub rpo_ms: f64,
    /// See `rpo_ms`.
    pub rpo_known: bool,
    /// Bytes that the old primary had changed and not committed when it was last heard.
    pub behind_bytes: Option<u64>,
}

/// Says what [`super::promote`] would do now; changes nothing.
pub fn plan(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    options: &PromoteOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<PromotePlan, FailoverError> {
    one(access, (volume, directory), options, false, &mut Room::default(), events)
}

/// Says what the promotion of all of these would do now; `instant` if they would be mounted at once.
pub fn plan_all(
    access: &Access,
    volumes: &[(VolumeName, PathBuf)],
    options: &PromoteOptions,
    instant: bool,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Vec<PromotePlan>, FailoverError> {
    let mut room = Room::default();
    volumes
        .iter()
        .map(|(volume, directory)| one(access, (volume, directory), options, instant, &mut room, events))
        .collect()
}

fn one(
    access: &Access,
    (volume, directory): (&VolumeName, &Path),
    options: &PromoteOptions,
    instant: bool,
    room: &mut Room,
    events: &(dyn Fn(Event) + Sync),
) -> Result<PromotePlan, FailoverError> {
    let selected = select(access, volume, directory, options, events).map_err(|error| match instant {
        true => error.without_overwrite(),
        false => error,
    })?;
    events(Event::Step(Step::Check));
    let room = (!options.force).then_some(room);
    let Checked { tree, probe, already, free_bytes } = selected.check(access, volume, directory, room)?;
    if instant && !already {
        check_begin(volume, directory, &tree)?;
    }
    let Selected { choice, loss, .. } = selected;
    let (resumes, epoch) = (is_promoted_to(&choice), choice.volume.epoch);
    Ok(PromotePlan {
        dry_run: true,
        volume: volume.to_string(),
        point: choice.report(),
        epoch: epoch.0,
        new_epoch: if resumes { epoch.0 } else { epoch.next().0 },
        resumes,
        already,
        connected: choice.volume.live.as_ref().map(|live| live.connected),
        directory: whole(directory),
        inodes: tree.totals().inodes,
        data_bytes: tree.totals().data_bytes,
        free_bytes,
        instant,
        window_s: options.window.map(|window| window.as_secs()),
        chunks_checked: probe.looked_for,
        rpo_ms: loss.rpo_ms,
        rpo_known: loss.known && !resumes,
        behind_bytes: loss.behind_bytes,
    })
}
