//! A set of byte ranges that merges what touches, and gives up detail before it grows without bound.

use std::collections::BTreeMap;

/// Half-open ranges of bytes, never empty, never touching each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// start → end
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds `start..end`. An empty range adds nothing.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        while let Some((&from, &to)) = self.ranges.range(..=end).next_back()
            && to >= start
        {
            start = start.min(from);
            end = end.max(to);
            self.ranges.remove(&from);
        }
        self.ranges.insert(start, end);
    }

    /// Takes at most `bytes` bytes from the lowest range.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let (start, end) = self.ranges.pop_first()?;
        let stop = end.min(start.saturating_add(bytes));
        if stop < end {
            self.ranges.insert(stop, end);
        }
        Some((start, stop))
    }

    /// Takes at most `bytes` bytes from the lowest range at `from` or after it.
    pub(crate) fn take_from(&mut self, from: u64, bytes: u64) -> Option<(u64, u64)> {
        if let Some((&start, &end)) = self.ranges.range(..from).next_back()
            && end > from
        {
            // In two for the moment: what is left of it is joined by the next insertion, or taken.
            self.ranges.insert(start, from);
            self.ranges.insert(from, end);
        }
        let (&start, &end) = self.ranges.range(from..).next()?;
        self.ranges.remove(&start);
        let stop = end.min(start.saturating_add(bytes));
        if stop < end {
            self.ranges.insert(stop, end);
        }
        Some((start, stop))
    }

    /// Forgets everything from `end` on.
    pub(crate) fn cut_off(&mut self, end: u64) {
        self.ranges.split_off(&end);
        if let Some(mut last) = self.ranges.last_entry() {
            let stop = (*last.get()).min(end);
            last.insert(stop);
        }
    }

    /// Makes all ranges one once there are more than `most`: more is read, nothing is missed.
    pub(crate) fn limit(&mut self, most: usize) {
        if self.ranges.len() > most
            && let (Some((&start, _)), Some((_, &end))) =
                (self.ranges.first_key_value(), self.ranges.last_key_value())
        {
            self.ranges.clear();
            self.ranges.insert(start, end);
        }
    }

    /// Whether all of `start..end` is in the set.
    pub(crate) fn covers(&self, start: u64, end: u64) -> bool {
        start >= end || self.ranges.range(..=start).next_back().is_some_and(|(_, stop)| *stop >= end)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The bytes in the set.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum: u64, (start, end)| sum.saturating_add(end - start))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_a_set_of_bytes(inserts in proptest::collection::vec((0u64..200, 0u64..30), 0..40), step in 1u64..50) {
            let mut set = RangeSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, len) in inserts {
                set.insert(start, start + len);
                model.extend(start..start + len);
            }
            prop_assert_eq!(set.bytes(), model.len() as u64);
            let mut taken = std::collections::BTreeSet::new();
            while let Some((start, end)) = set.take(step) {
                prop_assert!(end - start <= step && start < end);
                taken.extend(start..end);
            }
            prop_assert_eq!(taken, model);
        }
    }

    proptest! {
        #[test]
        fn is_taken_in_laps(inserts in proptest::collection::vec((0u64..200, 0u64..30), 0..40), step in 1u64..50, size in 0u64..240) {
            let mut set = RangeSet::default();
            let mut model = std::collections::BTreeSet::new();
            for (start, len) in inserts {
                set.insert(start, start + len);
                model.extend((start..start + len).filter(|byte| *byte < size));
            }
            set.cut_off(size);
            prop_assert_eq!(set.bytes(), model.len() as u64);
            let (mut from, mut taken) = (size / 2, std::collections::BTreeSet::new());
            while !set.is_empty() {
                from = match set.take_from(from, step) {
                    Some((start, end)) => {
                        prop_assert!(end - start <= step && start < end && start >= from);
                        taken.extend(start..end);
                        end
                    }
                    None => 0,
                };
            }
            prop_assert_eq!(taken, model);
        }
    }

    #[test]
    fn a_limit_widens_and_never_loses() {
        let mut set = RangeSet::default();
        for i in 0..10 {
            set.insert(i * 100, i * 100 + 1);
        }
        set.limit(10);
        assert_eq!(set.bytes(), 10);
        set.limit(9);
        assert_eq!(set.take(u64::MAX), Some((0, 901)));
    }
}
