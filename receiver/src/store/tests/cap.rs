//! A store with a cap, and points that are held.

use std::time::Duration;

use bytes::Bytes;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use tidelock_proto::{
    ChunkKey, Epoch, FileId, Op, PointId, Seq,
    chunk::Codec,
    tree::{ChunkRef, Kind, Meta, Name, Piece},
};

use super::{
    crash::scratch,
    harness::{Source, keys, volume, with_keys},
    verify,
};
use crate::store::{Batch, HOLD, Record, Store, StoreError, StoreOptions};

const CAP: u64 = 2 << 20;

fn options() -> StoreOptions {
    StoreOptions { cap_bytes: Some(CAP), keys: keys(), ..StoreOptions::default() }
}

/// A source whose newest tree is small beside its points.
fn small(name: &str, seed: u64) -> Source {
    let mut source = Source::new(volume(name), seed);
    source.small = true;
    source
}

fn tag(store: &Store, source: &Source, point: PointId, tag: &str) {
    let (volume, tag) = (source.volume.clone(), tag.to_owned());
    store.append_and_wait(Batch::of(Record::Tag { volume, point, tag })).expect("tagged");
}

fn release(store: &Store, source: &Source, point: PointId) {
    let record = Record::Release { volume: source.volume.clone(), point, copy: false };
    store.append_and_wait(Batch::of(record)).expect("released");
}

fn tags(store: &Store, source: &Source, point: PointId) -> Vec<String> {
    store.point(&source.volume, point).expect("the point is there").tags
}

/// Commits until the cap is reached.
fn fill(store: &Store, sources: &mut [Source]) {
    loop {
        for source in &mut *sources {
            let before = source.clone();
            match store.append_and_wait(source.commit_of(2)) {
                Ok(()) => {}
                Err(StoreError::Full { capped, .. }) => {
                    assert!(capped, "the disk is not full");
                    *source = before;
                    return;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// What is left of a source's points is what it remembers, and opens.
fn check(store: &Store, source: &mut Source) {
    let left = store.points(&source.volume, None).expect("points");
    source.points.retain(|id, _| left.iter().any(|point| point.id == *id));
    source.check_all(store);
}

#[test]
fn at_the_cap_the_oldest_points_go_and_ingest_goes_on() {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("opens");
    let mut sources = [small("t/a", 1), small("u/b", 2)];
    let (named, held) = (PointId::new(Epoch(1), Seq(2)), PointId::new(Epoch(1), Seq(3)));
    for round in 0..3 {
        fill(&store, &mut sources);
        assert!(store.log_len() <= CAP, "{} bytes", store.log_len());
        let full = store.full().expect("it says so").to_string();
        assert!(full.starts_with("store-cap: "), "{full}");
        if round == 0 {
            tag(&store, &sources[0], named, "a name");
            tag(&store, &sources[1], held, &format!("{HOLD}for a reason"));
        }
        let newest: Vec<_> =
            sources.iter().map(|source| *source.points.keys().next_back().expect("points")).collect();
        let done = store.relieve(CAP, &mut |_| ()).expect("relieved").expect("it was at its cap");
        assert!(done.dropped > 0 && !done.exhausted, "{done:?}");
        assert!(store.log_len() < CAP / 100 * 92, "{done:?}");
        assert_eq!(store.relieve(CAP, &mut |_| ()).expect("nothing to do"), None);
        for (source, newest) in sources.iter_mut().zip(newest) {
            check(&store, source);
            assert_eq!(source.points.keys().next_back(), Some(&newest), "never the newest");
        }
        assert_eq!(tags(&store, &sources[0], named), ["a name"]);
        assert_eq!(tags(&store, &sources[1], held), ["held: for a reason"]);
        wait_until("there is room again", || store.full().is_none());
    }
    let oldest =
        |source: &Source| *source.points.keys().find(|id| **id != named && **id != held).expect("points");
    assert!(sources.iter().all(|source| oldest(source).seq > Seq(20)), "the oldest went");
    assert_eq!(verify::run(&store).0, []);
}

#[test]
fn where_no_point_may_go_ingest_stops_and_a_release_lets_it_go_on() {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("opens");
    let mut sources = [small("t/a", 1)];
    fill(&store, &mut sources);
    let points: Vec<PointId> = sources[0].points.keys().copied().collect();
    for point in &points {
        tag(&store, &sources[0], *point, "held: all of them");
    }
    let done = store.relieve(CAP, &mut |_| ()).expect("looked at").expect("it is at its cap");
    assert!(done.exhausted && done.dropped == 0, "{done:?}");
    check(&store, &mut sources[0]);
    assert!(store.full().is_some() && sources[0].points.len() == points.len());
    for point in &points {
        release(&store, &sources[0], *point);
    }
    let done = store.relieve(CAP, &mut |_| ()).expect("relieved").expect("it is at its cap");
    assert!(!done.exhausted && done.dropped > 0, "{done:?}");
    wait_until("there is room again", || store.full().is_none());
    store.append_and_wait(sources[0].commit()).expect("it goes on");
    check(&store, &mut sources[0]);
}

/// Writes a file anew from its beginning, in pieces of these lengths.
fn rewrite(source: &mut Source, lens: &[usize], rng: &mut StdRng) -> Batch {
    let (mut batch, mut ops) = (Batch::new(), Vec::new());
    let file = FileId(2);
    if source.points.is_empty() {
        let name = Name::new(b"file").expect("a valid name");
        ops.push(Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() });
        ops.push(Op::Create { id: file, kind: Kind::File, meta: Meta::default() });
        ops.push(Op::Link { dir: FileId::ROOT, name, id: file });
    }
    let mut pieces = Vec::new();
    for len in lens {
        let mut content = vec![0; *len];
        rng.fill_bytes(&mut content);
        let id = ChunkKey::of_tenant("t").id(&content);
        batch.push_chunk("t", id, Codec::Raw, *len as u32, Bytes::from(content));
        pieces.push(Piece { len: *len as u64, chunk: Some(ChunkRef { id, at: 0 }) });
    }
    ops.push(Op::Write { id: file, offset: 0, pieces });
    source.commit_ops(batch, ops)
}

/// As a session does: chunks as they come, counted on until their commit is durable.
fn send(store: &Store, batch: &Batch, point: PointId) -> Result<(), StoreError> {
    let lease = store.lease("t");
    for record in &batch.records {
        if let Record::Chunk(chunk) = record {
            lease.count_on(&chunk.id);
        }
        if matches!(record, Record::Commit(_)) {
            lease.on_commit(point);
        }
        store.append_and_wait(Batch::of(record.clone()))?;
    }
    Ok(())
}

/// Each point takes an eighth of the cap, so that nothing can be taken long before what is needed reaches the part that relief tolerates.
#[test]
fn relief_gets_on_where_few_points_fill_the_store() {
    for seed in 0..6 {
        let dir = scratch();
        let store = Store::open(dir.path(), options()).expect("opens");
        let mut source = Source::new(volume("t/a"), seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let held = PointId::new(Epoch(1), Seq(1));
        for round in 0..24 {
            let count = rng.random_range(4..12);
            let lens: Vec<usize> =
                (0..count).map(|_| rng.random_range(1..(CAP as usize / 4 / count))).collect();
            let batch = rewrite(&mut source, &lens, &mut rng);
            let point = *source.points.keys().next_back().expect("a point");
            let mut attempts = 0;
            while let Err(error) = send(&store, &batch, point) {
                assert!(matches!(error, StoreError::Full { capped: true, .. }), "{error}");
                attempts += 1;
                assert!(attempts < 4, "seed {seed}, round {round}: {error}");
                let done = store.relieve(CAP, &mut |_| ()).expect("relieved").expect("it is at its cap");
                assert!(!done.exhausted && done.segments > 0, "seed {seed}, round {round}: {done:?}");
                assert!(store.log_len() <= CAP / 100 * 92, "seed {seed}, round {round}: {done:?}");
                wait_until("there is room again", || store.full().is_none());
            }
            if round == 0 {
                tag(&store, &source, held, "held: the audit");
            }
        }
        check(&store, &mut source);
        assert!(source.points.len() > 1 && source.points.contains_key(&held), "{}", source.points.len());
        assert_eq!(verify::run(&store).0, []);
    }
}

/// Holds come and go; whatever is compacted and rebuilt, the last word counts.
fn holds() {
    let dir = scratch();
    let options = StoreOptions { segment_bytes: 64 * 1024, cap_bytes: None, ..options() };
    let mut store = Store::open(dir.path(), options.clone()).expect("opens");
    let mut source = small("t/a", 1);
    let commit = |store: &Store, source: &mut Source, points: usize| {
        (0..points).for_each(|_| store.append_and_wait(source.commit_of(3)).expect("written"));
    };
    commit(&store, &mut source, 6);
    let point = |seq: u64| PointId::new(Epoch(1), Seq(seq));
    tag(&store, &source, point(2), "held: once");
    commit(&store, &mut source, 20);
    tag(&store, &source, point(3), "held: first");
    tag(&store, &source, point(3), "a name");
    tag(&store, &source, point(4), "held: for ever");
    release(&store, &source, point(2));
    release(&store, &source, point(3));
    tag(&store, &source, point(3), "held: again");
    let policy = "all:5s,10s:forever".parse().expect("a policy");
    let expect = |store: &Store, source: &mut Source, context: &str| {
        assert_eq!(tags(store, source, point(3)), ["a name", "held: again"], "{context}");
        assert_eq!(tags(store, source, point(4)), ["held: for ever"], "{context}");
        check(store, source);
    };
    for round in 0..3 {
        expect(&store, &mut source, "live");
        commit(&store, &mut source, 30);
        store.thin(&source.volume, &policy, 3_000_000_000_000).expect("thinned");
        assert!(store.point(&source.volume, point(2)).is_err(), "released, and gone");
        let done = store.retire(&mut |_| ()).expect("compacted");
        assert!(round > 0 || done.segments > 0, "{done:?}");
        expect(&store, &mut source, "compacted");
        drop(store);
        store = match round {
            1 => Store::rebuild(dir.path(), options.clone()).expect("rebuilt"),
            _ => Store::open(dir.path(), options.clone()).expect("opens"),
        };
        expect(&store, &mut source, "opened again");
    }
    assert_eq!(verify::run(&store).0, []);
    let refused = store.append_and_wait(Batch::of(Record::Release {
        volume: source.volume.clone(),
        point: point(2),
        copy: false,
    }));
    assert!(matches!(refused, Err(StoreError::NoSuchPoint(..))), "{refused:?}");
}

#[test]
fn a_hold_lasts_until_it_is_released_and_no_longer() {
    holds();
}

#[test]
fn holds_of_an_encrypted_tenant_are_holds() {
    with_keys(&["t"], holds);
}

/// Waits for something that must happen.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: it did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
