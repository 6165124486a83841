//! Thinning while commits come, and a crash at every sync of it.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_proto::{Epoch, PointId, Seq};

use super::{
    crash::{open, scratch},
    harness::{Source, volume},
    sim::SimDisk,
};
use crate::{
    retention::{Candidate, Policy, choose},
    store::{Batch, Record, Store, StoreError, StoreOptions, block_on},
};

pub(super) const SECOND: u64 = 1_000_000_000;

pub(super) fn policy() -> Policy {
    "all:10s,2s:60s,10s:300s".parse().expect("a policy")
}

/// What stays of all points ever made.
pub(super) fn kept(
    source: &Source,
    times: &BTreeMap<PointId, u64>,
    tagged: &[PointId],
    now_ns: u64,
) -> Vec<PointId> {
    let last = source.points.keys().next_back();
    let candidate = |id: &PointId| Candidate {
        id: *id,
        time_ns: times[id],
        fuzzy: false,
        protected: tagged.contains(id) || Some(id) == last,
    };
    let candidates: Vec<_> = source.points.keys().map(candidate).collect();
    let verdicts = choose(&candidates, &policy(), now_ns);
    candidates
        .iter()
        .zip(verdicts)
        .filter(|(_, verdict)| !verdict.is_drop())
        .map(|(point, _)| point.id)
        .collect()
}

pub(super) fn ids(store: &Store, source: &Source) -> Vec<PointId> {
    store.points(&source.volume, None).expect("points").iter().map(|point| point.id).collect()
}

#[test]
fn what_stays_is_what_the_policy_says_however_often_it_was_asked() {
    let dir = scratch();
    let options = StoreOptions { segment_bytes: 1024 * 1024, ..StoreOptions::default() };
    let mut store = Store::open(dir.path(), options.clone()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 1);
    let (mut rng, mut times, mut tagged) = (StdRng::seed_from_u64(3), BTreeMap::new(), Vec::new());
    source.now_ns = 1_000_000 * SECOND;
    for number in 0..1200u32 {
        source.now_ns += rng.random_range(0..SECOND / 2);
        let id = source.next_id();
        times.insert(id, source.now_ns);
        store.append_and_wait(source.commit()).expect("written");
        if number % 300 == 7 {
            block_on(async { store.tag(&source.volume, id, "keep").await.await }).expect("tagged");
            tagged.push(id);
        }
        if number == 900 {
            let base = *ids(&store, &source).iter().rev().nth(30).expect("many points");
            let raise =
                Record::Epoch { volume: source.volume.clone(), expected: Epoch(1), epoch: Epoch(2), base };
            store.append_and_wait(Batch::of(raise)).expect("promoted");
            source.branch(Epoch(2), base);
        }
        if rng.random_bool(0.02) {
            store.thin(&source.volume, &policy(), source.now_ns).expect("thinned");
        }
    }
    store.thin(&source.volume, &policy(), source.now_ns).expect("thinned");
    let expected = kept(&source, &times, &tagged, source.now_ns);
    assert!(expected.len() < 160 && expected.len() > 60, "{}", expected.len());
    for rebuilt in [false, true] {
        assert_eq!(ids(&store, &source), expected, "rebuilt: {rebuilt}");
        expected.iter().for_each(|id| source.check(&store, *id));
        let info = store.volume(&source.volume).expect("it is there");
        assert_eq!(info.points, expected.len() as u64);
        drop(store);
        if !rebuilt {
            std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
        }
        store = Store::open(dir.path(), options.clone()).expect("opens");
        assert_eq!(store.volume(&source.volume), Some(info));
    }
    let summary = crate::verify::verify(&store, &|_| true, &mut |event| {
        assert!(!matches!(event, crate::verify::Event::Finding(_)), "{event:?}");
        true
    });
    assert_eq!(summary.expect("verified").map(|summary| summary.findings), Some(0));
    // A month later nothing is left but the newest and what has a tag.
    store.thin(&source.volume, &policy(), source.now_ns + 3_000_000 * SECOND).expect("thinned");
    tagged.extend(expected.last());
    assert_eq!(ids(&store, &source), tagged);
    tagged.iter().for_each(|id| source.check(&store, *id));
    store.append_and_wait(source.commit()).expect("it goes on");
    source.check(&store, *source.points.keys().next_back().expect("points"));
}

#[test]
fn a_crash_while_thinning_loses_nothing_that_stays() {
    let disk = SimDisk::new(BTreeMap::new());
    let (mut source, mut times) = (Source::new(volume("t/a"), 3), BTreeMap::new());
    source.now_ns = 1_000 * SECOND;
    let (dir, base) = (scratch(), PointId::new(Epoch(1), Seq(50)));
    let store = open(&disk, dir.path()).expect("a new store");
    disk.record(StdRng::seed_from_u64(7));
    for number in 1..=120u64 {
        source.now_ns += SECOND / 3;
        times.insert(source.next_id(), source.now_ns);
        store.append_and_wait(source.commit()).expect("written");
        disk.acknowledge();
        if number == 60 {
            let raise =
                Record::Epoch { volume: source.volume.clone(), expected: Epoch(1), epoch: Epoch(2), base };
            store.append_and_wait(Batch::of(raise)).expect("promoted");
            source.branch(Epoch(2), base);
        }
        if number % 40 == 0 {
            store.thin(&source.volume, &policy(), source.now_ns).expect("thinned");
        }
    }
    store.thin(&source.volume, &policy(), source.now_ns + 100 * SECOND).expect("thinned");
    drop(store);
    let made: Vec<_> = source.points.keys().copied().collect();
    let stays = kept(&source, &times, &[], source.now_ns + 100 * SECOND);
    for (number, crash) in disk.recorded().into_iter().enumerate() {
        let context = format!("crash {number} before sync {}, left {:?}", crash.sync, crash.left);
        let dir = scratch();
        let store =
            open(&SimDisk::new(crash.files), dir.path()).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(store.opened().damage, [], "{context}");
        let Some(info) = store.volume(&source.volume) else { continue };
        let acknowledged = made[(crash.acknowledged as usize).saturating_sub(1)];
        assert!(info.last.id >= acknowledged || info.last.id == base, "{context}");
        let there = ids(&store, &source);
        assert_eq!(info.points, there.len() as u64, "{context}");
        let skip = if number % 6 == 0 { 0 } else { there.len().saturating_sub(12) };
        there.iter().skip(skip).for_each(|id| source.check(&store, *id));
        let lost: Vec<_> = stays.iter().filter(|id| **id <= acknowledged && !there.contains(id)).collect();
        assert!(crash.acknowledged == 0 || lost.is_empty(), "{context}: {lost:?}");
        // The next thinning goes on.
        let now_ns = info.last.received_ns + 200 * SECOND;
        store.thin(&source.volume, &policy(), now_ns).unwrap_or_else(|error| panic!("{context}: {error}"));
        ids(&store, &source).iter().skip(skip).for_each(|id| source.check(&store, *id));
    }
}

#[test]
fn a_point_that_is_open_stays_until_it_is_closed() {
    let disk = SimDisk::new(BTreeMap::new());
    let dir = scratch();
    let store = open(&disk, dir.path()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 5);
    for second in 0..40 {
        source.now_ns = (1000 + second) * SECOND;
        store.append_and_wait(source.commit()).expect("written");
    }
    let (name, end) = (source.volume.clone(), 100_000 * SECOND);
    let (open_one, first) = (PointId::new(Epoch(1), Seq(20)), PointId::new(Epoch(1), Seq(1)));
    let pins = [store.pin(&name, open_one).expect("it is there"), store.pin(&name, open_one).expect("twice")];
    // Chosen before it was opened.
    let pin = store.pin(&name, first).expect("it is there");
    let drop_first =
        Record::Drop { volume: name.clone(), epoch: Epoch(1), runs: vec![(first, first)], oldest_ns: 0 };
    let refused = store.append_and_wait(Batch::of(drop_first));
    assert!(matches!(refused, Err(StoreError::InUse(..))), "{refused:?}");
    drop(pin);
    for pin in pins {
        store.thin(&name, &policy(), end).expect("thinned");
        assert_eq!(ids(&store, &source), [open_one, *source.points.keys().next_back().expect("points")]);
        source.check(&store, open_one);
        drop(pin);
    }
    store.thin(&name, &policy(), end).expect("thinned");
    assert_eq!(ids(&store, &source).len(), 1);
    assert!(matches!(store.pin(&name, open_one), Err(StoreError::NoSuchPoint(..))));
}
