//! How much a volume's sidecar sends, over the last few seconds.

use std::time::{Duration, Instant};

use crate::limits::{RATE_SLOT, RATE_SLOTS};

/// Bytes a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throughput {
    /// Content of chunks, uncompressed.
    pub content_bytes: u64,
    /// Everything that came over the wire, without what the transport adds.
    pub wire_bytes: u64,
}

/// Counts what comes, in slots of time of which the oldest is forgotten.
#[derive(Debug, Default)]
pub struct Rate {
    /// When the first bytes came.
    begun: Option<Instant>,
    slots: [Slot; RATE_SLOTS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    number: u64,
    content_bytes: u64,
    wire_bytes: u64,
}

impl Rate {
    /// Bytes have come.
    pub fn add(&mut self, now: Instant, content_bytes: u64, wire_bytes: u64) {
        let begun = *self.begun.get_or_insert(now);
        let number = number(now.saturating_duration_since(begun));
        let slot = &mut self.slots[(number % RATE_SLOTS as u64) as usize];
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.content_bytes += content_bytes;
        slot.wire_bytes += wire_bytes;
    }

    /// The mean over the slots that are whole and the one that is running; over less while the first bytes are younger, but no less than one slot.
    pub fn over(&self, now: Instant) -> Throughput {
        let Some(begun) = self.begun else { return Throughput::default() };
        let age = now.saturating_duration_since(begun);
        let current = number(age);
        let oldest = (current + 1).saturating_sub(RATE_SLOTS as u64);
        let span = age.saturating_sub(RATE_SLOT * u32::try_from(oldest).unwrap_or(u32::MAX)).max(RATE_SLOT);
        let sum = |of: fn(&Slot) -> u64| {
            let recent = self.slots.iter().filter(|slot| (oldest..=current).contains(&slot.number));
            (recent.map(of).sum::<u64>() as f64 / span.as_secs_f64()) as u64
        };
        Throughput { content_bytes: sum(|slot| slot.content_bytes), wire_bytes: sum(|slot| slot.wire_bytes) }
    }
}

fn number(age: Duration) -> u64 {
    u64::try_from(age.as_nanos() / RATE_SLOT.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_is_told_as_it_is_from_the_first_slot_on() {
        let (mut rate, begun) = (Rate::default(), Instant::now());
        assert_eq!(rate.over(begun), Throughput::default());
        let step = Duration::from_millis(10);
        for number in 0..2_000u32 {
            let now = begun + step * number;
            rate.add(now, 1_000, 250);
            if now - begun >= RATE_SLOT {
                let Throughput { content_bytes, wire_bytes } = rate.over(now);
                assert!((99_000..=103_000).contains(&content_bytes), "{content_bytes} after {number} steps");
                assert!((24_750..=25_750).contains(&wire_bytes), "{wire_bytes} after {number} steps");
            }
        }
    }

    #[test]
    fn what_was_sent_before_is_forgotten() {
        let (mut rate, begun) = (Rate::default(), Instant::now());
        rate.add(begun, 5_000_000, 1_000_000);
        let window = RATE_SLOT * RATE_SLOTS as u32;
        let shown: Vec<u64> = (0..=RATE_SLOTS as u32 * 2)
            .map(|slots| rate.over(begun + RATE_SLOT * slots).content_bytes)
            .collect();
        assert!(shown.is_sorted_by(|before, after| before >= after), "{shown:?}");
        assert_eq!((shown[RATE_SLOTS - 1] > 0, shown[RATE_SLOTS]), (true, 0), "{shown:?}");
        // A burst after a rest is spread over the window, and nothing of the first one is in it.
        rate.add(begun + window * 3, 1_000, 0);
        let burst = rate.over(begun + window * 3).content_bytes;
        assert!(burst > 0 && burst <= (1_000.0 / (window - RATE_SLOT).as_secs_f64()) as u64, "{burst}");
    }
}
