//! A full disk: nothing more is taken, nothing is lost, promotions go on, and so does everything once there is space.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tidelock_proto::{ChunkKey, Epoch, PointId, Seq, chunk::Codec};

use super::{
    crash::scratch,
    harness::{Source, volume},
    sim::SimDisk,
};
use crate::store::{
    Batch, Record, Store, StoreError, StoreOptions, block_on, lock::StoreLock, open::open_on,
};

const SEGMENT: u64 = 64 * 1024;

fn open(disk: &SimDisk, dir: &std::path::Path) -> Store {
    let options =
        StoreOptions { segment_bytes: SEGMENT, reserve_bytes: 4 * SEGMENT, ..StoreOptions::default() };
    let lock = StoreLock::take(dir).expect("nobody has it");
    open_on(std::sync::Arc::new(disk.clone()), dir, options, lock).expect("opens")
}

/// Commits until the store is full; the source is left where the store is.
fn fill(store: &Store, source: &mut Source) {
    loop {
        let mut ahead = source.clone();
        match store.append_and_wait(ahead.commit()) {
            Ok(()) => *source = ahead,
            Err(error) => {
                assert!(matches!(error, StoreError::Full { .. }), "{error}");
                assert!(error.to_string().starts_with("store-full: "), "{error}");
                return;
            }
        }
    }
}

fn wait_for_space(store: &Store) {
    let begun = Instant::now();
    while store.full().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not go on");
        std::thread::yield_now();
    }
}

#[test]
fn a_full_disk_stops_commits_and_nothing_else() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    disk.resize(10 * SEGMENT);
    let store = open(&disk, dir.path());
    let mut source = Source::new(volume("t/a"), 1);
    fill(&store, &mut source);
    assert!(disk.used() <= 6 * SEGMENT, "the reserve is free");
    assert!(store.full().is_some() && store.refusal().is_none());
    source.check_all(&store);
    assert!(matches!(store.append_and_wait(source.clone().commit()), Err(StoreError::Full { .. })));

    // Far more promotions than the rest of the last segment could hold.
    let base = *source.points.keys().next_back().expect("points");
    let tag = |number: u32| {
        block_on(async { store.tag(&source.volume, base, &format!("tag {number}")).await.await })
    };
    (0..10).for_each(|number| tag(number).expect("tagged"));
    for epoch in 1..800 {
        let raised = block_on(async {
            store.raise_epoch(&source.volume, Epoch(epoch), Epoch(epoch + 1), base).await.await
        });
        raised.expect("promoted");
    }
    assert!(disk.used() > 6 * SEGMENT && store.full().is_some(), "the reserve was used");
    assert_eq!(store.point(&source.volume, base).expect("it is there").tags.len(), 10);
    source.check_all(&store);
    drop(store);

    // A restart on the full disk changes nothing.
    let store = open(&disk, dir.path());
    assert_eq!(store.volume(&source.volume).expect("it is there").epoch, Epoch(800));
    source.branch(Epoch(800), base);
    fill(&store, &mut source);
    source.check_all(&store);
    disk.resize(20 * SEGMENT);
    wait_for_space(&store);
    (0..20).for_each(|_| store.append_and_wait(source.commit()).expect("it goes on"));
    source.check_all(&store);
}

#[test]
fn whoever_counted_on_a_chunk_that_was_refused_is_refused_too() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    disk.resize(8 * SEGMENT);
    let store = open(&disk, dir.path());
    let (mut a, mut b) = (Source::new(volume("t/a"), 1), Source::new(volume("t/b"), 2));
    store.append_and_wait(b.commit()).expect("written");
    let generation = store.generation();
    fill(&store, &mut a);
    // Two batches in a row: the second was told that the first one's chunk is on its way.
    let content = vec![7; 9000];
    let id = ChunkKey::of_tenant("t").id(&content);
    let mut first = Batch::new();
    first.push_chunk("t", id, Codec::Raw, 9000, Bytes::from(content));
    assert!(store.append_and_wait(first).is_err());
    assert!(!store.has_chunk_or_pending("t", id).expect("answers"));
    disk.resize(20 * SEGMENT);
    wait_for_space(&store);
    let mut late = b.clone().commit();
    late.bind(generation);
    assert!(matches!(store.append_and_wait(late), Err(StoreError::Full { .. })));
    let mut next = b.commit();
    next.bind(store.generation());
    store.append_and_wait(next).expect("whoever asks again is served");
    b.check(&store, PointId::new(Epoch(1), Seq(2)));
}

#[test]
fn a_group_is_refused_from_the_first_batch_that_does_not_fit() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    disk.resize(7 * SEGMENT);
    let store = open(&disk, dir.path());
    let mut source = Source::new(volume("t/a"), 1);
    store.append_and_wait(source.commit()).expect("written");
    let receipts: Vec<_> = (0..200).map(|_| block_on(store.append(source.commit()))).collect();
    let base = PointId::new(Epoch(1), Seq(1));
    let raised = block_on(store.append(Batch::of(Record::Tag {
        volume: source.volume.clone(),
        point: base,
        tag: "kept".to_owned(),
    })));
    let answers: Vec<_> = receipts.into_iter().map(|receipt| receipt.wait()).collect();
    let taken = answers.iter().take_while(|answer| answer.is_ok()).count();
    assert!(taken < 200, "all of it fitted");
    assert!(answers[taken..].iter().all(|answer| matches!(answer, Err(StoreError::Full { .. }))));
    raised.wait().expect("what is urgent is taken");
    source.rewind(taken + 1);
    source.check_all(&store);
}
