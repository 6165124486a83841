//! How soon after a cut the next one may begin.
//!
//! A cut costs the whole process time on the processors: reading and packing on the cutter's thread, encryption and
//! acknowledgements on the session's. What counts for the application beside it is the sum, so that is what is kept within
//! a share. A volume with little to do is cut at the shortest interval; one under load less often, in larger cuts that cost
//! less for each byte; but never later than [`STRETCH_MAX`], because a share that is exceeded is a cost, and a point that
//! comes late is a loss.

use std::time::{Duration, Instant};

use crate::limits::STRETCH_MAX;

/// When the last cut began, and what the process had cost by then.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    began: Instant,
    used: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant, used: Duration) -> Self {
        Self { began: now, used }
    }

    /// A cut that found something begins. `used` is the processor time of the process so far.
    pub(super) fn begin(&mut self, now: Instant, used: Duration) {
        *self = Self::new(now, used);
    }

    /// When the next one may begin, to stay within `share` of one core.
    pub(super) fn next(&self, used: Duration, interval: Duration, share: f64) -> Instant {
        let cost = used.saturating_sub(self.used);
        self.began + interval.max(cost.div_f64(share).min(STRETCH_MAX))
    }
}

/// The processor time that this process has used so far.
pub(super) fn process_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cheap_cut_waits_for_the_interval_and_a_dear_one_for_its_share() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut pace = Pace::new(start, ms(0));
        pace.begin(start, ms(1000));
        let after = |used, interval| pace.next(used, interval, 0.1) - start;
        assert_eq!(after(ms(1000), ms(2)), ms(2));
        assert_eq!(after(ms(1000) + Duration::from_micros(500), ms(2)), ms(5));
        assert_eq!(after(ms(3000), ms(2)), STRETCH_MAX, "late is a loss");
        assert_eq!(after(ms(3000), ms(500)), ms(500), "who asks for seldom gets it");
    }

    #[test]
    fn processor_time_passes_with_work() {
        let before = process_time();
        let mut sum = 0u64;
        while process_time() == before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(process_time() > before);
    }
}
