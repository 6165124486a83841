//! The loop of a group of volumes: drain, capture, commit, wait. The only thread that touches them.
//!
//! All volumes of a sidecar are one group, cut at one instant under one number; the argument is at the top of
//! [`super`]. A volume in which nothing changed gets a commit, too: it costs a record of some two hundred bytes within the
//! same fsync, and buys that a point of the group is the same number everywhere, found without a search.
//!
//! A point of the group is durable when every volume's session has acknowledged it. So where one volume cannot take part
//! (its session was never open, its window is full, its directory is gone) the others wait, and say so in a condition: what they
//! would commit meanwhile could only be opened together with an older state of that volume, which is the broken pair that
//! groups are there to prevent. Their events are drained and gathered as dirty ranges, so what waits is bounded and nothing
//! is read twice. The same holds while a volume is compared as a whole: the others are captured once, and then wait
//! for it rather than send the same pages again and again.
//!
//! After a restart, or when one session had to begin again from the receiver's tree, the volumes' newest points may differ. The next number
//! is above all of them; a volume that missed some leaves them out.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidelock_proto::{
    Epoch, PointId, VolumeName,
    point::{Consistency, How},
};

use super::{
    CutError, conditions,
    departure::{Departure, Stand},
    desk::Desk,
    engine::Engine,
    errands::{Errands, Wanted},
    member::{Common, Member, nanos},
    pace::{self, Pace},
    search::Search,
};
use crate::limits::{
    DRAIN_WHEN_BLOCKED_EVERY, FOR_NOTHING_BEFORE_REST, HEARTBEAT_EVERY, LEAVE_QUIET, OTHERS_REST_MAX,
    PAUSE_THREADS_MAX, ROUNDS_BEFORE_CONDITION,
};
use crate::pause::{Escalation, Waiting};
use crate::watch;

/// How a group is cut.
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
    /// A newer epoch of a volume exists. The others stop with it: half a pod is not protected.
    Fenced { volume: VolumeName, epoch: Epoch },
    /// Another sidecar writes a volume now.
    Superseded(VolumeName),
    /// The receiver refuses this sidecar.
    Denied { volume: VolumeName, reason: String },
    /// The sources or the volume failed.
    Failed { volume: VolumeName, source: CutError },
}

/// The loop's state.
pub(crate) struct Cutter {
    members: Vec<Member>,
    /// Their names, if there are several.
    group: Vec<VolumeName>,
    escalation: Escalation,
    departure: Departure,
    /// What the application leaves idle while it stands still.
    cores: usize,
    config: CutterConfig,
    stop: Arc<AtomicBool>,
    desk: Arc<Desk>,
    errands: Errands,
    search: Search,
    /// Wakeups in a row after which there was nothing to cut.
    for_nothing: u32,
    pace: Pace,
    /// Since when there is something to cut.
    busy_since: Option<Instant>,
    stop_by: Option<Instant>,
    /// The final cut is taken; nothing is cut after it unless a session has to begin again.
    final_cut: bool,
    /// The final cut is durable in every volume, and the sessions were told to end.
    finishing: bool,
}

impl Cutter {
    /// A cutter of these volumes, in this order.
    pub(crate) fn new(
        volumes: Vec<(VolumeName, Engine)>,
        (escalation, departure): (Escalation, Departure),
        config: CutterConfig,
        desk: Arc<Desk>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let mut members: Vec<Member> =
            volumes.into_iter().map(|(name, engine)| Member::new(name, engine)).collect();
        members.iter_mut().for_each(|member| member.leaves = departure.is_able());
        let group = match members.len() {
            1 => Vec::new(),
            _ => members.iter().map(|member| member.name.clone()).collect(),
        };
        Self {
            members,
            group,
            escalation,
            departure,
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get().min(PAUSE_THREADS_MAX)),
            config,
            stop,
            desk,
            errands: Errands::default(),
            search: Search::default(),
            for_nothing: 0,
            pace: Pace::new(Instant::now(), pace::process_time()),
            busy_since: None,
            stop_by: None,
            final_cut: false,
            finishing: false,
        }
    }

    /// Cuts until told to stop, or until there is no sense in going on.
    pub(crate) fn run(mut self) -> Ended {
        loop {
            if let Err(ended) = self.turn() {
                if matches!(ended, Ended::Fenced { .. }) {
                    self.departure.end_application();
                }
                return ended;
            }
        }
    }

    /// One turn of the loop: what the sessions say, then a drain of all sources, then one step towards a cut, or a wait.
    fn turn(&mut self) -> Result<(), Ended> {
        self.members.iter_mut().try_for_each(Member::hear)?;
        self.run_errands();
        self.leave();
        if self.stop.load(Ordering::Relaxed) && self.ending()? {
            return Ok(());
        }
        self.members.iter_mut().try_for_each(Member::upkeep)?;
        self.escalation.upkeep();
        let started = SystemTime::now();
        let began = Instant::now();
        self.members.iter_mut().try_for_each(Member::drain)?;
        let ready = self.members.iter().all(Member::is_ready);
        self.tell_who_waits(ready);
        if self.to_capture().next().is_some() {
            self.approach(began)
        } else if ready {
            self.converged(started)?;
            self.members.iter_mut().try_for_each(Member::scrub)?;
            if self.members.iter().any(Member::is_dirty) { Ok(()) } else { self.rest() }
        } else {
            self.escalation.give_up();
            self.heartbeat();
            self.wait_for_events(HEARTBEAT_EVERY).map(drop)
        }
    }

    /// What others asked: answers what has become durable, and takes in what is new before the drain that may answer it.
    fn run_errands(&mut self) {
        if self.members.iter_mut().map(Member::take_began_again).fold(false, |any, one| any | one) {
            self.errands.begin_again();
        }
        let members = &self.members;
        self.errands.on_acked(|point| members.iter().all(|member| member.has_durable(point)));
        self.errands.take_in(&self.desk);
    }

    /// A planned move: see [`super::departure`].
    fn leave(&mut self) {
        let asked = self.members.iter_mut().map(Member::take_leave).fold(false, |any, one| any | one);
        if asked {
            self.escalation.give_up();
            match self.departure.hold() {
                Ok(true) => {
                    tracing::info!("a planned move: the application stands still");
                    // Only what comes from now on means that the receiver has forgotten the move.
                    self.members.iter_mut().for_each(Member::forget_agreed);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, "a planned move is refused");
                    self.answer_leave(&Err(error.to_string()));
                }
            }
        }
        if !self.departure.is_holding() {
            return;
        }
        let agreed_again =
            self.members.iter_mut().map(Member::take_agreed_again).fold(false, |any, one| any | one);
        let why_not = match self.departure.stand(Instant::now()) {
            Stand::Over => "no last cut was durable in time",
            Stand::Changed => {
                "the volume changed after the application stood still: somebody else writes there, too"
            }
            _ if agreed_again => "the connection with the receiver began again",
            Stand::Still(point) if self.members.iter().all(|member| member.has_durable(point)) => {
                return self.answer_leave(&Ok(point));
            }
            Stand::Still(_) | Stand::Waits => return,
        };
        self.answer_leave(&Err(why_not.to_owned()));
        self.departure.release();
    }

    fn answer_leave(&mut self, answer: &Result<PointId, String>) {
        self.members.iter_mut().for_each(|member| member.answer_leave(answer));
    }

    /// The way to the end: the final cut, its acknowledgement by every session, and the goodbye. Returns whether this turn is
    /// over. Nobody is told to finish before the final cut is durable everywhere, so that until then a session that has
    /// to begin again finds the others able to be cut with it.
    fn ending(&mut self) -> Result<bool, Ended> {
        let now = Instant::now();
        let by = *self.stop_by.get_or_insert_with(|| now + self.config.final_cut_within);
        if self.finishing && self.members.iter().all(Member::is_finished) {
            return Err(Ended::Stopped { complete: true });
        }
        if now >= by || self.members.iter().any(Member::is_halted) {
            return Err(Ended::Stopped { complete: false });
        }
        self.final_cut &= self.members.iter().all(|member| member.is_caught_up());
        if !self.final_cut {
            return Ok(false);
        }
        if !self.finishing && self.members.iter().all(Member::is_durable) {
            self.members.iter().for_each(|member| member.engine.outbox.finish());
            self.finishing = true;
        }
        self.wait_for_sessions(by.saturating_duration_since(now).min(HEARTBEAT_EVERY));
        Ok(true)
    }

    /// The volumes to capture from now: all that have something dirty, once all have been captured as a whole; before that
    /// those that have not.
    fn to_capture(&self) -> impl Iterator<Item = usize> {
        let together = self.members.iter().all(|member| member.is_ready() && member.is_caught_up());
        let wanted = move |member: &&Member| {
            member.is_ready() && member.is_dirty() && (together || !member.is_caught_up())
        };
        self.members.iter().enumerate().filter(move |(_, member)| wanted(member)).map(|(index, _)| index)
    }

    /// There is something dirty: capture part of it, unless too much waits to be acknowledged.
    fn approach(&mut self, began: Instant) -> Result<(), Ended> {
        let busy = began - *self.busy_since.get_or_insert(began);
        let full = self.members.iter().filter(|member| member.engine.outbox.window_full()).count();
        if full > 0 {
            // The application does not wait for the network.
            self.escalation.give_up();
            self.heartbeat();
            // Events queue for a moment; the session wakes this thread when the window opens.
            self.wait_for_sessions(DRAIN_WHEN_BLOCKED_EVERY);
            return Ok(());
        }
        let seeded = self.members.iter().all(|member| member.last().is_some());
        let in_hurry = !seeded || self.escalation.is_pausing() || self.departure.is_holding();
        if let Some(rest) = self.search.rest(began).filter(|_| !in_hurry) {
            // Looking for a quiet instant must not cost the application its processor.
            self.heartbeat();
            self.wait_for_sessions(rest.min(DRAIN_WHEN_BLOCKED_EVERY));
            return Ok(());
        }
        let round = self.search.begin_round();
        self.escalation.before_round(busy, || waiting(&self.members));
        let cores = if self.escalation.is_pausing() { self.cores } else { 1 };
        let (stepped, read_before) = (Instant::now(), self.bytes_read());
        for index in self.to_capture().collect::<Vec<_>>() {
            let member = &mut self.members[index];
            if seeded && round.is_multiple_of(ROUNDS_BEFORE_CONDITION) {
                member.note_not_converging(round);
            }
            member.engine.cores = cores;
            let stepped = member.step();
            member.engine.cores = 1;
            stepped?;
        }
        let worked = stepped.elapsed();
        self.escalation.after_round(self.bytes_read() - read_before, worked);
        self.heartbeat();
        self.search.end_round(Instant::now(), worked);
        Ok(())
    }

    /// A drain that began at `started` found nothing in any volume, and nothing is left: that instant is captured.
    fn converged(&mut self, started: SystemTime) -> Result<(), Ended> {
        self.final_cut |= self.stop.load(Ordering::Relaxed);
        let time_ns = nanos(started);
        let (how, paused) = self.escalation.converged();
        let took = self.busy_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        let rounds = self.search.found();
        for member in &self.members {
            member.engine.status.clear_condition(conditions::NOT_CONVERGING);
        }
        if self.members.iter().any(Member::has_staged) || self.errands.want_point() {
            let mut emptied = false;
            for member in &mut self.members {
                emptied |= member.root_turned_empty();
            }
            if emptied {
                return Ok(());
            }
            self.commit(Common { time_ns, rounds, took, how, paused, ..Common::default() })?;
        } else if let Some(last) = self.members.iter().filter_map(Member::last).max() {
            // Nothing has changed since: whoever asked is answered by what there is.
            self.errands.on_cut(last, self.consistency(false), &[]);
        }
        if let Some(last) = self.members.iter().filter_map(Member::last).max() {
            self.departure.on_cut(last, Instant::now());
        }
        for member in self.members.iter_mut().filter(|member| member.is_ready()) {
            member.on_converged(time_ns);
        }
        Ok(())
    }

    /// Every volume gets a commit of the same number, above all that any of them has.
    fn commit(&mut self, common: Common<'_>) -> Result<(), Ended> {
        self.for_nothing = 0;
        let epoch = self.config.epoch;
        let newest = self.members.iter().map(|member| member.last_seq(epoch)).max().unwrap_or_default();
        let id = PointId::new(epoch, newest.next());
        let Wanted { tags, app } = self.errands.wanted();
        let consistency = self.consistency(app);
        // It was asked to come to rest, and had not, or not any more.
        let how = if common.how == How::Hooks && !app { How::Optimistic } else { common.how };
        let common = Common { id, how, app, tags: &tags, group: &self.group, ..common };
        self.members.iter_mut().try_for_each(|member| member.commit(&common))?;
        self.errands.on_cut(id, consistency, &tags);
        Ok(())
    }

    /// The least of what may be believed of any volume.
    fn consistency(&self, app: bool) -> Consistency {
        let fuzzy =
            self.members.iter().map(|member| member.consistency(app)).find(|one| *one == Consistency::Fuzzy);
        fuzzy.unwrap_or(if app { Consistency::App } else { Consistency::Crash })
    }

    /// Bytes read from all volumes so far.
    fn bytes_read(&self) -> u64 {
        self.members.iter().map(|member| member.engine.status.counters.read_bytes.get()).sum()
    }

    /// Volumes that could be cut, but for another one, say so.
    fn tell_who_waits(&self, ready: bool) {
        let away = self.members.iter().find(|member| !member.is_ready());
        for member in &self.members {
            let status = &member.engine.status;
            match away {
                Some(away) if member.is_ready() && !ready => {
                    let reason = format!("cut together with {}, which is not ready", away.name);
                    status.set_condition(conditions::GROUP_WAITS, reason);
                }
                _ => status.clear_condition(conditions::GROUP_WAITS),
            }
        }
    }

    fn heartbeat(&mut self) {
        self.members.iter_mut().for_each(|member| member.heartbeat(None));
    }

    /// Waits until a session has something to say.
    fn wait_for_sessions(&self, timeout: Duration) {
        let wakers = self.members.iter().map(|member| member.engine.outbox.waker());
        let mut wakers: Vec<_> = wakers.map(|waker| PollFd::from_borrowed_fd(waker, PollFlags::IN)).collect();
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        // Interrupted or not, the loop looks again.
        let _ = poll(&mut wakers, Some(&timeout));
    }

    /// Waits for an event of any volume, or a session; returns whether there is an event.
    fn wait_for_events(&mut self, timeout: Duration) -> Result<bool, Ended> {
        let mut wakers = vec![self.desk.waker()];
        let mut watchers = Vec::with_capacity(self.members.len());
        for member in &mut self.members {
            wakers.push(member.engine.outbox.waker());
            watchers.push(&mut member.engine.watcher);
        }
        watch::wait_any(&mut watchers, &wakers, timeout).map_err(|error| {
            let volume = self.members[0].name.clone();
            Ended::Failed { volume, source: error.into() }
        })
    }

    /// Waits until the next cut may begin, then for an event. In this order, so that nothing has to wake this thread while
    /// it could do nothing: a wakeup is paid for by the application.
    fn rest(&mut self) -> Result<(), Ended> {
        // Twice, because the session works meanwhile, which counts as well.
        self.pause();
        self.pause();
        self.leave_others_alone()?;
        let now = Instant::now();
        let heartbeat_at = self.members.iter().map(Member::heartbeat_at).min().unwrap_or(now);
        let until_heartbeat = heartbeat_at.saturating_duration_since(now);
        let until_scrub = self.members.iter().filter_map(Member::scrub_due).min().unwrap_or(HEARTBEAT_EVERY);
        let until_still = if self.departure.is_holding() { LEAVE_QUIET } else { HEARTBEAT_EVERY };
        if self.wait_for_events(until_heartbeat.min(until_still).min(until_scrub))? {
            self.pace.begin(Instant::now(), pace::process_time());
            self.for_nothing = self.for_nothing.saturating_add(1);
        }
        Ok(())
    }

    /// The rings tell what others do on the same file system, too. Where that is all there was for a while they are
    /// left alone, ever longer, as long as no name changes: so a store through a mapping may be seen that much later.
    fn leave_others_alone(&self) -> Result<(), Ended> {
        let Some(more) = self.for_nothing.checked_sub(FOR_NOTHING_BEFORE_REST) else { return Ok(()) };
        let rest = OTHERS_REST_MAX.min(self.config.interval * (more + 1));
        let sessions = self.members.iter().map(|member| member.engine.outbox.waker());
        let wakers: Vec<_> = sessions.chain([self.desk.waker()]).collect();
        let watchers: Vec<_> = self.members.iter().map(|member| &member.engine.watcher).collect();
        watch::wait_for_names(&watchers, &wakers, rest).map(drop).map_err(|error| {
            let volume = self.members[0].name.clone();
            Ended::Failed { volume, source: error.into() }
        })
    }

    /// Waits until the next cut may begin, by what the last one has cost so far.
    fn pause(&self) {
        let next = self.pace.next(pace::process_time(), self.config.interval, self.config.cpu_share);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// How much there is to capture, in all volumes.
fn waiting(members: &[Member]) -> Waiting {
    members.iter().map(|member| member.engine.waiting()).fold(Waiting::default(), |sum, one| Waiting {
        bytes: sum.bytes.saturating_add(one.bytes),
        names: sum.names + one.names,
    })
}
