//! A directory that follows a tree by differences alone is what it would be if it were made anew.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidelock_proto::{
    Op,
    tree::{ChunkRef, Kind, Meta, Name, Piece, Timestamp},
};

use super::{super::*, assert_equal, world::*, *};

/// A tree that is changed, and what was changed of it since the directory was equal to it.
struct Edits {
    tree: Tree,
    changes: Changes,
    rng: StdRng,
    pool: Vec<(ChunkId, u32)>,
}

impl Edits {
    fn apply(&mut self, op: Op) {
        self.changes.apply(&mut self.tree, &op).unwrap();
    }

    fn commit(&mut self) {
        for _ in 0..self.rng.random_range(1..12) {
            self.edit();
        }
        self.changes.seal(&mut self.tree).unwrap();
    }

    fn edit(&mut self) {
        let dirs = self.of_kind(true);
        let dir = *dirs.choose(&mut self.rng).unwrap();
        let name = self.name();
        let id = self.tree.next_id();
        let stamp = self.rng.random_range(1_000_000..2_000_000);
        let meta = Meta { mode: 0o640, mtime: Timestamp { secs: stamp, nanos: 7 }, ..Meta::default() };
        match self.rng.random_range(0..12) {
            0 | 1 => {
                let kinds =
                    [Kind::File, Kind::File, Kind::Directory, Kind::Symlink(b"../x".to_vec()), Kind::Fifo];
                let kind = kinds.choose(&mut self.rng).unwrap().clone();
                // A link has no mode of its own.
                let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { meta.mode };
                self.apply(Op::Create { id, kind, meta: Meta { mode, ..meta } });
                self.apply(Op::Link { dir, name, id });
            }
            2..5 => self.write(),
            5 => {
                let Some(file) = self.of_kind(false).choose(&mut self.rng).copied() else { return };
                let size = self.rng.random_range(0..300_000);
                self.apply(Op::Resize { id: file, size });
            }
            6 => {
                let all: Vec<FileId> = self.tree.iter().map(|(id, _)| id).collect();
                let id = *all.choose(&mut self.rng).unwrap();
                let link = matches!(self.tree.get(id).unwrap().kind(), Kind::Symlink(_));
                let mode = if link { 0o777 } else { *[0o600, 0o4755, 0].choose(&mut self.rng).unwrap() };
                self.apply(Op::SetMeta { id, meta: Meta { mode, uid: 1000, ..meta } });
                // An access list that goes on saying another mode is one that no file system can have.
                self.apply(Op::SetXattrs { id, xattrs: Default::default() });
            }
            7 => {
                let Some((from, old, _)) = self.entry() else { return };
                self.apply(Op::Unlink { dir: from, name: old });
            }
            8..10 => {
                // Renamed, perhaps over something, perhaps into another directory, never into itself.
                let Some((from, old, id)) = self.entry() else { return };
                if self.is_below(dir, id) {
                    return;
                }
                self.apply(Op::Unlink { dir: from, name: old });
                self.apply(Op::Link { dir, name, id });
            }
            10 => {
                let (Some((a, first, x)), Some((b, second, y))) = (self.entry(), self.entry()) else {
                    return;
                };
                if x == y || self.is_below(a, y) || self.is_below(b, x) {
                    return;
                }
                self.apply(Op::Link { dir: a, name: first, id: y });
                self.apply(Op::Link { dir: b, name: second, id: x });
            }
            _ => {
                let Some(file) = self.of_kind(false).choose(&mut self.rng).copied() else { return };
                self.apply(Op::Link { dir, name, id: file });
            }
        }
    }

    fn write(&mut self) {
        let Some(id) = self.of_kind(false).choose(&mut self.rng).copied() else { return };
        let offset = self.rng.random_range(0..80) * *[4096, 1000].choose(&mut self.rng).unwrap();
        let pieces = (0..self.rng.random_range(1..4)).map(|_| {
            let (chunk, len) = *self.pool.choose(&mut self.rng).unwrap();
            match self.rng.random_bool(0.3) {
                true => Piece { len: self.rng.random_range(1..20_000), chunk: None },
                false => Piece { len: len.into(), chunk: Some(ChunkRef { id: chunk, at: 0 }) },
            }
        });
        let pieces = pieces.collect();
        self.apply(Op::Write { id, offset, pieces });
    }

    /// Directories or files that have a way to the root.
    fn of_kind(&self, directories: bool) -> Vec<FileId> {
        let wanted = |(id, inode): (FileId, &tidelock_proto::tree::Inode)| {
            let kind = if directories { Kind::Directory } else { Kind::File };
            (inode.kind() == kind && self.tree.path(id).is_some()).then_some(id)
        };
        self.tree.iter().filter_map(wanted).collect()
    }

    fn entry(&mut self) -> Option<(FileId, Name, FileId)> {
        let dirs = self.of_kind(true);
        let entries =
            dirs.iter().flat_map(|dir| self.tree.entries(*dir).unwrap().iter().map(move |e| (*dir, e)));
        let entries: Vec<_> = entries.map(|(dir, (name, id))| (dir, name.clone(), *id)).collect();
        entries.choose(&mut self.rng).cloned()
    }

    fn is_below(&self, dir: FileId, id: FileId) -> bool {
        let mut at = Some(dir);
        while let Some(dir) = at {
            if dir == id {
                return true;
            }
            at = self.tree.names(dir).next().map(|(above, _)| *above);
        }
        false
    }

    fn name(&mut self) -> Name {
        name([&b"a"[..], b"b", b"c", b"d", b"e\xff"].choose(&mut self.rng).unwrap())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, fork: false, ..ProptestConfig::default() })]

    #[test]
    fn a_directory_follows_any_commits(seed in any::<u64>()) {
        let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
        let (image, staging) = (TempDir::new_in(dir.path()).unwrap(), TempDir::new_in(dir.path()).unwrap());
        let tree = random_tree(seed, &mut memory);
        let pool = chunk_pool(&mut memory);
        make(&image, &tree, &memory, &options()).unwrap();
        let mut edits = Edits { changes: Changes::of(&tree), tree, rng: StdRng::seed_from_u64(seed), pool };
        for _ in 0..6 {
            for _ in 0..edits.rng.random_range(1..4) {
                edits.commit();
            }
            let changes = std::mem::take(&mut edits.changes);
            let done = follow(image.path(), staging.path(), &edits.tree, &changes, &memory, &options());
            prop_assert!(done.is_ok(), "{done:?}");
            complete(image.path(), &edits.tree, &options()).unwrap();
            assert_equal(&image, &edits.tree, &memory);
            prop_assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
            edits.changes = Changes::of(&edits.tree);
        }
    }
}

#[test]
fn one_page_of_a_large_file_is_one_page_written() {
    let (image, staging) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut memory = Memory::default();
    let mut builder = Builder::new();
    let chunks: Vec<_> = (0..64u8).map(|byte| memory.add(vec![byte; 65536])).collect();
    let id = builder.add(FileId::ROOT, b"large", Kind::File, 0o600);
    for (number, chunk) in chunks.iter().enumerate() {
        builder.data(id, number as u64 * 65536, *chunk, 0, 65536);
    }
    let mut tree = builder.done();
    make(&image, &tree, &memory, &options()).unwrap();
    let page = memory.add(vec![0xaa; 4096]);
    let mut changes = Changes::of(&tree);
    let pieces = vec![Piece { len: 4096, chunk: Some(ChunkRef { id: page, at: 0 }) }];
    changes.apply(&mut tree, &Op::Write { id, offset: 81_920, pieces }).unwrap();
    changes.seal(&mut tree).unwrap();
    let report = follow(image.path(), staging.path(), &tree, &changes, &memory, &options()).unwrap();
    assert_eq!((report.bytes_written, report.bytes_compared, report.bytes_fetched), (4096, 0, 4096));
    assert_equal(&image, &tree, &memory);
}
