//! Damage: what is hit is reported, and what is not goes on.

use std::{collections::BTreeMap, path::Path};

use rand::{SeedableRng, rngs::StdRng};
use tidelock_proto::{Epoch, PointId, Seq};

use super::{
    crash::{open, scratch},
    harness::{Source, volume},
    sim::{Left, SimDisk},
};
use crate::{
    log::{
        Damage, DamageKind, Place,
        disk::Disk,
        entry::{Fact, Kind},
        scan::scan,
    },
    store::{Batch, Cause, Store, StoreError},
};

type Files = BTreeMap<u32, Vec<u8>>;

/// Two volumes with ten commits each, taken in turns, and the files of the closed store.
fn two_volumes(dir: &Path) -> (Source, Source, Files) {
    let (mut a, mut b) = (Source::new(volume("t/a"), 1), Source::new(volume("t/b"), 2));
    let disk = SimDisk::new(BTreeMap::new());
    let store = open(&disk, dir).expect("a new store");
    for _ in 0..10 {
        store.append_and_wait(a.commit_of(6)).expect("written");
        store.append_and_wait(b.commit_of(6)).expect("written");
    }
    drop(store);
    (a, b, disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(0)))
}

/// Where the commit of a point is.
fn commit_of(files: &Files, source: &Source, id: PointId) -> (Place, u64) {
    let disk = SimDisk::new(files.clone());
    let mut store = [0; 16];
    store.copy_from_slice(&files[&1][16..32]);
    let mut found = None;
    scan(&disk, store, None, 0, &mut |record| {
        let fact =
            (record.kind == Kind::Commit as u8).then(|| Fact::decode(record.kind, record.body.clone()));
        if let Some(Some(Fact::Commit { volume, point, .. })) = fact
            && volume == source.volume
            && point.id == id
        {
            found = Some((record.place, record.number));
        }
    })
    .expect("the log reads");
    found.expect("the commit is in the log")
}

fn flip(files: &Files, segment: u32, offset: u64) -> Files {
    let mut files = files.clone();
    files.get_mut(&segment).expect("the segment is there")[offset as usize] ^= 0x10;
    files
}

fn point(seq: u64) -> PointId {
    PointId::new(Epoch(1), Seq(seq))
}

/// Points 1 to 4 of the damaged volume are fine, 5 and later say that 5 is damaged; the other volume has seen nothing.
fn check_hit(store: &Store, hit: &Source, other: &Source) {
    other.check_all(store);
    (1..=4).for_each(|seq| hit.check(store, point(seq)));
    for seq in 5..=10 {
        let error = store.tree_at(&hit.volume, point(seq)).expect_err("its log is damaged");
        assert!(error.is_damage(), "{error}");
    }
}

#[test]
fn a_damaged_commit_takes_its_own_volume_down_and_no_other() {
    let dir = scratch();
    let (a, b, files) = two_volumes(dir.path());
    let (place, number) = commit_of(&files, &a, point(5));
    let body = u64::from(place.offset) + 60;
    let header = u64::from(place.offset) + 24;
    for (offset, what) in
        [(body, DamageKind::Body(number)), (header, DamageKind::Missing { first: number, last: number })]
    {
        // With its index, nothing is read again at the open, and the damage shows where it matters.
        let disk = SimDisk::new(flip(&files, place.segment, offset));
        let store = open(&disk, dir.path()).expect("opens");
        assert_eq!(store.opened().replayed, 0);
        check_hit(&store, &a, &b);
        drop(store);
        // Without, everything is.
        let disk = SimDisk::new(flip(&files, place.segment, offset));
        let empty = scratch();
        let mut store = open(&disk, empty.path()).expect("opens");
        assert!(store.opened().rebuilt);
        let damage = Damage { segment: place.segment, offset: u64::from(place.offset), what };
        assert_eq!(store.opened().damage, [damage]);
        check_hit(&store, &a, &b);
        let error = store.point(&a.volume, point(5)).expect_err("it is gone");
        assert!(matches!(error, StoreError::Damaged { cause: Cause::Missing(id), .. } if id == point(5)));
        // It goes on, and the next open says the same.
        store.append_and_wait(b.clone().commit()).expect("the other volume goes on");
        drop(store);
        std::fs::remove_dir_all(empty.path().join("index")).expect("removed");
        store = open(&disk, empty.path()).expect("opens again");
        assert_eq!(store.opened().damage, [damage]);
    }
}

#[test]
fn damage_of_the_newest_record_is_told_from_a_torn_tail_by_the_index() {
    let dir = scratch();
    let (a, b, files) = two_volumes(dir.path());
    let (place, number) = commit_of(&files, &b, point(10));
    let torn = flip(&files, place.segment, u64::from(place.offset) + 60);
    // The index was closed properly, so it covers everything; as if it had been closed a moment earlier:
    let store = open(&SimDisk::new(torn.clone()), scratch().path()).expect("opens");
    assert!(store.opened().torn && store.opened().damage.is_empty(), "{:?}", store.opened());
    a.check_all(&store);
    drop(store);
    let known = open(&SimDisk::new(torn), dir.path()).expect("opens");
    assert_eq!(known.volume(&b.volume).expect("b").last.id, point(10));
    assert!(known.tree_at(&b.volume, point(10)).expect_err("damaged").is_damage(), "record {number}");
}

#[test]
fn a_lost_tail_or_segment_is_reported() {
    let dir = scratch();
    let (a, b, files) = two_volumes(dir.path());
    assert!(files.len() >= 3, "{} segments", files.len());
    let last = *files.keys().next_back().expect("segments");
    for gone in [last, 2] {
        let mut files = files.clone();
        files.remove(&gone);
        let store = open(&SimDisk::new(files), dir.path()).expect("opens");
        assert!(store.opened().damaged > 0 || gone == 2, "{:?}", store.opened());
        let newest = store.tree_at(&a.volume, point(10)).and(store.tree_at(&b.volume, point(10)));
        assert!(newest.is_err());
        a.check(&store, point(1));
        drop(store);
    }
    let mut without = files.clone();
    without.remove(&2);
    let store = open(&SimDisk::new(without), scratch().path()).expect("opens");
    assert_eq!(store.opened().damage[0].what, DamageKind::File);
}

#[test]
fn a_segment_of_another_store_is_refused() {
    let (mine, other) = (scratch(), scratch());
    let (_, _, mut files) = two_volumes(mine.path());
    let (_, _, foreign) = two_volumes(other.path());
    files.insert(2, foreign[&2].clone());
    let error = open(&SimDisk::new(files.clone()), scratch().path()).expect_err("refused");
    assert!(error.to_string().contains("another store"), "{error}");
    assert_eq!(SimDisk::new(files).list().expect("lists").len(), foreign.len());
}

#[test]
fn both_headers_of_a_segment_gone_is_damage_of_what_was_in_it() {
    let dir = scratch();
    let (a, _, files) = two_volumes(dir.path());
    let files = flip(&flip(&files, 2, 20), 2, 530);
    let store = open(&SimDisk::new(files), scratch().path()).expect("opens");
    assert_eq!(store.opened().damage[0].what, DamageKind::Header);
    a.check(&store, point(1));
    assert!(store.tree_at(&a.volume, point(10)).expect_err("damaged").is_damage());
}

#[test]
fn a_tree_that_somebody_has_makes_a_damaged_volume_whole_again() {
    let dir = scratch();
    let (mut a, _, files) = two_volumes(dir.path());
    let (place, _) = commit_of(&files, &a, point(5));
    let disk = SimDisk::new(flip(&files, place.segment, u64::from(place.offset) + 60));
    let store = open(&disk, dir.path()).expect("opens");
    let wrong = a.points[&point(4)].clone();
    assert!(store.checkpoint_tree(&a.volume, point(10), &wrong).is_err());
    store.checkpoint_tree(&a.volume, point(10), &a.tree).expect("written");
    store.append_and_wait(a.commit()).expect("written");
    [4, 10, 11].into_iter().for_each(|seq| a.check(&store, point(seq)));
    assert!(store.tree_at(&a.volume, point(9)).expect_err("damaged").is_damage());
}

#[test]
fn a_point_that_begins_anew_rests_on_nothing_older() {
    let dir = scratch();
    let (mut a, b, files) = two_volumes(dir.path());
    let (place, _) = commit_of(&files, &a, point(5));
    let disk = SimDisk::new(flip(&files, place.segment, u64::from(place.offset) + 60));
    let store = open(&disk, dir.path()).expect("opens");
    a.begin_anew();
    (11..=14).for_each(|_| store.append_and_wait(a.commit_of(3)).expect("written"));
    let whole = [1, 2, 3, 4, 11, 12, 13, 14];
    let check = |store: &Store, a: &Source| {
        whole.into_iter().for_each(|seq| a.check(store, point(seq)));
        (5..=10).for_each(|seq| {
            assert!(store.tree_at(&a.volume, point(seq)).expect_err("damaged").is_damage(), "{seq}");
        });
    };
    check(&store, &a);
    // Of a checkpoint behind it, too.
    store.checkpoint(&a.volume, point(13)).expect("written");
    check(&store, &a);
    drop(store);
    let empty = scratch();
    let store = open(&disk, empty.path()).expect("opens");
    assert!(store.opened().rebuilt);
    check(&store, &a);
    // It and all that is damaged go, and who built on it stays.
    let gone = (3..=12).map(point).collect();
    store.drop_chosen(&a.volume, &gone).expect("nothing that stays needs what is damaged");
    let kept: Vec<_> = store.points(&a.volume, None).expect("points").iter().map(|kept| kept.id).collect();
    assert_eq!(kept, [1, 2, 13, 14].map(point));
    kept.iter().for_each(|id| a.check(&store, *id));
    drop(store);
    let store = open(&disk, scratch().path()).expect("opens");
    kept.iter().for_each(|id| a.check(&store, *id));
    b.check_all(&store);
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let dir = scratch();
    let disk = SimDisk::new(BTreeMap::new());
    let store = open(&disk, dir.path()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 9);
    (0..6).for_each(|_| store.append_and_wait(source.commit()).expect("written"));
    store.checkpoint(&source.volume, point(3)).expect("written");
    store.checkpoint(&source.volume, point(5)).expect("written");
    drop(store);
    let files = disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(0));
    let mut places = Vec::new();
    let mut id = [0; 16];
    id.copy_from_slice(&files[&1][16..32]);
    scan(&disk, id, None, 0, &mut |found| {
        if found.kind == Kind::Checkpoint as u8 {
            places.push(found.place);
        }
    })
    .expect("the log reads");
    let damaged = flip(&files, places[1].segment, u64::from(places[1].offset) + 50);
    let store = open(&SimDisk::new(damaged), dir.path()).expect("opens");
    source.check(&store, point(6));
}

#[test]
fn what_was_lost_with_the_end_of_the_log_is_named() {
    let dir = scratch();
    let (a, b, mut files) = two_volumes(dir.path());
    let (place, _) = commit_of(&files, &a, point(6));
    files.get_mut(&place.segment).expect("there").truncate(place.offset as usize);
    files.retain(|segment, _| *segment <= place.segment);
    let store = open(&SimDisk::new(files), dir.path()).expect("opens");
    let mut lost = store.opened().lost.clone();
    lost.sort();
    assert_eq!(lost, [(a.volume.clone(), point(10)), (b.volume.clone(), point(10))]);
    (1..=5).for_each(|seq| a.check(&store, point(seq)));
    (1..=5).for_each(|seq| b.check(&store, point(seq)));
}

#[test]
fn what_the_disk_does_not_read_now_is_not_damaged_for_good() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    let store = open(&disk, dir.path()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 3);
    (0..10).for_each(|_| store.append_and_wait(source.commit()).expect("written"));
    // Of the sixth nothing is left but its checkpoint, and all after it build on that.
    store.drop_chosen(&source.volume, &(1..=5).map(point).collect()).expect("dropped");
    let log = store.log_id().expect("readable").expect("a log");
    let (mut chunk, mut snapshot) = (None, None);
    scan(&disk, log, None, 0, &mut |found| match found.kind {
        kind if kind == Kind::Chunk as u8 && snapshot.is_none() => chunk = Some(found.place),
        kind if kind == Kind::Checkpoint as u8 => snapshot = Some(found.place),
        _ => {}
    })
    .expect("the log reads");
    for place in [chunk, snapshot].map(|place| place.expect("a record")) {
        disk.unread(Some((place.segment, u64::from(place.offset) + 40)));
        for seq in 6..=10 {
            let error = store.tree_at(&source.volume, point(seq)).expect_err("not read");
            assert!(error.is_unread() && !error.is_damage() && !error.is_lost(), "{seq}: {error}");
        }
        disk.unread(None);
        (6..=10).for_each(|seq| source.check(&store, point(seq)));
    }
}

#[test]
fn an_intact_record_of_a_torn_group_is_never_found_behind_a_new_one() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    let store = open(&disk, dir.path()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 1);
    (0..2).for_each(|_| store.append_and_wait(source.commit_of(1)).expect("written"));
    let torn = source.commit_of(1);
    let chunk = torn.records[0].clone();
    store.append_and_wait(torn).expect("written");
    drop(store);
    // As if the sectors of the last chunk had not made it and those of its commit had.
    let files = disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(0));
    let (commit, _) = commit_of(&files, &source, point(3));
    let disk = SimDisk::new(flip(&files, commit.segment, u64::from(commit.offset) - 100));
    let reopen = || open(&disk, scratch().path()).expect("opens");
    let store = reopen();
    assert!(store.opened().torn);
    // A record of the same length takes the torn one's place, and its number.
    store.append_and_wait(Batch::of(chunk)).expect("written");
    drop(store);
    let store = reopen();
    assert_eq!(store.points(&source.volume, None).expect("points").len(), 2);
}

#[test]
fn damage_before_a_synced_record_is_not_a_torn_tail() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    let store = open(&disk, dir.path()).expect("a new store");
    let mut source = Source::new(volume("t/a"), 1);
    (0..4).for_each(|_| store.append_and_wait(source.commit_of(1)).expect("written"));
    drop(store);
    let files = disk.crash(Left::Nothing, &mut StdRng::seed_from_u64(0));
    assert_eq!(files.len(), 1, "all in the last segment");
    let (place, number) = commit_of(&files, &source, point(2));
    let damaged = flip(&files, place.segment, u64::from(place.offset) + 60);
    let store = open(&SimDisk::new(damaged), scratch().path()).expect("opens");
    assert!(!store.opened().torn);
    assert_eq!(store.opened().damage[0].what, DamageKind::Body(number));
    assert_eq!(store.volume(&source.volume).expect("it is there").last.id, point(4));
}
