//! Every way to change a file's content, on ext4 and xfs: the events of one drain must cover the change.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use memmap2::MmapMut;
use rustix::fs::{FallocateFlags, fallocate};

use super::super::{Event, WatchLimits};
use super::volume::Volume;
use super::{Watched, covers, inode, mapped, no_loss, on_each_filesystem};

const MIB: u64 = 1 << 20;

/// A file of four MiB beyond what was drained. Its pages are clean and in large folios: those of the first half as a
/// large write makes them, those of the second half as reading ahead does.
fn prepared(watched: &mut Watched) -> File {
    let mut file = watched.file("file");
    file.write_all(&vec![7; 4 * MIB as usize]).expect("there is room");
    watched.volume.sync();
    rustix::fs::fadvise(&file, 2 * MIB, None, rustix::fs::Advice::DontNeed).expect("a hint");
    for page in 512..1024 {
        file.read_exact_at(&mut [0; 4096], page * 4096).expect("it can be read");
    }
    watched.drain();
    file
}

/// What one change to the prepared file must raise.
fn check(name: &str, change: impl Fn(&Watched, &File), expect: impl Fn(&[Event], u64) -> bool) {
    on_each_filesystem(|mut watched| {
        let file = prepared(&mut watched);
        change(&watched, &file);
        let events = watched.drain();
        assert!(
            no_loss(&events) && expect(&events, inode(&file)),
            "{name} on {}: {events:?}",
            watched.volume.kind
        );
    });
}

fn unmapped_range(start: u64, end: u64) -> impl Fn(&[Event], u64) -> bool {
    move |events, inode| covers(events, inode, start, end) && !mapped(events, inode)
}

fn resized(events: &[Event], inode: u64) -> bool {
    let name: Box<[u8]> = b"file".as_slice().into();
    let content =
        events.iter().any(|event| matches!(event, Event::Content { name: changed, .. } if *changed == name));
    events.contains(&Event::Size { inode }) || content
}

#[test]
fn writes_into_large_folios_are_exact() {
    // Most of these are not in the first page of their folio.
    let offsets = || (0..64).map(|write| write * 65_536 + 21_000);
    check(
        "pwrite",
        |_, file| {
            offsets().for_each(|offset| file.write_all_at(b"changed", offset).expect("it can be written"))
        },
        |events, inode| {
            let ranges: Vec<_> =
                events.iter().filter(|event| matches!(event, Event::Range { .. })).cloned().collect();
            let exact: Vec<_> = offsets().map(|offset| Event::Range { inode, offset, len: 7 }).collect();
            ranges == exact && !mapped(events, inode)
        },
    );
}

#[test]
fn an_append() {
    let append = |_: &Watched, file: &File| file.write_all_at(&[1; 5000], 4 * MIB).expect("there is room");
    check("append", append, unmapped_range(4 * MIB, 4 * MIB + 5000));
}

#[test]
fn a_write_beyond_the_end() {
    let write = |_: &Watched, file: &File| file.write_all_at(&[1; 5000], 6 * MIB).expect("there is room");
    check("sparse append", write, unmapped_range(6 * MIB, 6 * MIB + 5000));
}

#[repr(align(4096))]
struct Aligned([u8; 8192]);

fn open_direct(watched: &Watched) -> File {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(watched.volume.path("file")).expect("direct I/O is supported")
}

#[test]
fn direct_writes() {
    for offset in [MIB, 4 * MIB, 8 * MIB] {
        check(
            "O_DIRECT",
            |watched, _| {
                open_direct(watched).write_all_at(&Aligned([1; 8192]).0, offset).expect("there is room")
            },
            unmapped_range(offset, offset + 8192),
        );
    }
}

#[test]
fn direct_reads_are_no_changes() {
    check(
        "O_DIRECT read",
        |watched, _| {
            open_direct(watched).read_exact_at(&mut Aligned([1; 8192]).0, MIB).expect("it can be read")
        },
        |events, _| !events.iter().any(|event| matches!(event, Event::Range { .. } | Event::Size { .. })),
    );
}

fn map(file: &File) -> MmapMut {
    // SAFETY: nobody truncates the file while it is mapped.
    unsafe { MmapMut::map_mut(file) }.expect("it can be mapped")
}

#[test]
fn a_store_to_a_clean_page() {
    check(
        "mmap store",
        |_, file| map(file)[20_000] = 1,
        |events, inode| mapped(events, inode) && covers(events, inode, 20_000, 20_001),
    );
}

#[test]
fn a_store_to_a_page_that_a_write_dirtied() {
    check(
        "mmap store to a dirty page",
        |_, file| {
            file.write_all_at(b"changed", 20_000).expect("it can be written");
            map(file)[24_000] = 1;
        },
        |events, inode| mapped(events, inode) && covers(events, inode, 20_000, 20_007),
    );
}

#[test]
fn stores_after_a_write_back_raise_ranges_again() {
    on_each_filesystem(|mut watched| {
        let file = prepared(&mut watched);
        let mut mapping = map(&file);
        mapping[20_000] = 1;
        assert!(mapped(&watched.drain(), inode(&file)));
        for round in 0..20 {
            file.sync_data().expect("it can be written back");
            // A write that dirties the same folio must not hide the store.
            if round % 2 == 0 {
                file.write_all_at(b"changed", 20_000).expect("it can be written");
            }
            mapping[24_576 + round] = 2;
            let events = watched.drain();
            assert!(!mapped(&events, inode(&file)), "announced once: {events:?}");
            assert!(covers(&events, inode(&file), 24_576, 28_672), "round {round}: {events:?}");
        }
    });
}

#[test]
fn a_mapping_older_than_the_source_is_found_by_its_stores() {
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(volume.path("file"))
            .expect("a new filesystem is empty");
        file.write_all(&vec![7; 4 * MIB as usize]).expect("there is room");
        let mut mapping = map(&file);
        mapping.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        volume.sync();
        let mut watched = Watched::open(volume, &WatchLimits::default());
        mapping[20_000] = 2;
        let events = watched.drain();
        assert!(mapped(&events, inode(&file)), "{kind}: {events:?}");
        mapping[3 * MIB as usize] = 2;
        let events = watched.drain();
        assert!(covers(&events, inode(&file), 3 * MIB, 3 * MIB + 1), "{kind}: {events:?}");
    }
}

#[test]
fn truncation_both_ways() {
    for size in [1_000_001, 0, 4 * MIB + 5, 40 * MIB] {
        check("truncate", |_, file| file.set_len(size).expect("there is room"), resized);
    }
}

fn allocate(flags: FallocateFlags, offset: u64, len: u64) -> impl Fn(&Watched, &File) {
    move |_, file| fallocate(file.as_fd(), flags, offset, len).expect("it is supported")
}

#[test]
fn punched_and_zeroed_ranges() {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // Whole blocks, with ragged edges, and within one block.
    for (start, end) in [(MIB, 2 * MIB), (409_700, 429_700), (8193, 8200), (8190, 8194)] {
        check("punch", allocate(punch, start, end - start), unmapped_range(start, end));
        check("zero", allocate(FallocateFlags::ZERO_RANGE, start, end - start), unmapped_range(start, end));
    }
}

#[test]
fn collapsed_and_inserted_ranges() {
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        check("shift", allocate(flags, MIB, 8192), |events, inode| {
            covers(events, inode, MIB, u64::MAX) && resized(events, inode) && !mapped(events, inode)
        });
    }
}

#[test]
fn allocation_beyond_the_end() {
    check("extend", allocate(FallocateFlags::empty(), 4 * MIB, MIB), resized);
}

#[test]
fn copies_in_the_kernel() {
    check(
        "copy_file_range",
        |watched, file| {
            let source = watched.file("source");
            source.write_all_at(&[3; 100_000], 0).expect("there is room");
            let copied = rustix::fs::copy_file_range(&source, None, file, Some(&mut (MIB + 1)), 100_000);
            assert_eq!(copied.expect("it can be copied"), 100_000);
        },
        unmapped_range(MIB + 1, MIB + 100_001),
    );
}

#[test]
fn reflinks() {
    let Some(volume) = Volume::mount("xfs") else { return };
    let mut watched = Watched::open(volume, &WatchLimits::default());
    let file = prepared(&mut watched);
    let clone = watched.file("clone");
    rustix::fs::ioctl_ficlone(&clone, &file).expect("xfs can clone");
    let events = watched.drain();
    assert!(covers(&events, inode(&clone), 0, 4 * MIB), "{events:?}");
    clone.write_all_at(b"changed", 10).expect("there is room");
    clone.sync_data().expect("it can be written back");
    let events = watched.drain();
    assert!(events.contains(&Event::Range { inode: inode(&clone), offset: 10, len: 7 }), "{events:?}");
    assert!(!covers(&events, inode(&clone), 100, 4096), "the copy on write is no change: {events:?}");
}
