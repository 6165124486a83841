//! What only a marked filesystem has: directories without watches, events of others, and the way there from inotify.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use tidelock_proto::FileId;

use super::super::{Event, NamesChoice, SourceChoice, TrackerChoice, WatchLimits, Watcher};
use super::volume::{Volume, directory, open};
use super::{names_alone, no_loss};

const DIRECTORIES: u64 = 1000;

fn drain(watcher: &mut Watcher) -> Vec<Event> {
    let mut events = Vec::new();
    watcher.drain(&mut events).expect("draining works");
    events
}

/// Every directory below `volume` is watched under the number in its name, and tells of a change.
fn all_are_covered(volume: &Volume, watcher: &mut Watcher) {
    for id in 2..DIRECTORIES + 2 {
        let path = volume.path(&id.to_string());
        fs::create_dir(&path).expect("there is room");
        watcher.watch_directory(FileId(id), open(&path).as_fd()).expect("no limit holds");
    }
    drain(watcher);
    for id in 2..DIRECTORIES + 2 {
        fs::write(volume.path(&format!("{id}/file")), "text").expect("there is room");
    }
    let events = drain(watcher);
    assert!(no_loss(&events), "{}", volume.kind);
    for id in 2..DIRECTORIES + 2 {
        let (dir, name) = (FileId(id), Box::from(b"file".as_slice()));
        let content = Event::Content { dir, name, closed_write: false };
        assert!(events.contains(&content), "{}: nothing of {id}", volume.kind);
    }
}

#[test]
fn more_directories_than_watches_are_covered() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let Some(volume) = Volume::mount(kind) else { continue };
        let root = volume.open_directory(".");
        let Some(mut watcher) = names_alone(&root, NamesChoice::Fanotify) else { continue };
        all_are_covered(&volume, &mut watcher);
        assert_eq!(watcher.directories(), (0, DIRECTORIES as usize + 1));
    }
}

#[test]
fn beyond_the_limit_of_inotify_the_filesystem_is_marked() {
    let Some(volume) = Volume::mount("ext4") else { return };
    let root = volume.open_directory(".");
    let limits = WatchLimits { inotify_watches: 10, ..WatchLimits::default() };
    let choice = |names| SourceChoice { tracker: TrackerChoice::Inotify, names };
    let mut watcher =
        Watcher::open(root.as_fd(), choice(NamesChoice::Auto), &limits).expect("inotify is always there");
    watcher.watch_directory(FileId::ROOT, root.as_fd()).expect("there are watches left");
    assert!(!watcher.take_changed());
    all_are_covered(&volume, &mut watcher);
    assert_eq!(watcher.directories(), (10, DIRECTORIES as usize - 9));
    assert!(watcher.take_changed() && !watcher.take_changed(), "said once");
    assert!(watcher.reasons().contains("limit of 10"), "{}", watcher.reasons());

    // A comparison of the whole volume watches everything again: each directory where it was.
    for id in 2..DIRECTORIES + 2 {
        let fd = volume.open_directory(&id.to_string());
        watcher.watch_directory(FileId(id), fd.as_fd()).expect("no limit holds");
    }
    assert_eq!(watcher.directories(), (10, DIRECTORIES as usize - 9));
    // Between a directory here and one there.
    drain(&mut watcher);
    fs::rename(volume.path("2/file"), volume.path("1001/other")).expect("it is there");
    let name = |dir, name: &[u8]| Event::Name { dir: FileId(dir), name: name.into() };
    assert_eq!(drain(&mut watcher), [name(2, b"file"), name(1001, b"other")]);
    (2..DIRECTORIES + 2).for_each(|id| watcher.forget_directory(FileId(id)));
    assert_eq!(watcher.directories(), (1, 0));

    let mut alone =
        Watcher::open(root.as_fd(), choice(NamesChoice::Inotify), &limits).expect("inotify is always there");
    let watched = (2..DIRECTORIES + 2)
        .map(|id| alone.watch_directory(FileId(id), volume.open_directory(&id.to_string()).as_fd()))
        .filter(Result::is_ok)
        .count();
    assert_eq!(watched, 10);
}

#[test]
fn what_was_queued_before_a_directory_was_watched_is_told() {
    let (root, fd) = directory();
    let Some(mut watcher) = names_alone(&fd, NamesChoice::Fanotify) else { return };
    let dir = root.path().join("dir");
    fs::create_dir(&dir).expect("there is room");
    fs::write(dir.join("early"), "").expect("there is room");
    watcher.watch_directory(FileId(2), open(&dir).as_fd()).expect("there is no limit");
    let early = Event::Name { dir: FileId(2), name: b"early".as_slice().into() };
    assert!(drain(&mut watcher).contains(&early));
}

#[test]
fn an_inode_number_used_again_is_another_directory() {
    let Some(volume) = Volume::mount("ext4") else { return };
    let root = volume.open_directory(".");
    let Some(mut watcher) = names_alone(&root, NamesChoice::Fanotify) else { return };
    let path = volume.path("dir");
    let mut numbers = Vec::new();
    for _ in 0..3 {
        fs::create_dir(&path).expect("there is room");
        numbers.push(super::inode(&File::open(&path).expect("it is there")));
        if numbers.len() == 1 {
            watcher.watch_directory(FileId(2), open(&path).as_fd()).expect("there is no limit");
        } else {
            fs::write(path.join("file"), "").expect("there is room");
            let of_the_first = |event: &Event| matches!(event, Event::Name { dir: FileId(2), .. });
            assert!(!drain(&mut watcher).iter().any(of_the_first));
        }
        fs::remove_dir_all(&path).expect("it is there");
        drain(&mut watcher);
    }
    assert_eq!(numbers[0], numbers[1], "ext4 takes the first number that is free");
    assert_eq!(watcher.directories(), (0, 1), "one that is gone is forgotten");
}

#[test]
fn events_of_others_are_ignored_and_wake_nobody() {
    let Some(volume) = Volume::mount("ext4") else { return };
    fs::create_dir(volume.path("ours"))
        .and_then(|()| fs::create_dir(volume.path("theirs")))
        .expect("there is room");
    let root = volume.open_directory("ours");
    let Some(mut watcher) = names_alone(&root, NamesChoice::Fanotify) else { return };
    let waker = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors left");
    let theirs = volume.path("theirs");
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            // Everything, with and without a name: also the last link of a file, and a directory that is open when it goes.
            for round in 0..2000 {
                let (file, link, dir) = (theirs.join("file"), theirs.join("link"), theirs.join("dir"));
                fs::write(&file, "text").expect("there is room");
                fs::hard_link(&file, &link).expect("there is room");
                fs::create_dir(&dir).expect("there is room");
                let held = (File::open(&file), File::open(&dir));
                fs::remove_file(&file).expect("it is there");
                fs::rename(&link, dir.join("moved")).expect("it is there");
                fs::remove_dir_all(&dir).expect("it is there");
                drop(held);
                fs::write(theirs.join(format!("{round}")), "text").expect("there is room");
            }
        });
        while !writer.is_finished() {
            let woken = watcher.wait(Duration::from_millis(20), waker.as_fd()).expect("polling works");
            assert!(!woken, "{:?}", drain(&mut watcher));
        }
    });
    assert_eq!(drain(&mut watcher), []);

    // Ours wakes at once also then.
    let begun = Instant::now();
    fs::write(theirs.join("before"), "").expect("there is room");
    fs::write(volume.path("ours/file"), "").expect("there is room");
    assert!(watcher.wait(Duration::from_secs(60), waker.as_fd()).expect("polling works"));
    assert!(watcher.wait(Duration::from_secs(60), waker.as_fd()).expect("polling works"), "not drained yet");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let name = Event::Name { dir: FileId::ROOT, name: b"file".as_slice().into() };
    assert_eq!(drain(&mut watcher).first(), Some(&name));
}

#[test]
fn where_handles_do_not_last_fanotify_is_refused() {
    let proc = open("/proc".as_ref());
    let choice = SourceChoice { tracker: TrackerChoice::Inotify, names: NamesChoice::Fanotify };
    let error =
        Watcher::open(proc.as_fd(), choice, &WatchLimits::default()).err().expect("/proc has no handles");
    assert!(error.to_string().contains("handles"), "{error}");
}
