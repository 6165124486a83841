//! The byte ranges of one drain, merged per inode.

use super::super::Event;

/// Ranges as they come; adjacent and overlapping ones of an inode become one.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    ranges: Vec<Range>,
    merge_at: usize,
}

/// Ordered by inode, then start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    inode: u64,
    start: u64,
    end: u64,
}

/// Below this many ranges nothing is merged before the end of the drain.
const MERGE_AT_LEAST: usize = 8192;

impl Ranges {
    /// Adds the bytes `start..end` of an inode; an `end` of `u64::MAX` is the end of the file.
    pub(super) fn add(&mut self, inode: u64, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some(last) = self.ranges.last_mut()
            && last.inode == inode
            && start <= last.end
            && end >= last.start
        {
            last.start = last.start.min(start);
            last.end = last.end.max(end);
            return;
        }
        self.ranges.push(Range { inode, start, end });
        if self.ranges.len() >= self.merge_at.max(MERGE_AT_LEAST) {
            self.merge();
            self.merge_at = 2 * self.ranges.len();
        }
    }

    /// Hands over what there is, and is empty afterwards.
    pub(super) fn drain_into(&mut self, events: &mut Vec<Event>) {
        self.merge();
        self.merge_at = 0;
        events.extend(self.ranges.drain(..).map(|Range { inode, start, end }| Event::Range {
            inode,
            offset: start,
            len: if end == u64::MAX { super::super::TO_END } else { end - start },
        }));
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, kept| {
            let touches = next.inode == kept.inode && next.start <= kept.end;
            if touches {
                kept.end = kept.end.max(next.end);
            }
            touches
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drained(added: &[(u64, u64, u64)]) -> Vec<(u64, u64, u64)> {
        let mut ranges = Ranges::default();
        for &(inode, start, len) in added {
            ranges.add(inode, start, start + len);
        }
        let mut events = Vec::new();
        ranges.drain_into(&mut events);
        let range = |event| match event {
            Event::Range { inode, offset, len } => (inode, offset, len),
            other => panic!("not a range: {other:?}"),
        };
        events.into_iter().map(range).collect()
    }

    #[test]
    fn a_storm_of_appends_is_one_event() {
        let appends: Vec<_> =
            (0..256).flat_map(|page| [(7, page * 4096, 4096), (8, page * 8192, 4096)]).collect();
        let events = drained(&appends);
        assert_eq!(events.iter().filter(|event| event.0 == 7).collect::<Vec<_>>(), [&(7, 0, 1 << 20)]);
        assert_eq!(events.len(), 1 + 256, "ranges that do not touch stay apart");
    }

    #[test]
    fn to_the_end_stays_to_the_end() {
        let mut ranges = Ranges::default();
        ranges.add(1, 4096, u64::MAX);
        ranges.add(1, 8192, 9000);
        let mut events = Vec::new();
        ranges.drain_into(&mut events);
        assert_eq!(events, [Event::Range { inode: 1, offset: 4096, len: super::super::super::TO_END }]);
    }

    proptest! {
        #[test]
        fn merging_covers_exactly_the_same_bytes(added in prop::collection::vec((0u64..3, 0u64..60, 0u64..9), 0..60)) {
            let events = drained(&added);
            for inode in 0..3 {
                for byte in 0..80 {
                    let covers = |ranges: &[(u64, u64, u64)]| {
                        ranges.iter().filter(|(i, start, len)| *i == inode && (*start..start + len).contains(&byte)).count()
                    };
                    prop_assert_eq!(covers(&added) > 0, covers(&events) == 1);
                    prop_assert!(covers(&events) <= 1);
                }
            }
        }
    }
}
