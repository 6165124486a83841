//! Every sync of a repair × everything that a crash before it may leave: no record that could be read is lost, nothing else becomes readable,
//! no tail is cut off, and a repair that is begun again ends well.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    crash::{open, scratch},
    crash_matrix::copy,
    harness::{Source, volume},
    sim::{Moment, SimDisk},
};
use crate::{
    log::{
        DamageKind, Place,
        disk::{Disk, SegmentFile},
        frame::RECORDS_START,
        scan::scan,
    },
    store::{Batch, Record, Store, open::store_id},
    verify::{Mending, examine},
};

type Files = BTreeMap<u32, Vec<u8>>;
/// Checksums of the bodies of intact records, by number; and the numbers of those that are not.
type Records = (BTreeMap<u64, u32>, BTreeSet<u64>);

/// A log as an open without any index reads it.
fn read(files: &Files) -> Records {
    let disk = SimDisk::new(files.clone());
    let store = store_id(&disk).expect("read").expect("a log");
    let (mut intact, mut lost) = (BTreeMap::new(), BTreeSet::new());
    let outcome = scan(&disk, store, None, 0, &mut |found| {
        intact.insert(found.number, crc32c::crc32c(&found.body));
    });
    for damage in outcome.expect("the log reads").damage {
        match damage.what {
            DamageKind::Body(number) => _ = lost.insert(number),
            DamageKind::Missing { first, last } => lost.extend(first..=last),
            DamageKind::Header | DamageKind::File => {}
            other => panic!("{other:?}"),
        }
    }
    (intact, lost)
}

struct Rig {
    disk: SimDisk,
    _dir: tempfile::TempDir,
    /// The index as it was before the repair.
    older: tempfile::TempDir,
    source: Source,
    chunks: Vec<Record>,
}

impl Rig {
    fn new() -> (Self, Store) {
        let (disk, dir, older) = (SimDisk::new(BTreeMap::new()), scratch(), scratch());
        let (mut source, mut chunks) = (Source::new(volume("t/a"), 3), Vec::new());
        let store = open(&disk, dir.path()).expect("a new store");
        for _ in 0..150 {
            let batch = source.commit();
            chunks.extend(batch.records.iter().filter(|record| matches!(record, Record::Chunk(_))).cloned());
            store.append_and_wait(batch).expect("written");
        }
        store.quiesce();
        drop(store);
        copy(&dir.path().join("index"), &older.path().join("index"));
        let store = open(&disk, dir.path()).expect("opens");
        (Self { disk, _dir: dir, older, source, chunks }, store)
    }

    fn place(&self, store: &Store, record: &Record) -> Place {
        let Record::Chunk(chunk) = record else { panic!("a chunk") };
        store.chunk_place("t", &chunk.id).expect("read").expect("known")
    }

    fn file(&self, segment: u32) -> std::sync::Arc<dyn SegmentFile> {
        self.disk.open(segment).expect("there")
    }

    /// As a disk does it: at rest.
    fn damage(&self, segment: u32, offset: u64, bytes: &[u8]) {
        let file = self.file(segment);
        file.write_at(bytes, offset).and_then(|()| file.sync()).expect("written");
    }

    /// Looks at every image, and opens one of each kind.
    fn check(
        &self,
        moments: &[Moment],
        before: &Records,
        after: &Records,
        repair: &dyn Fn(&Store),
    ) -> (usize, usize) {
        let (mut images, mut kinds) = (0, HashMap::new());
        for (number, moment) in moments.iter().enumerate() {
            for files in moment.images() {
                images += 1;
                let (intact, lost) = read(&files);
                for (record, sum) in &before.0 {
                    assert_eq!(intact.get(record), Some(sum), "sync {number}: record {record} is gone");
                }
                for (record, sum) in &intact {
                    // What a scar becomes is known as well.
                    let known = [&before.0, &after.0].iter().any(|known| known.get(record) == Some(sum));
                    assert!(known, "sync {number}: nobody wrote this record {record}");
                }
                assert!(lost.is_subset(&before.1), "sync {number}: more is lost: {lost:?}");
                kinds.entry((intact.len(), lost)).or_insert((number, files));
            }
        }
        for (number, files) in kinds.values() {
            for older in [false, true] {
                let context = format!("sync {number}, older index: {older}");
                let dir = scratch();
                if older {
                    copy(&self.older.path().join("index"), &dir.path().join("index"));
                }
                let disk = SimDisk::new(files.clone());
                let mut store = open(&disk, dir.path()).expect("opens");
                repair(&store);
                if !older {
                    // What the index was made without is there now.
                    drop(store);
                    std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
                    store = open(&disk, dir.path()).expect("opens");
                }
                self.source.check_all(&store);
                let (summary, _) =
                    examine(&store, &|_| true, &mut |_| true).expect("read").expect("to the end");
                assert_eq!(summary.damaged_points, 0, "{context}");
            }
        }
        (images, kinds.len())
    }
}

#[test]
fn a_crash_while_chunks_come_again_loses_nothing() {
    let (rig, store) = Rig::new();
    // In this one the bytes of the header that change are in two sectors.
    let in_two = |record: &&Record| (rig.place(&store, record).offset + 32).is_multiple_of(512);
    let lost: Vec<Record> = [
        rig.chunks.iter().find(in_two).expect("one of 64"),
        rig.chunks.iter().find(|record| !in_two(record)).expect("most"),
        rig.chunks.iter().rev().nth(12).expect("chunks of the last segment"),
    ]
    .map(Clone::clone)
    .to_vec();
    for record in &lost {
        let place = rig.place(&store, record);
        let mut body = vec![0; 8];
        rig.file(place.segment).read_at(&mut body, u64::from(place.offset) + 50).expect("read");
        let flipped: Vec<u8> = body.iter().map(|byte| !byte).collect();
        rig.damage(place.segment, u64::from(place.offset) + 50, &flipped);
    }
    let before = read(&rig.disk.durable());
    assert_eq!(before.1.len(), 3, "{:?}", before.1);
    rig.disk.watch();
    let repair = |store: &Store| {
        let (_, broken) = examine(store, &|_| true, &mut |_| true).expect("read").expect("to the end");
        let mending = Mending::of(store, &broken.faults).expect("read");
        for record in &lost {
            let Record::Chunk(chunk) = record else { panic!("a chunk") };
            if !store.is_whole("t", chunk.id) {
                store.append_and_wait(Batch::of(record.clone())).expect("written");
            }
        }
        mending.close_scars(store).expect("written")
    };
    assert_eq!(repair(&store), 3);
    let moments = rig.disk.moments();
    drop(store);
    let after = read(&rig.disk.durable());
    assert!(after.1.is_empty(), "{:?}", after.1);
    let (images, kinds) = rig.check(&moments, &before, &after, &|store| _ = repair(store));
    println!("{} syncs, {images} images, {kinds} of them different", moments.len());
    assert!(moments.len() >= 7 && images > 50 && kinds > 5, "the test tests nothing");
}

#[test]
fn a_crash_while_the_archive_mends_a_segment_loses_nothing() {
    let (rig, store) = Rig::new();
    let mark = store.durable_mark().expect("a log");
    assert!(mark.segment > 2);
    let right = |segment: u32| {
        let mut bytes = vec![0; rig.file(segment).len().expect("read") as usize];
        rig.file(segment).read_at(&mut bytes, 0).expect("read");
        bytes
    };
    let copies: Vec<(u32, Vec<u8>)> = [1, 2, mark.segment].map(|segment| (segment, right(segment))).to_vec();
    rig.damage(1, 0, &[0; 3000]);
    rig.damage(2, 20_000, &[9; 9000]);
    rig.damage(mark.segment, RECORDS_START + 100, &[0; 700]);
    let before = read(&rig.disk.durable());
    rig.disk.watch();
    let mend = |store: &Store| {
        copies.iter().map(|(segment, copy)| store.mend(*segment, copy.clone()).expect("written")).sum::<u64>()
    };
    assert!(mend(&store) > 12_000);
    let moments = rig.disk.moments();
    drop(store);
    let after = read(&rig.disk.durable());
    assert!(after.1.is_empty(), "{:?}", after.1);
    let (images, kinds) = rig.check(&moments, &before, &after, &|store| _ = mend(store));
    println!("{} syncs, {images} images, {kinds} of them different", moments.len());
    assert!(moments.len() == 3 && images > 60 && kinds > 4, "the test tests nothing");
}
