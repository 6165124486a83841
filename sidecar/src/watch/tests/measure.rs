//! Not tests but measurements, run by hand: `cargo test --release -p tidelock-sidecar -- --ignored --nocapture measure`.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};
use tidelock_proto::FileId;

use super::super::{Event, TrackerChoice, WatchLimits, Watcher};
use super::volume::{Volume, open};
use super::{Watched, no_loss};

fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Watches the directory in `MEASURE_DIRECTORY`, and all below it, for ten seconds, and prints what came.
#[test]
#[ignore = "a measurement"]
fn measure_a_directory() {
    let Some(root) = std::env::var_os("MEASURE_DIRECTORY").map(PathBuf::from) else { return };
    let fd = open(&root);
    let mut watcher = Watcher::open(fd.as_fd(), TrackerChoice::Auto, &WatchLimits::default())
        .expect("inotify is always there");
    let mut directories = vec![root];
    let mut watched = 0;
    let mut inodes: HashSet<u64> = HashSet::new();
    while let Some(directory) = directories.pop() {
        watched += 1;
        watcher.watch_directory(FileId(watched), open(&directory).as_fd()).expect("there are watches left");
        let entries = std::fs::read_dir(&directory).expect("it can be listed").flatten();
        for entry in entries {
            inodes.insert(entry.ino());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                directories.push(entry.path());
            }
        }
    }
    let waker = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors left");
    let (begun, cpu) = (Instant::now(), thread_seconds());
    let mut events = Vec::new();
    let mut counts = [0usize; 6];
    let (mut drains, mut bytes, mut largest) = (0, 0u64, 0);
    let mut all = 0usize;
    while begun.elapsed() < Duration::from_secs(10) {
        watcher.wait(Duration::from_millis(100), waker.as_fd()).expect("polling works");
        watcher.drain(&mut events).expect("draining works");
        drains += 1;
        largest = largest.max(events.len());
        all += events.len();
        for event in events.drain(..) {
            if let Event::Range { inode, .. } | Event::Size { inode } | Event::Mapped { inode } = event
                && !inodes.contains(&inode)
            {
                continue;
            }
            let kind = match event {
                Event::Range { len, .. } => {
                    bytes = bytes.saturating_add(len);
                    0
                }
                Event::Size { .. } => 1,
                Event::Mapped { .. } => 2,
                Event::Content { .. } => 3,
                Event::Lost(why) => {
                    eprintln!("lost: {why}");
                    4
                }
                _ => 5,
            };
            counts[kind] += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let [ranges, sizes, mapped, contents, lost, other] = counts;
    eprintln!(
        "{} ({}): {watched} directories, {drains} drains, largest {largest}; {all} events, of which of known inodes: {ranges} ranges ({bytes} bytes), {sizes} sizes, {mapped} mapped, \
         {contents} contents, {other} others, {lost} losses; {:.1} % of a CPU",
        watcher.tracker(),
        watcher.reason(),
        (thread_seconds() - cpu) / begun.elapsed().as_secs_f64() * 100.0
    );
}

/// What being watched costs a writer, and how long a waiting watcher sleeps on after a write.
#[test]
#[ignore = "a measurement"]
fn measure_the_cost_of_a_write() {
    const WRITES: u64 = 200_000;
    for kind in ["ext4", "xfs"] {
        let Some(volume) = Volume::mount(kind) else { return };
        let file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(volume.path("file"))
            .expect("a new filesystem is empty");
        let write = |page: u64| file.write_all_at(&[1; 4096], page * 4096).expect("there is room");
        let nanoseconds = |per_batch: &mut dyn FnMut()| {
            let mut spent = Duration::ZERO;
            for first in (0..WRITES).step_by(1000) {
                let begun = Instant::now();
                (first..first + 1000).for_each(|page| write(page % 4096));
                spent += begun.elapsed();
                per_batch();
            }
            spent.as_nanos() as u64 / WRITES
        };
        nanoseconds(&mut || ());
        let alone = nanoseconds(&mut || ());
        let mut watched = Watched::open(volume, &WatchLimits::default());
        let cpu = thread_seconds();
        let mut drained = Duration::ZERO;
        let seen = nanoseconds(&mut || {
            let begun = Instant::now();
            assert!(no_loss(&watched.drain()));
            drained += begun.elapsed();
        });
        eprintln!(
            "{kind}: a write takes {alone} ns unwatched, {seen} ns watched; draining takes {} ns per write; {:.1} s of CPU in all",
            drained.as_nanos() as u64 / WRITES,
            thread_seconds() - cpu
        );

        let waker = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors left");
        let file = watched.file("file");
        let (sent, received) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            for page in 0..500 {
                std::thread::sleep(Duration::from_millis(2));
                sent.send(Instant::now()).expect("somebody listens");
                file.write_all_at(&[1; 4096], page * 4096).expect("there is room");
            }
        });
        let mut delays = Vec::new();
        while let Ok(begun) = received.recv() {
            while !watched.watcher.wait(Duration::from_secs(1), waker.as_fd()).expect("polling works") {}
            delays.push(begun.elapsed());
            while !watched.drain().iter().any(|event| matches!(event, Event::Content { .. })) {}
        }
        writer.join().expect("no panic");
        delays.sort_unstable();
        eprintln!(
            "{kind}: from before a write to the watcher awake: p50 {:?}, p99 {:?}, max {:?}",
            delays[delays.len() / 2],
            delays[delays.len() * 99 / 100],
            delays[delays.len() - 1]
        );
    }
}
