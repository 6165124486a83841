//! Branches: what an old primary wrote that nobody else has, kept beside the line that went on without it.
//!
//! A branch is a volume like any other, of the same tenant, so that whatever can be done with a volume can be done with it. Its first
//! point is a clone of the last point that the old primary's epoch has; its next is the directory as it was found. What
//! differs between the two is what was never replicated, and only that takes space. Nothing is decided by the name
//! of a volume: that one is a branch is told by the tag that every clone has.

use std::{fs, path::Path, time::SystemTime};

use serde::Serialize;
use tidelock_proto::{Epoch, PointId, VolumeName, point::Point};
use tidelock_receiver::reconcile::marker_path;

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    openers::{Openers, at_rest},
    report::{PointReport, choose},
    select,
};

/// A branch that is there, ready to take the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Begun {
    /// The volume it is a branch of.
    pub volume: String,
    /// The point where it leaves that one.
    pub base: PointReport,
    /// The branch.
    pub branch: String,
    /// An earlier run had made it.
    pub resumed: bool,
}

/// A branch as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BranchReport {
    /// The branch, which is a volume.
    pub branch: String,
    /// The point where it leaves the volume it is of.
    pub base: String,
    /// Its first point, which is equal to that.
    pub first: PointReport,
    /// Its newest point.
    pub last: PointReport,
}

/// Makes the branch `to` of a volume at the newest point that writers up to `epoch` have made there, or where `at` says. If an
/// earlier run has made it, at the same point, it is taken as it is.
pub fn begin_branch(
    access: &Access,
    volume: &VolumeName,
    epoch: Epoch,
    at: Option<&At>,
    to: &VolumeName,
) -> Result<Begun, FailoverError> {
    let base = match at {
        Some(at) => choose(access, volume, at, true, SystemTime::now())?.point,
        None => last_of(access, volume, epoch)?,
    };
    let last = access.volume(volume)?.last.ok_or_else(|| FailoverError::NoPoints(volume.clone()))?;
    let current = select::line(&access.points(volume, None)?, last.id).contains(&base.id);
    let resumed = access.volumes()?.iter().any(|known| known.name == *to);
    if resumed {
        let first = access.points(to, None)?.into_iter().next();
        let origin = first.and_then(|first| origin(&first, volume));
        if origin != Some(base.id) {
            return Err(FailoverError::NotThatBranch {
                branch: to.clone(),
                of: volume.clone(),
                base: base.id,
            });
        }
    } else {
        access.clone_volume(volume, base.id, to)?;
    }
    let base = PointReport::new(&base, current);
    Ok(Begun { volume: volume.to_string(), base, branch: to.to_string(), resumed })
}

/// Whether a directory can be what an old primary left: there is something in it, it is no half-written copy, and nobody works there
/// unless it is to be done by `force`.
pub fn check_old_primary(directory: &Path, force: bool) -> Result<Openers, FailoverError> {
    let openers = at_rest(directory, force)?;
    let mut entries = fs::read_dir(directory).map_err(FailoverError::Openers)?;
    if marker_path(directory).exists() {
        return Err(FailoverError::HalfWritten(directory.to_owned()));
    }
    match entries.any(|entry| entry.is_ok_and(|entry| entry.file_name() != "lost+found")) {
        true => Ok(openers),
        false => Err(FailoverError::NothingThere(directory.to_owned())),
    }
}

/// The newest point that a writer of this epoch made, whether or not the line went on from there; if it made none, of the one before it.
fn last_of(access: &Access, volume: &VolumeName, epoch: Epoch) -> Result<Point, FailoverError> {
    let mut points = access.points(volume, None)?;
    points.retain(|point| point.id.epoch <= epoch);
    points.pop().ok_or_else(|| FailoverError::NoPointOfEpoch { volume: volume.clone(), epoch })
}

/// The branches and clones of a volume, in the order of their names.
pub fn branches(access: &Access, volume: &VolumeName) -> Result<Vec<BranchReport>, FailoverError> {
    let mut found = Vec::new();
    for other in access.volumes()? {
        if other.name.tenant() != volume.tenant() || other.name == *volume {
            continue;
        }
        let points = access.points(&other.name, None)?;
        let (Some(first), Some(last)) = (points.first(), other.last.as_ref()) else { continue };
        if let Some(base) = origin(first, volume) {
            found.push(BranchReport {
                branch: other.name.to_string(),
                base: base.to_string(),
                first: PointReport::new(first, true),
                last: PointReport::new(last, true),
            });
        }
    }
    Ok(found)
}

/// The point of `volume` that the first point of another one was made of.
fn origin(first: &Point, volume: &VolumeName) -> Option<PointId> {
    first.tags.iter().find_map(|tag| clone_tag(tag, volume.name()))
}

fn clone_tag(tag: &str, name: &str) -> Option<PointId> {
    tag.strip_prefix("clone of ")?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()
}
