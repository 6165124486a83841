//! Retention while the receiver runs: one thread that drops the points which the policy does not keep, and gives back the space of what no
//! point needs any more.
//!
//! It has no privileges: what it writes goes through the store's queue like everybody's, in small batches, and it rests nine times as long as
//! it worked. Whatever it does not manage now it manages later, because retention does not depend on how often it is asked.
//!
//! **A wrong clock must not make points old.** Ages are counted by the receiver's wall clock, and a step of an hour forward would drop
//! what is an hour too young. So while it runs the wall clock is believed only as far as the steady clock agrees; one that is set
//! forward is believed after a restart.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tidelock_proto::VolumeName;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::{
    limits,
    retention::Policy,
    server::{Context, now},
    store::StoreError,
};

/// The running thread. It ends with this, however that goes: whoever drops a receiver may open its store again at once.
pub(crate) struct Keeper {
    stop: Arc<Stop>,
    context: Arc<Context>,
    thread: Option<JoinHandle<()>>,
    ended: oneshot::Receiver<()>,
}

#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Keeper {
    pub(crate) fn start(context: Arc<Context>, policy: Policy) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let (tell, ended) = oneshot::channel();
        let mut work = Work {
            context: context.clone(),
            policy,
            clock: Clock::new(now().wall_ns, Instant::now()),
            stop: stop.clone(),
            told: HashMap::new(),
            live_bytes: None,
            failing: None,
            exhausted: false,
            helpless: false,
        };
        let thread = std::thread::Builder::new().name("keeper".to_owned()).spawn(move || {
            // Dropped at any end of this thread, a panic too.
            let _tell = tell;
            work.run();
        })?;
        Ok(Self { stop, context, thread: Some(thread), ended })
    }

    /// Resolves when the thread has ended by itself, which it does not do while the store takes writes.
    pub(crate) async fn ended(&mut self) {
        // The sender says nothing; it is only dropped.
        let _ = (&mut self.ended).await;
    }

    /// Ends it and waits for that.
    pub(crate) fn stop(self) {}
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        *self.stop.stopped.lock() = true;
        self.stop.changed.notify_all();
        self.context.store.stop_upkeep();
        if thread.join().is_err() {
            error!("retention panicked");
        }
    }
}

impl Stop {
    /// Waits that long; whether it is time to end.
    fn rest(&self, pause: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        let until = Instant::now() + pause;
        while !*stopped && !self.changed.wait_until(&mut stopped, until).timed_out() {}
        *stopped
    }
}

/// The wall clock, as far as it can be believed.
struct Clock {
    wall_ns: u64,
    steady: Instant,
    wrong: bool,
}

impl Clock {
    fn new(wall_ns: u64, steady: Instant) -> Self {
        Self { wall_ns, steady, wrong: false }
    }

    /// The time to count ages from, given what both clocks say.
    fn now_ns(&mut self, wall_ns: u64, steady: Instant) -> u64 {
        let passed = steady.saturating_duration_since(self.steady) + limits::CLOCK_STEP;
        let latest = self.wall_ns.saturating_add(u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX));
        let wrong = wall_ns > latest;
        if wrong && !self.wrong {
            warn!(
                "wall clock was set forward; ages of points are counted by the steady clock until a restart"
            );
        }
        self.wrong = wrong;
        wall_ns.min(latest)
    }
}

struct Work {
    context: Arc<Context>,
    policy: Policy,
    clock: Clock,
    stop: Arc<Stop>,
    /// What was last said of each volume, so that it is not said again.
    told: HashMap<VolumeName, String>,
    /// What was needed of the log when it was compacted last.
    live_bytes: Option<u64>,
    /// Why space was not given back.
    failing: Option<String>,
    /// The store is near its cap, and no point may go.
    exhausted: bool,
    /// The last attempt to make room removed nothing.
    helpless: bool,
}

impl Work {
    fn run(&mut self) {
        let (mut rest_until, mut thin_at) = (Instant::now(), Instant::now());
        while !self.rest() {
            let begun = Instant::now();
            if begun < rest_until && !self.is_urgent() {
                continue;
            }
            if !self.policy.keeps_everything() && begun >= thin_at {
                thin_at = begun + limits::THIN_EVERY;
                for volume in self.context.store.volumes() {
                    if self.thin(&volume) {
                        // The store takes no more writes; whoever watches it ends the receiver.
                        while !self.stop.rest(limits::KEEP_PAUSE) {}
                        return;
                    }
                }
            }
            if (!self.is_capped() && self.compact()) || self.relieve() {
                while !self.stop.rest(limits::KEEP_PAUSE) {}
                return;
            }
            rest_until = Instant::now() + begun.elapsed() * limits::UPKEEP_REST;
        }
    }

    /// Waits for the next turn; whether it is time to end. When commits begin to wait for room it is time, unless nothing could be done for that the last time; and when
    /// a volume was deleted.
    fn rest(&self) -> bool {
        let until = Instant::now() + limits::KEEP_PAUSE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.stop.rest(left.min(limits::FULL_RETRY)) {
                return true;
            }
            let urgent = self.is_urgent() && !(self.is_capped() && self.helpless);
            if Instant::now() >= until || urgent {
                return false;
            }
        }
    }

    fn is_urgent(&self) -> bool {
        self.is_capped() || self.context.space_wanted.load(Ordering::Relaxed)
    }

    /// Whether commits wait for room below the store's cap: nothing is worth more then.
    fn is_capped(&self) -> bool {
        self.context.cap.is_some() && self.context.store.full().is_some()
    }

    /// Gives space back if there is enough to give; whether the store is at its end.
    fn compact(&mut self) -> bool {
        let (store, metrics) = (&self.context.store, &self.context.metrics);
        let log_bytes = store.log_len();
        let worth = self.live_bytes.unwrap_or(0) / 100 * limits::COMPACT_FROM_PERCENT;
        metrics.set_log(log_bytes, self.live_bytes);
        let wanted = self.context.space_wanted.swap(false, Ordering::Relaxed);
        if !wanted && log_bytes <= worth + limits::COMPACT_FROM_BYTES {
            return false;
        }
        let stop = self.stop.clone();
        let done = store.retire(&mut |took| {
            stop.rest((took * limits::UPKEEP_REST).min(limits::KEEP_PAUSE));
        });
        match done {
            Ok(done) => {
                self.live_bytes = Some(done.live_bytes);
                metrics.set_log(done.log_bytes, self.live_bytes);
                metrics.on_compacted(done.segments, done.freed_bytes, now().wall_ns);
                if done.segments > 0 {
                    info!(
                        segments = done.segments,
                        freed_bytes = done.freed_bytes,
                        copied_bytes = done.copied_bytes,
                        live_bytes = done.live_bytes,
                        log_bytes = done.log_bytes,
                        "space given back"
                    );
                }
                self.failing = None;
            }
            Err(StoreError::Closed | StoreError::Poisoned(_)) => return true,
            Err(error @ StoreError::Full { .. }) => debug!(%error, "no space to compact in"),
            Err(error @ StoreError::Filling(_)) => debug!(%error, "compaction begins later"),
            // Deleted meanwhile.
            Err(error @ StoreError::NoSuchVolume(_)) => debug!(%error, "compaction begins anew later"),
            Err(error) => {
                let text = error.to_string();
                if self.failing.as_ref() != Some(&text) {
                    error!(%error, "no space is given back; `tidelock verify` says what is damaged");
                    self.failing = Some(text);
                }
                // The journals are not read again for nothing at every turn.
                self.live_bytes = Some(log_bytes);
            }
        }
        false
    }

    /// Makes room if the log is near its cap; whether the store is at its end.
    fn relieve(&mut self) -> bool {
        let Some(cap) = self.context.cap else { return false };
        let (store, metrics) = (&self.context.store, &self.context.metrics);
        // Without rests: commits may be waiting for this.
        let done = store.relieve(cap.bytes, &mut |_| ());
        self.helpless = !matches!(&done, Ok(Some(done)) if done.segments > 0);
        match done {
            Ok(None) => self.exhausted = false,
            Ok(Some(done)) => {
                self.live_bytes = Some(done.live_bytes);
                metrics.set_log(done.log_bytes, self.live_bytes);
                metrics.on_compacted(done.segments, done.freed_bytes, now().wall_ns);
                if done.dropped > 0 {
                    warn!(
                        dropped = done.dropped,
                        live_bytes = done.live_bytes,
                        cap_bytes = cap.bytes,
                        "points went before their time: the store is near its cap"
                    );
                }
                if done.exhausted && !self.exhausted {
                    error!(
                        live_bytes = done.live_bytes,
                        cap_bytes = cap.bytes,
                        "store is near its cap and no point may go; raise --store-cap, or release or delete something"
                    );
                }
                self.exhausted = done.exhausted;
            }
            Err(StoreError::Closed | StoreError::Poisoned(_)) => return true,
            Err(error @ (StoreError::NoSuchVolume(_) | StoreError::Filling(_))) => {
                debug!(%error, "room is made later");
            }
            Err(error) => {
                let text = error.to_string();
                if self.failing.as_ref() != Some(&text) {
                    error!(%error, "no room can be made below the store's cap");
                    self.failing = Some(text);
                }
            }
        }
        false
    }

    /// Drops what the policy does not keep; whether the store is at its end.
    fn thin(&mut self, volume: &VolumeName) -> bool {
        let now_ns = self.clock.now_ns(now().wall_ns, Instant::now());
        let error = match self.context.store.thin(volume, &self.policy, now_ns) {
            Ok(done) => {
                self.context.metrics.add_dropped(volume, done.dropped);
                if done.dropped > 0 {
                    debug!(%volume, dropped = done.dropped, merged = done.merged, "points dropped");
                }
                if self.told.remove(volume).is_some() {
                    info!(%volume, "points are dropped again");
                }
                return false;
            }
            Err(StoreError::Closed | StoreError::Poisoned(_)) => return true,
            // Somebody was faster; the next round looks again.
            Err(
                error @ (StoreError::InUse(..)
                | StoreError::EpochMoved { .. }
                | StoreError::NoSuchVolume(_)
                | StoreError::Full { .. }),
            ) => {
                debug!(%volume, %error, "points not dropped");
                return false;
            }
            // Fetched again when it can be had.
            Err(error) if error.is_absent() => {
                debug!(%volume, %error, "points not dropped");
                return false;
            }
            Err(error) => error,
        };
        let text = error.to_string();
        if self.told.get(volume) != Some(&text) {
            error!(%volume, %error, "points are not dropped; all of the volume's points stay");
            self.told.insert(volume.clone(), text);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_forward_makes_nothing_old() {
        let (start, second) = (Instant::now(), 1_000_000_000);
        let mut clock = Clock::new(1000 * second, start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(clock.now_ns(1010 * second, after(10)), 1010 * second);
        assert_eq!(clock.now_ns(900 * second, after(20)), 900 * second);
        assert_eq!(clock.now_ns(90_000 * second, after(30)), 1090 * second);
        assert!(clock.wrong);
        assert_eq!(clock.now_ns(1040 * second, after(40)), 1040 * second);
        assert!(!clock.wrong);
    }
}
