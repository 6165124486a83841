//! Volumes and points as an operator sees them, ready to be printed or serialised.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use serde::Serialize;
use tidelock_proto::{
    VolumeName,
    point::{Consistency, How, Point},
};

use crate::{
    access::{Access, Volume},
    at::{At, show_time},
    error::FailoverError,
    limits, select,
};

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PointReport {
    /// `EPOCH.SEQ`.
    pub id: String,
    /// The point it was built on.
    pub parent: Option<String>,
    /// The instant of the cut by the source's clock, RFC 3339.
    pub time: String,
    /// The same in nanoseconds since 1970.
    pub time_ns: u64,
    /// When the receiver took it in, by the receiver's clock, in nanoseconds since 1970.
    pub received_ns: u64,
    /// What may be believed of it.
    pub consistency: Consistency,
    /// The tracker that saw the changes.
    pub tracker: String,
    /// How the cut found its quiet instant.
    pub how: How,
    /// Conditions that held while it was cut.
    pub conditions: Vec<String>,
    /// The volumes that were cut at this instant, each with a point of this number; empty for a volume on its own.
    pub group: Vec<String>,
    /// Names people gave it.
    pub tags: Vec<String>,
    /// Whether the current epoch builds on it; if not, it is what an old primary wrote after a promotion.
    pub current: bool,
}

impl PointReport {
    pub(crate) fn new(point: &Point, current: bool) -> Self {
        Self {
            id: point.id.to_string(),
            parent: point.parent.map(|parent| parent.to_string()),
            time: show_time(point.cut.time_ns),
            time_ns: point.cut.time_ns,
            received_ns: point.received_ns,
            consistency: point.cut.consistency,
            tracker: point.cut.tracker.clone(),
            how: point.cut.how,
            conditions: point.cut.conditions.clone(),
            group: point.cut.group.iter().map(ToString::to_string).collect(),
            tags: point.tags.clone(),
            current,
        }
    }
}

/// The points of a volume, oldest first: all, or this many of the newest.
pub fn points(
    access: &Access,
    volume: &VolumeName,
    newest: Option<usize>,
) -> Result<Vec<PointReport>, FailoverError> {
    // In this order: what comes in between is newer than all that is listed, and nothing that is listed seems to be off the line for it.
    let points = access.points(volume, newest)?;
    let known = access.volume(volume)?;
    let line = known.last.map(|last| select::line(&points, last.id)).unwrap_or_default();
    Ok(points.iter().map(|point| PointReport::new(point, line.contains(&point.id))).collect())
}

/// A point that was chosen, and what was known of the volume then.
pub(crate) struct Choice {
    pub(crate) volume: Volume,
    pub(crate) point: Point,
    /// Whether the current epoch builds on it.
    pub(crate) current: bool,
}

impl Choice {
    pub(crate) fn report(&self) -> PointReport {
        PointReport::new(&self.point, self.current)
    }
}

/// The point that `at` means.
pub(crate) fn choose(
    access: &Access,
    name: &VolumeName,
    at: &At,
    accept_fuzzy: bool,
    now: SystemTime,
) -> Result<Choice, FailoverError> {
    let volume = access.volume(name)?;
    let Some(last) = volume.last.as_ref().map(|last| last.id) else {
        return Err(FailoverError::NoPoints(name.clone()));
    };
    let pick = |newest: Option<usize>| {
        let points = access.points(name, newest)?;
        let points = match at {
            At::Point(_) => points,
            _ => whole_groups(access, name, points, newest)?,
        };
        let point = select::select(name, &points, last, at, accept_fuzzy, now)?;
        let current = select::line(&points, last).contains(&point.id);
        Ok::<_, FailoverError>((point, current))
    };
    // Nearly always one of the newest is meant; a journal can be long.
    let (point, current) = pick(Some(limits::NEWEST_POINTS)).or_else(|_| pick(None))?;
    Ok(Choice { volume, point, current })
}

/// Leaves out the points that not all volumes of their group have.
fn whole_groups(
    access: &Access,
    name: &VolumeName,
    points: Vec<Point>,
    newest: Option<usize>,
) -> Result<Vec<Point>, FailoverError> {
    let names: BTreeSet<&VolumeName> = points.iter().flat_map(|point| &point.cut.group).collect();
    let mut lines = BTreeMap::new();
    for other in names.into_iter().filter(|other| *other != name) {
        // A volume that this operator may not see, or that has no point yet: nothing is known of it.
        let Ok(volume) = access.volume(other) else { continue };
        let Some(last) = volume.last else { continue };
        lines.insert(other.clone(), select::line(&access.points(other, newest)?, last.id));
    }
    Ok(select::whole_groups(name, points, &lines))
}
