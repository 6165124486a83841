//! What a receiver counts. Names carry their unit; lag in seconds is the headline.
//!
//! Counters are moved where things happen. Gauges of volumes are set at the moment somebody asks, from the store and
//! from what is live, so that an idle volume's lag grows without any timer.

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tidelock_proto::{VolumeName, pki::Validity};

use crate::archive::Observed;

type Seconds = Gauge<f64, AtomicU64>;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    lag: Family<OfVolume, Seconds>,
    clock_offset: Family<OfVolume, Seconds>,
    points: Family<OfVolume, Gauge>,
    epoch: Family<OfVolume, Gauge>,
    connected: Family<OfVolume, Gauge>,
    behind: Family<OfVolume, Gauge>,
    image: Family<OfVolume, Gauge>,
    commits: Family<OfVolume, Counter>,
    chunk_bytes: Family<OfVolume, Counter>,
    chunks: Family<OfVolume, Counter>,
    duplicates: Family<OfVolume, Counter>,
    durable: Histogram,
    sessions: Gauge,
    refused_peers: Counter,
    refused_streams: Counter,
    broken_streams: Counter,
    fenced: Counter,
    poisoned: Gauge,
    full: Gauge,
    cap: Gauge,
    near_cap: Gauge,
    dropped: Family<OfVolume, Counter>,
    log: Gauge,
    live: Gauge,
    dead: Gauge,
    absent: Gauge,
    compacted: Gauge,
    retired: Counter,
    freed: Counter,
    archive: ArchiveGauges,
    identity_begins: Gauge,
    identity_ends: Gauge,
}

/// What is told of the archive.
#[derive(Debug, Default)]
struct ArchiveGauges {
    lag: Seconds,
    missing: Gauge,
    unreachable: Gauge,
    lost: Gauge,
    uploaded: Gauge,
    entries: Gauge,
    removed: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVolume {
    tenant: String,
    volume: String,
}

/// A volume at the moment somebody asks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VolumeGauges {
    /// `u64::MAX` if nothing is covered.
    pub lag_ns: u64,
    /// Receiver's clock minus source's, as of the newest heartbeat, its way included.
    pub clock_offset_ns: Option<i64>,
    /// Points in the store.
    pub points: u64,
    /// The current epoch.
    pub epoch: u64,
    /// A session is running.
    pub connected: bool,
    /// Bytes the sidecar knows to have changed and has not committed.
    pub behind_bytes: u64,
    /// Whether the hot image follows; `None` if none is kept.
    pub image: Option<bool>,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a fast NVMe drive to a disk in trouble.
        let durable = Histogram::new([
            0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
            10.0,
        ]);
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("tidelock")),
            lag: Family::default(),
            clock_offset: Family::default(),
            points: Family::default(),
            epoch: Family::default(),
            connected: Family::default(),
            behind: Family::default(),
            image: Family::default(),
            commits: Family::default(),
            chunk_bytes: Family::default(),
            chunks: Family::default(),
            duplicates: Family::default(),
            durable,
            sessions: Gauge::default(),
            refused_peers: Counter::default(),
            refused_streams: Counter::default(),
            broken_streams: Counter::default(),
            fenced: Counter::default(),
            poisoned: Gauge::default(),
            full: Gauge::default(),
            cap: Gauge::default(),
            near_cap: Gauge::default(),
            dropped: Family::default(),
            log: Gauge::default(),
            live: Gauge::default(),
            dead: Gauge::default(),
            absent: Gauge::default(),
            compacted: Gauge::default(),
            retired: Counter::default(),
            freed: Counter::default(),
            archive: ArchiveGauges::default(),
            identity_begins: Gauge::default(),
            identity_ends: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&self) {
        let mut to = self.registry.lock();
        let (s, b) = (Unit::Seconds, Unit::Bytes);
        to.register_with_unit(
            "lag",
            "Now minus the newest instant covered by a durable point",
            s.clone(),
            self.lag.clone(),
        );
        to.register_with_unit(
            "clock_offset",
            "Receiver's clock minus source's, the way of a heartbeat included",
            s.clone(),
            self.clock_offset.clone(),
        );
        to.register("points", "Recovery points in the journal", self.points.clone());
        to.register("epoch", "Writer epoch", self.epoch.clone());
        to.register("connected", "1 while a sidecar's session runs", self.connected.clone());
        to.register_with_unit(
            "behind",
            "Changed at the source and not committed yet, as the sidecar says",
            b.clone(),
            self.behind.clone(),
        );
        to.register("image_following", "1 while the hot image is whole and follows", self.image.clone());
        to.register("commits", "Commits taken", self.commits.clone());
        to.register_with_unit("received", "Payload of chunks received", b.clone(), self.chunk_bytes.clone());
        to.register("chunks", "Chunks received", self.chunks.clone());
        to.register("chunks_deduplicated", "Chunks received that were held already", self.duplicates.clone());
        to.register_with_unit(
            "durable",
            "From handing records to the log until their fsync is done",
            s,
            self.durable.clone(),
        );
        for (name, help, gauge) in [
            ("identity_not_before_timestamp", "When the certificate in use began", &self.identity_begins),
            ("identity_not_after_timestamp", "When the certificate in use ends", &self.identity_ends),
        ] {
            to.register_with_unit(name, help, Unit::Seconds, gauge.clone());
        }
        to.register("sessions", "Sidecar sessions running", self.sessions.clone());
        to.register("peers_refused", "Peers whose certificate was refused", self.refused_peers.clone());
        to.register(
            "streams_refused",
            "Requests refused for lack of permission or a wrong version",
            self.refused_streams.clone(),
        );
        to.register(
            "streams_broken",
            "Streams ended because of a frame that made no sense",
            self.broken_streams.clone(),
        );
        to.register("writers_fenced", "Writers turned away because of a promotion", self.fenced.clone());
        to.register(
            "store_poisoned",
            "1 after a write failed: nothing is taken until a restart",
            self.poisoned.clone(),
        );
        to.register_with_unit("log", "Length of the log", Unit::Bytes, self.log.clone());
        to.register_with_unit(
            "log_live",
            "Of the log, what points needed when it was compacted last",
            Unit::Bytes,
            self.live.clone(),
        );
        to.register_with_unit(
            "log_dead",
            "Of the log, what was not needed then or has come since",
            Unit::Bytes,
            self.dead.clone(),
        );
        to.register_with_unit(
            "log_absent",
            "Of the log, what is not known to be here: it is fetched from the archive",
            Unit::Bytes,
            self.absent.clone(),
        );
        to.register_with_unit(
            "compacted_timestamp",
            "When the log was compacted last",
            Unit::Seconds,
            self.compacted.clone(),
        );
        to.register("segments_retired", "Segments that compaction has removed", self.retired.clone());
        to.register_with_unit("freed", "Bytes of these segments", Unit::Bytes, self.freed.clone());
        to.register("points_dropped", "Points that retention has dropped", self.dropped.clone());
        to.register_with_unit(
            "store_cap",
            "Length that the log may have; 0 without a cap",
            b.clone(),
            self.cap.clone(),
        );
        to.register("store_near_cap", "1 while the log is near its cap", self.near_cap.clone());
        to.register("store_full", "1 while there is no space: only promotions are taken", self.full.clone());
        self.archive.register(&mut to);
    }

    /// All of it in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock()).expect("a string takes everything");
        text
    }

    /// Sets a volume's gauges.
    pub fn set_volume(&self, volume: &VolumeName, gauges: &VolumeGauges) {
        let label = of(volume);
        if gauges.lag_ns != u64::MAX {
            self.lag.get_or_create(&label).set(seconds(gauges.lag_ns as f64));
        }
        if let Some(offset) = gauges.clock_offset_ns {
            self.clock_offset.get_or_create(&label).set(seconds(offset as f64));
        }
        self.points.get_or_create(&label).set(signed(gauges.points));
        self.epoch.get_or_create(&label).set(signed(gauges.epoch));
        self.connected.get_or_create(&label).set(i64::from(gauges.connected));
        self.behind.get_or_create(&label).set(signed(gauges.behind_bytes));
        if let Some(follows) = gauges.image {
            self.image.get_or_create(&label).set(i64::from(follows));
        }
    }

    /// Commits were taken.
    pub fn add_commits(&self, volume: &VolumeName, commits: u64) {
        self.commits.get_or_create(&of(volume)).inc_by(commits);
    }

    /// Chunks came, some of which were held already.
    pub fn add_chunks(&self, volume: &VolumeName, chunks: u64, duplicates: u64, payload_bytes: u64) {
        let label = of(volume);
        self.chunks.get_or_create(&label).inc_by(chunks);
        self.duplicates.get_or_create(&label).inc_by(duplicates);
        self.chunk_bytes.get_or_create(&label).inc_by(payload_bytes);
    }

    /// Records became durable this long after they were handed to the log.
    pub fn observe_durable(&self, time: Duration) {
        self.durable.observe(time.as_secs_f64());
    }

    /// A session began; it ends when the answer is dropped.
    pub fn begin_session(&self) -> SessionGauge {
        self.sessions.inc();
        SessionGauge(self.sessions.clone())
    }

    /// A peer's certificate was refused.
    pub fn on_refused_peer(&self) {
        self.refused_peers.inc();
    }

    /// A peer asked for what it may not have.
    pub fn on_refused_stream(&self) {
        self.refused_streams.inc();
    }

    /// A stream was ended because a frame made no sense.
    pub fn on_broken_stream(&self) {
        self.broken_streams.inc();
    }

    /// A writer was told of a newer epoch.
    pub fn on_fenced(&self) {
        self.fenced.inc();
    }

    /// The length of the log, and how much of it was needed when it was compacted last.
    pub fn set_log(&self, log_bytes: u64, live_bytes: Option<u64>) {
        self.log.set(signed(log_bytes));
        self.live.set(signed(live_bytes.unwrap_or(log_bytes)));
        self.dead.set(signed(log_bytes.saturating_sub(live_bytes.unwrap_or(log_bytes))));
    }

    /// Bytes of the log that are not known to be on this disk.
    pub fn set_absent(&self, absent_bytes: u64) {
        self.absent.set(signed(absent_bytes));
    }

    /// Segments were removed, at this time in nanoseconds since 1970.
    pub fn on_compacted(&self, segments: u64, freed_bytes: u64, now_ns: u64) {
        self.retired.inc_by(segments);
        self.freed.inc_by(freed_bytes);
        self.compacted.set(signed(now_ns / 1_000_000_000));
    }

    /// Retention has dropped points.
    pub fn add_dropped(&self, volume: &VolumeName, points: u64) {
        self.dropped.get_or_create(&of(volume)).inc_by(points);
    }

    /// How the archive is doing.
    pub(crate) fn set_archive(&self, observed: &Observed) {
        let to = &self.archive;
        to.lag.set(observed.lag.as_secs_f64());
        to.missing.set(signed(observed.missing_bytes));
        to.unreachable.set(i64::from(observed.condition == Some("archive-unreachable")));
        to.lost.set(i64::from(observed.condition == Some("archive-lost")));
        to.uploaded.set(signed(observed.uploaded_bytes));
        to.entries.set(signed(observed.entries));
        to.removed.set(signed(observed.removed_objects));
    }

    /// Whether the store takes no commits for lack of space.
    pub fn set_full(&self, full: bool) {
        self.full.set(i64::from(full));
    }

    /// How long the log may get, how long it is, and whether that is near.
    pub fn set_cap(&self, cap_bytes: u64, log_bytes: u64, near: bool) {
        self.cap.set(signed(cap_bytes));
        self.log.set(signed(log_bytes));
        self.near_cap.set(i64::from(near));
    }

    /// From when to when the certificate in use is valid.
    pub fn set_identity(&self, validity: Validity) {
        let seconds = |at: SystemTime| signed(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        self.identity_begins.set(seconds(validity.not_before));
        self.identity_ends.set(seconds(validity.not_after));
    }

    /// The store takes no writes any more.
    pub fn on_poisoned(&self) {
        self.poisoned.set(1);
    }
}

impl ArchiveGauges {
    fn register(&self, to: &mut Registry) {
        let (s, b) = (Unit::Seconds, Unit::Bytes);
        to.register_with_unit(
            "archive_lag",
            "For how long the archive has lacked something that is durable here",
            s,
            self.lag.clone(),
        );
        to.register_with_unit("archive_missing", "How much of it", b.clone(), self.missing.clone());
        to.register("archive_unreachable", "1 while the archive cannot be written", self.unreachable.clone());
        to.register("archive_lost", "1 once the archive is another receiver's", self.lost.clone());
        to.register_with_unit("archive_uploaded", "Uploaded since the start", b, self.uploaded.clone());
        to.register(
            "archive_entries",
            "Entries added to the archive's chain since the start",
            self.entries.clone(),
        );
        to.register(
            "archive_removed",
            "Objects removed from the archive since the start",
            self.removed.clone(),
        );
    }
}

/// Counts a session for as long as it lives.
#[derive(Debug)]
pub struct SessionGauge(Gauge);

impl Drop for SessionGauge {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn of(volume: &VolumeName) -> OfVolume {
    OfVolume { tenant: volume.tenant().to_owned(), volume: volume.name().to_owned() }
}

fn seconds(nanoseconds: f64) -> f64 {
    nanoseconds / 1e9
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_unit() {
        let metrics = Metrics::default();
        let volume = "acme/pg".parse().expect("name");
        let gauges = VolumeGauges {
            lag_ns: 1_500_000_000,
            clock_offset_ns: Some(-250_000_000),
            points: 7,
            epoch: 2,
            connected: true,
            behind_bytes: 4096,
            image: Some(true),
        };
        metrics.set_volume(&volume, &gauges);
        metrics.add_chunks(&volume, 3, 1, 12_288);
        metrics.observe_durable(Duration::from_micros(200));
        let session = metrics.begin_session();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        metrics.set_identity(Validity { not_before: at(100), not_after: at(900) });
        let text = metrics.encode();
        for line in [
            "tidelock_lag_seconds{tenant=\"acme\",volume=\"pg\"} 1.5",
            "tidelock_identity_not_before_timestamp_seconds 100",
            "tidelock_identity_not_after_timestamp_seconds 900",
            "tidelock_clock_offset_seconds{tenant=\"acme\",volume=\"pg\"} -0.25",
            "tidelock_received_bytes_total{tenant=\"acme\",volume=\"pg\"} 12288",
            "tidelock_chunks_deduplicated_total{tenant=\"acme\",volume=\"pg\"} 1",
            "tidelock_durable_seconds_bucket{le=\"0.00025\"} 1",
            "tidelock_image_following{tenant=\"acme\",volume=\"pg\"} 1",
            "tidelock_sessions 1",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
        drop(session);
        assert!(metrics.encode().contains("tidelock_sessions 0"));
    }

    #[test]
    fn a_volume_without_points_has_no_lag() {
        let metrics = Metrics::default();
        let gauges = VolumeGauges {
            lag_ns: u64::MAX,
            clock_offset_ns: None,
            points: 0,
            epoch: 1,
            connected: true,
            behind_bytes: 0,
            image: None,
        };
        metrics.set_volume(&"acme/pg".parse().expect("name"), &gauges);
        assert!(!metrics.encode().contains("lag_seconds{"));
    }
}
