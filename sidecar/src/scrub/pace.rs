//! A rate: what was spent has to be waited for. Nothing is saved up while there is nothing to do.

use std::time::{Duration, Instant};

/// Bytes per second.
#[derive(Debug)]
pub(super) struct Pace {
    rate_bytes: u64,
    next: Option<Instant>,
}

impl Pace {
    pub(super) fn new(rate_bytes: u64) -> Self {
        Self { rate_bytes, next: None }
    }

    /// How long until more may be spent.
    pub(super) fn due(&self, now: Instant) -> Duration {
        self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now))
    }

    pub(super) fn spend(&mut self, now: Instant, bytes: u64) {
        let costs = Duration::from_secs_f64(bytes as f64 / self.rate_bytes.max(1) as f64);
        let from = self.next.map_or(now, |next| next.max(now));
        self.next = Some(from + costs);
    }
}
