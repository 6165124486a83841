//! When to pause: a decision without hands or clocks.

use std::time::{Duration, Instant};

use super::Waiting;
use crate::limits::{
    PAUSE_BACKOFF_MAX, PAUSE_NAMES_MAX, PAUSE_RATE_FIRST, PAUSE_REST_FACTOR, PAUSE_SAMPLE_MIN_BYTES,
};

/// Decides whether a pause is worth its price.
#[derive(Debug)]
pub(super) struct Policy {
    deadline: Duration,
    budget: Duration,
    /// Bytes captured in a second, lately.
    rate: f64,
    /// No pause begins before this.
    not_before: Option<Instant>,
    /// Pauses in a row that were not long enough.
    failures: u32,
}

impl Policy {
    pub(super) fn new(deadline: Duration, budget: Duration) -> Self {
        Self { deadline, budget, rate: PAUSE_RATE_FIRST, not_before: None, failures: 0 }
    }

    /// Whether a cut that has been tried for so long is overdue.
    pub(super) fn is_overdue(&self, busy: Duration) -> bool {
        busy >= self.deadline
    }

    /// Whether the application has had its share of time since the last pause.
    pub(super) fn is_rested(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }

    /// How long it would take to capture what waits, if nothing were added.
    pub(super) fn estimate(&self, waiting: &Waiting) -> Duration {
        Duration::try_from_secs_f64(waiting.bytes as f64 / self.rate).unwrap_or(Duration::MAX)
    }

    /// Whether that fits into a pause, with a quarter of it to spare for what arrives while it begins.
    pub(super) fn fits(&self, waiting: &Waiting) -> bool {
        waiting.names <= PAUSE_NAMES_MAX && self.estimate(waiting) <= self.budget * 3 / 4
    }

    /// A round captured so many bytes in this time.
    pub(super) fn on_round(&mut self, bytes: u64, took: Duration) {
        if bytes >= PAUSE_SAMPLE_MIN_BYTES && !took.is_zero() {
            let now = bytes as f64 / took.as_secs_f64();
            self.rate += (now - self.rate) / 8.0;
        }
    }

    /// A pause took so long, and the cut converged in it or did not.
    pub(super) fn on_pause(&mut self, now: Instant, took: Duration, converged: bool) {
        self.failures = if converged { 0 } else { (self.failures + 1).min(PAUSE_BACKOFF_MAX) };
        self.not_before = Some(now + took * PAUSE_REST_FACTOR * 2u32.pow(self.failures));
    }

    /// No pause could begin: not again before the deadline has passed once more.
    pub(super) fn on_refused(&mut self, now: Instant) {
        self.not_before = Some(now + self.deadline.max(self.budget));
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn policy() -> Policy {
        Policy::new(Duration::from_secs(1), Duration::from_millis(225))
    }

    #[test]
    fn pauses_take_a_tenth_of_the_time_and_less_while_they_fail() {
        let (mut policy, now, took) = (policy(), Instant::now(), Duration::from_millis(50));
        assert!(policy.is_rested(now));
        policy.on_pause(now, took, true);
        assert!(!policy.is_rested(now + took * 9 - Duration::from_millis(1)));
        assert!(policy.is_rested(now + took * 9));
        policy.on_pause(now, took, false);
        policy.on_pause(now, took, false);
        assert!(!policy.is_rested(now + took * 35));
        assert!(policy.is_rested(now + took * 36));
        policy.on_pause(now, took, true);
        assert!(policy.is_rested(now + took * 9), "one success forgets the failures");
    }

    #[test]
    fn nobody_is_stopped_for_what_cannot_be_captured_in_time() {
        let mut policy = policy();
        let waiting = |bytes| Waiting { bytes, names: 0 };
        assert!(policy.fits(&waiting(MIB)));
        assert!(!policy.fits(&waiting(100 << 30)));
        assert!(!policy.fits(&Waiting { bytes: 0, names: usize::MAX }));
        // A slow disk: a MiB in a tenth of a second.
        (0..100).for_each(|_| policy.on_round(MIB, Duration::from_millis(100)));
        assert!(policy.fits(&waiting(MIB)));
        assert!(!policy.fits(&waiting(3 * MIB)));
    }

    #[test]
    fn only_an_overdue_cut_is_helped() {
        assert!(!policy().is_overdue(Duration::from_millis(999)));
        assert!(policy().is_overdue(Duration::from_secs(1)));
    }
}
