//! Lag: how far the newest durable point is behind.
//!
//! A point covers the volume up to the instant of its cut. If nothing has changed since the last commit, it covers more:
//! every later instant at which the volume was seen clean. Lag is now minus the newest instant that a durable point
//! covers, so an idle volume has next to none, and one whose receiver is away has as much as the receiver is away.

use tidelock_proto::PointId;

/// What is known of cuts and points, from which lag follows. Times are nanoseconds since 1970 by one clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Coverage {
    committed: Option<PointId>,
    acked: Option<PointId>,
    /// When the volume was last seen without a change since `committed`.
    clean_ns: u64,
    covered_ns: Option<u64>,
}

impl Coverage {
    /// The cutter begins from this durable point; when it was cut is not known.
    pub fn on_agreed(&mut self, last: Option<PointId>) {
        (self.committed, self.acked, self.clean_ns) = (last, last, 0);
    }

    /// A commit was given to the outbox.
    pub fn on_committed(&mut self, id: PointId) {
        (self.committed, self.clean_ns) = (Some(id), 0);
    }

    /// At this time nothing had changed since the last commit.
    pub fn on_clean(&mut self, at_ns: u64) {
        self.clean_ns = self.clean_ns.max(at_ns);
        self.settle();
    }

    /// A point, cut at this time, is durable.
    pub fn on_acked(&mut self, id: PointId, cut_ns: u64) {
        self.acked = Some(id);
        self.cover(cut_ns);
        self.settle();
    }

    /// Nanoseconds of lag, or `None` as long as no durable point is known to cover any instant.
    pub fn lag_ns(&self, now_ns: u64) -> Option<u64> {
        self.covered_ns.map(|covered| now_ns.saturating_sub(covered))
    }

    fn settle(&mut self) {
        if self.clean_ns > 0 && self.acked.is_some() && self.acked == self.committed {
            self.cover(self.clean_ns);
        }
    }

    fn cover(&mut self, at_ns: u64) {
        self.covered_ns = self.covered_ns.max(Some(at_ns));
    }
}

#[cfg(test)]
mod tests {
    use tidelock_proto::{Epoch, Seq};

    use super::*;

    fn point(seq: u64) -> PointId {
        PointId::new(Epoch(1), Seq(seq))
    }

    #[test]
    fn a_cut_covers_its_instant_once_it_is_durable() {
        let mut coverage = Coverage::default();
        coverage.on_agreed(None);
        coverage.on_committed(point(1));
        coverage.on_clean(150);
        assert_eq!(coverage.lag_ns(200), None);
        coverage.on_committed(point(2));
        coverage.on_acked(point(1), 100);
        assert_eq!(coverage.lag_ns(1000), Some(900), "what changed after the first cut is not durable");
        coverage.on_acked(point(2), 160);
        assert_eq!(coverage.lag_ns(1000), Some(840));
    }

    #[test]
    fn a_clean_volume_is_covered_until_it_was_seen_clean() {
        let mut coverage = Coverage::default();
        coverage.on_committed(point(1));
        coverage.on_clean(500);
        coverage.on_acked(point(1), 100);
        assert_eq!(coverage.lag_ns(600), Some(100));
        coverage.on_clean(590);
        assert_eq!(coverage.lag_ns(600), Some(10));
        coverage.on_committed(point(2));
        assert_eq!(coverage.lag_ns(700), Some(110));
        coverage.on_clean(690);
        assert_eq!(coverage.lag_ns(700), Some(110), "the clean volume has a commit that is not durable");
    }

    #[test]
    fn a_volume_found_unchanged_after_a_restart_is_covered() {
        let mut coverage = Coverage::default();
        coverage.on_agreed(Some(point(7)));
        assert_eq!(coverage.lag_ns(100), None);
        coverage.on_clean(90);
        assert_eq!(coverage.lag_ns(100), Some(10));
    }
}
