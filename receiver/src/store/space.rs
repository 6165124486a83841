//! What compaction may copy before it has removed anything, so that it never stops halfway for want of room.
//!
//! Copies are written beside what they replace. Below a cap, or on a full disk, commits stop where the reserve begins, and half of the reserve is for upkeep: so much can be
//! copied always, whatever commits do meanwhile, because none is taken that would begin in the reserve. A round that needs more is not begun; were it, its copies would be
//! garbage in the very place that is short, and the next attempt would find less room than the one before.
//!
//! What a round writes besides, tags and the journals, is not counted; it may use half of what upkeep leaves ([`super::batch::Room::Relief`]). So may the dropping of
//! points for room: merged operations, and the checkpoint of the oldest point that stays, of which little is new.
//!
//! The price: a segment that is fuller than seven sixteenths of the reserve stays while it is, and points go where nothing else fits.

use super::Shared;
use crate::log::writer::{Spend, reserve_beyond};

/// What the log may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) cap_bytes: Option<u64>,
    pub(super) reserve_bytes: u64,
}

impl Space {
    /// Bytes that fit into upkeep's part of the reserve, if the log has `log_bytes` and the disk, where it says so, `available`.
    fn for_copies(self, log_bytes: u64, available: Option<u64>) -> u64 {
        let below_cap = self.cap_bytes.map(|cap| {
            let reserve = reserve_beyond(cap, self.reserve_bytes);
            part(reserve, log_bytes.saturating_sub(cap))
        });
        let on_disk =
            available.map(|available| part(self.reserve_bytes, self.reserve_bytes.saturating_sub(available)));
        [below_cap, on_disk].into_iter().flatten().flatten().min().unwrap_or(u64::MAX)
    }
}

/// What is left of upkeep's part of a reserve of which so much is used, less an eighth for the headers of small segments. Without a reserve nothing is promised, and
/// nothing is held back.
fn part(reserve: u64, used: u64) -> Option<u64> {
    let half = Spend::Half.of(reserve);
    (reserve > 0).then(|| half.saturating_sub(used) / 8 * 7)
}

impl Shared {
    /// Bytes that may be copied before something is removed.
    pub(super) fn room_for_copies(&self, log_bytes: u64) -> u64 {
        self.space.for_copies(log_bytes, self.log.disk().available().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn half_of_the_reserve_is_for_copies_until_something_is_in_it() {
        let space = Space { cap_bytes: Some(64 * MIB), reserve_bytes: 128 * MIB };
        let beyond = |bytes| space.for_copies(64 * MIB + bytes, Some(u64::MAX));
        assert_eq!(space.for_copies(0, Some(u64::MAX)), 7 * MIB / 2);
        assert_eq!((beyond(0), beyond(MIB), beyond(4 * MIB)), (7 * MIB / 2, 21 * MIB / 8, 0));
        let (full, free) = (space.for_copies(0, Some(64 * MIB)), space.for_copies(0, Some(130 * MIB)));
        assert_eq!((full, free), (0, 7 * MIB / 2));
        let large = Space { cap_bytes: Some(1 << 40), ..space };
        assert_eq!(large.for_copies(0, None), 56 * MIB, "never more than the disk has");
        let uncapped = Space { cap_bytes: None, ..space };
        assert_eq!(
            (uncapped.for_copies(0, None), uncapped.for_copies(0, Some(100 * MIB))),
            (u64::MAX, 63 * MIB / 2)
        );
        let without = Space { cap_bytes: Some(MIB), reserve_bytes: 0 };
        assert_eq!(without.for_copies(9 * MIB, Some(0)), u64::MAX);
    }

    /// At its cap, with as much needed as relief tolerates, the emptiest segment can be copied: so a point more than necessary goes only where much is owed.
    #[test]
    fn the_emptiest_of_segments_that_are_three_quarters_full_fits() {
        for cap in [64 * MIB, 100 * MIB, 1 << 30, 1 << 40] {
            let space = Space { cap_bytes: Some(cap), reserve_bytes: 128 * MIB };
            let segment = (cap / crate::limits::CAP_SEGMENTS).min(crate::limits::SEGMENT_BYTES);
            let emptiest = segment / 100 * crate::limits::CAP_LIVE_PERCENT;
            assert!(emptiest <= space.for_copies(cap, None), "{cap}");
        }
    }
}
