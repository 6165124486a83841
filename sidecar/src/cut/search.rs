//! How hard a quiet instant is looked for under a load that never rests.
//!
//! A cut needs a drain that finds nothing directly after a capture. Under a load that changes something every few dozen
//! microseconds that happens only if the next drain follows the capture at once: a search that waits after each round finds new
//! changes after each wait, and never ends, however often it looks. So it comes in bursts: rounds one after the other, in which what
//! is dirty shrinks to what changed during the last of them, and then a rest that gives the application back what the
//! burst has cost.

use std::time::{Duration, Instant};

use crate::limits::{SEARCH_BURST_ROUNDS, SEARCH_REST_MAX, SEARCH_SHARE};

/// The rounds of one cut.
#[derive(Debug, Default)]
pub(super) struct Search {
    rounds: u32,
    /// What the burst has cost so far.
    worked: Duration,
    rest_until: Option<Instant>,
}

impl Search {
    /// How long to rest from now, if a burst is over.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        self.rest_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// A round begins; returns its number.
    pub(super) fn begin_round(&mut self) -> u32 {
        self.rest_until = None;
        self.rounds = self.rounds.saturating_add(1);
        self.rounds
    }

    /// The round has cost this much of one core, and has not ended the search.
    pub(super) fn end_round(&mut self, now: Instant, worked: Duration) {
        self.worked += worked;
        if self.rounds.is_multiple_of(SEARCH_BURST_ROUNDS) {
            let rest = self.worked.div_f64(SEARCH_SHARE).saturating_sub(self.worked);
            self.rest_until = Some(now + rest.min(SEARCH_REST_MAX));
            self.worked = Duration::ZERO;
        }
    }

    /// The instant is found; returns how many rounds it took.
    pub(super) fn found(&mut self) -> u32 {
        std::mem::take(self).rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn rounds_follow_each_other_in_bursts_with_their_share_of_rest_between() {
        let (mut now, mut search) = (Instant::now(), Search::default());
        for burst in 0..3 {
            for round in 1..=SEARCH_BURST_ROUNDS {
                assert_eq!(search.rest(now), None, "a drain must follow a capture at once");
                assert_eq!(search.begin_round(), burst * SEARCH_BURST_ROUNDS + round);
                search.end_round(now, MS);
            }
            let worked = MS * SEARCH_BURST_ROUNDS;
            let rest = search.rest(now).expect("a burst is over");
            assert_eq!(rest, (worked.div_f64(SEARCH_SHARE) - worked).min(SEARCH_REST_MAX));
            now += rest;
        }
        assert_eq!(search.rest(now), None);
        assert_eq!(search.found(), 3 * SEARCH_BURST_ROUNDS);
        assert_eq!(search.begin_round(), 1);
    }

    #[test]
    fn a_dear_burst_does_not_put_off_the_next_for_long() {
        let (now, mut search) = (Instant::now(), Search::default());
        for _ in 0..SEARCH_BURST_ROUNDS {
            search.begin_round();
            search.end_round(now, 100 * MS);
        }
        assert_eq!(search.rest(now), Some(SEARCH_REST_MAX));
    }
}
