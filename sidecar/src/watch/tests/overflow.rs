//! Lost events are never lost silently.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::{Event, LostReason, NamesChoice, WatchLimits, Watcher};
use super::volume::{Volume, directory};
use super::{Watched, covers, inode, names_alone, no_loss};

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

/// What the kernel lets a queue of names hold.
fn queue_limit(kind: &str) -> usize {
    fs::read_to_string(format!("/proc/sys/fs/{kind}/max_queued_events"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .expect("queues have limits")
}

/// Makes more events than the queue holds; the kernel may merge those of one name.
fn overflows(mut watcher: Watcher, root: &Path, queued: usize, reason: LostReason) {
    let name = |round: usize| root.join(format!("{round}"));
    fs::write(name(0), "").expect("there is room");
    for round in 0..queued {
        fs::rename(name(round), name(round + 1)).expect("it is there");
    }
    let mut events = Vec::new();
    watcher.drain(&mut events).expect("draining works");
    assert_eq!(events.last(), Some(&Event::Lost(reason)));
    events.clear();
    fs::write(root.join("a"), "").expect("there is room");
    watcher.drain(&mut events).expect("draining works");
    assert!(no_loss(&events) && !events.is_empty());
}

#[test]
fn a_full_inotify_queue_says_so() {
    let (root, fd) = directory();
    let watcher = names_alone(&fd, NamesChoice::Inotify).expect("inotify is always there");
    overflows(watcher, root.path(), queue_limit("inotify"), LostReason::QueueOverflow);
}

#[test]
fn a_full_fanotify_queue_says_so() {
    // A filesystem of its own: others' events would fill the queue, too.
    let Some(volume) = Volume::mount("ext4") else { return };
    let root = volume.open_directory(".");
    let Some(watcher) = names_alone(&root, NamesChoice::Fanotify) else { return };
    overflows(watcher, &volume.path("."), queue_limit("fanotify"), LostReason::NamesOverflow);
}
