//! What there is to know of one volume's replication: written by cutter and connection, read by probes, metrics and
//! people.
//!
//! One struct behind one lock, held for moments, and counters beside it. The cutter says what it does ([`Activity`]), the
//! connection says what it has ([`Status::on_session`] and its like); [`State`] is what follows from both.

mod counters;
mod lag;
mod report;

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tidelock_proto::{Epoch, PointId, VolumeName};

pub use counters::{Counter, Counters};
pub use lag::Coverage;
pub use report::Report;

use crate::{cut::UNPROTECTED, metrics::Histograms, ship::End};

/// Now, in nanoseconds since 1970: the clock of cuts and lag, read by drivers only.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What the cutter is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activity {
    /// It has no tree yet.
    #[default]
    Starting,
    /// It reads the whole volume for the first time.
    Seeding,
    /// It compares the volume with a tree.
    Scanning,
    /// It follows changes.
    Replicating,
    /// It has stopped and says why in a condition.
    Halted,
}

/// The state people see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// There is no session with the receiver.
    Connecting,
    /// The volume is read for the first time.
    Seeding,
    /// The volume is compared with the receiver's tree.
    Scanning,
    /// Changes flow.
    Replicating,
    /// Replication has stopped, for a condition that says why.
    Halted,
    /// Over: a newer epoch has another writer.
    Fenced,
    /// Over: another sidecar took over.
    Superseded,
    /// Over: the receiver will not have this sidecar.
    Denied,
    /// Over: everything is durable.
    Finished,
}

impl State {
    /// Every state, for metrics.
    pub const ALL: [Self; 9] = [
        Self::Connecting,
        Self::Seeding,
        Self::Scanning,
        Self::Replicating,
        Self::Halted,
        Self::Fenced,
        Self::Superseded,
        Self::Denied,
        Self::Finished,
    ];

    /// The word people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Seeding => "seeding",
            Self::Scanning => "scanning",
            Self::Replicating => "replicating",
            Self::Halted => "halted",
            Self::Fenced => "fenced",
            Self::Superseded => "superseded",
            Self::Denied => "denied",
            Self::Finished => "finished",
        }
    }
}

/// One volume's status. Times are nanoseconds since 1970.
pub struct Status {
    volume: VolumeName,
    epoch: Epoch,
    /// What only goes up.
    pub counters: Counters,
    /// How long things took.
    pub histograms: Histograms,
    window_bytes: AtomicU64,
    behind_bytes: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    activity: Activity,
    connected: bool,
    /// Why there is no session.
    disconnected: Option<String>,
    end: Option<End>,
    tracker: String,
    tracker_reason: String,
    coverage: Coverage,
    last_cut: Option<(PointId, u64)>,
    last_acked: Option<(PointId, u64)>,
    /// Latched by the first durable point.
    durable_once: bool,
    conditions: BTreeMap<&'static str, String>,
    ack_trace: Option<File>,
    cut_trace: Option<File>,
    longest_pause: Duration,
}

/// What the cutter says.
impl Status {
    /// The status of a volume that has just begun.
    pub fn new(volume: VolumeName, epoch: Epoch) -> Self {
        Self {
            volume,
            epoch,
            counters: Counters::default(),
            histograms: Histograms::default(),
            window_bytes: AtomicU64::new(0),
            behind_bytes: AtomicU64::new(0),
            inner: Mutex::default(),
        }
    }

    /// Writes a line `EPOCH.SEQ CUT_NS ACK_NS` for every acknowledgement, for measuring lag from outside.
    pub fn trace_acks(&self, file: File) {
        self.inner.lock().ack_trace = Some(file);
    }

    /// Writes a line `EPOCH.SEQ CUT_NS ROUNDS TOOK_NS PAUSED_NS` for every cut, for measuring; `-` stands for the point of a
    /// pause in which none was cut.
    pub fn trace_cuts(&self, file: File) {
        self.inner.lock().cut_trace = Some(file);
    }

    /// What the cutter does from now on.
    pub fn set_activity(&self, activity: Activity) {
        self.inner.lock().activity = activity;
    }

    /// The tracker in use, and why it was chosen.
    pub fn set_tracker(&self, tracker: &str, reason: &str) {
        let mut inner = self.inner.lock();
        (inner.tracker, inner.tracker_reason) = (tracker.to_owned(), reason.to_owned());
    }

    /// A condition holds, for this reason, until it is cleared. Returns whether it did not hold before.
    pub fn set_condition(&self, name: &'static str, reason: impl Into<String>) -> bool {
        self.inner.lock().conditions.insert(name, reason.into()).is_none()
    }

    /// A condition does not hold any more.
    pub fn clear_condition(&self, name: &'static str) {
        self.inner.lock().conditions.remove(name);
    }

    /// The names of the conditions that hold: what a cut and a heartbeat carry.
    pub fn conditions(&self) -> Vec<String> {
        self.inner.lock().conditions.keys().map(|name| (*name).to_owned()).collect()
    }

    /// Bytes known to have changed and not yet committed.
    pub fn set_behind_bytes(&self, bytes: u64) {
        self.behind_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The cutter begins from this durable point.
    pub fn on_agreed(&self, last: Option<PointId>) {
        let mut inner = self.inner.lock();
        inner.coverage.on_agreed(last);
        inner.durable_once |= last.is_some();
    }

    /// A commit was given to the outbox.
    pub fn on_committed(&self, id: PointId, cut_ns: u64) {
        let mut inner = self.inner.lock();
        inner.last_cut = Some((id, cut_ns));
        inner.coverage.on_committed(id);
        self.counters.commits.add(1);
    }

    /// A cut converged after so many rounds and this time, in the last part of which the application was paused.
    pub fn on_cut(&self, id: PointId, cut_ns: u64, rounds: u32, took: Duration, paused: Duration) {
        self.counters.cuts.add(1);
        self.counters.rounds.add(rounds.into());
        self.histograms.observe_cut(took);
        let (took, paused) = (took.as_nanos(), paused.as_nanos());
        self.inner.lock().trace_cut(format_args!("{id} {cut_ns} {rounds} {took} {paused}\n"));
    }

    /// The application was paused for this long, until the cut converged or not.
    pub fn on_pause(&self, took: Duration, converged: bool) {
        self.counters.pauses.add(1);
        self.histograms.observe_pause(took);
        let mut inner = self.inner.lock();
        inner.longest_pause = inner.longest_pause.max(took);
        if !converged {
            self.counters.pauses_abandoned.add(1);
            inner.trace_cut(format_args!("- {} 0 0 {}\n", now_ns(), took.as_nanos()));
        }
    }

    /// At this time nothing had changed since the last commit.
    pub fn on_clean(&self, at_ns: u64) {
        self.inner.lock().coverage.on_clean(at_ns);
    }
}

/// What the connection says.
impl Status {
    /// The session goes on, `open` or on its way there, and this is the newest durable point with the time of its cut.
    pub fn on_session(&self, open: bool, durable: Option<(PointId, u64)>, now_ns: u64) {
        let mut inner = self.inner.lock();
        inner.connected = open;
        if open {
            inner.disconnected = None;
        }
        if let Some((id, cut_ns)) = durable
            && inner.last_acked != durable
        {
            inner.last_acked = durable;
            inner.durable_once = true;
            inner.coverage.on_acked(id, cut_ns);
            self.histograms.observe_ack(Duration::from_nanos(now_ns.saturating_sub(cut_ns)));
            if let Some(trace) = &mut inner.ack_trace {
                // A trace is for measuring: one that cannot be written changes nothing else.
                let _ = trace.write_all(format!("{id} {cut_ns} {now_ns}\n").as_bytes());
            }
        }
    }

    /// There is no session.
    pub fn on_disconnected(&self, reason: &str) {
        let mut inner = self.inner.lock();
        inner.connected = false;
        inner.disconnected = Some(reason.to_owned());
        self.counters.disconnects.add(1);
    }

    /// There will be no further session.
    pub fn on_ended(&self, end: &End) {
        self.inner.lock().end = Some(end.clone());
    }

    /// Bytes that wait for their acknowledgement.
    pub fn set_window_bytes(&self, bytes: u64) {
        self.window_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// What everybody asks.
impl Status {
    /// The volume.
    pub fn volume(&self) -> &VolumeName {
        &self.volume
    }

    /// The state people see.
    pub fn state(&self) -> State {
        self.inner.lock().state()
    }

    /// Bytes known to have changed and not yet committed.
    pub fn behind_bytes(&self) -> u64 {
        self.behind_bytes.load(Ordering::Relaxed)
    }

    /// Bytes that wait for their acknowledgement.
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes.load(Ordering::Relaxed)
    }

    /// Nanoseconds of lag: see [`Coverage::lag_ns`].
    pub fn lag_ns(&self, now_ns: u64) -> Option<u64> {
        self.inner.lock().coverage.lag_ns(now_ns)
    }

    /// The longest pause of the application so far.
    pub fn longest_pause(&self) -> Duration {
        self.inner.lock().longest_pause
    }

    /// Whether the volume has been protected since it began and may be again: a durable point exists, and the session is
    /// not over for good. A receiver that is away does not make it unready.
    pub fn is_ready(&self) -> bool {
        self.inner.lock().is_ready()
    }

    /// Whether points that can be believed come: it is ready, and nothing holds that makes them fuzzy or stops them.
    pub fn is_protected(&self) -> bool {
        self.inner.lock().is_protected()
    }

    /// Everything, at this time.
    pub fn report(&self, now_ns: u64) -> Report {
        Report::new(self, &self.inner.lock(), now_ns)
    }
}

impl Inner {
    /// A trace is for measuring: one that cannot be written changes nothing else.
    fn trace_cut(&mut self, line: std::fmt::Arguments<'_>) {
        if let Some(trace) = &mut self.cut_trace {
            let _ = trace.write_all(line.to_string().as_bytes());
        }
    }

    fn is_ready(&self) -> bool {
        self.durable_once && matches!(self.end, None | Some(End::Finished))
    }

    fn is_protected(&self) -> bool {
        self.is_ready() && !UNPROTECTED.iter().any(|name| self.conditions.contains_key(name))
    }

    fn state(&self) -> State {
        match (&self.end, self.activity) {
            (Some(End::Finished), _) => State::Finished,
            (Some(End::Fenced(_)), _) => State::Fenced,
            (Some(End::Superseded), _) => State::Superseded,
            (Some(End::Denied(_)), _) => State::Denied,
            (None, Activity::Halted) => State::Halted,
            (None, _) if !self.connected => State::Connecting,
            (None, Activity::Seeding) => State::Seeding,
            (None, Activity::Starting | Activity::Scanning) => State::Scanning,
            (None, Activity::Replicating) => State::Replicating,
        }
    }
}

#[cfg(test)]
mod tests {
    use tidelock_proto::Seq;

    use super::*;

    fn status() -> Status {
        Status::new("t/v".parse().expect("valid"), Epoch(1))
    }

    #[test]
    fn readiness_latches_at_the_first_durable_point_and_ends_with_fencing() {
        let status = status();
        assert!(!status.is_ready());
        status.on_session(true, None, 9);
        assert!(!status.is_ready());
        status.on_session(true, Some((PointId::new(Epoch(1), Seq(1)), 5)), 9);
        assert!(status.is_ready());
        status.on_disconnected("gone");
        assert!(status.is_ready(), "an absent receiver is no reason to restart the application");
        status.on_ended(&End::Fenced(Epoch(2)));
        assert!(!status.is_ready());
        assert_eq!(status.state(), State::Fenced);
    }

    #[test]
    fn the_state_follows_from_both_sides() {
        let status = status();
        status.set_activity(Activity::Seeding);
        assert_eq!(status.state(), State::Connecting);
        status.on_session(true, None, 9);
        assert_eq!(status.state(), State::Seeding);
        status.on_disconnected("gone");
        assert_eq!(status.state(), State::Connecting);
        status.set_activity(Activity::Halted);
        assert_eq!(status.state(), State::Halted);
    }

    #[test]
    fn conditions_are_named_and_cleared() {
        let status = status();
        status.set_condition("unverified", "events were lost");
        status.set_condition("watch-limit", "inotify has no room");
        status.clear_condition("unverified");
        assert_eq!(status.conditions(), ["watch-limit"]);
        assert_eq!(status.report(0).conditions["watch-limit"], "inotify has no room");
    }
}
