//! A compacted store is the same store in less space.

use std::collections::{BTreeMap, BTreeSet};

use tidelock_proto::{Epoch, PointId};

use super::{
    crash::scratch,
    harness::{Source, volume},
};
use crate::store::{Batch, CompactOptions, Record, Store, StoreError, StoreOptions, block_on};

const SECOND: u64 = 1_000_000_000;

fn options() -> StoreOptions {
    StoreOptions { segment_bytes: 256 * 1024, ..StoreOptions::default() }
}

/// Two tenants, three volumes; one was promoted and has a tag on its old line.
fn fill(store: &Store) -> Vec<Source> {
    let mut sources = ["t/a", "t/b", "u/a"].map(|name| Source::new(volume(name), 5)).to_vec();
    for number in 0..200u64 {
        for source in &mut sources {
            source.now_ns = (1_000 + number) * SECOND;
            store.append_and_wait(source.commit()).expect("written");
        }
        if number == 100 {
            let source = &mut sources[0];
            let base = *source.points.keys().nth(90).expect("a point");
            let tagged = *source.points.keys().nth(95).expect("a point");
            let raise =
                Record::Epoch { volume: source.volume.clone(), expected: Epoch(1), epoch: Epoch(2), base };
            store.append_and_wait(Batch::of(raise)).expect("promoted");
            block_on(async { store.tag(&source.volume, tagged, "old line").await.await }).expect("tagged");
            source.branch(Epoch(2), base);
        }
    }
    sources
}

fn keep(source: &mut Source, store: &Store) {
    let there: BTreeSet<PointId> =
        store.points(&source.volume, None).expect("points").iter().map(|point| point.id).collect();
    source.points.retain(|id, _| there.contains(id));
}

fn live_bytes(sources: &[Source]) -> u64 {
    let mut chunks = BTreeMap::new();
    for source in sources {
        for tree in source.points.values() {
            let files = tree.iter().filter_map(|(_, inode)| inode.extents());
            for (_, extent) in files.flat_map(|extents| extents.iter().collect::<Vec<_>>()) {
                let key = (source.volume.tenant().to_owned(), extent.chunk.id);
                let end = u64::from(extent.chunk.at + extent.len);
                let len = chunks.entry(key).or_insert(0);
                *len = end.max(*len);
            }
        }
    }
    chunks.values().sum()
}

#[test]
fn a_compacted_store_is_the_same_in_less_space() {
    let dir = scratch();
    let policy = "all:5s,10s:60s,60s:1h".parse().expect("a policy");
    let mut sources = fill(&Store::open(dir.path(), options()).expect("a new store"));
    let what = CompactOptions { thin: Some((policy, 1_205 * SECOND)), without: None };
    let done = Store::compact(dir.path(), options(), &what).expect("compacted");
    assert!(done.dropped > 400 && done.after_bytes * 3 < done.before_bytes * 2, "{done:?}");
    let store = Store::open(dir.path(), options()).expect("opens");
    assert_eq!(store.opened().damage, []);
    sources.iter_mut().for_each(|source| keep(source, &store));
    assert_eq!(done.points, sources.iter().map(|source| source.points.len() as u64).sum::<u64>());
    let live = live_bytes(&sources);
    assert!(done.after_bytes * 10 <= live * 13, "{} for {live} live bytes", done.after_bytes);
    let infos: Vec<_> = sources.iter().map(|source| store.volume(&source.volume)).collect();
    for source in &mut sources {
        source.check_all(&store);
    }
    assert_eq!(
        store
            .points(&sources[0].volume, None)
            .expect("points")
            .iter()
            .filter(|point| !point.tags.is_empty())
            .count(),
        1
    );
    assert!(infos.iter().flatten().any(|info| info.epoch == Epoch(2)));
    // The fence holds, and it goes on.
    let mut old = sources[0].clone();
    old.set_epoch(Epoch(1));
    assert!(matches!(store.append_and_wait(old.commit()), Err(StoreError::Fenced { .. })));
    for source in &mut sources {
        store.append_and_wait(source.commit()).expect("it goes on");
        source.check_all(&store);
    }
    drop(store);
    // Once more, without one volume, from the log alone.
    std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
    let what = CompactOptions { thin: None, without: Some(sources[1].volume.clone()) };
    Store::compact(dir.path(), options(), &what).expect("compacted");
    let store = Store::open(dir.path(), options()).expect("opens");
    let gone = sources.remove(1);
    assert!(store.volume(&gone.volume).is_none() && store.volumes().len() == 2);
    sources.iter().for_each(|source| source.check_all(&store));
    assert!(!dir.path().join("compact.new").exists());
}

#[test]
fn an_interrupted_compaction_leaves_one_whole_log() {
    let dir = scratch();
    let sources = fill(&Store::open(dir.path(), options()).expect("a new store"));
    // Before the exchange: something unfinished lies about.
    let new = dir.path().join("compact.new/log");
    std::fs::create_dir_all(&new).expect("created");
    std::fs::write(new.join("0000000001.seg"), b"half a segment").expect("written");
    let store = Store::open(dir.path(), options()).expect("opens");
    sources
        .iter()
        .for_each(|source| source.check(&store, *source.points.keys().next_back().expect("points")));
    drop(store);
    assert!(!new.exists());
    // After the exchange: the index is still that of the old log.
    let index = scratch();
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        std::process::Command::new("cp").arg("-a").args([from, to]).status().expect("copied")
    };
    assert!(copy(&dir.path().join("index"), &index.path().join("index")).success());
    Store::compact(dir.path(), options(), &CompactOptions::default()).expect("compacted");
    let _ = std::fs::remove_dir_all(dir.path().join("index"));
    assert!(copy(&index.path().join("index"), &dir.path().join("index")).success());
    let store = Store::open(dir.path(), options()).expect("opens");
    assert!(store.opened().rebuilt && store.opened().damage.is_empty(), "{:?}", store.opened());
    sources.iter().for_each(|source| source.check_all(&store));
}

#[test]
fn a_damaged_store_is_left_as_it_is() {
    let dir = scratch();
    drop(fill(&Store::open(dir.path(), options()).expect("a new store")));
    let path = dir.path().join("log/0000000002.seg");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[100_000] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let error = Store::compact(dir.path(), options(), &CompactOptions::default()).expect_err("damaged");
    assert!(
        matches!(&error, StoreError::NotCompacted("the store", why) if why.contains("segment 2")),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).expect("read"), bytes);
}
