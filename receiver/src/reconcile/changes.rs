//! What commits have changed of a tree, so that a directory that was equal to it can follow without being looked at as a whole.
//!
//! [`Changes::apply`] and [`Changes::seal`] stand in for those of the tree, and note beside it what cannot be told afterwards: what an entry meant before,
//! and which bytes were written. Several commits make one difference: what was made and removed again in between is in none.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use tidelock_proto::{
    FileId, Op, Tree,
    tree::{Content, ExtentMap, Name, TreeError},
};

/// The difference between a tree and what it was when this began.
#[derive(Debug, Default)]
pub struct Changes {
    /// What entries meant then, of those that were given, taken, or went with their directory.
    pub(super) entries: BTreeMap<(FileId, Name), Option<FileId>>,
    /// The bytes that are not what they were, of files whose content or size was written.
    pub(super) written: BTreeMap<FileId, Ranges>,
    /// Inodes that are new or have other attributes.
    pub(super) attributes: BTreeSet<FileId>,
    /// Directories that were there then and are not any more.
    pub(super) gone: BTreeSet<FileId>,
    /// Ids from here on are new.
    first_new: FileId,
}

/// Ranges of bytes that do not touch each other, as start and end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Changes {
    /// None yet of this tree.
    pub fn of(tree: &Tree) -> Self {
        Self { first_new: tree.next_id(), ..Self::default() }
    }

    /// [`Tree::apply`], noted.
    pub fn apply(&mut self, tree: &mut Tree, op: &Op) -> Result<(), TreeError> {
        match op {
            Op::Create { id, .. } | Op::SetMeta { id, .. } | Op::SetXattrs { id, .. } => {
                self.attributes.insert(*id);
            }
            Op::Link { dir, name, .. } | Op::Unlink { dir, name } => {
                if let Entry::Vacant(entry) = self.entries.entry((*dir, name.clone())) {
                    entry.insert(tree.lookup(*dir, name));
                }
            }
            Op::Write { id, offset, pieces } => {
                let len = pieces.iter().map(|piece| piece.len).fold(0, u64::saturating_add);
                self.written.entry(*id).or_default().add(*offset, offset.saturating_add(len));
            }
            Op::Resize { id, size } => {
                let before = tree.get(*id).and_then(|inode| inode.extents()).map_or(0, ExtentMap::size);
                self.written.entry(*id).or_default().add(*size, before);
            }
            Op::Reserve { .. } => {}
        }
        tree.apply(op)
    }

    /// [`Tree::seal`], noted.
    pub fn seal(&mut self, tree: &mut Tree) -> Result<(), TreeError> {
        let (entries, gone, first_new) = (&mut self.entries, &mut self.gone, self.first_new);
        tree.seal_with(&mut |id, inode| {
            let Content::Directory(held) = &inode.content else { return };
            for (name, child) in held {
                entries.entry((id, name.clone())).or_insert(Some(*child));
            }
            if id < first_new {
                gone.insert(id);
            }
        })
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.written.is_empty() && self.attributes.is_empty()
    }

    /// How much there is to do, in entries, inodes and ranges: a measure of memory, too.
    pub fn len(&self) -> usize {
        let ranges: usize = self.written.values().map(|ranges| ranges.0.len()).sum();
        self.entries.len() + self.attributes.len() + ranges
    }

    pub(super) fn is_new(&self, id: FileId) -> bool {
        id >= self.first_new
    }
}

impl Ranges {
    /// Adds `start..end`, which may be empty.
    fn add(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        while let Some((from, to)) = self.0.range(..=end).next_back().map(|(from, to)| (*from, *to)) {
            if to < start {
                break;
            }
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    /// The ranges below `size`, as whole blocks as far as there is content.
    pub(super) fn blocks(&self, block: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut whole = Self::default();
        for (start, end) in &self.0 {
            whole.add(start / block * block, end.checked_next_multiple_of(block).unwrap_or(size).min(size));
        }
        whole.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::Ranges;

    #[test]
    fn ranges_that_touch_become_one() {
        let mut ranges = Ranges::default();
        for (start, end) in [(10, 20), (40, 50), (20, 25), (60, 60), (24, 41)] {
            ranges.add(start, end);
        }
        assert_eq!(ranges.0.into_iter().collect::<Vec<_>>(), [(10, 50)]);
    }

    #[test]
    fn blocks_end_with_the_file() {
        let mut ranges = Ranges::default();
        ranges.add(5000, 9000);
        ranges.add(20_000, 30_000);
        assert_eq!(ranges.blocks(4096, 10_000).collect::<Vec<_>>(), [(4096, 10_000)]);
    }
}
