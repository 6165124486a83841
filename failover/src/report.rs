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

/// A volume.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VolumeReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The current epoch.
    pub epoch: u64,
    /// Whether its sidecar is connected; not known without a running receiver, as are all that may be absent below.
    pub connected: Option<bool>,
    /// The epoch was raised by a promotion and no writer of it has come yet.
    pub promoted: bool,
    /// Receiver's now minus the newest instant known to be covered by a durable point, in milliseconds.
    pub lag_ms: Option<f64>,
    /// Bytes known to have changed and not yet committed.
    pub behind_bytes: Option<u64>,
    /// What the sidecar is doing.
    pub state: Option<String>,
    /// The tracker in use, or else the one of the last point.
    pub tracker: Option<String>,
    /// What the last point is worth.
    pub consistency: Option<Consistency>,
    /// Conditions that hold now.
    pub conditions: Vec<String>,
    /// The newest point of the current epoch's line.
    pub last: Option<PointReport>,
    /// Points of all epochs.
    pub points: u64,
    /// The cut of the oldest point, RFC 3339.
    pub oldest: Option<String>,
    /// Files, directories and all else in the volume.
    pub inodes: Option<u64>,
    /// Bytes of its files, without holes.
    pub data_bytes: Option<u64>,
    /// The receiver's hot image, if it keeps one.
    pub image: Option<ImageReport>,
}

/// A hot image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageReport {
    /// `absent`, `building`, `following` or `failed`.
    pub state: String,
    /// The point it is equal to.
    pub point: Option<String>,
    /// Why it failed.
    pub failure: Option<String>,
}

impl VolumeReport {
    fn new(volume: &Volume) -> Self {
        let live = volume.live.as_ref();
        let heartbeat = live.and_then(|live| live.heartbeat.as_ref());
        let last = volume.last.as_ref();
        let tracker = heartbeat.map(|heartbeat| heartbeat.tracker.clone()).filter(|text| !text.is_empty());
        Self {
            volume: volume.name.to_string(),
            epoch: volume.epoch.0,
            connected: live.map(|live| live.connected),
            promoted: volume.promoted,
            lag_ms: live.map(|live| live.lag_ns as f64 / 1e6),
            behind_bytes: heartbeat.map(|heartbeat| heartbeat.behind_bytes),
            state: heartbeat.map(|heartbeat| heartbeat.state.clone()),
            tracker: tracker.or_else(|| last.map(|last| last.cut.tracker.clone())),
            consistency: last.map(|last| last.cut.consistency),
            conditions: conditions(live),
            last: last.map(|last| PointReport::new(last, true)),
            points: volume.points,
            oldest: (volume.points > 0).then(|| show_time(volume.oldest_ns)),
            inodes: live.map(|live| live.inodes),
            data_bytes: live.map(|live| live.data_bytes),
            image: live.and_then(|live| live.image.as_ref()).map(|image| ImageReport {
                state: image.state.clone(),
                point: image.point.map(|point| point.to_string()),
                failure: image.failure.clone(),
            }),
        }
    }
}

/// What the sidecar says, and what the receiver knows of itself.
fn conditions(live: Option<&crate::access::Live>) -> Vec<String> {
    let Some(live) = live else { return Vec::new() };
    let heartbeat = live.heartbeat.as_ref();
    let store = live.store_conditions.iter().cloned();
    let archive = Some(live.archive.clone()).filter(|condition| !condition.is_empty());
    let failed = live.image.as_ref().is_some_and(|image| image.failure.is_some());
    let failed = failed.then(|| "image-failed".to_owned());
    let told = heartbeat.into_iter().flat_map(|heartbeat| heartbeat.conditions.clone());
    told.chain(store).chain(archive).chain(failed).collect()
}

/// All volumes the operator may see, or the one asked for.
pub fn status(access: &Access, volume: Option<&VolumeName>) -> Result<Vec<VolumeReport>, FailoverError> {
    let volumes = match volume {
        Some(name) => vec![access.volume(name)?],
        None => access.volumes()?,
    };
    Ok(volumes.iter().map(VolumeReport::new).collect())
}

/// The points of a volume, oldest first: all, or this many of the newest.
pub fn points(
    access: &Access,
    volume: &VolumeName,
    newest: Option<usize>,
) -> Result<Vec<PointReport>, FailoverError> {
    let known = access.volume(volume)?;
    let points = access.points(volume, newest)?;
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
