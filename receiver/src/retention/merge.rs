//! The operations of dropped points, merged into those of the next point that stays.
//!
//! Operations may be joined end to end, but then the content that only dropped points had would stay in the log for ever. So what
//! they touched is remembered ([`Touched`]: inodes, names, ranges of files), and for exactly that the state after them is
//! written. Ranges end where an operation's did, so extents come out cut as they were, and the tree has the same
//! digest as before. That is compared before anything is dropped; this module need not be trusted.

use std::collections::{BTreeMap, BTreeSet};

use tidelock_proto::{
    FileId, Op, Tree,
    limits::PIECES_PER_OP_MAX,
    tree::{Name, Piece},
};

/// What operations have touched.
#[derive(Debug, Default)]
pub struct Touched {
    inodes: BTreeSet<FileId>,
    names: BTreeSet<(FileId, Name)>,
    content: BTreeMap<FileId, Content>,
}

/// What was touched of one file.
#[derive(Debug, Default)]
struct Content {
    /// Ranges, by their beginning; they neither overlap nor touch.
    ranges: BTreeMap<u64, u64>,
    /// The least size it was given.
    cut_to: Option<u64>,
}

impl Touched {
    /// Takes in an operation.
    pub fn add(&mut self, op: &Op) {
        match op {
            Op::Create { id, .. } | Op::SetMeta { id, .. } | Op::SetXattrs { id, .. } => {
                self.inodes.insert(*id);
            }
            Op::Link { dir, name, .. } | Op::Unlink { dir, name } => {
                self.names.insert((*dir, name.clone()));
            }
            Op::Write { id, offset, pieces } => {
                let len: u64 = pieces.iter().map(|piece| piece.len).sum();
                self.content.entry(*id).or_default().add(*offset, offset.saturating_add(len));
            }
            Op::Resize { id, size } => {
                let content = self.content.entry(*id).or_default();
                content.cut_to = Some(content.cut_to.map_or(*size, |least| least.min(*size)));
                content.add(*size, u64::MAX);
            }
            Op::Reserve { .. } => {}
        }
    }

    /// The operations that lead from the tree before all that was added to the one after it.
    pub fn merge(&self, before: &Tree, after: &Tree) -> Vec<Op> {
        let mut ops = Vec::new();
        let all: BTreeSet<FileId> = self.inodes.iter().chain(self.content.keys()).copied().collect();
        for id in all {
            self.merge_inode(id, before, after, &mut ops);
        }
        for (dir, name) in &self.names {
            match (before.lookup(*dir, name), after.lookup(*dir, name)) {
                (was, Some(is)) if was != Some(is) => {
                    ops.push(Op::Link { dir: *dir, name: name.clone(), id: is })
                }
                // The names of a directory that goes, go with it.
                (Some(_), None) if after.get(*dir).is_some() => {
                    ops.push(Op::Unlink { dir: *dir, name: name.clone() });
                }
                _ => {}
            }
        }
        ops.push(Op::Reserve { next_id: after.next_id() });
        ops
    }

    fn merge_inode(&self, id: FileId, before: &Tree, after: &Tree, ops: &mut Vec<Op>) {
        let Some(inode) = after.get(id) else { return };
        let known = before.get(id);
        match known {
            None => ops.push(Op::Create { id, kind: inode.kind(), meta: inode.meta }),
            Some(known) if known.meta != inode.meta => ops.push(Op::SetMeta { id, meta: inode.meta }),
            Some(_) => {}
        }
        if known.map_or(!inode.xattrs.is_empty(), |known| known.xattrs != inode.xattrs) {
            ops.push(Op::SetXattrs { id, xattrs: inode.xattrs.clone() });
        }
        let (Some(extents), Some(content)) = (inode.extents(), self.content.get(&id)) else { return };
        let size = known.and_then(|known| known.extents()).map_or(0, |extents| extents.size());
        if let Some(least) = content.cut_to.filter(|least| *least < size) {
            ops.push(Op::Resize { id, size: least });
        }
        for (start, end) in &content.ranges {
            let end = (*end).min(extents.size());
            if *start < end {
                write(id, *start, extents.pieces(*start, end), ops);
            }
        }
        ops.push(Op::Resize { id, size: extents.size() });
    }
}

fn write(id: FileId, mut offset: u64, pieces: Vec<Piece>, ops: &mut Vec<Op>) {
    for group in pieces.chunks(PIECES_PER_OP_MAX / 2) {
        ops.push(Op::Write { id, offset, pieces: group.to_vec() });
        offset += group.iter().map(|piece| piece.len).sum::<u64>();
    }
}

impl Content {
    fn add(&mut self, mut start: u64, mut end: u64) {
        while let Some((from, to)) = self.ranges.range(..=end).next_back().map(|(from, to)| (*from, *to))
            && to >= start
        {
            self.ranges.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.ranges.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidelock_proto::{
        ChunkId,
        tree::{ChunkRef, Kind, Meta},
    };

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Create { dir: u8, name: u8, directory: bool },
        Remove { dir: u8, name: u8 },
        Move { dir: u8, name: u8, to: u8, as_name: u8 },
        Write { file: u8, at: u64, len: u64, chunk: u8, hole: bool },
        Resize { file: u8, size: u64 },
        Mode { file: u8, mode: u32 },
        Xattr { file: u8, value: u8 },
        Seal,
    }

    fn act() -> impl Strategy<Value = Act> {
        let small = || 0..6u8;
        prop_oneof![
            3 => (small(), small(), prop::bool::weighted(0.3)).prop_map(|(dir, name, directory)| Act::Create { dir, name, directory }),
            1 => (small(), small()).prop_map(|(dir, name)| Act::Remove { dir, name }),
            2 => (small(), small(), small(), small()).prop_map(|(dir, name, to, as_name)| Act::Move { dir, name, to, as_name }),
            6 => (small(), 0..20u64, 1..8u64, any::<u8>(), prop::bool::weighted(0.2))
                .prop_map(|(file, at, len, chunk, hole)| Act::Write { file, at: at * 512, len: len * 512, chunk, hole }),
            2 => (small(), 0..20u64).prop_map(|(file, size)| Act::Resize { file, size: size * 512 }),
            1 => (small(), 0..512u32).prop_map(|(file, mode)| Act::Mode { file, mode }),
            1 => (small(), any::<u8>()).prop_map(|(file, value)| Act::Xattr { file, value }),
            2 => Just(Act::Seal),
        ]
    }

    fn name(name: u8) -> Name {
        Name::new(&[b'a' + name]).expect("a name")
    }

    /// The operations of an act upon this tree; none where it makes no sense.
    fn ops(tree: &Tree, act: &Act) -> Vec<Op> {
        let pick = |number: u8, directory: bool| {
            let fits = tree.iter().filter(|(_, inode)| (inode.kind() == Kind::Directory) == directory);
            let ids: Vec<FileId> = fits.map(|(id, _)| id).collect();
            (!ids.is_empty()).then(|| ids[usize::from(number) % ids.len()])
        };
        let file = |number: u8| {
            pick(number, false).filter(|id| tree.get(*id).is_some_and(|inode| inode.extents().is_some()))
        };
        match act {
            Act::Create { dir, name: entry, directory } => {
                let kind = if *directory { Kind::Directory } else { Kind::File };
                let (Some(dir), id) = (pick(*dir, true), tree.next_id()) else { return Vec::new() };
                vec![Op::Create { id, kind, meta: Meta::default() }, Op::Link { dir, name: name(*entry), id }]
            }
            Act::Remove { dir, name: entry } => match pick(*dir, true) {
                Some(dir) if tree.lookup(dir, &name(*entry)).is_some() => {
                    vec![Op::Unlink { dir, name: name(*entry) }]
                }
                _ => Vec::new(),
            },
            Act::Move { dir, name: entry, to, as_name } => {
                let (Some(dir), Some(to)) = (pick(*dir, true), pick(*to, true)) else { return Vec::new() };
                let Some(id) = tree.lookup(dir, &name(*entry)) else { return Vec::new() };
                if (dir, entry) == (to, as_name) {
                    return Vec::new();
                }
                vec![Op::Unlink { dir, name: name(*entry) }, Op::Link { dir: to, name: name(*as_name), id }]
            }
            Act::Write { file: number, at, len, chunk, hole } => file(*number).map_or_else(Vec::new, |id| {
                let chunk = (!hole).then_some(ChunkRef { id: ChunkId([*chunk; 32]), at: 0 });
                vec![Op::Write { id, offset: *at, pieces: vec![Piece { len: *len, chunk }] }]
            }),
            Act::Resize { file: number, size } => {
                file(*number).map_or_else(Vec::new, |id| vec![Op::Resize { id, size: *size }])
            }
            Act::Mode { file: number, mode } => pick(*number, false).map_or_else(Vec::new, |id| {
                vec![Op::SetMeta { id, meta: Meta { mode: *mode, ..Meta::default() } }]
            }),
            Act::Xattr { file: number, value } => pick(*number, false).map_or_else(Vec::new, |id| {
                vec![Op::SetXattrs { id, xattrs: [(b"user.a".to_vec(), vec![*value])].into_iter().collect() }]
            }),
            Act::Seal => Vec::new(),
        }
    }

    /// Applies acts up to the last one after which the tree could be sealed.
    fn live(tree: &mut Tree, acts: &[Act], touched: &mut Touched) {
        for act in acts {
            let ops = ops(tree, act);
            let mut next = tree.clone();
            let fine = ops.iter().all(|op| next.apply(op).is_ok()) && next.seal().is_ok();
            if fine {
                ops.iter().for_each(|op| touched.add(op));
                *tree = next;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn merged_operations_lead_to_the_same_tree(
            first in prop::collection::vec(act(), 0..40),
            then in prop::collection::vec(act(), 0..40),
        ) {
            let mut before = Tree::new();
            before.apply(&Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() }).expect("a root");
            before.seal().expect("a tree");
            live(&mut before, &first, &mut Touched::default());
            let (mut after, mut touched) = (before.clone(), Touched::default());
            live(&mut after, &then, &mut touched);
            let ops = touched.merge(&before, &after);
            let mut merged = before;
            for op in &ops {
                merged.apply(op).expect("applies");
            }
            merged.seal().expect("a tree");
            prop_assert!(merged == after);
            prop_assert_eq!(merged.digest(), after.digest());
        }
    }
}
