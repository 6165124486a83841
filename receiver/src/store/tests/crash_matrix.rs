//! Every sync of a workload × everything that a crash before it may leave.
//!
//! For each image the log is read as an open reads it: it must end with a record that was written, behind everything
//! that was acknowledged, without damage, and all before it must be as it was written. What a store offers depends on nothing else,
//! so for each different end the store itself is opened once with an empty index and once with an older one, and every point is
//! compared with what was committed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use tidelock_proto::{Epoch, PointId, Seq};

use super::{
    crash::{open, scratch},
    harness::{Source, volume},
    sim::SimDisk,
};
use crate::{
    log::scan::{Outcome, scan},
    store::{Batch, Record, Store, block_on, open::store_id},
};

/// What was done, and up to which record it was acknowledged.
struct Life {
    disk: SimDisk,
    sources: Vec<Source>,
    /// Which record made which point, tag or epoch.
    acknowledged: BTreeMap<u64, Promised>,
}

#[derive(Debug, Clone, Default)]
struct Promised {
    points: BTreeSet<(usize, PointId)>,
    tags: BTreeSet<(usize, PointId)>,
    epochs: BTreeMap<usize, Epoch>,
}

impl Life {
    /// Appends batches that wait for one another, and notes what is promised once all are acknowledged.
    fn step(&mut self, store: &Store, batches: Vec<Batch>, promise: impl FnOnce(&mut Promised)) {
        let receipts: Vec<_> = batches.into_iter().map(|batch| block_on(store.append(batch))).collect();
        receipts.into_iter().for_each(|receipt| receipt.wait().expect("written"));
        let number = store.durable_mark().expect("something is written").number;
        let mut promised = self.acknowledged.values().next_back().cloned().unwrap_or_default();
        promise(&mut promised);
        self.acknowledged.insert(number, promised);
        self.disk.note(number);
    }

    fn commits(&mut self, store: &Store, who: &[usize], writes: usize) {
        let (mut batches, mut made) = (Vec::new(), Vec::new());
        for index in who {
            batches.push(self.sources[*index].commit_of(writes));
            made.push((*index, *self.sources[*index].points.keys().next_back().expect("it was made")));
        }
        self.step(store, batches, |promised| promised.points.extend(made));
    }

    fn promised(&self, number: u64) -> Promised {
        self.acknowledged
            .range(..=number)
            .next_back()
            .map(|(_, promised)| promised.clone())
            .unwrap_or_default()
    }
}

/// Commits of three volumes, alone and together, one of them longer than a segment; tags, checkpoints, a promotion, and a commit
/// that goes on from it.
fn live(life: &mut Life, store: &Store, first: bool) {
    let tag = |life: &mut Life, index: usize| {
        let volume = life.sources[index].volume.clone();
        let point = *life.sources[index].points.keys().next_back().expect("points");
        let record = Record::Tag { volume, point, tag: "kept".to_owned() };
        life.step(store, vec![Batch::of(record)], |promised| {
            promised.tags.insert((index, point));
        });
    };
    for round in 0..4 {
        life.commits(store, &[0], 1);
        life.commits(store, &[0, 1, 2], 2);
        if round % 2 == 0 {
            tag(life, 1);
        }
    }
    let name = life.sources[0].volume.clone();
    let last = *life.sources[0].points.keys().next_back().expect("points");
    store.checkpoint(&name, last).expect("written");
    store.quiesce();
    life.step(store, Vec::new(), |_| {});
    if first {
        return;
    }
    life.commits(store, &[2], 25);
    let base = PointId::new(Epoch(1), Seq(6));
    let raise = Record::Epoch { volume: name, expected: Epoch(1), epoch: Epoch(2), base };
    life.step(store, vec![Batch::of(raise)], |promised| {
        promised.epochs.insert(0, Epoch(2));
    });
    store.quiesce();
    life.sources[0].branch(Epoch(2), base);
    life.commits(store, &[0, 1], 1);
    tag(life, 0);
}

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target);
        } else {
            std::fs::copy(source, target).expect("copied");
        }
    }
}

fn read(files: &BTreeMap<u32, Vec<u8>>) -> (Outcome, Vec<u32>) {
    let disk = SimDisk::new(files.clone());
    let store = store_id(&disk).expect("the headers read").unwrap_or_default();
    let mut sums = Vec::new();
    let outcome = scan(&disk, store, None, 0, &mut |found| {
        assert_eq!(found.number, sums.len() as u64 + 1);
        sums.push(crc32c::crc32c(&found.body));
    });
    (outcome.expect("the log reads"), sums)
}

/// Every promise is kept, every point that is offered is right.
fn check(life: &Life, store: &Store, end: u64, context: &str) {
    let promised = life.promised(end);
    assert_eq!(store.opened().damage, [], "{context}");
    let mut offered = BTreeSet::new();
    for (index, source) in life.sources.iter().enumerate() {
        if store.volume(&source.volume).is_none() {
            continue;
        }
        for point in store.points(&source.volume, None).expect("points") {
            assert!(source.points.contains_key(&point.id), "{context}: {} was never made", point.id);
            source.check(store, point.id);
            offered.insert((index, point.id));
            let tagged = promised.tags.contains(&(index, point.id));
            assert!(!tagged || point.tags == ["kept"], "{context}: the tag of {} is gone", point.id);
        }
        let epoch = store.volume(&source.volume).expect("it is there").epoch;
        assert!(
            epoch >= promised.epochs.get(&index).copied().unwrap_or(Epoch(1)),
            "{context}: the fence is gone"
        );
    }
    let lost: Vec<_> = promised.points.difference(&offered).collect();
    assert!(lost.is_empty(), "{context}: lost {lost:?}");
}

#[test]
fn every_crash_at_every_sync_keeps_every_promise() {
    run(1);
}

/// With one of so many images.
pub(super) fn run(every: usize) {
    let disk = SimDisk::new(BTreeMap::new());
    let sources =
        vec![Source::new(volume("t/a"), 3), Source::new(volume("t/b"), 4), Source::new(volume("u/c"), 5)];
    let mut life = Life { disk: disk.clone(), sources, acknowledged: BTreeMap::new() };
    let (dir, older) = (scratch(), scratch());
    disk.watch();
    {
        let store = open(&disk, dir.path()).expect("a new store");
        live(&mut life, &store, true);
    }
    let covered = life.acknowledged.keys().next_back().copied().expect("steps");
    copy(&dir.path().join("index"), &older.path().join("index"));
    {
        let store = open(&disk, dir.path()).expect("opens");
        live(&mut life, &store, false);
    }
    let (_, written) = read(&disk.durable());
    let moments = disk.moments();
    let (mut images, mut ends) = (0, HashMap::new());
    for (number, moment) in moments.iter().enumerate() {
        for files in moment.images() {
            images += 1;
            if images % every != 0 {
                continue;
            }
            let (outcome, sums) = read(&files);
            let end = outcome.end.number;
            assert_eq!(outcome.damaged, 0, "sync {number}: {:?}", outcome.damage);
            assert!(
                end >= moment.note,
                "sync {number}: {} was acknowledged, the log ends at {end}",
                moment.note
            );
            assert!(end as usize == sums.len() && written.starts_with(&sums), "sync {number}: other records");
            ends.entry((end, outcome.torn)).or_insert((number, files));
        }
    }
    let (mut opened, mut torn) = (0, 0);
    for ((end, was_torn), (number, files)) in ends {
        let context = format!("sync {number}, end {end}");
        for index in [false, true] {
            // An index knows only what is durable, so never more than the log.
            if index && end < covered {
                continue;
            }
            let dir = scratch();
            if index {
                copy(&older.path().join("index"), &dir.path().join("index"));
            }
            let disk = SimDisk::new(files.clone());
            let store = open(&disk, dir.path()).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!((store.opened().rebuilt, end == 0), (!index && end > 0, end == 0), "{context}");
            check(&life, &store, end, &context);
            opened += 1;
            torn += usize::from(was_torn);
        }
    }
    println!("{} syncs, {images} images, {opened} stores opened, {torn} of them torn", moments.len());
    assert!(
        moments.len() > 40 && images > 2000 && opened * every > 60 && torn * every > 20,
        "the test tests nothing"
    );
}
