//! A crash before every sync, with everything a disk may have kept of what was not synced.

use std::collections::BTreeMap;

use rand::{SeedableRng, rngs::StdRng};
use tidelock_proto::{Epoch, PointId, Seq};

use super::{
    harness::{Source, keys, volume},
    sim::{Left, SimDisk},
};
use crate::store::{Batch, Record, Store, StoreError, StoreOptions, lock::StoreLock, open::open_on};

pub(super) fn scratch() -> tempfile::TempDir {
    // The index syncs its files; in memory that costs nothing, and it is not what is tested here.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a scratch directory")
}

pub(super) fn open(disk: &SimDisk, dir: &std::path::Path) -> Result<Store, StoreError> {
    let options = StoreOptions { segment_bytes: 64 * 1024, keys: keys(), ..StoreOptions::default() };
    open_on(std::sync::Arc::new(disk.clone()), dir, options, StoreLock::take(dir)?)
}

/// What the second epoch builds on.
const BASE: PointId = PointId { epoch: Epoch(1), seq: Seq(12) };

/// Writes commits of one volume until told otherwise or refused, a checkpoint now and then, and a promotion after 15.
fn write(disk: &SimDisk, store: &Store, source: &mut Source, commits: usize) -> Result<(), StoreError> {
    for number in 0..commits {
        store.append_and_wait(source.commit())?;
        disk.acknowledge();
        if number == 14 {
            let volume = source.volume.clone();
            let epoch = Record::Epoch { volume, expected: Epoch(1), epoch: Epoch(2), base: BASE };
            store.append_and_wait(Batch::of(epoch))?;
            disk.acknowledge_epoch(2);
            source.branch(Epoch(2), BASE);
        }
        if number % 20 == 19 {
            let last = store.volume(&source.volume).expect("it has commits").last.id;
            store.checkpoint(&source.volume, last)?;
        }
    }
    Ok(())
}

/// The store offers a beginning of what was made, no shorter than what was acknowledged, and every point in it is right.
fn check(store: &Store, source: &Source, acknowledged: u64, thorough: bool) -> u64 {
    let points = match store.volume(&source.volume) {
        Some(_) => store.points(&source.volume, None).expect("points"),
        None => Vec::new(),
    };
    let offered = points.len() as u64;
    assert!(offered >= acknowledged, "{acknowledged} were acknowledged, {offered} are there");
    assert!(points.iter().map(|point| point.id).eq(source.points.keys().copied().take(points.len())));
    let skip = if thorough { 0 } else { points.len().saturating_sub(2) };
    points.iter().skip(skip).for_each(|point| source.check(store, point.id));
    offered
}

#[test]
fn no_crash_loses_what_was_acknowledged() {
    let disk = SimDisk::new(BTreeMap::new());
    disk.record(StdRng::seed_from_u64(7));
    let mut source = Source::new(volume("t/a"), 3);
    {
        let dir = scratch();
        let store = open(&disk, dir.path()).expect("a new store");
        write(&disk, &store, &mut source, 60).expect("nothing fails");
    }
    let crashes = disk.recorded();
    assert!(crashes.len() > 180, "{} crashes", crashes.len());
    let mut torn = 0;
    for (number, crash) in crashes.into_iter().enumerate() {
        let (left, sync) = (crash.left, crash.sync);
        let context = format!("crash {number} before sync {sync}, left {left:?}");
        let disk = SimDisk::new(crash.files);
        let dir = scratch();
        let store = open(&disk, dir.path()).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(store.opened().damage, [], "{context}");
        torn += usize::from(store.opened().torn);
        let offered = check(&store, &source, crash.acknowledged, number % 16 == 0);
        // What was offered once stays, though the next crash comes at once.
        let again = disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(number as u64));
        drop(store);
        let dir = scratch();
        let disk = SimDisk::new(again);
        let store = open(&disk, dir.path()).unwrap_or_else(|error| panic!("{context}, again: {error}"));
        assert_eq!(check(&store, &source, offered, false), offered, "{context}");
        // And it goes on from there.
        let mut next = source.clone();
        next.rewind(offered as usize);
        let epoch = store.volume(&source.volume).map_or(Epoch(1), |info| info.epoch);
        assert!(epoch >= Epoch(crash.epoch), "{context}: the fence is gone");
        match offered {
            // A promotion that was not acknowledged may have come about all the same.
            15 if epoch == Epoch(2) => next.branch(epoch, BASE),
            0..=15 => next.set_epoch(Epoch(1)),
            _ => {}
        }
        store.append_and_wait(next.commit()).unwrap_or_else(|error| panic!("{context}, next: {error}"));
        check(&store, &next, offered + 1, false);
    }
    assert!(torn > 20, "only {torn} images were torn: the test tests nothing");
}

#[test]
fn after_an_error_of_the_disk_nothing_is_taken_until_the_store_is_reopened() {
    let calls = {
        let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
        let store = open(&disk, dir.path()).expect("a new store");
        write(&disk, &store, &mut Source::new(volume("t/a"), 3), 25).expect("nothing fails");
        disk.calls()
    };
    for (fail_from, once) in (1..calls).flat_map(|call| [(call, false), (call, true)]) {
        let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
        let mut source = Source::new(volume("t/a"), 3);
        let store = open(&disk, dir.path()).expect("a new store");
        if once {
            disk.fail_once(fail_from);
        } else {
            disk.fail_from(fail_from);
        }
        // How many calls there are depends a little on what shares a sync with the checkpoint of the promotion.
        let Err(error) = write(&disk, &store, &mut source, 25) else {
            assert!(fail_from + 10 > calls, "call {fail_from} of {calls} was not noticed");
            continue;
        };
        assert!(matches!(error, StoreError::Poisoned(_)), "{error}");
        assert!(matches!(store.append_and_wait(source.commit()), Err(StoreError::Poisoned(_))));
        assert!(matches!(store.refusal(), Some(StoreError::Poisoned(_))));
        let acknowledged = store.volume(&source.volume).map_or(0, |info| info.points);
        check(&store, &source, acknowledged, false);
        drop(store);
        // The machine crashes and keeps some of what was written.
        let mut rng = StdRng::seed_from_u64(fail_from);
        let after = SimDisk::new(disk.crash(Left::Sectors(0.5), &mut rng));
        let store = open(&after, scratch().path()).expect("a store that lost its tail");
        check(&store, &source, acknowledged, false);
        drop(store);
        // Only the process dies: all that was written is read, and what is offered then is durable.
        disk.fail_from(u64::MAX);
        let store = open(&disk, scratch().path()).expect("a store whose tail was not synced");
        let offered = check(&store, &source, acknowledged, false);
        let after = SimDisk::new(disk.crash(Left::Nothing, &mut rng));
        drop(store);
        let store = open(&after, scratch().path()).expect("opens");
        check(&store, &source, offered, false);
    }
}
