//! From single facts to what the cut loop needs to know.
//!
//! Most facts are a range or a size. Two kinds can be judged only together with others:
//!
//! - A folio that becomes dirty was dirtied by a write, whose own event tells more, or by a store through a mapping.
//!   It counts as explained by a write of the same thread whose range intersects the folio's possible span: the
//!   thread's last one, or any in the same drain. (On xfs nothing needs explaining: a store has its own event.)
//! - The completion of direct I/O does not tell reads from writes. It counts if direct writes to the inode were seen, or
//!   could have been and were lost.
//!
//! The fact that settles such a doubt precedes it, but may lie in another CPU's ring that was read before it was queued.
//! So doubts wait for one more pass over all rings; that pass finds it. What is still in doubt is taken for a store, or
//! a read.
//!
//! # Mapped inodes
//! An inode is remembered as mapped until it leaves memory. An eviction is believed only if the last sign of a mapping
//! is at least two drains old: a drain finds every event queued before it began, so an eviction found in drain `n` that
//! happened before a sign found in drain `m` would have been found by drain `m + 1`; for `n ≥ m + 2` the sign came first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;

use lru::LruCache;

use super::super::{Event, WatchLimits};
use super::coalesce::Ranges;
use super::folio::Folios;

/// What one record says. Ranges are `start..end` in bytes; an `end` of `u64::MAX` is the end of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Bytes { thread: u32, inode: u64, start: u64, end: u64 },
    Size { thread: u32, inode: u64 },
    Cut { thread: u32, inode: u64, size: u64 },
    DirectBegin { inode: u64 },
    DirectEnd { inode: u64, start: u64, end: u64 },
    Dirty { thread: u32, inode: u64, page: u64 },
    Mapping { inode: u64 },
    Evicted { inode: u64 },
}

/// What tells stores through a mapping from writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stores {
    /// Every store that faults is a [`Fact::Mapping`].
    AreReported,
    /// A store is a dirtied folio that no write explains.
    AreUnexplained,
    /// Writes are not reported, so nothing can be explained: every dirtied folio is a change.
    CountAsWrites,
}

/// Passes over the rings in one drain, at most. Each is needed only if the one before left something in doubt.
pub(super) const PASSES_MAX: usize = 4;

/// Everything remembered between drains.
pub(super) struct Interpreter {
    folios: Folios,
    stores: Stores,
    drain: u64,
    /// The last write of each thread. Forgetting one costs a needless verification, no more.
    last_writes: LruCache<u32, Write>,
    /// Mapped inodes, each with the drain of the last sign of a mapping.
    mapped: HashMap<u64, u64>,
    mapped_max: usize,
    direct: HashSet<u64>,
    direct_max: usize,
    direct_overflowed: bool,
    /// The beginning of a direct write that is still under way may have been lost.
    direct_lost: bool,
    writes: Vec<(u32, Write)>,
    doubts: Vec<Fact>,
    /// A page was dirtied that has to be written back before it is read.
    dirtied: bool,
    newly_mapped: Vec<u64>,
    sizes: Vec<u64>,
    /// The least size that each inode was cut to.
    cuts: BTreeMap<u64, u64>,
    ranges: Ranges,
}

#[derive(Debug, Clone, Copy)]
struct Write {
    inode: u64,
    start: u64,
    end: u64,
}

impl Write {
    fn touches(&self, inode: u64, (start, end): (u64, u64)) -> bool {
        self.inode == inode && self.start < end && start < self.end
    }
}

impl Interpreter {
    pub(super) fn new(folios: Folios, stores: Stores, limits: &WatchLimits) -> Self {
        Self {
            folios,
            stores,
            drain: 0,
            last_writes: LruCache::new(
                NonZeroUsize::new(limits.writing_threads).unwrap_or(NonZeroUsize::MIN),
            ),
            mapped: HashMap::new(),
            mapped_max: limits.mapped_inodes,
            direct: HashSet::new(),
            direct_max: limits.direct_inodes,
            direct_overflowed: false,
            direct_lost: false,
            writes: Vec::new(),
            doubts: Vec::new(),
            dirtied: false,
            newly_mapped: Vec::new(),
            sizes: Vec::new(),
            cuts: BTreeMap::new(),
            ranges: Ranges::default(),
        }
    }

    /// Takes in one fact.
    pub(super) fn observe(&mut self, fact: Fact) {
        match fact {
            Fact::Bytes { thread, inode, start, end } => {
                self.remember_write(thread, Write { inode, start, end });
                self.ranges.add(inode, start, end);
            }
            Fact::Size { thread, inode } => {
                self.remember_write(thread, Write { inode, start: 0, end: u64::MAX });
                if self.sizes.last() != Some(&inode) {
                    self.sizes.push(inode);
                }
            }
            Fact::Cut { thread, inode, size } => {
                self.remember_write(thread, Write { inode, start: 0, end: u64::MAX });
                let least = self.cuts.entry(inode).or_insert(size);
                *least = size.min(*least);
            }
            Fact::DirectBegin { inode } => self.remember_direct(inode),
            Fact::DirectEnd { .. } | Fact::Dirty { .. } => {
                if !self.settle(fact) {
                    self.doubts.push(fact);
                }
            }
            Fact::Mapping { inode } => {
                self.map(inode);
                self.dirtied |= !self.newly_mapped.is_empty();
            }
            Fact::Evicted { inode } => {
                if self.mapped.get(&inode).is_some_and(|seen| self.drain >= seen + 2) {
                    self.mapped.remove(&inode);
                }
            }
        }
    }

    /// Whether beginnings of direct writes may have been lost: until they have ended, every completion counts as one.
    pub(super) fn set_direct_lost(&mut self, lost: bool) {
        self.direct_lost = lost;
    }

    /// Whether a page was dirtied since this was last asked that has to be written back before it is read.
    pub(super) fn take_dirtied(&mut self) -> bool {
        std::mem::take(&mut self.dirtied)
    }

    /// Facts that only another pass over all rings can settle.
    pub(super) fn doubts(&self) -> usize {
        self.doubts.len()
    }

    /// After a pass: settles the first `before` doubts, which were there before it began.
    pub(super) fn settle_doubts(&mut self, before: usize) {
        let after = self.doubts.split_off(before.min(self.doubts.len()));
        for doubt in std::mem::replace(&mut self.doubts, after) {
            if !self.settle(doubt)
                && let Fact::Dirty { inode, page, .. } = doubt
            {
                self.map(inode);
                self.dirtied = true;
                let (start, end) = self.folios.span(page);
                self.ranges.add(inode, start, end);
            }
        }
    }

    /// Ends the drain: hands over what it found.
    pub(super) fn finish(&mut self, events: &mut Vec<Event>) {
        self.settle_doubts(usize::MAX);
        self.newly_mapped.sort_unstable();
        self.newly_mapped.dedup();
        self.sizes.sort_unstable();
        self.sizes.dedup();
        events.extend(self.newly_mapped.drain(..).map(|inode| Event::Mapped { inode }));
        events.extend(self.sizes.drain(..).map(|inode| Event::Size { inode }));
        let cuts = std::mem::take(&mut self.cuts);
        events.extend(cuts.into_iter().map(|(inode, size)| Event::Cut { inode, size }));
        self.ranges.drain_into(events);
        self.writes.clear();
        self.drain += 1;
    }

    /// Tries to find out what a doubtful fact means with what is known now.
    fn settle(&mut self, fact: Fact) -> bool {
        match fact {
            Fact::DirectEnd { inode, start, end } => {
                let write = self.direct_overflowed || self.direct_lost || self.direct.contains(&inode);
                if write {
                    self.ranges.add(inode, start, end);
                }
                write
            }
            Fact::Dirty { thread, inode, page } => {
                let span = self.folios.span(page);
                if self.mapped.contains_key(&inode) || self.stores == Stores::CountAsWrites {
                    self.dirtied = true;
                    self.ranges.add(inode, span.0, span.1);
                    return true;
                }
                if self.mapped.len() >= self.mapped_max {
                    return false;
                }
                let explains = |write: &Write| write.touches(inode, span);
                self.stores == Stores::AreReported
                    || self.last_writes.peek(&thread).is_some_and(explains)
                    || self.writes.iter().any(|(writer, write)| *writer == thread && explains(write))
            }
            _ => true,
        }
    }

    fn map(&mut self, inode: u64) {
        if let Some(seen) = self.mapped.get_mut(&inode) {
            *seen = self.drain;
            return;
        }
        if self.mapped.len() < self.mapped_max {
            self.mapped.insert(inode, self.drain);
        }
        if self.newly_mapped.last() != Some(&inode) {
            self.newly_mapped.push(inode);
        }
    }

    fn remember_write(&mut self, thread: u32, write: Write) {
        if self.stores != Stores::AreUnexplained {
            return;
        }
        if let Some(last) = self.last_writes.put(thread, write) {
            self.writes.push((thread, last));
        }
    }

    fn remember_direct(&mut self, inode: u64) {
        if self.direct.len() >= self.direct_max {
            self.direct_overflowed = true;
        } else {
            self.direct.insert(inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interpreter(stores: Stores, mapped_inodes: usize) -> Interpreter {
        let limits = WatchLimits { mapped_inodes, ..WatchLimits::default() };
        Interpreter::new(Folios { page_bytes: 4096, max_order: 9 }, stores, &limits)
    }

    fn drain(interpreter: &mut Interpreter, passes: &[&[Fact]]) -> Vec<Event> {
        let mut before = 0;
        for pass in passes {
            pass.iter().for_each(|fact| interpreter.observe(*fact));
            interpreter.settle_doubts(before);
            before = interpreter.doubts();
        }
        let mut events = Vec::new();
        interpreter.finish(&mut events);
        events
    }

    const fn write(thread: u32, start: u64, end: u64) -> Fact {
        Fact::Bytes { thread, inode: 9, start, end }
    }

    const fn dirty(thread: u32, page: u64) -> Fact {
        Fact::Dirty { thread, inode: 9, page }
    }

    const MAPPED: Event = Event::Mapped { inode: 9 };

    fn range(offset: u64, len: u64) -> Event {
        Event::Range { inode: 9, offset, len }
    }

    #[test]
    fn a_write_explains_the_folio_it_dirties() {
        let mut interpreter = interpreter(Stores::AreUnexplained, 8);
        // The write is in the middle of a large folio, whose first page the kernel names.
        let events = drain(&mut interpreter, &[&[write(1, 700_000, 700_100), dirty(1, 0)]]);
        assert_eq!(events, [range(700_000, 100)]);
        // The folio's event came a drain later.
        assert_eq!(drain(&mut interpreter, &[&[dirty(1, 0)]]), []);
    }

    #[test]
    fn a_write_found_by_the_next_pass_explains_too() {
        let mut interpreter = interpreter(Stores::AreUnexplained, 8);
        let events = drain(&mut interpreter, &[&[dirty(1, 5)], &[write(1, 20_480, 20_481), write(1, 0, 1)]]);
        assert!(!events.contains(&MAPPED), "{events:?}");
    }

    #[test]
    fn a_folio_dirtied_otherwise_is_a_mapping() {
        for facts in [
            &[dirty(1, 5)][..],
            &[write(2, 20_480, 20_481), dirty(1, 5)],
            &[write(1, 20_470, 20_479), dirty(1, 5)],
        ] {
            let mut interpreter = interpreter(Stores::AreUnexplained, 8);
            let events = drain(&mut interpreter, &[facts]);
            assert!(events.contains(&MAPPED) && events.contains(&range(20_480, 4096)), "{events:?}");
            // From now on every folio counts, explained or not, and the mapping is not announced again.
            let events = drain(&mut interpreter, &[&[write(1, 0, 10), dirty(1, 0)]]);
            assert_eq!(events, [range(0, 2 << 20)]);
        }
    }

    #[test]
    fn reported_stores_need_no_explanation() {
        let mut interpreter = interpreter(Stores::AreReported, 8);
        assert_eq!(drain(&mut interpreter, &[&[dirty(1, 5)]]), []);
        assert_eq!(
            drain(&mut interpreter, &[&[Fact::Mapping { inode: 9 }, dirty(1, 5)]]),
            [MAPPED, range(20_480, 4096)]
        );
    }

    #[test]
    fn where_writes_are_not_reported_every_folio_is_a_change() {
        let mut interpreter = interpreter(Stores::CountAsWrites, 8);
        assert_eq!(drain(&mut interpreter, &[&[dirty(1, 5)]]), [range(20_480, 4096)]);
    }

    #[test]
    fn an_eviction_ends_a_mapping_only_if_it_surely_came_later() {
        let mut interpreter = interpreter(Stores::AreReported, 8);
        let (mapping, evicted) = (Fact::Mapping { inode: 9 }, Fact::Evicted { inode: 9 });
        assert_eq!(drain(&mut interpreter, &[&[mapping]]), [MAPPED]);
        assert_eq!(drain(&mut interpreter, &[&[evicted]]), []);
        assert_eq!(drain(&mut interpreter, &[&[mapping]]), [], "the eviction may have been the earlier");
        assert_eq!(drain(&mut interpreter, &[&[]]), []);
        assert_eq!(drain(&mut interpreter, &[&[evicted]]), []);
        assert_eq!(drain(&mut interpreter, &[&[mapping]]), [MAPPED]);
    }

    #[test]
    fn when_too_many_are_mapped_every_folio_counts() {
        let mut interpreter = interpreter(Stores::AreReported, 1);
        drain(&mut interpreter, &[&[Fact::Mapping { inode: 1 }]]);
        for _ in 0..2 {
            let events = drain(&mut interpreter, &[&[write(1, 0, 10), dirty(1, 0)]]);
            assert!(events.contains(&MAPPED) && events.contains(&range(0, 2 << 20)), "{events:?}");
        }
    }

    #[test]
    fn direct_reads_are_not_changes() {
        let mut interpreter = interpreter(Stores::AreReported, 8);
        let end = Fact::DirectEnd { inode: 9, start: 0, end: 4096 };
        assert_eq!(drain(&mut interpreter, &[&[end]]), []);
        let events = drain(&mut interpreter, &[&[end], &[Fact::DirectBegin { inode: 9 }]]);
        assert_eq!(events, [range(0, 4096)]);
    }

    #[test]
    fn facts_of_one_inode_are_few_events() {
        let mut interpreter = interpreter(Stores::AreReported, 8);
        let size = Fact::Size { thread: 1, inode: 9 };
        let cut = |size| Fact::Cut { thread: 1, inode: 9, size };
        let facts = [
            size,
            write(1, 0, 10),
            Fact::Size { thread: 1, inode: 3 },
            cut(70),
            cut(50),
            size,
            write(2, 10, 20),
            cut(60),
        ];
        let events = drain(&mut interpreter, &[&facts]);
        let cut = Event::Cut { inode: 9, size: 50 };
        assert_eq!(events, [Event::Size { inode: 3 }, Event::Size { inode: 9 }, cut, range(0, 20)]);
    }
}
