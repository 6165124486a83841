//! Volumes that are deleted, beside others that share their chunks.

use std::collections::{BTreeMap, HashMap};

use tidelock_proto::{Epoch, PointId, Seq};

use super::{
    crash::{self, scratch},
    harness::{Source, keys, volume, with_keys},
    sim::SimDisk,
    verify,
};
use crate::{
    index::key,
    log::scan::scan,
    store::{Batch, HOLD, Record, Store, StoreError, StoreOptions, open::store_id, read::end_key},
};

fn options() -> StoreOptions {
    StoreOptions { segment_bytes: 64 * 1024, keys: keys(), ..StoreOptions::default() }
}

fn commit(store: &Store, source: &mut Source, points: usize) {
    (0..points).for_each(|_| store.append_and_wait(source.commit_of(3)).expect("written"));
}

/// Compacts until nothing more comes of it; the length of the log.
fn compact(store: &Store) -> u64 {
    while store.retire(&mut |_| ()).expect("compacted").segments > 0 {}
    store.log_len()
}

fn reopen(store: Store, dir: &std::path::Path, rebuild: bool) -> Store {
    drop(store);
    if rebuild { Store::rebuild(dir, options()) } else { Store::open(dir, options()) }.expect("opens")
}

/// Nothing of a volume is offered, and its last writer is fenced.
fn check_gone(store: &Store, source: &Source) {
    let name = &source.volume;
    assert!(!store.volumes().contains(name) && store.volume(name).is_none());
    assert_eq!(store.deleted(name), Some(Epoch(2)));
    let point = *source.points.keys().next_back().expect("it had points");
    for answer in [
        store.points(name, None).map(drop),
        store.point(name, point).map(drop),
        store.append_and_wait(Batch::of(Record::Tag { volume: name.clone(), point, tag: "late".to_owned() })),
    ] {
        assert!(matches!(answer, Err(StoreError::NoSuchVolume(_))), "{answer:?}");
    }
    let late = store.append_and_wait(source.clone().commit());
    assert!(matches!(late, Err(StoreError::Fenced { epoch: Epoch(2), .. })), "{late:?}");
    let again = store.delete(name, Epoch(1));
    assert!(matches!(again, Err(StoreError::NoSuchVolume(_))), "{again:?}");
}

fn a_deletion() {
    let dir = scratch();
    let mut store = Store::open(dir.path(), options()).expect("opens");
    // Of what it had, the clone of its newest point needs little.
    let (mut gone, mut stays, mut other) = (
        Source::new(volume("t/gone"), 1),
        Source::new(volume("t/stays"), 2),
        Source::new(volume("u/gone"), 3),
    );
    gone.small = true;
    for _ in 0..20 {
        commit(&store, &mut gone, 6);
        commit(&store, &mut stays, 1);
        commit(&store, &mut other, 1);
    }
    // Shared: the newest state of the volume that goes.
    let newest = *gone.points.keys().next_back().expect("points");
    store.clone_volume(&gone.volume, newest, &volume("t/clone"), 1).expect("cloned");
    let held = PointId::new(Epoch(1), Seq(3));
    store
        .append_and_wait(Batch::of(Record::Tag {
            volume: gone.volume.clone(),
            point: held,
            tag: format!("{HOLD}for nothing"),
        }))
        .expect("tagged");
    let before = compact(&store);

    let wrong = store.delete(&gone.volume, Epoch(2));
    assert!(matches!(wrong, Err(StoreError::EpochMoved { .. })), "{wrong:?}");
    let pin = store.pin(&gone.volume, held).expect("it is there");
    let open = store.delete(&gone.volume, Epoch(1));
    assert!(matches!(open, Err(StoreError::PointOpen(_, point)) if point == held), "{open:?}");
    gone.check_all(&store);
    drop(pin);
    let done = store.delete(&gone.volume, Epoch(1)).expect("deleted");
    assert_eq!((done.points, done.epoch), (120, Epoch(2)));

    let clone = volume("t/clone");
    let check = |store: &Store, what: &str| {
        check_gone(store, &gone);
        stays.check_all(store);
        other.check_all(store);
        let first = store.points(&clone, None).expect("points")[0].id;
        let tree = store.tree_at(&clone, first).expect("the clone opens");
        assert!(tree == gone.points[&newest], "{what}");
        assert_eq!(verify::run(store).0, [], "{what}");
    };
    check(&store, "deleted");
    store = reopen(store, dir.path(), false);
    check(&store, "opened again");
    store = reopen(store, dir.path(), true);
    check(&store, "rebuilt, and its records are still there");
    let after = compact(&store);
    assert!(after < before / 2, "{before} bytes before, {after} after");
    let live = store.retire(&mut |_| ()).expect("compacted").live_bytes;
    assert!(
        live < before / 2 && after < live + live / 2,
        "{before} bytes before, {after} after, {live} needed"
    );
    let left = |space: u8| {
        let (from, to) =
            (key::point(space, &gone.volume, PointId::default()), end_key(space, &gone.volume, newest));
        store.shared().index.range(&from, &to, false, usize::MAX).expect("read").len()
    };
    assert_eq!([key::POINT, key::CHECKPOINT, key::TAG].map(left), [0; 3]);
    check(&store, "compacted");
    store = reopen(store, dir.path(), true);
    check(&store, "rebuilt from what is left");

    // It begins anew, with the same numbers in another epoch.
    let mut anew = Source::new(gone.volume.clone(), 4);
    anew.set_epoch(Epoch(2));
    commit(&store, &mut anew, 10);
    for rebuild in [false, true] {
        anew.check_all(&store);
        assert_eq!(store.volume(&anew.volume).expect("it is there").points, 10);
        assert!(store.point(&anew.volume, anew.points.keys().next().copied().expect("points")).is_ok());
        compact(&store);
        assert_eq!(verify::run(&store).0, []);
        store = reopen(store, dir.path(), rebuild);
    }
    assert!(store.deleted(&anew.volume).is_none());
    assert_eq!(store.delete(&anew.volume, Epoch(2)).expect("deleted again").epoch, Epoch(3));
}

#[test]
fn a_deleted_volume_is_gone_for_good_and_others_keep_what_they_share_with_it() {
    a_deletion();
}

#[test]
fn a_volume_of_an_encrypted_tenant_is_deleted_likewise() {
    with_keys(&["t"], a_deletion);
}

/// The process dies after the first of several records: whatever comes next, the rest of the points goes too.
#[test]
fn an_interrupted_deletion_is_completed_by_whatever_comes_next() {
    for next in ["compaction", "rebuild", "a new volume", "a new volume, rebuilt"] {
        let dir = scratch();
        let store = Store::open(dir.path(), options()).expect("opens");
        let (mut gone, mut stays) = (Source::new(volume("t/gone"), 1), Source::new(volume("t/stays"), 2));
        commit(&store, &mut gone, 30);
        commit(&store, &mut stays, 3);
        let deleted = store.shared().delete_points(&gone.volume, Some(Epoch(1)), 7, 1).expect("begun");
        assert_eq!(deleted, 7);
        check_gone(&store, &gone);
        let store = reopen(store, dir.path(), next == "rebuild");
        check_gone(&store, &gone);
        let mut anew = Source::new(gone.volume.clone(), 4);
        anew.set_epoch(Epoch(2));
        let store = match next {
            "compaction" => {
                compact(&store);
                store
            }
            "rebuild" => store,
            _ => {
                commit(&store, &mut anew, 2);
                reopen(store, dir.path(), next.ends_with("rebuilt"))
            }
        };
        let known = store.placed_points(&gone.volume, PointId::default(), 100).expect("read");
        let known: Vec<PointId> = known.into_iter().map(|(id, _)| id).collect();
        assert_eq!(known, anew.points.keys().copied().collect::<Vec<_>>(), "{next}");
        // Somebody goes on with the old deletion: what has begun anew stays.
        store.shared().delete_points(&gone.volume, None, 7, usize::MAX).expect("nothing to do");
        if !anew.points.is_empty() {
            anew.check_all(&store);
        }
        stays.check_all(&store);
        assert_eq!(verify::run(&store).0, [], "{next}");
    }
}

#[test]
fn a_stopped_compaction_keeps_in_mind_what_was_deleted() {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("opens");
    let (mut gone, mut stays) = (Source::new(volume("t/gone"), 1), Source::new(volume("t/stays"), 2));
    commit(&store, &mut gone, 5);
    commit(&store, &mut stays, 3);
    store.delete(&gone.volume, Epoch(1)).expect("deleted");
    drop(store);
    let done = Store::compact(dir.path(), options(), &Default::default()).expect("compacted");
    assert_eq!(done.points, 3);
    let store = Store::open(dir.path(), options()).expect("opens");
    check_gone(&store, &gone);
    stays.check_all(&store);
}

/// Every sync of a deletion, and of giving its space back × everything that a crash before it may leave: the volume is there whole or is gone, and gone
/// if that was acknowledged; a volume that has chunks of it alone keeps them.
#[test]
fn a_crash_while_a_volume_goes_takes_nothing_of_another_along() {
    let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
    let store = crash::open(&disk, dir.path()).expect("a new store");
    let (mut gone, mut stays) = (Source::new(volume("t/gone"), 1), Source::new(volume("t/stays"), 2));
    for _ in 0..5 {
        commit(&store, &mut gone, 4);
        commit(&store, &mut stays, 1);
    }
    let point = *gone.points.keys().nth(9).expect("points");
    let clone = store.clone_volume(&gone.volume, point, &volume("t/clone"), 1).expect("cloned").id;
    store.checkpoint(&gone.volume, point).expect("written");
    store.quiesce();
    disk.watch();
    store.delete(&gone.volume, Epoch(1)).expect("deleted");
    disk.note(1);
    compact(&store);
    let moments = disk.moments();
    drop(store);
    assert!(disk.durable().len() < 12, "nothing was given back");

    let check = |store: &Store, acknowledged: bool, context: &str| {
        assert_eq!(verify::run(store).0, [], "{context}");
        stays.check_all(store);
        let tree = store.tree_at(&volume("t/clone"), clone).expect("the clone opens");
        assert!(tree == gone.points[&point], "{context}");
        let is_gone = store.volume(&gone.volume).is_none();
        assert!(is_gone || !acknowledged, "{context}: it is back");
        if is_gone {
            check_gone(store, &gone)
        } else {
            gone.check_all(store)
        }
        is_gone
    };
    let (mut images, mut kinds) = (0, HashMap::new());
    for (number, moment) in moments.iter().enumerate() {
        for files in moment.images() {
            images += 1;
            let disk = SimDisk::new(files.clone());
            let id = store_id(&disk).expect("read").expect("a log");
            let outcome = scan(&disk, id, None, 0, &mut |_| {}).expect("the log reads");
            assert_eq!(outcome.damage, [], "sync {number}");
            let segments: Vec<u32> = files.keys().copied().collect();
            kinds.entry((outcome.end.number, outcome.torn, segments)).or_insert((number, moment.note, files));
        }
    }
    let mut goes = [0, 0];
    for (number, acknowledged, files) in kinds.values() {
        let context = format!("sync {number}");
        let (disk, dir) = (SimDisk::new(files.clone()), scratch());
        let store = crash::open(&disk, dir.path()).expect("opens");
        let is_gone = check(&store, *acknowledged > 0, &context);
        goes[usize::from(is_gone)] += 1;
        compact(&store);
        check(&store, *acknowledged > 0, &format!("{context}, compacted"));
    }
    println!(
        "{} syncs, {images} images, {} stores opened: {goes:?} of them without it",
        moments.len(),
        kinds.len()
    );
    assert!(moments.len() > 8 && goes[0] > 0 && goes[1] > 8, "the test tests nothing");
}

/// A compaction has seen the volumes there are, then there is a clone, then its origin goes, then the compaction looks at that.
#[test]
fn a_clone_made_while_space_is_given_back_keeps_its_chunks() {
    let dir = scratch();
    let store = Store::open(dir.path(), options()).expect("opens");
    let (mut gone, mut other) = (Source::new(volume("t/gone"), 1), Source::new(volume("t/a"), 2));
    for _ in 0..10 {
        commit(&store, &mut gone, 3);
        commit(&store, &mut other, 1);
    }
    let newest = *gone.points.keys().next_back().expect("points");
    // What it does first, it has done; the rest comes behind the deletion.
    let cycle = store.shared().owed.begin_cycle();
    let volumes = store.volumes();
    store.clone_volume(&gone.volume, newest, &volume("t/clone"), 1).expect("cloned");
    store.delete(&gone.volume, Epoch(1)).expect("deleted");
    assert!(!volumes.contains(&volume("t/clone")));
    let needed: Vec<_> = gone.points[&newest]
        .iter()
        .flat_map(|(_, inode)| inode.extents().into_iter().flat_map(|extents| extents.iter()))
        .map(|(_, extent)| extent.chunk.id)
        .collect();
    let kept = store.shared().owed.counts_on(needed.iter());
    assert!(needed.len() > 5 && kept.iter().all(|kept| *kept), "a chunk of the clone could go");
    drop(cycle);
    assert!(!store.shared().owed.counts_on(needed.iter()).contains(&true), "for ever");
}
