//! At which points a name exists, and when it changed. The store answers: the points are replayed where they are.

use std::{collections::BTreeMap, time::SystemTime};

use serde::Serialize;
use tidelock_proto::VolumeName;
use tidelock_receiver::history::{Found, Patterns, What};

use super::VolumePath;
use crate::{
    access::Access,
    at::{At, show_time},
    error::FailoverError,
    limits,
    report::{PointReport, choose},
};

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FindOptions {
    /// A name or a path, as `--exclude` of a sidecar means it.
    pub pattern: String,
    /// From which point on; the oldest if none.
    pub from: Option<At>,
    /// Up to which, along the line that leads there.
    pub to: At,
    /// List every point at which a name changed.
    pub changes: bool,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FindReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The first point that was looked at, if one was named.
    pub from: Option<PointReport>,
    /// The last one.
    pub to: PointReport,
    /// In the order of their paths.
    pub found: Vec<FoundReport>,
    /// There was more than is listed.
    pub truncated: bool,
}

/// A path and when it existed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FoundReport {
    /// From the volume's root.
    #[serde(flatten)]
    pub path: VolumePath,
    /// One for each time it came, oldest first.
    pub spans: Vec<Span>,
}

/// From when to when a path existed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The first point that has it.
    pub first: String,
    /// The time of that cut, RFC 3339.
    pub first_time: String,
    /// It came with that point; if not, it was there when the search began.
    pub created: bool,
    /// The first point that has it no more; absent if it was still there at the end of the search.
    pub removed: Option<String>,
    /// The time of that cut.
    pub removed_time: Option<String>,
    /// Points at which it changed.
    pub changes: u64,
    /// The last of them.
    pub last_change: Option<String>,
    /// The size of a file at the end, in bytes.
    pub size: u64,
    /// All of them, if they were asked for.
    pub changed: Vec<String>,
}

/// Looks for names in the points of a volume.
pub fn find(
    access: &Access,
    volume: &VolumeName,
    options: &FindOptions,
) -> Result<FindReport, FailoverError> {
    // Refused here as it would be there, before anything is asked.
    Patterns::new([options.pattern.as_str()])?;
    let now = SystemTime::now();
    let last = choose(access, volume, &options.to, true, now)?;
    let from = options.from.as_ref().map(|at| choose(access, volume, at, true, now));
    let first = match from {
        // Before the first point there is nothing to look at.
        Some(Err(FailoverError::TooEarly { .. })) | None => None,
        Some(choice) => Some(choice?),
    };
    let first_id = first.as_ref().map(|choice| choice.point.id).unwrap_or_default();
    if first_id > last.point.id {
        return Err(FailoverError::Backwards { from: first_id, to: last.point.id });
    }
    let (mut paths, mut events, mut truncated) = (BTreeMap::new(), 0, false);
    access.find(volume, &options.pattern, (first_id, last.point.id), options.changes, &mut |found| {
        events += 1;
        truncated = events > limits::FIND_EVENTS_MAX;
        if !truncated {
            note(&mut paths, found);
        }
        !truncated
    })?;
    let report = |(path, spans)| FoundReport { path, spans };
    Ok(FindReport {
        volume: volume.to_string(),
        from: first.map(|choice| choice.report()),
        to: last.report(),
        found: paths.into_iter().map(report).collect(),
        truncated,
    })
}

fn note(paths: &mut BTreeMap<VolumePath, Vec<Span>>, found: Found) {
    let spans = paths.entry(VolumePath::of(&found.path)).or_default();
    if matches!(found.what, What::There | What::Created) {
        spans.push(Span {
            first: found.point.to_string(),
            first_time: show_time(found.time_ns),
            created: found.what == What::Created,
            size: found.size_bytes,
            ..Span::default()
        });
    }
    let Some(span) = spans.last_mut() else { return };
    match found.what {
        What::There | What::Created => return,
        What::Changed => span.changed.push(found.point.to_string()),
        What::Removed => {
            span.removed = Some(found.point.to_string());
            span.removed_time = Some(show_time(found.time_ns));
        }
        What::Last => {}
    }
    span.changes = found.changes;
    span.last_change = found.changed.map(|point| point.to_string());
    span.size = found.size_bytes;
}
