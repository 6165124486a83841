//! A month by a virtual clock, thinned and compacted as it goes: bursts of eight points, or with `TIDELOCK_POINTS=whole` bursts of a hundred points a
//! second, 302,400 in all, which takes about a minute of processor time.

use std::collections::BTreeMap;

use tidelock_proto::PointId;

use super::{
    crash::scratch,
    harness::{Source, volume},
    thin::{SECOND, ids},
};
use crate::{
    retention::{Candidate, Policy, choose},
    store::{Store, StoreOptions, block_on},
};

const HOUR: u64 = 3600 * SECOND;
/// A burst every quarter of an hour, in about a second.
const BURSTS: u64 = 30 * 24 * 4;

#[test]
fn a_month_ends_with_the_points_that_the_policy_says_and_little_else() {
    let dir = scratch();
    let options = StoreOptions { segment_bytes: 1024 * 1024, ..StoreOptions::default() };
    let store = Store::open(dir.path(), options.clone()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 1);
    let (start, policy, mut made) = (1_700_000_000 * SECOND, Policy::default(), BTreeMap::new());
    let (mut retired, mut freed) = (0, 0);
    source.small = true;
    let whole = std::env::var("TIDELOCK_POINTS").is_ok_and(|points| points == "whole");
    let burst_points = if whole { 105 } else { 8 };
    for burst in 0..BURSTS {
        source.now_ns = start + burst * HOUR / 4;
        let mut receipts = Vec::new();
        for _ in 0..burst_points {
            source.now_ns += SECOND / 100;
            let (id, time) = (source.next_id(), source.now_ns);
            receipts.push(block_on(store.append(source.commit_of(1))));
            made.insert(id, (time, source.tree.digest()));
            source.points.clear();
        }
        receipts.into_iter().for_each(|receipt| receipt.wait().expect("written"));
        if burst % 4 == 3 {
            store.thin(&source.volume, &policy, source.now_ns + 60 * SECOND).expect("thinned");
        }
        if burst % 48 == 47 {
            let done = store.retire(&mut |_| {}).expect("compacted");
            (retired, freed) = (retired + done.segments, freed + done.freed_bytes);
        }
    }
    let end = source.now_ns + 60 * SECOND;
    store.thin(&source.volume, &policy, end).expect("thinned");
    // The first moves the log's end on.
    store.retire(&mut |_| {}).expect("compacted");
    let done = store.retire(&mut |_| {}).expect("compacted");
    let candidate = |(id, (time_ns, _)): (&PointId, &(u64, _))| Candidate {
        id: *id,
        time_ns: *time_ns,
        fuzzy: false,
        protected: Some(id) == made.keys().next_back(),
    };
    let candidates: Vec<_> = made.iter().map(candidate).collect();
    let verdicts = choose(&candidates, &policy, end);
    let kept = candidates.iter().zip(verdicts).filter(|(_, verdict)| !verdict.is_drop());
    let kept: Vec<PointId> = kept.map(|(point, _)| point.id).collect();
    println!(
        "{} points made, {} kept, {retired} segments retired with {freed} bytes, {done:?}",
        made.len(),
        kept.len()
    );
    assert!(made.len() >= if whole { 300_000 } else { 20_000 }, "{}", made.len());
    // One of each burst of the last day, of each hour of the week before, of each day.
    assert!((250..400).contains(&kept.len()), "{}", kept.len());
    let mut store = store;
    for rebuilt in [false, true] {
        assert_eq!(ids(&store, &source), kept, "rebuilt: {rebuilt}");
        for point in &kept {
            let tree = store.tree_at(&source.volume, *point).expect("the point opens");
            assert_eq!(tree.digest(), made[point].1, "{point}");
            for (_, extent) in tree.iter().filter_map(|(_, inode)| inode.extents()).flat_map(|all| all.iter())
            {
                store.read_content("t", extent.chunk.id).expect("the chunk is there");
            }
        }
        let spare = 2 * 1024 * 1024;
        assert!(store.log_len() <= done.live_bytes * 13 / 10 + spare, "{} of {done:?}", store.log_len());
        drop(store);
        if !rebuilt {
            std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
        }
        store = Store::open(dir.path(), options.clone()).expect("opens");
        assert_eq!(store.opened().damage, []);
    }
}
