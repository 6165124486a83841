//! The loop of one volume: drain, capture, commit, wait. The only thread that touches the volume.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidelock_proto::{
    Epoch, FileId, PointId, Seq, Tree,
    point::{Cut, How},
    wire::messages::Heartbeat,
};

use super::{
    CutError, conditions,
    engine::Engine,
    pace::{self, Pace},
};
use crate::limits::{
    DRAIN_WHEN_BLOCKED_EVERY, HEARTBEAT_EVERY, ROOT_CHECK_EVERY, ROUNDS_AT_FULL_SPEED,
    ROUNDS_BEFORE_CONDITION, SEARCH_SHARE, UNREADABLE_RETRY_EVERY,
};
use crate::{
    capture::Volume,
    pack::Packer,
    ship::{AgreedTree, Outbox, ShipEvent},
    status::{Activity, Status},
    watch::Watcher,
};

/// How a volume is cut.
#[derive(Debug, Clone)]
pub(crate) struct CutterConfig {
    pub(crate) epoch: Epoch,
    /// Shortest time between the beginnings of two cuts.
    pub(crate) interval: Duration,
    /// The part of one core that the process may take before cuts become rarer, above 0 and at most 1: see [`Pace`].
    pub(crate) cpu_share: f64,
    /// How long the final cut may take.
    pub(crate) final_cut_within: Duration,
}

/// Why the loop ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was asked to.
    Stopped {
        /// Everything written before is durable on the receiver.
        complete: bool,
    },
    /// A newer epoch exists.
    Fenced(Epoch),
    /// Another sidecar writes this volume now.
    Superseded,
    /// The receiver refuses this sidecar.
    Denied(String),
    /// The sources or the volume failed.
    Failed(CutError),
}

/// The loop's state.
pub(crate) struct Cutter {
    engine: Engine,
    config: CutterConfig,
    stop: Arc<AtomicBool>,
    /// Both sides agree on a tree.
    agreed: bool,
    last: Option<PointId>,
    rounds: u32,
    pace: Pace,
    /// Since when there is something to cut.
    busy_since: Option<Instant>,
    stop_by: Option<Instant>,
    /// The final cut is on its way.
    finishing: bool,
    heartbeat_at: Instant,
    root_check_at: Instant,
    retry_at: Instant,
    halted: bool,
    /// The root had entries at the last commit.
    root_had_entries: bool,
}

impl Cutter {
    pub(crate) fn new(
        volume: Volume,
        watcher: Watcher,
        packer: Packer,
        outbox: Outbox,
        status: Arc<Status>,
        config: CutterConfig,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            engine: Engine::new(volume, watcher, packer, outbox, status),
            config,
            stop,
            agreed: false,
            last: None,
            rounds: 0,
            pace: Pace::new(now, pace::process_time()),
            busy_since: None,
            stop_by: None,
            finishing: false,
            heartbeat_at: now,
            root_check_at: now,
            retry_at: now,
            halted: false,
            root_had_entries: false,
        }
    }

    /// Cuts until told to stop, or until there is no sense in going on.
    pub(crate) fn run(mut self) -> Ended {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(ended)) => return ended,
                Err(CutError::Tree(error)) => {
                    tracing::error!(%error, "captured state makes no tree; starting over");
                    self.agreed = false;
                    self.engine.outbox.abandon();
                }
                Err(error) => return Ended::Failed(error),
            }
        }
    }

    /// One turn of the loop: what the session says, then a drain, then one step towards a cut, or a wait.
    fn turn(&mut self) -> Result<Option<Ended>, CutError> {
        if let Some(ended) = self.hear()? {
            return Ok(Some(ended));
        }
        if self.stop.load(Ordering::Relaxed) {
            let by = *self.stop_by.get_or_insert_with(|| Instant::now() + self.config.final_cut_within);
            if Instant::now() >= by || self.halted {
                return Ok(Some(Ended::Stopped { complete: false }));
            }
            if self.finishing {
                self.wait_for_session(by.saturating_duration_since(Instant::now()));
                return Ok(None);
            }
        }
        self.upkeep()?;
        if !self.agreed || self.halted {
            self.engine.drain()?;
            self.engine.watcher.wait(HEARTBEAT_EVERY, self.engine.outbox.waker())?;
            return Ok(None);
        }
        let started = SystemTime::now();
        let began = Instant::now();
        self.engine.drain()?;
        if !self.engine.dirty.is_empty() {
            return self.approach(began);
        }
        self.converged(started)?;
        if self.stop.load(Ordering::Relaxed) {
            self.engine.outbox.finish();
            self.finishing = true;
            return Ok(None);
        }
        self.rest()?;
        Ok(None)
    }

    /// There is something dirty: capture part of it, unless too much waits to be acknowledged.
    fn approach(&mut self, began: Instant) -> Result<Option<Ended>, CutError> {
        self.busy_since.get_or_insert(began);
        if self.engine.outbox.window_full() {
            self.heartbeat(None);
            // Events queue for a moment; the session wakes this thread when the window opens.
            self.wait_for_session(DRAIN_WHEN_BLOCKED_EVERY);
            return Ok(None);
        }
        self.rounds += 1;
        if self.rounds == ROUNDS_BEFORE_CONDITION && self.last.is_some() {
            let (waiting, first) = self.engine.dirty.describe();
            let path = first.and_then(|id| self.engine.stage.tree().path(id)).unwrap_or_default();
            let path = String::from_utf8_lossy(&path[..path.len().min(200)]);
            let reason = format!("no quiet instant in {} rounds: {waiting}, first {path:?}", self.rounds);
            self.engine.status.set_condition(conditions::NOT_CONVERGING, reason);
        }
        let stepped = Instant::now();
        self.engine.step()?;
        self.heartbeat(None);
        if self.rounds > ROUNDS_AT_FULL_SPEED && self.last.is_some() {
            // No quiet instant is near; looking for one must not cost the application its processor.
            let worked = stepped.elapsed();
            self.wait_for_session(worked.div_f64(SEARCH_SHARE) - worked);
        }
        Ok(None)
    }

    /// A drain that began at `started` found nothing, and nothing is left: that instant is captured.
    fn converged(&mut self, started: SystemTime) -> Result<(), CutError> {
        let time_ns = nanos(started);
        let took = self.busy_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let rounds = std::mem::take(&mut self.rounds);
        self.engine.status.clear_condition(conditions::NOT_CONVERGING);
        if !self.engine.stage.is_empty() {
            if self.root_turned_empty() {
                return Ok(());
            }
            self.commit(time_ns, rounds, took)?;
        }
        self.engine.end_scan();
        self.engine.status.clear_condition(conditions::UNVERIFIED);
        self.engine.status.set_activity(Activity::Replicating);
        self.engine.status.on_clean(time_ns);
        self.heartbeat(Some(time_ns));
        Ok(())
    }

    fn commit(&mut self, time_ns: u64, rounds: u32, took: Duration) -> Result<(), CutError> {
        let engine = &mut self.engine;
        for gone in engine.stage.seal()? {
            engine.dirty.forget(gone);
            engine.nameless.remove(&gone);
            engine.unreadable_later.remove(&gone);
            engine.unwatched.remove(&gone);
            engine.unsettled.remove(&gone);
            engine.watcher.forget_directory(gone);
        }
        let seq = match self.last {
            Some(last) if last.epoch == self.config.epoch => last.seq.next(),
            _ => Seq(1),
        };
        let id = PointId::new(self.config.epoch, seq);
        let cut = Cut {
            time_ns,
            consistency: engine.consistency(),
            tracker: engine.watcher.tracker().as_str().to_owned(),
            conditions: engine.status.conditions(),
            rounds,
            how: How::Optimistic,
            digest: engine.stage.tree().digest(),
        };
        engine.hand_over(true);
        engine.status.counters.cuts.add(1);
        engine.status.counters.rounds.add(rounds.into());
        engine.status.histograms.observe_cut(took);
        engine.status.on_committed(id, time_ns);
        engine.outbox.commit(id, cut);
        self.last = Some(id);
        Ok(())
    }

    /// A volume that lost everything in its root at once was more likely unmounted or wiped than used: that is not
    /// replicated as a mass deletion. It goes on by itself when something is there again.
    fn root_turned_empty(&mut self) -> bool {
        let root = |tree: &Tree| tree.entries(FileId::ROOT).map_or(0, |entries| entries.len());
        let now_empty = root(self.engine.stage.tree()) == 0;
        let emptied = now_empty && self.last.is_some() && self.root_had_entries;
        if emptied {
            self.engine.status.set_condition(
                conditions::ROOT_EMPTY,
                "every entry of the volume's root is gone; not replicated until there are entries again",
            );
        } else {
            self.engine.status.clear_condition(conditions::ROOT_EMPTY);
            self.root_had_entries = !now_empty;
        }
        emptied
    }

    /// Waits until the session has something to say.
    fn wait_for_session(&self, timeout: Duration) {
        let mut waker = [PollFd::from_borrowed_fd(self.engine.outbox.waker(), PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        // Interrupted or not, the loop looks again.
        let _ = poll(&mut waker, Some(&timeout));
    }

    /// Waits for the next event, then until the next cut may begin.
    fn rest(&mut self) -> Result<(), CutError> {
        let until_heartbeat = self.heartbeat_at.saturating_duration_since(Instant::now());
        let waker = self.engine.outbox.waker();
        if self.engine.watcher.wait(until_heartbeat.min(HEARTBEAT_EVERY), waker)? {
            let used = pace::process_time();
            let next = self.pace.next(used, self.config.interval, self.config.cpu_share);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            self.pace.begin(Instant::now(), used);
        }
        Ok(())
    }

    fn heartbeat(&mut self, clean_at_ns: Option<u64>) {
        if Instant::now() < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = Instant::now() + HEARTBEAT_EVERY;
        let engine = &self.engine;
        let size = |id| engine.stage.get(id).and_then(|inode| inode.extents()).map_or(0, |file| file.size());
        let behind_bytes = engine.dirty.bytes(size);
        engine.status.set_behind_bytes(behind_bytes);
        engine.outbox.heartbeat(Heartbeat {
            now_ns: nanos(SystemTime::now()),
            clean_at_ns: clean_at_ns.unwrap_or(0),
            behind_bytes,
            state: engine.status.state().as_str().to_owned(),
            conditions: engine.status.conditions(),
            tracker: engine.watcher.tracker().as_str().to_owned(),
        });
    }

    /// What happens now and then, whatever the loop is doing.
    fn upkeep(&mut self) -> Result<(), CutError> {
        let now = Instant::now();
        if now >= self.root_check_at {
            self.root_check_at = now + ROOT_CHECK_EVERY;
            self.check_root();
        }
        if now >= self.retry_at && self.agreed {
            self.retry_at = now + UNREADABLE_RETRY_EVERY;
            self.engine.retry_unreadable();
            self.engine.settle();
        }
        Ok(())
    }

    fn check_root(&mut self) {
        let gone = std::mem::take(&mut self.engine.root_gone);
        let in_place = self.engine.volume.in_place();
        if !in_place && !self.halted {
            let path = self.engine.volume.path().display().to_string();
            tracing::error!(path, "the volume is no longer at its path; replication halted");
            let reason = format!("{path} is no longer the directory that was protected: mount it again");
            self.engine.status.set_condition(conditions::ROOT_GONE, reason);
            self.engine.status.set_activity(Activity::Halted);
            self.halted = true;
        } else if in_place && (self.halted || gone) {
            if self.halted {
                tracing::info!("the volume is back; comparing it");
            }
            self.halted = false;
            self.engine.status.clear_condition(conditions::ROOT_GONE);
            self.engine.scan();
        }
    }

    /// Takes what the session has to say.
    fn hear(&mut self) -> Result<Option<Ended>, CutError> {
        for event in self.engine.outbox.events() {
            match event {
                ShipEvent::Agreed { last, tree } => self.agree(last, tree)?,
                ShipEvent::Acked { .. } | ShipEvent::Disconnected { .. } | ShipEvent::WindowOpen => {}
                ShipEvent::Finished => return Ok(Some(Ended::Stopped { complete: true })),
                ShipEvent::Fenced { epoch } => return Ok(Some(Ended::Fenced(epoch))),
                ShipEvent::Superseded => return Ok(Some(Ended::Superseded)),
                ShipEvent::Denied { reason } => return Ok(Some(Ended::Denied(reason))),
            }
        }
        Ok(None)
    }

    fn agree(&mut self, last: Option<PointId>, tree: AgreedTree) -> Result<(), CutError> {
        let tree = match tree {
            // A resumed session needs what it was promised: the tree as it is here.
            AgreedTree::Resumed => return Ok(()),
            AgreedTree::Manifest(tree) => tree,
            AgreedTree::Empty => Tree::new(),
        };
        let seeding = last.is_none();
        tracing::info!(
            ?last,
            inodes = tree.totals().inodes,
            "agreed on a tree; comparing the volume with it"
        );
        self.engine.status.set_activity(if seeding { Activity::Seeding } else { Activity::Scanning });
        self.root_had_entries = tree.entries(FileId::ROOT).is_some_and(|root| !root.is_empty());
        self.engine.status.on_agreed(last);
        self.last = last;
        self.agreed = true;
        self.finishing = false;
        self.rounds = 0;
        self.engine.start_from(tree)
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
