//! Looking into points of a real store, which has no content where none may be read.
#![allow(clippy::unwrap_used)]

use std::{cell::RefCell, collections::BTreeMap};

use proptest::prelude::*;
use tempfile::TempDir;
use tidelock_proto::{
    ChunkKey, Epoch, FileId, Op, PointId, Seq, Tree, VolumeName,
    chunk::Codec,
    point::{Consistency, Cut, How, Point},
    tree::{ChunkRef, Kind, Meta, Name, Piece, Timestamp},
};
use tidelock_receiver::store::{Batch, Commit, Record, Store, StoreOptions, encode_model_ops};

use super::*;
use crate::{Part, RestoreOptions, restore};

struct World {
    dir: TempDir,
    tree: Tree,
    ops: Vec<Op>,
    batch: Batch,
    last: Option<PointId>,
    store: RefCell<Option<Store>>,
    /// Chunks are stored with the commits that refer to them.
    content: bool,
}

fn name(text: impl AsRef<[u8]>) -> Name {
    Name::new(text.as_ref()).unwrap()
}

fn path(text: impl AsRef<[u8]>) -> VolumePath {
    VolumePath::parse(text.as_ref()).unwrap()
}

impl World {
    fn new(content: bool) -> Self {
        let dir = TempDir::new().unwrap();
        let (ops, batch) = (Vec::new(), Batch::new());
        let store = RefCell::new(None);
        let mut world = Self { dir, tree: Tree::new(), ops, batch, last: None, store, content };
        let meta = Meta { mode: 0o755, ..Meta::default() };
        world.apply(Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta });
        world
    }

    fn apply(&mut self, op: Op) {
        self.tree.apply(&op).unwrap();
        self.ops.push(op);
    }

    fn create(&mut self, dir: FileId, text: impl AsRef<[u8]>, kind: Kind) -> FileId {
        let id = FileId(self.tree.next_id().0.max(2));
        let meta = Meta { mode: 0o640, mtime: Timestamp { secs: 5, nanos: 7 }, ..Meta::default() };
        self.apply(Op::Create { id, kind, meta });
        self.apply(Op::Link { dir, name: name(text), id });
        id
    }

    fn file(&mut self, dir: FileId, text: impl AsRef<[u8]>, content: &[u8]) -> FileId {
        let id = self.create(dir, text, Kind::File);
        self.write(id, 0, content);
        id
    }

    fn write(&mut self, id: FileId, offset: u64, content: &[u8]) {
        let chunk = ChunkKey::of_tenant("t").id(content);
        let piece = Piece { len: content.len() as u64, chunk: Some(ChunkRef { id: chunk, at: 0 }) };
        self.apply(Op::Write { id, offset, pieces: vec![piece] });
        if self.content {
            self.batch.push_chunk("t", chunk, Codec::Raw, content.len() as u32, content.to_vec().into());
        }
    }

    fn unlink(&mut self, dir: FileId, text: impl AsRef<[u8]>) {
        self.apply(Op::Unlink { dir, name: name(text) });
    }

    fn rename(&mut self, from: (FileId, &str), to: (FileId, &str)) {
        let id = self.tree.lookup(from.0, &name(from.1)).unwrap();
        self.unlink(from.0, from.1);
        self.apply(Op::Link { dir: to.0, name: name(to.1), id });
    }

    fn commit(&mut self) -> String {
        self.tree.seal().unwrap();
        let id = PointId::new(Epoch(1), self.last.map_or(Seq(1), |last| last.seq.next()));
        let cut = Cut {
            time_ns: id.seq.0 * 1_000_000_000,
            consistency: Consistency::Crash,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: How::Optimistic,
            group: Vec::new(),
            digest: self.tree.digest(),
        };
        let point = Point { id, parent: self.last, cut, received_ns: 0, tags: Vec::new() };
        let mut batch = std::mem::take(&mut self.batch);
        let ops = encode_model_ops(std::mem::take(&mut self.ops));
        batch.push(Record::Commit(Commit { volume: volume(), point, ops }));
        let dir = self.dir.path().join("store");
        let mut store = self.store.borrow_mut();
        let store = store.get_or_insert_with(|| Store::open(&dir, StoreOptions::default()).unwrap());
        store.append_and_wait(batch).unwrap();
        self.last = Some(id);
        id.to_string()
    }

    fn access(&self) -> Access {
        drop(self.store.take());
        Access::direct(&self.dir.path().join("store")).unwrap()
    }

    fn ls(&self, at: &str, text: &str, recursive: bool) -> Vec<String> {
        let found = ls(&self.access(), &volume(), &at.parse().unwrap(), &path(text), recursive).unwrap();
        found.entries.iter().map(|entry| entry.path.to_string()).collect()
    }

    fn diff(&self, from: &str, to: &str) -> Vec<String> {
        let found = diff(&self.access(), &volume(), &from.parse().unwrap(), &to.parse().unwrap()).unwrap();
        let line = |change: &Change| {
            let from = change.from.as_ref().map_or_else(String::new, |from| format!("{from} -> "));
            format!("{:?} {from}{} {}", change.change, change.path, change.changed_bytes)
        };
        found.changes.iter().map(line).collect()
    }

    /// Of each path: first, removed, changes.
    fn find(&self, pattern: &str, changes: bool) -> Vec<(String, String, Option<String>, u64)> {
        let options = FindOptions { pattern: pattern.to_owned(), from: None, to: At::Latest, changes };
        let found = find(&self.access(), &volume(), &options).unwrap();
        let spans = found.found.iter().flat_map(|found| {
            found.spans.iter().map(|span| {
                assert!(!changes || span.changed.len() as u64 == span.changes, "{span:?}");
                (found.path.to_string(), span.first.clone(), span.removed.clone(), span.changes)
            })
        });
        spans.collect()
    }
}

fn volume() -> VolumeName {
    "t/v".parse().unwrap()
}

#[test]
fn names_and_kinds_are_listed_without_content() {
    let mut world = World::new(false);
    let dir = world.create(FileId::ROOT, "dir", Kind::Directory);
    world.file(dir, b"not\xffutf8\n", b"never stored");
    world.create(dir, "link", Kind::Symlink(b"../else".to_vec()));
    let file = world.file(FileId::ROOT, "file", b"nor this");
    world.apply(Op::Link { dir, name: name("hard"), id: file });
    world.commit();
    assert_eq!(world.ls("latest", "/", false), ["dir", "file"]);
    assert_eq!(world.ls("latest", "dir", false), ["dir/hard", "dir/link", "dir/not\\xffutf8\\n"]);
    assert_eq!(world.ls("latest", "", true).len(), 5);
    assert_eq!(world.ls("latest", "dir/hard", false), ["dir/hard"]);

    let found = ls(&world.access(), &volume(), &At::Latest, &path("dir"), false).unwrap();
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["entries"][2]["path_base64"], "ZGlyL25vdP91dGY4Cg==");
    assert_eq!((&json["entries"][0]["names"], &json["entries"][0]["size"]), (&2.into(), &8.into()));
    assert_eq!(json["entries"][1]["target"]["path"], "../else");
    assert_eq!(found.entries[0].mtime(), "1970-01-01T00:00:05Z");
    // Through a link nothing is reached, nor is there anything else.
    for missing in ["dir/link/x", "nothing", "file/x"] {
        let error = ls(&world.access(), &volume(), &At::Latest, &path(missing), false).unwrap_err();
        assert!(matches!(error, FailoverError::NoPath { .. }), "{error}");
    }
}

#[test]
fn a_range_of_a_file_costs_the_chunks_of_that_range() {
    let mut world = World::new(true);
    let file = world.file(FileId::ROOT, "file", &[1; 4096]);
    world.write(file, 8192, &[2; 4096]);
    world.write(file, 100_000, &[3; 10]);
    world.commit();
    let access = world.access();
    let read = |range: std::ops::Range<u64>| {
        let mut out = Vec::new();
        let report = cat(&access, &volume(), &At::Latest, &path("file"), range, &mut out).unwrap();
        assert_eq!(report.bytes, out.len() as u64);
        (out, report.chunks_fetched)
    };
    let mut whole = vec![0; 100_010];
    whole[..4096].fill(1);
    whole[8192..12288].fill(2);
    whole[100_000..].fill(3);
    assert_eq!(read(0..u64::MAX), (whole.clone(), 3));
    assert_eq!(read(4000..8193), (whole[4000..8193].to_vec(), 2));
    assert_eq!(read(12288..99_999), (vec![0; 87_711], 0));
    assert_eq!(read(200_000..300_000), (Vec::new(), 0));
    let root = cat(&access, &volume(), &At::Latest, &path("/"), 0..1, &mut Vec::new()).unwrap_err();
    assert_eq!(root.to_string(), "/ is no regular file but a directory");
}

#[test]
fn a_difference_is_told_once_and_by_what_it_is() {
    let mut world = World::new(false);
    let dir = world.create(FileId::ROOT, "dir", Kind::Directory);
    let inside = world.file(dir, "inside", &[1; 100]);
    world.file(dir, "still", &[2; 100]);
    world.file(FileId::ROOT, "gone", &[3; 100]);
    let file = world.file(FileId::ROOT, "file", &[4; 8192]);
    let first = world.commit();
    world.rename((FileId::ROOT, "dir"), (FileId::ROOT, "moved"));
    world.write(inside, 0, &[5; 10]);
    world.write(file, 4096, &[6; 4096]);
    world.unlink(FileId::ROOT, "gone");
    world.create(FileId::ROOT, "gone", Kind::Fifo);
    world.file(FileId::ROOT, "new", &[7; 50]);
    let second = world.commit();
    world.apply(Op::SetMeta { id: file, meta: Meta { mode: 0o600, ..Meta::default() } });
    world.rename((FileId::ROOT, "new"), (FileId::ROOT, "newer"));
    let third = world.commit();
    assert_eq!(
        world.diff(&first, &second),
        [
            "Modified file 4096",
            "Replaced gone 0",
            "Renamed dir -> moved 0",
            "Modified moved/inside 10",
            "Added new 50"
        ]
    );
    assert_eq!(world.diff(&second, &third), ["Attributes file 0", "Renamed new -> newer 0"]);
    assert_eq!(world.diff(&second, &second), [""; 0]);
    assert_eq!(
        world.diff(&second, &first),
        [
            "Renamed moved -> dir 0",
            "Modified dir/inside 10",
            "Modified file 4096",
            "Replaced gone 100",
            "Removed new 0"
        ]
    );
}

#[test]
fn a_search_tells_when_a_name_came_went_and_changed() {
    let mut world = World::new(false);
    let dir = world.create(FileId::ROOT, "dir", Kind::Directory);
    let file = world.file(dir, "a.txt", b"1");
    world.commit();
    world.write(file, 0, b"2");
    world.commit();
    world.file(FileId::ROOT, "b.txt", b"3");
    world.rename((FileId::ROOT, "dir"), (FileId::ROOT, "other"));
    world.commit();
    world.unlink(dir, "a.txt");
    world.file(FileId::ROOT, "c.png", b"4");
    world.commit();
    world.file(dir, "a.txt", b"5");
    world.commit();
    let span = |path: &str, first: &str, removed: Option<&str>, changes| {
        (path.to_owned(), first.to_owned(), removed.map(str::to_owned), changes)
    };
    let all = [
        span("b.txt", "1.3", None, 0),
        span("dir/a.txt", "1.1", Some("1.3"), 1),
        span("other/a.txt", "1.3", Some("1.4"), 0),
        span("other/a.txt", "1.5", None, 0),
    ];
    assert_eq!(world.find("*.txt", false), all);
    assert_eq!(world.find("*.txt", true), all);
    assert_eq!(world.find("/other/*", false), all[2..]);
    let within = FindOptions {
        pattern: "a.txt".to_owned(),
        from: Some("1.2".parse().unwrap()),
        to: "1.3".parse().unwrap(),
        changes: false,
    };
    let found = find(&world.access(), &volume(), &within).unwrap();
    let spans: Vec<_> = found.found.iter().flat_map(|found| &found.spans).collect();
    assert_eq!((spans[0].first.as_str(), spans[0].created, spans[0].changes), ("1.2", false, 0));
    assert_eq!((spans[1].first.as_str(), spans[1].created), ("1.3", true));
    let backwards = FindOptions { from: Some(within.to.clone()), to: "1.2".parse().unwrap(), ..within };
    assert!(find(&world.access(), &volume(), &backwards).unwrap_err().is_usage());
}

#[test]
fn equal_content_is_counted_once() {
    let mut world = World::new(true);
    world.file(FileId::ROOT, "one", &[1; 4096]);
    world.file(FileId::ROOT, "two", &[1; 4096]);
    world.commit();
    let three = world.file(FileId::ROOT, "three", &[2; 4096]);
    world.apply(Op::Resize { id: three, size: 10_000 });
    world.commit();
    let first = stats(&world.access(), &volume(), Some(&"1.1".parse().unwrap())).unwrap();
    assert_eq!((first.usage.files, first.usage.size_bytes, first.usage.data_bytes), (2, 8192, 8192));
    assert_eq!((first.usage.chunks, first.usage.chunk_bytes, first.dedup_ratio), (1, 4096, Some(2.0)));
    assert!((4096..4400).contains(&first.usage.stored_bytes), "{first:?}");
    world.unlink(FileId::ROOT, "one");
    world.unlink(FileId::ROOT, "two");
    world.commit();
    let last = stats(&world.access(), &volume(), Some(&At::Latest)).unwrap();
    let all = stats(&world.access(), &volume(), None).unwrap();
    assert_eq!((last.usage.chunks, all.usage.chunks, all.usage.points), (1, 2, 3));
    assert_eq!((all.usage.files, all.usage.size_bytes, all.usage.data_bytes), (1, 10_000, 4096));
    assert_eq!(all.usage.missing_chunks, 0);
}

#[test]
fn a_part_is_restored_with_the_directories_that_lead_to_it() {
    let mut world = World::new(true);
    let dir = world.create(FileId::ROOT, "dir", Kind::Directory);
    let deep = world.create(dir, "deep", Kind::Directory);
    let file = world.file(deep, "a.txt", b"a");
    world.file(deep, "b.png", b"b");
    world.file(FileId::ROOT, "c.txt", b"c");
    world.create(FileId::ROOT, "empty", Kind::Directory);
    world.apply(Op::Link { dir: FileId::ROOT, name: name("hard"), id: file });
    world.commit();
    let restored = |include: &[&str], exclude: &[&str]| {
        let target = TempDir::new().unwrap();
        let patterns =
            |texts: &[&str]| tidelock_receiver::history::Patterns::new(texts.iter().copied()).unwrap();
        let part = Part { include: patterns(include), exclude: patterns(exclude) };
        let options = RestoreOptions { part, ..RestoreOptions::default() };
        restore(&world.access(), &volume(), target.path(), &options, &|_| {})?;
        let mut found = Vec::new();
        let mut open = vec![target.path().to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                let path = entry.path();
                found.push(path.strip_prefix(target.path()).unwrap().to_str().unwrap().to_owned());
                if path.is_dir() {
                    open.push(path);
                }
            }
        }
        found.sort();
        Ok::<_, FailoverError>(found.join(" "))
    };
    assert_eq!(restored(&["*.txt"], &[]).unwrap(), "c.txt dir dir/deep dir/deep/a.txt");
    assert_eq!(restored(&["/dir"], &["b.*"]).unwrap(), "dir dir/deep dir/deep/a.txt");
    assert_eq!(restored(&[], &["dir", "hard"]).unwrap(), "c.txt empty");
    assert_eq!(restored(&["/hard", "/dir/deep/a.txt"], &[]).unwrap(), "dir dir/deep dir/deep/a.txt hard");
    assert!(matches!(restored(&["none"], &[]), Err(FailoverError::NothingIncluded)));
}

/// What a search must find: every point's tree listed anew.
fn naive(trees: &[(PointId, Tree, Vec<FileId>)]) -> Vec<(String, String, Option<String>, u64)> {
    let mut open: BTreeMap<String, (String, u64, FileId)> = BTreeMap::new();
    let mut done = Vec::new();
    for (point, tree, written) in trees {
        let mut now = BTreeMap::new();
        tidelock_receiver::history::each_name(tree, FileId::ROOT, b"", &mut |named| {
            now.insert(VolumePath::of(named.path).to_string(), named.id);
            true
        });
        let gone: Vec<String> = open.keys().filter(|path| !now.contains_key(*path)).cloned().collect();
        for path in gone {
            let (first, changes, _) = open.remove(&path).unwrap();
            done.push((path, first, Some(point.to_string()), changes));
        }
        for (path, id) in now {
            let span = open.entry(path).or_insert((point.to_string(), 0, id));
            if span.0 != point.to_string() && (span.2 != id || written.contains(&id)) {
                span.1 += 1;
            }
            span.2 = id;
        }
    }
    done.extend(open.into_iter().map(|(path, (first, changes, _))| (path, first, None, changes)));
    done.sort();
    done
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    /// Random edits of a small tree, directories moved and removed among them.
    #[test]
    fn a_search_finds_what_listing_every_point_finds(
        edits in prop::collection::vec((0u8..7, 0usize..6, 0usize..6, prop::bool::weighted(0.4)), 1..60),
    ) {
        let mut world = World::new(false);
        let (mut trees, mut written) = (Vec::new(), Vec::new());
        for (index, (kind, one, other, commit)) in edits.into_iter().enumerate() {
            let dirs: Vec<FileId> = world
                .tree
                .iter()
                .filter(|(id, inode)| inode.extents().is_none() && world.tree.path(*id).is_some())
                .map(|(id, _)| id)
                .collect();
            let files: Vec<FileId> = world
                .tree
                .iter()
                .filter(|(id, inode)| inode.extents().is_some() && world.tree.path(*id).is_some())
                .map(|(id, _)| id)
                .collect();
            let dir = dirs[one % dirs.len()];
            let text = format!("n{other}");
            let there = world.tree.lookup(dir, &name(&text));
            match (kind, there) {
                (0, None) => drop(world.create(dir, &text, Kind::Directory)),
                (1 | 2, None) => drop(world.file(dir, &text, &[index as u8; 9])),
                (3, Some(_)) => world.unlink(dir, &text),
                (4, _) if !files.is_empty() => {
                    let file = files[other % files.len()];
                    world.write(file, 0, &[index as u8; 5]);
                    written.push(file);
                }
                // A directory goes only below one that is not within it, here: the root.
                (5, Some(id)) if world.tree.lookup(FileId::ROOT, &name("moved")).is_none() => {
                    world.unlink(dir, &text);
                    world.apply(Op::Link { dir: FileId::ROOT, name: name("moved"), id });
                }
                (6, None) if !files.is_empty() => {
                    let id = files[one % files.len()];
                    world.apply(Op::Link { dir, name: name(&text), id });
                }
                _ => {}
            }
            if commit {
                world.commit();
                trees.push((world.last.unwrap(), world.tree.clone(), std::mem::take(&mut written)));
            }
        }
        prop_assume!(!trees.is_empty());
        let mut found = world.find("*", false);
        found.sort();
        prop_assert_eq!(found, naive(&trees));
    }
}
