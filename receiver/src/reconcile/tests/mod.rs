//! `reconcile` on real directories: equal from anything, interrupted anywhere, and never outside. These need root.
#![allow(clippy::unwrap_used)]

mod follow;
mod hostile;
mod world;

use std::{os::unix::fs::MetadataExt, sync::atomic::AtomicUsize};

use proptest::prelude::*;
use tempfile::TempDir;
use tidelock_proto::tree::Kind;

use super::*;
use world::{Builder, Memory, expected, found, key, random_tree};

fn options() -> Options {
    Options::new(key(), "t/v 1.1")
}

fn overwrite() -> Options {
    Options { overwrite: true, ..options() }
}

fn make(dir: &TempDir, tree: &Tree, memory: &Memory, options: &Options) -> Result<Report> {
    reconcile(dir.path(), tree, memory, options, &|_| {})
}

fn assert_equal(dir: &TempDir, tree: &Tree, memory: &Memory) {
    let (found, expected) = (found(dir.path()), expected(tree, memory));
    for (path, look) in &expected {
        assert_eq!(found.get(path), Some(look), "{:?}", String::from_utf8_lossy(path));
    }
    let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{extra:?}");
}

/// Every inode's change time: equal only if nothing was done to it.
fn change_times(path: &Path) -> Vec<(PathBuf, i64, i64)> {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let mut times = vec![(path.to_owned(), meta.ctime(), meta.ctime_nsec())];
    if meta.is_dir() {
        let mut entries: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        times.extend(entries.iter().flat_map(|entry| change_times(entry)));
    }
    times
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, fork: false, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_from_nothing_and_from_any_other(first in any::<u64>(), second in any::<u64>()) {
        let dir = TempDir::new().unwrap();
        let mut memory = Memory::default();
        let tree = random_tree(first, &mut memory);
        make(&dir, &tree, &memory, &options()).unwrap();
        assert_equal(&dir, &tree, &memory);

        let before = change_times(dir.path());
        let report = make(&dir, &tree, &memory, &overwrite()).unwrap();
        prop_assert!(!report.changed() && report.bytes_written == 0, "{:?}", report);
        let report = make(&dir, &tree, &memory, &Options { trust_mtime: true, ..overwrite() }).unwrap();
        prop_assert!(!report.changed(), "{:?}", report);
        prop_assert_eq!((report.bytes_compared, report.bytes_fetched), (0, 0));
        prop_assert_eq!(before, change_times(dir.path()));

        let other = random_tree(second, &mut memory);
        make(&dir, &other, &memory, &overwrite()).unwrap();
        assert_equal(&dir, &other, &memory);
        let report = make(&dir, &other, &memory, &overwrite()).unwrap();
        prop_assert!(!report.changed(), "{:?}", report);
    }

    #[test]
    fn what_is_known_is_not_read_and_the_marker_stays_to_the_end(first in any::<u64>(), second in any::<u64>()) {
        let dir = TempDir::new().unwrap();
        let mut memory = Memory::default();
        let (tree, other) = (random_tree(first, &mut memory), random_tree(second, &mut memory));
        let step = Options { unfinished: true, ..options() };
        make(&dir, &tree, &memory, &step).unwrap();
        prop_assert!(marker_path(dir.path()).exists());
        let known = |tree: &Tree| Options { known: Some(Arc::new(tree.clone())), ..step.clone() };
        let again = make(&dir, &tree, &memory, &known(&tree)).unwrap();
        prop_assert_eq!((again.bytes_compared, again.bytes_fetched, again.files_written), (0, 0, 0));
        make(&dir, &other, &memory, &known(&tree)).unwrap();
        prop_assert!(marker_path(dir.path()).exists());
        complete(dir.path(), &other, &step).unwrap();
        assert_equal(&dir, &other, &memory);
        make(&dir, &tree, &memory, &Options { known: known(&other).known, ..overwrite() }).unwrap();
        assert_equal(&dir, &tree, &memory);
    }

    #[test]
    fn interrupted_anywhere_it_goes_on(first in any::<u64>(), second in any::<u64>(), fail_at in 0usize..4) {
        let dir = TempDir::new().unwrap();
        let mut memory = Memory::default();
        let (tree, other) = (random_tree(first, &mut memory), random_tree(second, &mut memory));
        make(&dir, &other, &memory, &options()).unwrap();
        memory.fail_at = Some(fail_at);
        memory.fetches = AtomicUsize::new(0);
        let interrupted = make(&dir, &tree, &memory, &overwrite());
        memory.fail_at = None;
        if interrupted.is_err() {
            // The marker stands for the leave to overwrite, and a time that is right vouches for the content.
            prop_assert!(marker_path(dir.path()).exists());
            make(&dir, &tree, &memory, &Options { trust_mtime: true, ..options() }).unwrap();
        }
        assert_equal(&dir, &tree, &memory);
    }
}

#[test]
fn one_changed_page_of_a_large_file_is_all_that_is_written() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    let mut builder = Builder::new();
    let id = builder.add(FileId::ROOT, b"large", Kind::File, 0o600);
    for number in 0..400u64 {
        let content = vec![number as u8; 262_144];
        let chunk = memory.add(content);
        builder.data(id, number * 262_144 + 4096, chunk, 0, 262_144);
    }
    let tree = builder.done();
    let report = make(&dir, &tree, &memory, &options()).unwrap();
    assert_eq!(report.bytes_written, 400 * 262_144);
    let page = memory.add(vec![9; 4096]);
    let mut changed = Builder { tree, next: 0 };
    changed.data(id, 50 << 20, page, 0, 4096);
    let report = make(&dir, &changed.done(), &memory, &overwrite()).unwrap();
    assert_eq!((report.bytes_written, report.files_written), (4096, 1));
    // The page, and the chunk that it cut in two, once.
    assert!(report.bytes_fetched <= 4096 + 262_144, "{report:?}");
}

#[test]
fn no_depth_is_too_deep() {
    let (dir, memory) = (TempDir::new().unwrap(), Memory::default());
    let mut builder = Builder::new();
    let mut at = FileId::ROOT;
    for _ in 0..40 {
        at = builder.add(at, &[b'd'; 250], Kind::Directory, 0o755);
    }
    builder.add(at, b"leaf", Kind::Fifo, 0o600);
    let tree = builder.done();
    let report = make(&dir, &tree, &memory, &options()).unwrap();
    assert_eq!(report.created, 41);
    assert!(!make(&dir, &tree, &memory, &overwrite()).unwrap().changed());
    let report = make(&dir, &Builder::new().done(), &memory, &overwrite()).unwrap();
    assert_eq!((report.removed, std::fs::read_dir(dir.path()).unwrap().count()), (1, 0));
}

#[test]
fn a_missing_chunk_is_named() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    let chunk = memory.add(vec![1; 100]);
    let mut builder = Builder::new();
    let id = builder.add(FileId::ROOT, b"f", Kind::File, 0o600);
    builder.data(id, 0, chunk, 50, 100);
    let error = make(&dir, &builder.done(), &memory, &options()).unwrap_err();
    assert!(matches!(error, ReconcileError::Chunk(id) if id == chunk), "{error}");
}

#[test]
fn of_a_known_file_other_content_is_written_and_another_name_is_not_trusted() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    let chunks = [1, 2, 3].map(|byte| memory.add(vec![byte; 100]));
    let mut builder = Builder::new();
    let ids = [&b"a"[..], b"b", b"c"].map(|name| builder.add(FileId::ROOT, name, Kind::File, 0o600));
    for (id, chunk) in ids.iter().zip(&chunks) {
        builder.data(*id, 0, *chunk, 0, 100);
    }
    let tree = builder.done();
    make(&dir, &tree, &memory, &options()).unwrap();
    // One has other content of the same length, two have changed their names; their times are what they were.
    let other = memory.add(vec![4; 100]);
    let mut changed = Builder { tree: tree.clone(), next: 0 };
    changed.data(ids[0], 0, other, 0, 100);
    for (name, id) in [(&b"b"[..], ids[2]), (b"c", ids[1])] {
        changed.apply(tidelock_proto::Op::Link { dir: FileId::ROOT, name: world::name(name), id });
    }
    let changed = changed.done();
    let known = Options { known: Some(Arc::new(tree)), ..overwrite() };
    let report = make(&dir, &changed, &memory, &known).unwrap();
    assert_equal(&dir, &changed, &memory);
    assert_eq!((report.bytes_written, report.files_trusted), (300, 0));
    let report =
        make(&dir, &changed, &memory, &Options { known: Some(Arc::new(changed.clone())), ..overwrite() });
    let report = report.unwrap();
    assert_eq!((report.files_trusted, report.bytes_compared), (3, 0));
}

#[test]
fn a_donor_is_a_guess() {
    let (mut memory, mut cloned) = (Memory::default(), 0);
    for seed in 0..30 {
        let (dir, other_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (tree, other) = (random_tree(seed, &mut memory), random_tree(seed + 100, &mut memory));
        make(&other_dir, &other, &memory, &options()).unwrap();
        let donor = Some(Arc::new(Donor::open(other_dir.path()).unwrap()));
        let report = make(&dir, &tree, &memory, &Options { donor, ..options() }).unwrap();
        assert_equal(&dir, &tree, &memory);
        assert_equal(&other_dir, &other, &memory);
        assert_eq!(report.clone_missed, None);
        cloned += report.files_cloned;
    }
    assert!(cloned > 0, "none of the names was the same");
}
