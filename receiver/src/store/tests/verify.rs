//! What a verification says of a store that is whole, and of one that is not.

use std::collections::BTreeMap;

use rand::{SeedableRng, rngs::StdRng};
use tidelock_proto::{Epoch, PointId, Seq};

use super::{
    crash::{open, scratch},
    harness::{Source, volume},
    sim::{Left, SimDisk},
};
use crate::{
    log::{Place, entry::Kind, scan::scan},
    store::{Batch, Record, Store},
    verify::{Event, Fault, Finding, Summary, verify},
};

pub(super) fn run(store: &Store) -> (Vec<Finding>, Summary) {
    let mut found = Vec::new();
    let summary = verify(store, &|_| true, &mut |event| {
        if let Event::Finding(finding) = event {
            found.push(finding);
        }
        true
    });
    (found, summary.expect("the store can be read").expect("it was not stopped"))
}

/// The places of all records of a kind.
pub(super) fn places(files: &BTreeMap<u32, Vec<u8>>, kind: Kind) -> Vec<Place> {
    let mut id = [0; 16];
    id.copy_from_slice(&files.values().next().expect("a segment")[16..32]);
    let mut places = Vec::new();
    let disk = SimDisk::new(files.clone());
    scan(&disk, id, None, 0, &mut |found| {
        if found.kind == kind as u8 {
            places.push(found.place);
        }
    })
    .expect("the log reads");
    places
}

fn point(seq: u64) -> PointId {
    PointId::new(Epoch(1), Seq(seq))
}

#[test]
fn a_whole_store_is_found_whole_while_it_is_written_to() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    let store = open(&disk, dir.path()).expect("a new store");
    assert_eq!(run(&store), (Vec::new(), Summary::default()), "an empty store");
    let mut sources = [Source::new(volume("t/a"), 1), Source::new(volume("u/b"), 2)];
    for number in 0..30 {
        sources.iter_mut().for_each(|source| store.append_and_wait(source.commit()).expect("written"));
        if number % 10 == 9 {
            let last = *sources[0].points.keys().next_back().expect("points");
            store.checkpoint(&sources[0].volume, last).expect("written");
        }
    }
    let base = point(20);
    let raise =
        Record::Epoch { volume: sources[1].volume.clone(), expected: Epoch(1), epoch: Epoch(2), base };
    store.append_and_wait(Batch::of(raise)).expect("promoted");
    sources[1].branch(Epoch(2), base);
    store.append_and_wait(sources[1].commit()).expect("written");
    store.quiesce();
    let (found, summary) = run(&store);
    assert_eq!(found, []);
    assert_eq!((summary.volumes, summary.points, summary.checkpoints), (2, 61, 4), "{summary:?}");
    assert!(summary.chunks > 61 && summary.records > summary.chunks + 61 && summary.damaged_points == 0);

    // Beside a writer that rolls segments.
    let [mut busy, _] = sources;
    let writer = store.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writing = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            writer.append_and_wait(busy.commit()).expect("written");
        }
    });
    let before = store.durable_mark().expect("a mark").segment;
    let mut rounds = 0;
    while rounds < 10 || store.durable_mark().expect("a mark").segment < before + 3 {
        assert_eq!(run(&store).0, []);
        rounds += 1;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writing.join().expect("it wrote");
}

#[test]
fn a_verification_can_be_stopped_and_limited_to_volumes() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    let store = open(&disk, dir.path()).expect("a new store");
    let (mut a, mut b) = (Source::new(volume("t/a"), 1), Source::new(volume("t/b"), 2));
    for _ in 0..600 {
        store.append_and_wait(a.commit_of(1)).expect("written");
    }
    store.append_and_wait(b.commit()).expect("written");
    let summary = verify(&store, &|name| *name == b.volume, &mut |_| true).expect("reads").expect("ends");
    assert_eq!((summary.volumes, summary.points), (1, 1));
    assert_eq!(verify(&store, &|_| true, &mut |_| false).expect("reads"), None);
}

#[test]
fn a_damaged_chunk_touches_exactly_the_points_that_hold_it() {
    let dir = scratch();
    let disk = SimDisk::new(BTreeMap::new());
    let store = open(&disk, dir.path()).expect("a new store");
    let (mut a, mut b) = (Source::new(volume("t/a"), 1), Source::new(volume("t/b"), 2));
    for _ in 0..25 {
        store.append_and_wait(a.commit()).expect("written");
        store.append_and_wait(b.commit()).expect("written");
    }
    drop(store);
    let files = disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(0));
    let mut compared = 0;
    for place in places(&files, Kind::Chunk).into_iter().step_by(7) {
        let mut files = files.clone();
        files.get_mut(&place.segment).expect("there")[place.offset as usize + 200] ^= 4;
        let store = open(&SimDisk::new(files), dir.path()).expect("opens");
        let (found, summary) = run(&store);
        // The slow way: every chunk of every point.
        let mut expected = BTreeMap::new();
        for source in [&a, &b] {
            for (id, tree) in &source.points {
                let chunks = tree.iter().filter_map(|(_, inode)| inode.extents());
                let chunks = chunks.flat_map(|extents| {
                    extents.iter().map(|(_, extent)| extent.chunk.id).collect::<Vec<_>>()
                });
                let bad = chunks.into_iter().any(|id| store.read_content("t", id).is_err());
                if bad {
                    let touched = expected.entry(source.volume.clone()).or_insert((*id, *id, 0));
                    (touched.1, touched.2) = (*id, touched.2 + 1);
                }
            }
        }
        assert_eq!(summary.damaged_points, expected.values().map(|(_, _, count)| count).sum::<u64>());
        for finding in &found {
            assert_eq!(finding.fault.place(), Some((place.segment, u64::from(place.offset))), "{finding}");
        }
        let told: BTreeMap<_, _> = found
            .iter()
            .filter_map(|finding| {
                let touched = finding.touched.as_ref()?;
                let (first, last) = touched.points?;
                assert!(touched.file.as_ref().is_some_and(|file| file.starts_with("file ")), "{finding}");
                Some((finding.volume.clone()?, (first, last, touched.count)))
            })
            .collect();
        assert_eq!(told, expected);
        assert_eq!(found.len(), expected.len().max(1), "{found:?}");
        compared += 1;
    }
    assert!(compared > 10, "{compared} chunks");
}

#[test]
fn a_commit_touches_what_follows_it_up_to_a_checkpoint() {
    let dir = scratch();
    let disk = SimDisk::new(BTreeMap::new());
    let store = open(&disk, dir.path()).expect("a new store");
    let (mut a, mut b) = (Source::new(volume("t/a"), 1), Source::new(volume("t/b"), 2));
    for number in 1..=20 {
        store.append_and_wait(a.commit()).expect("written");
        store.append_and_wait(b.commit()).expect("written");
        if number == 12 {
            store.checkpoint(&a.volume, point(12)).expect("written");
        }
    }
    drop(store);
    let files = disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(0));
    let commits = places(&files, Kind::Commit);
    let hit = commits[2 * 5];
    let mut damaged = files.clone();
    damaged.get_mut(&hit.segment).expect("there")[hit.offset as usize + 60] ^= 4;
    let store = open(&SimDisk::new(damaged.clone()), dir.path()).expect("opens");
    let (found, summary) = run(&store);
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert!(matches!(finding.fault, Fault::Log(_)), "{finding}");
    let touched = finding.touched.as_ref().expect("points");
    assert_eq!(
        (finding.volume.as_ref(), touched.points, touched.count),
        (Some(&a.volume), Some((point(6), point(11))), 6)
    );
    assert_eq!(summary.damaged_points, 6);
    drop(store);
    // Its checkpoint, too.
    let at = places(&files, Kind::Checkpoint)[0];
    damaged.get_mut(&at.segment).expect("there")[at.offset as usize + 60] ^= 4;
    let store = open(&SimDisk::new(damaged), dir.path()).expect("opens");
    let (found, summary) = run(&store);
    assert_eq!((found.len(), summary.damaged_points), (2, 15), "{found:?}");
    assert!(
        found.iter().any(|finding| finding.touched.as_ref().is_some_and(|touched| touched.checkpoints == 1))
    );
    assert!(found.iter().all(|finding| finding.to_string().starts_with("t/a: segment ")), "{found:?}");
}

#[test]
fn an_index_that_lost_entries_is_told_from_a_log_that_did() {
    let dir = scratch();
    let disk = SimDisk::new(BTreeMap::new());
    let store = open(&disk, dir.path()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 1);
    (0..5).for_each(|_| store.append_and_wait(source.commit()).expect("written"));
    let files = disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(0));
    let place = places(&files, Kind::Chunk)[0];
    // As if a write into the library had been lost: the entry names a place where nothing is.
    let id = source.points[&point(1)]
        .iter()
        .find_map(|(_, inode)| Some(inode.extents()?.iter().next()?.1.chunk.id));
    let wrong = Place { segment: place.segment, offset: 512, len: 9 };
    store.misplace_chunk("t", id.expect("a chunk"), wrong);
    let (found, summary) = run(&store);
    assert!(found.iter().any(|finding| matches!(finding.fault, Fault::Index { count: 1, .. })), "{found:?}");
    assert!(
        summary.damaged_points > 0 && found.iter().any(|finding| matches!(finding.fault, Fault::Lost { .. }))
    );
}
