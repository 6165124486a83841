//! Lost events are never lost silently.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use tidelock_proto::FileId;

use super::super::{Event, LostReason, TrackerChoice, WatchLimits, Watcher};
use super::volume::{Volume, directory};
use super::{Watched, covers, inode, no_loss};

fn tiny() -> WatchLimits {
    WatchLimits { ring_bytes_per_cpu: 4096, ..WatchLimits::default() }
}

fn overflowed(events: &[Event]) -> bool {
    events.iter().any(|event| matches!(event, Event::Lost(LostReason::RingOverflow { lost: 1.., .. })))
}

#[test]
fn a_full_ring_says_so_at_once_and_works_again() {
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let mut watched = Watched::open(volume, &tiny());
        let file = watched.file("file");
        for round in 0..3 {
            for page in 0..1000 {
                file.write_all_at(&[round; 10], page * 8192).expect("there is room");
            }
            // No further event fits in between: the kernel had no occasion to write a record of the loss.
            assert!(overflowed(&watched.drain()), "{kind}, round {round}");
            file.write_all_at(b"changed", 5).expect("there is room");
            let events = watched.drain();
            assert!(no_loss(&events) && covers(&events, inode(&file), 5, 12), "{kind}: {events:?}");
        }
    }
}

#[test]
fn a_ring_that_is_drained_in_time_loses_nothing() {
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let mut watched = Watched::open(volume, &tiny());
        let file = watched.file("file");
        for page in 0..2000 {
            file.write_all_at(&[1; 10], page * 8192).expect("there is room");
            if page % 8 == 7 {
                let events = watched.drain();
                let all = (page - 7..=page)
                    .all(|page| covers(&events, inode(&file), page * 8192, page * 8192 + 10));
                assert!(all && no_loss(&events), "{kind}: {events:?}");
            }
        }
    }
}

#[test]
fn a_full_inotify_queue_says_so() {
    let queued: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .expect("inotify has limits");
    let (root, fd) = directory();
    let mut watcher =
        Watcher::open(fd.as_fd(), TrackerChoice::Inotify, &WatchLimits::default()).expect("inotify works");
    watcher.watch_directory(FileId::ROOT, fd.as_fd()).expect("there are watches left");
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    fs::write(&a, "").expect("there is room");
    for round in 0..queued {
        let (from, to) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        fs::rename(from, to).expect("it is there");
    }
    let mut events = Vec::new();
    watcher.drain(&mut events).expect("draining works");
    assert_eq!(events.last(), Some(&Event::Lost(LostReason::QueueOverflow)));
    events.clear();
    fs::write(&a, "").expect("there is room");
    watcher.drain(&mut events).expect("draining works");
    assert!(no_loss(&events) && !events.is_empty());
}
