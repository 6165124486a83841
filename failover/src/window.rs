//! The window after a promotion, in which it can be taken back.
//!
//! ```text
//! promote --window ─▶ the old primary's last point is held: "promotion to epoch 2 can be taken back until …"
//!     │
//!     ├─ commit ────▶ the hold is released: the promotion is for good
//!     └─ unpromote ─▶ hold "epoch 2 is being taken back as epoch 3" ─▶ raise the epoch, upon the old primary's last point
//!                        ─▶ name what the promoted primary wrote ─▶ name the base ─▶ release the holds
//! ```
//! All that is known of a window is in names of one point of the log, so it is durable, is there for whoever opens the store, and retention
//! and the store's cap leave that point alone as long as it is open. The price is that a window which nobody ends goes on holding its
//! point when its time is over; only taking back is refused then.
//!
//! To take back is a promotion of the old primary, without a copy: the epoch rises from the promoted one, and if it is no longer that one,
//! nothing is done. From that instant the promoted primary is fenced, and the old one, whose directory needs no change, goes on in the
//! new epoch with whatever it wrote beyond its last point. Every step can be repeated: one that comes after the epoch has risen finds
//! its own announcement, and a finished one finds the name of its base.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tidelock_proto::{Epoch, PointId, VolumeName, point::Point};
use tidelock_receiver::store::HOLD;

use crate::{
    access::{Access, Volume},
    at::{show_time, to_ns},
    error::FailoverError,
    limits,
    promote::{command, together},
    report::PointReport,
    restore::{Event, Step},
    select,
};

/// A window that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WindowReport {
    /// The last point of the old primary, which a promotion that is taken back goes on from.
    pub point: String,
    /// Until when it can be, RFC 3339.
    pub until: String,
}

/// A promotion that is for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CommitReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The volume's epoch.
    pub epoch: u64,
    /// The old primary's last points that were held; none if no window was open.
    pub released: Vec<String>,
}

/// A promotion that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnpromoteReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The epoch of the promotion.
    pub taken_back: u64,
    /// The epoch that the old primary goes on in.
    pub epoch: u64,
    /// Its last point, which it goes on from.
    pub point: PointReport,
    /// The newest point that the promoted primary wrote, if it wrote any: it stays, beside the line.
    pub left: Option<String>,
    /// An earlier run had raised the epoch.
    pub resumed: bool,
    /// The command that protects the old primary again.
    pub next_command: String,
}

/// What the names of a point say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// The promotion to this epoch can be taken back until then, in nanoseconds since 1970.
    Open { epoch: Epoch, until_ns: u64 },
    /// It is being taken back.
    Announced { epoch: Epoch, back: Epoch },
    /// It was.
    Done { epoch: Epoch, back: Epoch },
}

impl Said {
    fn text(self) -> String {
        match self {
            Self::Open { epoch, until_ns } => {
                format!("{HOLD}promotion to epoch {epoch} can be taken back until {}", show_time(until_ns))
            }
            Self::Announced { epoch, back } => {
                format!("{HOLD}epoch {epoch} is being taken back as epoch {back}")
            }
            Self::Done { epoch, back } => format!("epoch {epoch} was taken back as epoch {back}"),
        }
    }

    fn of(tag: &str) -> Option<Self> {
        let epoch = |text: &str| text.parse().ok().map(Epoch);
        let pair = |text: &str, between: &str| {
            let (from, to) = text.split_once(between)?;
            Some((epoch(from)?, epoch(to)?))
        };
        if let Some(rest) = tag.strip_prefix(HOLD) {
            if let Some(rest) = rest.strip_prefix("promotion to epoch ") {
                let (promoted, until) = rest.split_once(" can be taken back until ")?;
                let until = humantime::parse_rfc3339(until).ok()?;
                return Some(Self::Open { epoch: epoch(promoted)?, until_ns: to_ns(until) });
            }
            let (epoch, back) = pair(rest.strip_prefix("epoch ")?, " is being taken back as epoch ")?;
            return Some(Self::Announced { epoch, back });
        }
        let (epoch, back) = pair(tag.strip_prefix("epoch ")?, " was taken back as epoch ")?;
        Some(Self::Done { epoch, back })
    }
}

fn said(point: &Point) -> impl Iterator<Item = Said> {
    point.tags.iter().filter_map(|tag| Said::of(tag))
}

fn is_window(tag: &str) -> bool {
    matches!(Said::of(tag), Some(Said::Open { .. } | Said::Announced { .. }))
}

/// Whether this epoch, which builds on the point, was raised to give the volume back to its old primary.
pub(crate) fn is_given_back(base: &Point, epoch: Epoch) -> bool {
    said(base)
        .any(|said| matches!(said, Said::Announced { back, .. } | Said::Done { back, .. } if back == epoch))
}

/// Opens the window of a promotion that has raised the epoch from `old` to `epoch`, unless an earlier run has. `before` was the newest point of
/// the line before.
pub(crate) fn open(
    access: &Access,
    volume: &VolumeName,
    (old, epoch): (Epoch, Epoch),
    before: PointId,
    window: Duration,
    now: SystemTime,
) -> Result<WindowReport, FailoverError> {
    let points = access.points(volume, Some(limits::NEWEST_POINTS))?;
    // What the old epoch's writer committed last is the newest of all, as long as the new one's has not come.
    let last = points.last().filter(|newest| newest.id.epoch == old);
    let point = last.map_or(before, |last| last.id);
    let opened = points.iter().filter(|known| known.id == point).flat_map(said).find_map(|said| match said {
        Said::Open { epoch: of, until_ns } if of == epoch => Some(until_ns),
        _ => None,
    });
    let until_ns = opened.unwrap_or_else(|| to_ns(now.checked_add(window).unwrap_or(now)));
    if opened.is_none() {
        access.tag(volume, point, &Said::Open { epoch, until_ns }.text())?;
    }
    Ok(WindowReport { point: point.to_string(), until: show_time(until_ns) })
}

/// Ends the window of a volume: its last promotion is for good. Without one, nothing is done.
pub fn commit(access: &Access, volume: &VolumeName) -> Result<CommitReport, FailoverError> {
    let known = access.volume(volume)?;
    let mut released = Vec::new();
    for point in access.points(volume, None)? {
        if close(access, volume, &point)? {
            released.push(point.id.to_string());
        }
    }
    Ok(CommitReport { volume: volume.to_string(), epoch: known.epoch.0, released })
}

/// Takes what a window holds from a point; what others hold it for stays.
fn close(access: &Access, volume: &VolumeName, point: &Point) -> Result<bool, FailoverError> {
    if !point.tags.iter().any(|tag| is_window(tag)) {
        return Ok(false);
    }
    access.release(volume, point.id)?;
    for other in point.tags.iter().filter(|tag| tag.starts_with(HOLD) && !is_window(tag)) {
        access.tag(volume, point.id, other)?;
    }
    Ok(true)
}

/// Gives a volume back to the primary that its last promotion has fenced, which goes on in a new epoch from its last point.
pub fn unpromote(
    access: &Access,
    volume: &VolumeName,
    now: SystemTime,
    events: &(dyn Fn(Event) + Sync),
) -> Result<UnpromoteReport, FailoverError> {
    events(Event::Step(Step::Select));
    let known = access.volume(volume)?;
    let points = access.points(volume, None)?;
    let Open { base, epoch, mut resumed } = match stand(volume, &known, &points, now)? {
        Stand::Open(open) => open,
        Stand::Done(report) => return Ok(*report),
    };
    let back = epoch.next();
    if !resumed {
        access.tag(volume, base.id, &Said::Announced { epoch, back }.text())?;
        events(Event::Step(Step::Fence));
        match access.raise_epoch(volume, epoch, Some(base.id)) {
            // Another run of this command was faster, and both have announced the same.
            Err(moved @ FailoverError::EpochMoved { .. }) => {
                let known = access.volume(volume)?;
                resumed = known.epoch == back
                    && goes_on_from(&known, &access.points(volume, None)?, base.id, epoch);
                if !resumed {
                    return Err(moved);
                }
            }
            raised => drop(raised?),
        }
    }
    events(Event::Step(Step::Complete));
    // Nobody can add to it any more.
    let points = access.points(volume, None)?;
    let left = points.iter().rev().find(|point| point.id.epoch == epoch).map(|point| point.id);
    let done = Said::Done { epoch, back }.text();
    for point in left.into_iter().chain([base.id]) {
        access.tag(volume, point, &done)?;
    }
    events(Event::Step(Step::Done));
    if let Some(base) = points.iter().find(|point| point.id == base.id) {
        close(access, volume, base)?;
    }
    Ok(report(volume, (epoch, back), base, left, resumed))
}

/// Whether [`unpromote`] would be refused now: of several volumes none is given back before all of them can be.
pub fn check_unpromote(access: &Access, volume: &VolumeName, now: SystemTime) -> Result<(), FailoverError> {
    let known = access.volume(volume)?;
    stand(volume, &known, &access.points(volume, None)?, now).map(drop)
}

/// A promotion that can be taken back.
struct Open<'a> {
    base: &'a Point,
    epoch: Epoch,
    /// An earlier run has raised the epoch.
    resumed: bool,
}

enum Stand<'a> {
    Open(Open<'a>),
    /// An earlier run has taken it back.
    Done(Box<UnpromoteReport>),
}

/// How it stands with a volume's last promotion.
fn stand<'a>(
    volume: &VolumeName,
    known: &Volume,
    points: &'a [Point],
    now: SystemTime,
) -> Result<Stand<'a>, FailoverError> {
    let Some((base, epoch, until_ns)) = newest_window(points) else {
        return done_before(volume, known, points).map(|done| Stand::Done(Box::new(done)));
    };
    let back = epoch.next();
    let announced = said(base).any(|said| said == Said::Announced { epoch, back });
    let resumed = announced && known.epoch == back && goes_on_from(known, points, base.id, epoch);
    if !resumed && known.epoch != epoch {
        return Err(FailoverError::EpochMoved { volume: volume.clone(), expected: epoch });
    }
    if !resumed && to_ns(now) > until_ns {
        return Err(FailoverError::WindowOver { volume: volume.clone(), epoch, until: show_time(until_ns) });
    }
    Ok(Stand::Open(Open { base, epoch, resumed }))
}

/// What was taken back by an earlier run, if that is what this volume is at.
fn done_before(
    volume: &VolumeName,
    known: &Volume,
    points: &[Point],
) -> Result<UnpromoteReport, FailoverError> {
    let done = |point: &Point| {
        said(point).find_map(|said| match said {
            Said::Done { epoch, back } if back == known.epoch => Some(epoch),
            _ => None,
        })
    };
    let named = || points.iter().filter_map(|point| Some((point, done(point)?)));
    let Some((base, epoch)) = named().find(|(point, epoch)| point.id.epoch < *epoch) else {
        return Err(FailoverError::NoWindow(volume.clone()));
    };
    let left = named().map(|(point, _)| point.id).find(|id| id.epoch == epoch);
    Ok(report(volume, (epoch, known.epoch), base, left, true))
}

fn report(
    volume: &VolumeName,
    (epoch, back): (Epoch, Epoch),
    base: &Point,
    left: Option<PointId>,
    resumed: bool,
) -> UnpromoteReport {
    UnpromoteReport {
        volume: volume.to_string(),
        taken_back: epoch.0,
        epoch: back.0,
        point: PointReport::new(base, true),
        left: left.map(|left| left.to_string()),
        resumed,
        next_command: command([(volume.to_string(), Path::new("DIR"))].into_iter(), back.0),
    }
}

/// The command that protects these volumes together again, once their directories are filled in.
pub fn next_after_unpromote(reports: &[UnpromoteReport]) -> String {
    let volumes = reports.iter().map(|report| (report.volume.clone(), Path::new("DIR"), report.epoch));
    together(volumes.collect())
}

/// The window of the latest promotion that has one: the old primary's last point, the promotion's epoch, and until when.
fn newest_window(points: &[Point]) -> Option<(&Point, Epoch, u64)> {
    points.iter().flat_map(windows).max_by_key(|(_, epoch, _)| *epoch)
}

fn windows(point: &Point) -> impl Iterator<Item = (&Point, Epoch, u64)> {
    said(point).filter_map(move |said| match said {
        Said::Open { epoch, until_ns } => Some((point, epoch, until_ns)),
        _ => None,
    })
}

/// Whether the current line goes on from `base` without anything of this epoch.
fn goes_on_from(known: &Volume, points: &[Point], base: PointId, epoch: Epoch) -> bool {
    let line = known.last.as_ref().map(|last| select::line(points, last.id)).unwrap_or_default();
    line.contains(&base) && !line.iter().any(|id| id.epoch == epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let (epoch, back) = (Epoch(2), Epoch(3));
        let open = Said::Open { epoch, until_ns: 1_700_000_000_123_000_000 };
        for said in [open, Said::Announced { epoch, back }, Said::Done { epoch, back }] {
            assert_eq!(Said::of(&said.text()), Some(said), "{}", said.text());
            assert_eq!(is_window(&said.text()), said.text().starts_with(HOLD));
        }
        for other in
            ["held: by an operator", "held: epoch 2", "epoch 2", "verified at 2026-01-01T00:00:00Z", ""]
        {
            assert_eq!(Said::of(other), None, "{other}");
        }
    }
}
