//! How the volumes are: what an operator looks at first.

use std::{collections::BTreeSet, path::PathBuf, sync::mpsc, thread, time::SystemTime};

use serde::Serialize;
use tidelock_proto::{PointId, Verdict, VolumeName, point::Consistency};

use crate::{
    access::{Access, Live, Volume},
    at::show_time,
    error::FailoverError,
    limits,
    promote::hydration,
    report::PointReport,
};

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
    /// What comes from the sidecar, over the last seconds.
    pub throughput: Option<ThroughputReport>,
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
    /// How far back the points go: from the cut of the oldest one to that of the newest, in seconds.
    pub span_s: Option<u64>,
    /// Files, directories and all else in the volume.
    pub inodes: Option<u64>,
    /// Bytes of its files, without holes.
    pub data_bytes: Option<u64>,
    /// The receiver's hot image, if it keeps one.
    pub image: Option<ImageReport>,
    /// The last test failover whose result was written on its point.
    pub last_test: Option<TestReport>,
    /// Instant promotions that still fetch.
    pub instants: Vec<HydratingReport>,
}

/// Bytes a second, as the receiver counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ThroughputReport {
    /// Content of chunks, uncompressed.
    pub content_bytes_per_s: u64,
    /// All that came over the wire.
    pub wire_bytes_per_s: u64,
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

/// The last test failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestReport {
    /// The point that was opened.
    pub point: String,
    /// Whether it can be started on.
    pub passed: bool,
    /// When it ended, RFC 3339.
    pub time: String,
    /// How long ago, in seconds.
    pub age_s: u64,
    /// How long it took to a checked copy, in milliseconds, if it passed.
    pub rto_ms: Option<u64>,
    /// Why it failed.
    pub reason: Option<String>,
    /// It was one of a drill that is repeated every so many seconds.
    pub every_s: Option<u64>,
    /// The next one of that drill should have been there for a while.
    pub overdue: bool,
}

/// An instant promotion that is under way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HydratingReport {
    /// The point that is fetched.
    pub point: String,
    /// Where it is mounted, on the machine where the command runs.
    pub directory: PathBuf,
    /// What `tidelock hydration` says, if the directory is on this machine.
    pub hydration: Option<serde_json::Value>,
}

impl VolumeReport {
    fn new(volume: &Volume, now: SystemTime) -> Self {
        let live = volume.live.as_ref();
        let heartbeat = live.and_then(|live| live.heartbeat.as_ref());
        let last = volume.last.as_ref();
        let tracker = heartbeat.map(|heartbeat| heartbeat.tracker.clone()).filter(|text| !text.is_empty());
        let throughput =
            |(content, wire)| ThroughputReport { content_bytes_per_s: content, wire_bytes_per_s: wire };
        Self {
            volume: volume.name.to_string(),
            epoch: volume.epoch.0,
            connected: live.map(|live| live.connected),
            promoted: volume.promoted,
            lag_ms: live.map(|live| live.lag_ns as f64 / 1e6),
            behind_bytes: heartbeat.map(|heartbeat| heartbeat.behind_bytes),
            throughput: live.and_then(|live| live.throughput).map(throughput),
            state: heartbeat.map(|heartbeat| heartbeat.state.clone()),
            tracker: tracker.or_else(|| last.map(|last| last.cut.tracker.clone())),
            consistency: last.map(|last| last.cut.consistency),
            conditions: conditions(live),
            last: last.map(|last| PointReport::new(last, true)),
            points: volume.points,
            oldest: (volume.points > 0).then(|| show_time(volume.oldest_ns)),
            span_s: last.map(|last| last.cut.time_ns.saturating_sub(volume.oldest_ns) / 1_000_000_000),
            inodes: live.map(|live| live.inodes),
            data_bytes: live.map(|live| live.data_bytes),
            image: live.and_then(|live| live.image.as_ref()).map(|image| ImageReport {
                state: image.state.clone(),
                point: image.point.map(|point| point.to_string()),
                failure: image.failure.clone(),
            }),
            last_test: volume.named.verdict.as_ref().map(|(point, verdict)| tested(*point, verdict, now)),
            instants: volume.named.instants.iter().map(hydrating).collect(),
        }
    }
}

/// What the sidecar says, and what the receiver knows of itself.
fn conditions(live: Option<&Live>) -> Vec<String> {
    let Some(live) = live else { return Vec::new() };
    let heartbeat = live.heartbeat.as_ref();
    let store = live.store_conditions.iter().cloned();
    let archive = Some(live.archive.clone()).filter(|condition| !condition.is_empty());
    let failed = live.image.as_ref().is_some_and(|image| image.failure.is_some());
    let failed = failed.then(|| "image-failed".to_owned());
    let told = heartbeat.into_iter().flat_map(|heartbeat| heartbeat.conditions.clone());
    let mut all: Vec<String> = told.chain(store).chain(archive).chain(failed).collect();
    // What both sides say is said once.
    let mut said = BTreeSet::new();
    all.retain(|condition| said.insert(condition.clone()));
    all
}

fn tested(point: PointId, verdict: &Verdict, now: SystemTime) -> TestReport {
    TestReport {
        point: point.to_string(),
        passed: verdict.outcome.is_ok(),
        time: humantime::format_rfc3339_seconds(verdict.time).to_string(),
        age_s: now.duration_since(verdict.time).unwrap_or_default().as_secs(),
        rto_ms: verdict.outcome.as_ref().ok().copied(),
        reason: verdict.outcome.as_ref().err().cloned(),
        every_s: verdict.again.map(|again| again.as_secs()),
        overdue: verdict.is_overdue(now),
    }
}

fn hydrating((point, directory): &(PointId, String)) -> HydratingReport {
    let directory = PathBuf::from(directory);
    // Whoever serves the mount may be stopped, and status is to be had all the same.
    let (tell, told) = mpsc::channel();
    let asked = directory.clone();
    let thread = thread::Builder::new().name("hydration".to_owned()).spawn(move || {
        let _ = tell.send(hydration(&asked).ok());
    });
    let hydration = thread.ok().and_then(|_| told.recv_timeout(limits::HYDRATION_PATIENCE).ok()).flatten();
    HydratingReport { point: point.to_string(), directory, hydration }
}

/// All volumes the operator may see, or the one asked for.
pub fn status(access: &Access, volume: Option<&VolumeName>) -> Result<Vec<VolumeReport>, FailoverError> {
    let volumes = match volume {
        Some(name) => vec![access.volume(name)?],
        None => access.volumes()?,
    };
    let now = SystemTime::now();
    Ok(volumes.iter().map(|volume| VolumeReport::new(volume, now)).collect())
}
