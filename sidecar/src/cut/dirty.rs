//! What is known to have changed and is not captured yet.
//!
//! Pure: events come in, work goes out. Nothing leaves the set unless it was captured or its inode is gone, so that "the
//! set is empty" means "everything that was announced is captured".

use std::collections::{BTreeMap, BTreeSet};

use tidelock_proto::{FileId, tree::Timestamp};

use super::ranges::RangeSet;
use crate::limits;

/// Why an entry is looked up, beyond what it names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EntryHint {
    /// The content of what it names changed somewhere.
    pub(crate) content: bool,
    /// Part of a scan: compare what it names with the tree, and if it is a directory everything below.
    pub(crate) scan: bool,
}

/// An entry to look up, by name, in a directory known from elsewhere.
pub(crate) type Entry = (Box<[u8]>, EntryHint);

/// What changed in one inode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileDirt {
    /// Attributes, extended ones among them.
    pub(crate) attributes: bool,
    /// Bytes that were written.
    pub(crate) changed: RangeSet,
    /// Bytes that may differ from the tree and are to be compared with it.
    pub(crate) suspect: RangeSet,
    /// Where the comparison of `suspect` goes on. What is changed all the time is compared in laps: its beginning does not keep
    /// the rest waiting.
    pub(crate) from: u64,
    /// Pages may be dirty through a mapping that nobody announced: write them back before reading.
    pub(crate) write_back: bool,
    /// Suspect as a whole if its times or size say so.
    pub(crate) compare: bool,
    /// Size and times, after a change of bytes that are announced elsewhere.
    pub(crate) times: bool,
    /// Its change time, as it was when the inode was last captured, is to be recorded if it has settled.
    pub(crate) settle: Option<Seen>,
}

/// A change time of an inode, as it was seen after a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) ctime: Timestamp,
    /// It was so old that whatever began afterwards has another one.
    pub(crate) settled: bool,
}

impl FileDirt {
    pub(crate) fn suspect_all(&mut self) {
        self.suspect.insert(0, u64::MAX);
    }

    /// Whether anything was announced, beyond the wish to record a change time.
    pub(crate) fn is_announced(&self) -> bool {
        let bytes = !(self.changed.is_empty() && self.suspect.is_empty());
        bytes || self.attributes || self.write_back || self.compare || self.times
    }

    fn merge(&mut self, mut other: Self) {
        self.attributes |= other.attributes;
        self.write_back |= other.write_back;
        self.compare |= other.compare;
        self.times |= other.times;
        self.settle = self.settle.or(other.settle);
        self.from = self.from.max(other.from);
        while let Some((start, end)) = other.changed.take(u64::MAX) {
            self.changed.insert(start, end);
        }
        while let Some((start, end)) = other.suspect.take(u64::MAX) {
            self.suspect.insert(start, end);
        }
    }
}

/// The set.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Directories to list, with the hint for each of their entries.
    directories: BTreeMap<FileId, EntryHint>,
    entries: BTreeMap<(FileId, Box<[u8]>), EntryHint>,
    files: BTreeMap<FileId, FileDirt>,
    /// The inode that is captured next, or the one after it: one that is changed all the time does not keep the others waiting.
    next: FileId,
}

impl Dirty {
    pub(crate) fn is_empty(&self) -> bool {
        self.directories.is_empty() && self.entries.is_empty() && self.files.is_empty()
    }

    /// Whether directories or entries wait.
    pub(crate) fn has_names(&self) -> bool {
        !(self.directories.is_empty() && self.entries.is_empty())
    }

    /// How many directories and entries wait.
    pub(crate) fn names(&self) -> usize {
        self.directories.len() + self.entries.len()
    }

    pub(crate) fn directory(&mut self, dir: FileId, scan: bool) {
        self.directories.entry(dir).or_default().scan |= scan;
    }

    pub(crate) fn entry(&mut self, dir: FileId, name: Box<[u8]>, hint: EntryHint) {
        let held = self.entries.entry((dir, name)).or_default();
        held.content |= hint.content;
        held.scan |= hint.scan;
    }

    /// Whether an entry waits to be looked up.
    pub(crate) fn has_entry(&self, dir: FileId, name: &[u8]) -> bool {
        !self.entries.is_empty() && self.entries.contains_key(&(dir, name.into()))
    }

    /// Whether an inode waits, or anything in it if it is a directory.
    pub(crate) fn concerns(&self, id: FileId) -> bool {
        let within = (id, Box::default())..(FileId(id.0 + 1), Box::default());
        self.files.contains_key(&id)
            || self.directories.contains_key(&id)
            || self.entries.range(within).next().is_some()
    }

    /// Changes what is known of one inode.
    pub(crate) fn file(&mut self, id: FileId) -> &mut FileDirt {
        self.files.entry(id).or_default()
    }

    /// Puts back what could not be captured. A comparison that has begun goes on before others.
    pub(crate) fn put_back(&mut self, id: FileId, dirt: FileDirt) {
        if dirt.from > 0 {
            self.next = id;
        }
        self.file(id).merge(dirt);
    }

    pub(crate) fn written(&mut self, id: FileId, start: u64, end: u64) {
        let dirt = self.files.entry(id).or_default();
        dirt.changed.insert(start, end);
        dirt.changed.limit(limits::DIRTY_RANGES_PER_FILE);
    }

    pub(crate) fn take_directory(&mut self) -> Option<(FileId, EntryHint)> {
        self.directories.pop_first()
    }

    /// Takes up to `most` entries of one directory.
    pub(crate) fn take_entries(&mut self, most: usize) -> Option<(FileId, Vec<Entry>)> {
        let dir = self.entries.first_key_value()?.0.0;
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(entry) = self.entries.first_entry()
            && entry.key().0 == dir
        {
            let ((_, name), hint) = entry.remove_entry();
            taken.push((name, hint));
        }
        Some((dir, taken))
    }

    pub(crate) fn take_file(&mut self) -> Option<(FileId, FileDirt)> {
        let id = *self.files.range(self.next..).next().or(self.files.first_key_value())?.0;
        self.next = FileId(id.0 + 1);
        self.files.remove_entry(&id)
    }

    /// Forgets everything about an inode that is gone.
    pub(crate) fn forget(&mut self, id: FileId) {
        self.directories.remove(&id);
        self.files.remove(&id);
        let entries = (id, Box::default())..(FileId(id.0 + 1), Box::default());
        let gone: Vec<_> = self.entries.range(entries).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.entries.remove(&key);
        }
    }

    /// Empties the set; returns the inodes that were in it.
    pub(crate) fn take_ids(&mut self) -> BTreeSet<FileId> {
        let ids = self.files.keys().copied().collect();
        *self = Self::default();
        ids
    }

    /// What waits, in words, and the first inode of it.
    pub(crate) fn describe(&self) -> (String, Option<FileId>) {
        let (directories, entries, files) = (self.directories.len(), self.entries.len(), self.files.len());
        let first = self.files.keys().next().or(self.directories.keys().next());
        let first = first.or(self.entries.keys().next().map(|(dir, _)| dir)).copied();
        (format!("{directories} directories, {entries} entries and {files} files are waiting"), first)
    }

    /// About how many bytes are known to wait, for status; a whole file counts as `unknown_bytes`.
    pub(crate) fn bytes(&self, unknown_bytes: impl Fn(FileId) -> u64) -> u64 {
        let of = |(id, dirt): (&FileId, &FileDirt)| {
            let all = dirt.changed.bytes().saturating_add(dirt.suspect.bytes());
            all.min(unknown_bytes(*id))
        };
        self.files.iter().map(of).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_out_one_directory_at_a_time() {
        let mut dirty = Dirty::default();
        for (dir, name) in [(2, "b"), (1, "a"), (2, "a"), (2, "c")] {
            dirty.entry(FileId(dir), name.as_bytes().into(), EntryHint::default());
        }
        assert_eq!(dirty.take_entries(2).map(|(dir, names)| (dir, names.len())), Some((FileId(1), 1)));
        assert_eq!(dirty.take_entries(2).map(|(dir, names)| (dir, names.len())), Some((FileId(2), 2)));
        dirty.forget(FileId(2));
        assert!(dirty.is_empty());
    }

    #[test]
    fn nobody_waits_for_what_is_dirty_all_the_time() {
        let mut dirty = Dirty::default();
        let mut taken = Vec::new();
        dirty.written(FileId(9), 0, 1);
        for _ in 0..4 {
            dirty.written(FileId(7), 0, 10);
            taken.extend(dirty.take_file().map(|(id, _)| id.0));
        }
        assert_eq!(taken, [7, 9, 7, 7]);
        // But what was begun is finished first.
        dirty.put_back(FileId(7), FileDirt { from: 4096, ..FileDirt::default() });
        dirty.written(FileId(8), 0, 1);
        assert_eq!(dirty.take_file().map(|(id, dirt)| (id.0, dirt.from)), Some((7, 4096)));
    }

    #[test]
    fn what_is_put_back_joins_what_came_meanwhile() {
        let mut dirty = Dirty::default();
        dirty.written(FileId(7), 0, 10);
        let (id, dirt) = dirty.take_file().expect("one file");
        dirty.written(FileId(7), 5, 20);
        dirty.put_back(id, dirt);
        assert_eq!(dirty.bytes(|_| 1000), 20);
    }
}
