//! What a promotion would do: everything that it does before it changes something.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tidelock_proto::VolumeName;

use super::{
    PromoteOptions, is_promoted_to,
    prepare::{Checked, Selected, select},
};
use crate::{
    access::Access,
    error::FailoverError,
    report::PointReport,
    restore::{Event, Step},
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
    let selected = select(access, volume, directory, options, events)?;
    events(Event::Step(Step::Check));
    let Checked { tree, probe, already } = selected.check(access, volume, directory)?;
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
        directory: directory.to_owned(),
        inodes: tree.totals().inodes,
        data_bytes: tree.totals().data_bytes,
        chunks_checked: probe.looked_for,
        rpo_ms: loss.rpo_ms,
        rpo_known: loss.known,
        behind_bytes: loss.behind_bytes,
    })
}
