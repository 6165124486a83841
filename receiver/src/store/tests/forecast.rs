//! What was foretold is what happens: to the byte for what points need, within what is stated for the log.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_proto::{ChunkId, Epoch, PointId, VolumeName};

use super::{
    crash::scratch,
    harness::{Source, keys, volume, with_keys},
    thin::{SECOND, policy},
};
use crate::{
    retention::{Policy, Verdict},
    store::{
        Ask, Batch, CompactOptions, Forecast, Record, Sizes, Store, StoreError, StoreOptions, VolumeForecast,
    },
};

const SEGMENT: u64 = 64 * 1024;

fn options() -> StoreOptions {
    StoreOptions { segment_bytes: SEGMENT, keys: keys(), ..StoreOptions::default() }
}

fn forecast_of(
    store: &Store,
    policy: &Policy,
    now_ns: u64,
    wanted: &dyn Fn(&VolumeName) -> bool,
) -> Forecast {
    store.forecast(&Ask { policy, now_ns, cap_bytes: None, wanted }, &mut |_| true).expect("foretold")
}

fn sizes(forecast: &Forecast) -> Sizes {
    *forecast.sizes.as_ref().expect("nothing is damaged")
}

fn drops(forecast: &VolumeForecast) -> u64 {
    forecast.verdicts.iter().filter(|verdict| verdict.is_drop()).count() as u64
}

fn any_chunk(source: &Source, rng: &mut StdRng) -> Option<(ChunkId, u32)> {
    let trees: Vec<_> = source.points.values().collect();
    let tree = trees.get(rng.random_range(0..trees.len().max(1)))?;
    let extents = tree.iter().filter_map(|(_, inode)| inode.extents());
    let all: Vec<_> = extents.flat_map(|extents| extents.iter().map(|(_, extent)| extent.chunk)).collect();
    let chunk = all.get(rng.random_range(0..all.len().max(1)))?;
    Some((chunk.id, chunk.at + 1))
}

/// Three volumes of two tenants with branches, names, checkpoints, content that they share, and earlier thinnings. Tells the time at its end.
fn history(store: &Store, seed: u64, commits: usize) -> (Vec<Source>, u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sources = ["t/a", "t/b", "u/a"].map(|name| Source::new(volume(name), seed)).to_vec();
    for source in &mut sources {
        source.small = rng.random_bool(0.5);
    }
    let mut now_ns = 1_000_000 * SECOND;
    let mut promoted = 1;
    for number in 0..commits {
        now_ns += rng.random_range(0..2 * SECOND);
        let at = rng.random_range(0..sources.len());
        let shared = (at < 2).then(|| any_chunk(&sources[1 - at], &mut rng)).flatten();
        let source = &mut sources[at];
        source.now_ns = now_ns;
        let batch = match shared.filter(|_| rng.random_bool(0.3)) {
            Some((chunk, len)) if !source.points.is_empty() => {
                let (times, has) = (rng.random_range(1..3), store.has_chunk("t", chunk).expect("read"));
                if has { source.refer(chunk, len, times) } else { source.commit() }
            }
            _ => source.commit(),
        };
        store.append_and_wait(batch).expect("written");
        let last = *source.points.keys().next_back().expect("a point");
        let name = source.volume.clone();
        match rng.random_range(0..40) {
            0 => store
                .append_and_wait(Batch::of(Record::Tag { volume: name, point: last, tag: "name".into() }))
                .expect("tagged"),
            1 => store.checkpoint(&name, last).expect("written"),
            2 => drop(store.thin(&name, &policy(), now_ns).expect("thinned")),
            3 if number > commits / 3 => {
                let there = store.points(&name, None).expect("points");
                let base = there[there.len().saturating_sub(4)].id;
                let (expected, epoch) = (store.volume(&name).expect("there").epoch, Epoch(1 + promoted));
                if base.epoch == expected && epoch > expected {
                    let raise = Record::Epoch { volume: name, expected, epoch, base };
                    store.append_and_wait(Batch::of(raise)).expect("promoted");
                    source.branch(epoch, base);
                    promoted += 1;
                }
            }
            _ => {}
        }
    }
    (sources, now_ns)
}

fn whatever_was_foretold_happens(seed: u64, commits: usize, later: u64) {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("a new store");
    let (_, end) = history(&store, seed, commits);
    let (policy, now_ns) = (policy(), end + later * SECOND);
    store.quiesce();
    let before = store.durable_mark();
    let said = forecast_of(&store, &policy, now_ns, &|_| true);
    let sizes_said = sizes(&said);
    assert_eq!(store.durable_mark(), before, "a forecast writes nothing");
    let freed: u64 = said.volumes.iter().map(|volume| volume.freed_bytes).sum();
    assert_eq!(freed, sizes_said.freed_bytes, "each chunk counts with one volume: {said:?}");
    let written: u64 = said.volumes.iter().map(|volume| volume.written_bytes).sum();
    assert_eq!(written, sizes_said.written_bytes);

    for volume in &said.volumes {
        let done = store.thin(&volume.volume, &policy, now_ns).expect("thinned");
        assert_eq!(done.dropped, drops(volume));
    }
    let after = sizes(&forecast_of(&store, &policy, now_ns, &|_| true));
    assert_eq!(after.needed_bytes, sizes_said.needed_after_bytes, "seed {seed}: {sizes_said:?} {after:?}");
    assert_eq!((after.freed_bytes, after.written_bytes), (0, 0));
    // What says which points are gone is no point's.
    let grown = after.log_bytes - sizes_said.log_bytes;
    let headers = 2048 * (1 + grown / SEGMENT);
    assert!(grown >= written && grown <= written + headers + 4096, "{grown} for {written}");

    drop(store);
    let done = Store::compact(dir.path(), options(), &CompactOptions::default()).expect("compacted");
    let off = done.after_bytes.abs_diff(sizes_said.stopped_bytes);
    // The end of each segment that no record fitted into, names, and what is known of each volume.
    let most = 4096 + sizes_said.stopped_bytes / 8;
    assert!(off <= most, "seed {seed}: {done:?} for {sizes_said:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_forecast_comes_true(seed in 0..10_000u64, commits in 1..260usize, later in 0..400u64) {
        whatever_was_foretold_happens(seed, commits, later);
    }
}

#[test]
fn a_forecast_of_encrypted_volumes_comes_true() {
    with_keys(&["t"], || {
        for seed in 0..4 {
            whatever_was_foretold_happens(seed, 150, 100);
        }
    });
}

/// The log of a store with large segments is as short after a compaction as was said, within a hundredth.
#[test]
fn the_space_that_a_stopped_store_gives_back_is_told_within_a_hundredth() {
    let dir = scratch();
    let options = StoreOptions { segment_bytes: 1024 * 1024, ..StoreOptions::default() };
    let store = Store::open(dir.path(), options.clone()).expect("a new store");
    let (_, end) = history(&store, 5, 2_000);
    store.quiesce();
    let now_ns = end + 20 * SECOND;
    let said = sizes(&forecast_of(&store, &policy(), now_ns, &|_| true));
    drop(store);
    let what = CompactOptions { thin: Some((policy(), now_ns)), without: None };
    let done = Store::compact(dir.path(), options, &what).expect("compacted");
    let (foretold, gained) = (said.log_bytes - said.stopped_bytes, said.log_bytes - done.after_bytes);
    assert!(gained > 4 << 20, "{gained} of {said:?}");
    assert!(foretold.abs_diff(gained) <= gained / 100, "{foretold} foretold, {gained} gained: {said:?}");
}

#[test]
fn the_space_that_a_running_store_gives_back_is_told_within_its_segments() {
    let dir = scratch();
    let options = StoreOptions { segment_bytes: 256 * 1024, ..StoreOptions::default() };
    let store = Store::open(dir.path(), options).expect("a new store");
    let (_, end) = history(&store, 7, 2_000);
    store.quiesce();
    let now_ns = end + 20 * SECOND;
    let forecast = forecast_of(&store, &policy(), now_ns, &|_| true);
    let said = sizes(&forecast);
    assert!(said.running_bytes + (2 << 20) < said.log_bytes, "{said:?}");
    assert!(said.running_bytes > said.stopped_bytes, "{said:?}");
    for volume in &forecast.volumes {
        store.thin(&volume.volume, &policy(), now_ns).expect("thinned");
    }
    let done = store.retire(&mut |_| {}).expect("compacted");
    let spare = 2 * 256 * 1024;
    assert!(done.log_bytes.abs_diff(said.running_bytes) <= spare, "{done:?} for {said:?}");
}

#[test]
fn what_two_volumes_share_goes_with_the_last_of_them_and_counts_once() {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("a new store");
    let mut sources = ["t/a", "t/b"].map(|name| Source::new(volume(name), 3));
    sources.iter_mut().for_each(|source| source.now_ns = 1_000 * SECOND);
    store.append_and_wait(sources[0].commit_of(1)).expect("written");
    let mut rng = StdRng::seed_from_u64(1);
    let (chunk, _) = any_chunk(&sources[0], &mut rng).expect("a chunk");
    let shared_bytes =
        store.chunk_size("t", &chunk).expect("read").expect("it is there").1.next_multiple_of(8);
    // Both write it into a file, and everything else over it.
    for source in &mut sources {
        store.append_and_wait(source.commit_of(1)).expect("written");
        store.append_and_wait(source.refer(chunk, 1, 1)).expect("written");
    }
    let all: Policy = "all:1s,1000s:10000s".parse().expect("a policy");
    let now_ns = 20_000 * SECOND;
    let last = |source: &Source| *source.points.keys().next_back().expect("a point");
    for source in &mut sources {
        let file = source.tree.iter().find(|(_, inode)| inode.extents().is_some()).expect("a file").0;
        let mut batch = source.commit_of(0);
        let id = last(source);
        let op = tidelock_proto::Op::Resize { id: file, size: 0 };
        source.tree.apply(&op).expect("a valid operation");
        source.tree.seal().expect("a tree");
        for record in &mut batch.records {
            if let Record::Commit(commit) = record {
                commit.ops.extend(crate::store::encode_model_ops([op.clone()]));
                commit.point.cut.digest = source.tree.digest();
            }
        }
        source.points.insert(id, source.tree.clone());
        store.append_and_wait(batch).expect("written");
    }
    let of = |name: &'static str| move |volume: &VolumeName| volume.to_string() == name;
    let both = forecast_of(&store, &all, now_ns, &|_| true);
    let one = forecast_of(&store, &all, now_ns, &of("t/a"));
    let other = forecast_of(&store, &all, now_ns, &of("t/b"));
    let [together, one, other] = [&both, &one, &other].map(|forecast| sizes(forecast).freed_bytes);
    assert_eq!(together, one + other + shared_bytes, "{both:?}");
    let rows: u64 = both.volumes.iter().map(|volume| volume.freed_bytes).sum();
    assert_eq!(rows, together);
    assert_eq!(forecast_of(&store, &all, now_ns, &of("t/a")).volumes.len(), 1);
}

#[test]
fn the_cap_drops_what_was_foretold() {
    let (dir, cap) = (scratch(), 4 << 20);
    let store = Store::open(dir.path(), StoreOptions { cap_bytes: Some(cap), ..options() }).expect("opens");
    let mut sources = ["t/a", "u/b"].map(|name| Source::new(volume(name), 9));
    sources.iter_mut().for_each(|source| source.small = true);
    while store.log_len() <= cap / 100 * 93 {
        for source in &mut sources {
            store.append_and_wait(source.commit_of(2)).expect("below the cap");
        }
    }
    store.quiesce();
    let keep = "all:forever".parse().expect("a policy");
    let ask = Ask { policy: &keep, now_ns: 0, cap_bytes: Some(cap), wanted: &|_| true };
    let said = store.forecast(&ask, &mut |_| true).expect("foretold");
    let capped = sizes(&said).cap.expect("there is a cap");
    assert!(capped.acts && capped.dropped > 0 && !capped.exhausted, "{capped:?}");
    assert_eq!(capped.dropped, said.volumes.iter().map(|volume| volume.capped).sum::<u64>());
    let done = store.relieve(cap, &mut |_| ()).expect("relieved").expect("it is near its cap");
    // A step more or less: merged operations of one thinning are not those of several.
    let step = capped.dropped / 7 + 2;
    assert!(done.dropped.abs_diff(capped.dropped) <= step, "{done:?} for {capped:?}");
    assert!(done.live_bytes.abs_diff(capped.needed_bytes) <= cap / 10, "{done:?} for {capped:?}");
    let said = store.forecast(&ask, &mut |_| true).expect("foretold");
    let capped = sizes(&said).cap.expect("there is a cap");
    assert!(!capped.acts && capped.dropped == 0, "{capped:?}");
    // Nothing may go.
    for source in &sources {
        for point in store.points(&source.volume, None).expect("points") {
            let (volume, tag) = (source.volume.clone(), "held: it stays".to_owned());
            store.append_and_wait(Batch::of(Record::Tag { volume, point: point.id, tag })).expect("tagged");
        }
    }
    let low = Ask { cap_bytes: Some(cap / 4), ..ask };
    let capped = sizes(&store.forecast(&low, &mut |_| true).expect("foretold")).cap.expect("a cap");
    assert!(capped.acts && capped.exhausted && capped.dropped == 0, "{capped:?}");
}

#[test]
fn damage_leaves_the_counts_and_is_named() {
    let dir = scratch();
    let mut source = Source::new(volume("t/a"), 3);
    let store = Store::open(dir.path(), options()).expect("a new store");
    for number in 0..40 {
        source.now_ns = (1_000 + number) * SECOND;
        store.append_and_wait(source.commit()).expect("written");
    }
    let file = dir.path().join("log/0000000001.seg");
    let mut bytes = std::fs::read(&file).expect("read");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("records").min(60_000);
    bytes[2_000..end].fill(7);
    std::fs::write(&file, bytes).expect("written");
    let said = forecast_of(&store, &policy(), 2_000 * SECOND, &|_| true);
    assert_eq!(drops(&said.volumes[0]), 39);
    assert!(said.sizes.as_ref().is_err_and(StoreError::is_damage), "{said:?}");
}

#[test]
fn whoever_asked_may_leave() {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("a new store");
    let (_, end) = history(&store, 11, 600);
    let (policy, mut asked) = (policy(), 0);
    let ask = Ask { policy: &policy, now_ns: end, cap_bytes: None, wanted: &|_| true };
    let ended = store.forecast(&ask, &mut |_| {
        asked += 1;
        false
    });
    // A machine that is very fast is never asked.
    assert!(asked == 0 || matches!(ended, Err(StoreError::Closed)), "{ended:?}");
}

/// Commits, thinnings and compactions go on; a forecast ends, is right, or says why not.
#[test]
fn a_forecast_beside_everything_else_fails_only_by_saying_so() {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("a new store");
    let (mut sources, mut now_ns) = history(&store, 13, 300);
    let done = AtomicBool::new(false);
    let (mut told, mut restless) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..600 {
                now_ns += SECOND;
                let source = &mut sources[number % 3];
                source.now_ns = now_ns;
                store.append_and_wait(source.commit()).expect("written");
                source.points = source.points.split_off(&PointId::default());
                if number % 60 == 0 {
                    store.thin(&source.volume, &policy(), now_ns).expect("thinned");
                    store.retire(&mut |_| {}).expect("compacted");
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let (policy, quiet) = (policy(), Duration::from_micros(200));
            let ask =
                Ask { policy: &policy, now_ns: u64::MAX / 2, cap_bytes: Some(1 << 30), wanted: &|_| true };
            match store.forecast(&ask, &mut |_| {
                std::thread::sleep(quiet);
                true
            }) {
                Ok(forecast) => {
                    let sizes = forecast.sizes.expect("nothing is damaged");
                    assert!(sizes.needed_bytes > 0 && sizes.freed_bytes <= sizes.needed_bytes, "{sizes:?}");
                    let kept = |verdict: &Verdict| !verdict.is_drop();
                    assert!(forecast.volumes.iter().all(|volume| volume.verdicts.iter().any(kept)));
                    told += 1;
                }
                Err(StoreError::Restless) => restless += 1,
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert!(told > 0, "{told} told, {restless} not");
}
