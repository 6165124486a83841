//! The status as one value: what `/status` shows.

use std::collections::BTreeMap;

use serde::Serialize;
use tidelock_proto::{Epoch, PointId, VolumeName};

use super::{Inner, Status};
use crate::ship::End;

/// Everything known of a volume at one time.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `tenant/name`.
    pub volume: VolumeName,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// See [`super::State`].
    pub state: &'static str,
    /// Whether a durable point exists and more can follow.
    pub ready: bool,
    /// Whether points that can be believed come; `conditions` says why not.
    pub protected: bool,
    /// Why there is no session, or will be none; absent while there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The tracker in use.
    pub tracker: String,
    /// Why it was chosen.
    pub tracker_reason: String,
    /// Milliseconds; absent until a durable point is known to cover any instant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<f64>,
    /// Bytes known to have changed and not yet committed.
    pub behind_bytes: u64,
    /// Bytes that wait for their acknowledgement.
    pub window_bytes: u64,
    /// The last commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_cut: Option<PointReport>,
    /// The newest commit that is durable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_acked: Option<PointReport>,
    /// The longest pause of the application, in milliseconds; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_pause_ms: Option<f64>,
    /// Conditions that hold, by name, with their reasons.
    pub conditions: BTreeMap<&'static str, String>,
    /// See [`super::Counters`].
    pub counters: BTreeMap<&'static str, u64>,
}

/// A point and when it was cut.
#[derive(Debug, Clone, Serialize)]
pub struct PointReport {
    /// `epoch.seq`.
    pub point: String,
    /// Nanoseconds since 1970.
    pub cut_ns: u64,
}

impl Report {
    pub(super) fn new(status: &Status, inner: &Inner, now_ns: u64) -> Self {
        Self {
            volume: status.volume.clone(),
            epoch: status.epoch,
            state: inner.state().as_str(),
            ready: inner.is_ready(),
            protected: inner.is_protected(),
            reason: reason(inner),
            tracker: inner.tracker.clone(),
            tracker_reason: inner.tracker_reason.clone(),
            lag_ms: inner.coverage.lag_ns(now_ns).map(|ns| ns as f64 / 1e6),
            behind_bytes: status.behind_bytes(),
            window_bytes: status.window_bytes(),
            last_cut: inner.last_cut.map(point),
            last_acked: inner.last_acked.map(point),
            longest_pause_ms: (!inner.longest_pause.is_zero())
                .then_some(inner.longest_pause.as_secs_f64() * 1e3),
            conditions: inner.conditions.clone(),
            counters: status.counters.each().map(|(name, _, value)| (name, value)).collect(),
        }
    }
}

fn reason(inner: &Inner) -> Option<String> {
    match &inner.end {
        None => inner.disconnected.clone(),
        Some(End::Finished) => None,
        Some(End::Fenced(epoch)) => Some(format!("fenced: epoch {epoch} has another writer")),
        Some(End::Superseded) => Some("another sidecar took over this volume".to_owned()),
        Some(End::Denied(reason)) => Some(reason.clone()),
    }
}

fn point((id, cut_ns): (PointId, u64)) -> PointReport {
    PointReport { point: id.to_string(), cut_ns }
}
