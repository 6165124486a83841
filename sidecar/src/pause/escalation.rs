//! The cutter's view of pausing: asked around every round, told when the cut converged.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidelock_proto::point::How;
use tokio::sync::watch;

use super::{Pauser, policy::Policy};
use crate::{
    limits::{
        PAUSE_FAILURES_BEFORE_CONDITION, PAUSE_MISFITS_BEFORE_CONDITION, PAUSE_PROBE_EVERY, PAUSE_WEIGH_EVERY,
    },
    status::Status,
};

/// The application is to be paused for cuts that do not converge, and cannot be.
pub(crate) const UNAVAILABLE: &str = "pause-unavailable";
/// What changes all the time cannot be captured within a pause.
pub(crate) const TOO_SHORT: &str = "pause-too-short";

/// What is dirty.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Waiting {
    /// Bytes to read.
    pub(crate) bytes: u64,
    /// Names to look up and directories to list.
    pub(crate) names: usize,
}

/// What there is to help a cut that is overdue.
pub(crate) enum Means {
    /// It is tried on.
    None,
    /// The application is stopped.
    Pause(Pauser),
    /// Whoever runs the hooks is told: see [`crate::hooks`].
    Hooks(watch::Sender<bool>),
}

/// What is done about cuts that do not converge within their deadline.
pub(crate) struct Escalation {
    pauser: Option<Pauser>,
    /// Whether a cut is overdue.
    hooks: Option<watch::Sender<bool>>,
    /// Of all volumes that are cut together.
    statuses: Vec<Arc<Status>>,
    policy: Policy,
    /// Whether a pause is under way, and when it must end.
    pausing: Option<Instant>,
    /// The cut under way was found overdue.
    overdue: bool,
    probe_at: Option<Instant>,
    weigh_at: Option<Instant>,
    /// Since when the cut is overdue and too large for a pause.
    misfit: Option<Instant>,
}

impl Escalation {
    /// `means` help once a cut was tried for `deadline`.
    pub(crate) fn new(deadline: Duration, means: Means, statuses: Vec<Arc<Status>>) -> Self {
        let (pauser, hooks) = match means {
            Means::None => (None, None),
            Means::Pause(pauser) => (Some(pauser), None),
            Means::Hooks(tell) => (None, Some(tell)),
        };
        let budget = pauser.as_ref().map_or(Duration::ZERO, Pauser::budget);
        Self {
            pauser,
            hooks,
            statuses,
            policy: Policy::new(deadline, budget),
            pausing: None,
            overdue: false,
            probe_at: None,
            weigh_at: None,
            misfit: None,
        }
    }

    pub(crate) fn is_pausing(&self) -> bool {
        self.pausing.is_some()
    }

    /// Before a round of a cut that has been tried for `busy`: begins a pause that is due, ends one whose time is over.
    pub(crate) fn before_round(&mut self, busy: Duration, waiting: impl FnOnce() -> Waiting) {
        let now = Instant::now();
        if self.pausing.is_some_and(|until| now >= until) {
            self.give_up();
        }
        if self.pausing.is_some() || !self.policy.is_overdue(busy) {
            return;
        }
        if !std::mem::replace(&mut self.overdue, true) {
            self.each(|status| status.counters.cuts_overdue.add(1));
        }
        self.tell_hooks(true);
        let due =
            self.pauser.is_some() && self.policy.is_rested(now) && self.weigh_at.is_none_or(|at| now >= at);
        if due {
            self.weigh_at = Some(now + PAUSE_WEIGH_EVERY);
            let waiting = waiting();
            if self.policy.fits(&waiting) {
                self.misfit = None;
                self.begin(now);
            } else {
                self.too_large(now, &waiting);
            }
        }
    }

    /// A round captured so many bytes in this time.
    pub(crate) fn after_round(&mut self, bytes: u64, took: Duration) {
        self.policy.on_round(bytes, took);
    }

    /// The cut converged: the application runs on. Returns how the cut was taken (by hooks, if they had brought the application to
    /// rest by now), and how long the pause was.
    pub(crate) fn converged(&mut self) -> (How, Duration) {
        let in_time = !std::mem::take(&mut self.overdue);
        self.misfit = None;
        if in_time && self.pauser.is_some() {
            self.each(|status| status.clear_condition(TOO_SHORT));
        }
        if !in_time && self.hooks.is_some() {
            return (How::Hooks, Duration::ZERO);
        }
        let Some(until) = self.pausing.take() else { return (How::Optimistic, Duration::ZERO) };
        // Once its time was over the watchdog let them run; then the instant was found without the pause.
        let held = Instant::now() < until;
        let took = self.end(held);
        if held {
            self.each(|status| status.clear_condition(TOO_SHORT));
            (How::Pause, took)
        } else {
            (How::Optimistic, Duration::ZERO)
        }
    }

    /// Whatever the reason, the application is not to wait any longer.
    pub(crate) fn give_up(&mut self) {
        self.tell_hooks(false);
        if self.pausing.take().is_some() {
            let took = self.end(false);
            tracing::debug!(?took, "a pause was not long enough");
            if self.policy.failures() >= PAUSE_FAILURES_BEFORE_CONDITION {
                let reason = "several pauses in a row ended before the cut converged: raise --pause-limit";
                self.warn(TOO_SHORT, reason);
            }
        }
    }

    /// Now and then: whether a pause would be possible, before one is needed.
    pub(crate) fn upkeep(&mut self) {
        if !self.overdue {
            // Not before the commit, which asks whether the application is at rest.
            self.tell_hooks(false);
        }
        let now = Instant::now();
        if self.pausing.is_some() || self.probe_at.is_some_and(|at| now < at) {
            return;
        }
        self.probe_at = Some(now + PAUSE_PROBE_EVERY);
        match self.pauser.as_mut().map(Pauser::probe) {
            None => {}
            Some(Ok(())) => self.each(|status| status.clear_condition(UNAVAILABLE)),
            Some(Err(error)) => self.warn(UNAVAILABLE, &error.to_string()),
        }
    }

    fn begin(&mut self, now: Instant) {
        let Some(pauser) = &mut self.pauser else { return };
        match pauser.begin() {
            Ok(()) => self.pausing = Some(now + pauser.budget()),
            Err(error) => {
                tracing::debug!(%error, "no pause");
                if error.has_stopped() {
                    let took = now.elapsed();
                    self.each(|status| status.on_pause(took, false));
                    self.policy.on_pause(Instant::now(), took, false);
                } else {
                    self.policy.on_refused(now);
                }
                if !error.is_passing() {
                    self.warn(UNAVAILABLE, &error.to_string());
                }
            }
        }
    }

    fn end(&mut self, converged: bool) -> Duration {
        let took = self.pauser.as_mut().and_then(Pauser::end).unwrap_or_default();
        self.policy.on_pause(Instant::now(), took, converged);
        self.each(|status| status.on_pause(took, converged));
        took
    }

    fn tell_hooks(&self, overdue: bool) {
        if let Some(tell) = &self.hooks {
            tell.send_if_modified(|told| std::mem::replace(told, overdue) != overdue);
        }
    }

    fn each(&self, tell: impl Fn(&Status)) {
        self.statuses.iter().for_each(|status| tell(status));
    }

    fn warn(&self, condition: &'static str, reason: &str) {
        for status in &self.statuses {
            status.set_condition(condition, reason);
        }
    }

    fn too_large(&mut self, now: Instant, waiting: &Waiting) {
        let since = *self.misfit.get_or_insert(now);
        if now.duration_since(since) >= PAUSE_MISFITS_BEFORE_CONDITION {
            let reason = format!(
                "{} MiB and {} names change all the time, which takes about {} ms to capture: raise --pause-limit",
                waiting.bytes >> 20,
                waiting.names,
                self.policy.estimate(waiting).as_millis()
            );
            self.warn(TOO_SHORT, &reason);
        }
    }
}
