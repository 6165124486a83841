//! Who waits is woken, also by what inotify does not tell.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::super::WatchLimits;
use super::volume::Volume;
use super::{Event, Watched, covers, inode};

const LONG: Duration = Duration::from_secs(60);

/// Waits while `change` is made by another thread; returns what was drained then, and how long it took.
fn wait_for(watched: &mut Watched, change: impl FnOnce() + Send) -> (Vec<Event>, Duration) {
    let waker = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors left");
    let begun = Instant::now();
    let woken = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(30));
            change();
        });
        watched.watcher.wait(LONG, waker.as_fd()).expect("polling works")
    });
    let waited = begun.elapsed();
    assert!(woken, "{}: nothing in {waited:?}", watched.volume.kind);
    (watched.drain(), waited)
}

#[test]
fn stores_through_a_mapping_wake_at_once() {
    // Nobody looks: it is the kernel that wakes.
    let limits = WatchLimits { ring_look_every: LONG, ..WatchLimits::default() };
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let mut watched = Watched::open(volume, &limits);
        let file = watched.file("file");
        file.write_all_at(&[7; 40_960], 0).expect("there is room");
        // SAFETY: nobody truncates the file while it is mapped.
        let mut mapping = unsafe { MmapMut::map_mut(&file) }.expect("it can be mapped");
        for page in 0..10 {
            watched.volume.sync();
            watched.drain();
            let (events, waited) = wait_for(&mut watched, || mapping[page * 4096] = 1);
            let start = page as u64 * 4096;
            assert!(covers(&events, inode(&file), start, start + 1), "{kind}: {events:?}");
            assert!(waited < LONG / 2, "{kind}: {waited:?}");
        }
    }
}

#[test]
fn what_no_inotify_event_follows_is_found_by_looking() {
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let mut watched = Watched::open(volume, &WatchLimits::default());
        // Nobody watches this directory.
        std::fs::create_dir(watched.volume.path("sub")).expect("there is room");
        let file = watched.file("sub/file");
        file.write_all_at(&[7; 4096], 0).expect("there is room");
        watched.drain();
        // The page is dirty, so this write wakes nobody.
        let (events, waited) =
            wait_for(&mut watched, || file.write_all_at(&[1; 10], 100).expect("there is room"));
        assert!(covers(&events, inode(&file), 100, 110), "{kind}: {events:?}");
        assert!(waited < LONG / 2, "{kind}: {waited:?}");
    }
}

/// Goes from CPU to CPU, and on each dirties a page that is clean.
fn dirty_a_page_on_each_cpu(watched: &Watched, file: &std::fs::File) {
    let before = sched_getaffinity(None).expect("the thread has CPUs");
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| before.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).expect("it is one of its own");
        watched.volume.sync();
        file.write_all_at(&[1; 10], 100).expect("there is room");
    }
    sched_setaffinity(None, &before).expect("they were its own before");
}

#[test]
fn who_never_waits_interrupts_nobody() {
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let mut watched = Watched::open(volume, &WatchLimits::default());
        let file = watched.file("file");
        let waker = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors left");
        let wait = |watched: &mut Watched| {
            watched.watcher.wait(Duration::from_millis(50), waker.as_fd()).expect("polling works")
        };
        while wait(&mut watched) {
            watched.drain();
        }
        assert!(watched.watcher.listening() > 0, "{kind}: nobody would wake who waits");
        for round in 0..3 {
            dirty_a_page_on_each_cpu(&watched, &file);
            assert!(wait(&mut watched), "{kind}: there are events");
            assert_eq!(watched.watcher.listening(), 0, "{kind}, round {round}");
        }
    }
}

#[test]
fn a_wakeup_that_was_drained_is_told_once() {
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let mut watched = Watched::open(volume, &WatchLimits::default());
        watched.file("file").write_all_at(&[7; 40_960], 0).expect("there is room");
        watched.volume.sync();
        watched.drain();
        let waker = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors left");
        let begun = Instant::now();
        while watched.watcher.wait(Duration::from_millis(100), waker.as_fd()).expect("polling works") {
            watched.drain();
            assert!(begun.elapsed() < LONG, "{kind} is never quiet");
        }
    }
}
