//! Names, attributes and the life of watched directories, from inotify and from fanotify.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::XattrFlags;
use tidelock_proto::FileId;

use super::super::{Event, Tracker, TrackerChoice, WatchLimits, Watcher};
use super::volume::{directory, open};
use super::{BOTH, names_alone};

fn drain(watcher: &mut Watcher) -> Vec<Event> {
    let mut events = Vec::new();
    watcher.drain(&mut events).expect("draining works");
    events
}

fn name(dir: FileId, name: &str) -> Event {
    Event::Name { dir, name: name.as_bytes().into() }
}

#[test]
fn every_change_of_an_entry_is_named() {
    for names in BOTH {
        let (root, fd) = directory();
        let Some(mut watcher) = names_alone(&fd, names) else { continue };
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        let attributes = Event::Attributes { dir: FileId::ROOT, name: b"b".as_slice().into() };

        fs::write(&a, "text").expect("there is room");
        let events = drain(&mut watcher);
        let content =
            |closed_write| Event::Content { dir: FileId::ROOT, name: b"a".as_slice().into(), closed_write };
        assert_eq!(events, [name(FileId::ROOT, "a"), content(false), content(true)]);

        fs::rename(&a, &b).expect("it is there");
        assert_eq!(drain(&mut watcher), [name(FileId::ROOT, "a"), name(FileId::ROOT, "b")]);

        fs::set_permissions(&b, fs::Permissions::from_mode(0o600)).expect("it is ours");
        assert_eq!(drain(&mut watcher), std::slice::from_ref(&attributes));

        if rustix::fs::setxattr(&b, "user.key", b"value", XattrFlags::empty()).is_ok() {
            assert_eq!(drain(&mut watcher), std::slice::from_ref(&attributes));
        }
        fs::hard_link(&b, &a).expect("links are supported");
        assert_eq!(drain(&mut watcher).last(), Some(&name(FileId::ROOT, "a")));

        fs::remove_file(&a).expect("it is there");
        assert!(drain(&mut watcher).contains(&name(FileId::ROOT, "a")));
    }
}

#[test]
fn a_directory_that_goes_says_so() {
    for names in BOTH {
        let (root, fd) = directory();
        let Some(mut watcher) = names_alone(&fd, names) else { continue };
        let dir = root.path().join("dir");
        fs::create_dir(&dir).expect("there is room");
        watcher.watch_directory(FileId(2), open(&dir).as_fd()).expect("there are watches left");
        drain(&mut watcher);

        fs::rename(&dir, root.path().join("moved")).expect("it is there");
        assert!(drain(&mut watcher).contains(&Event::DirectoryGone { dir: FileId(2) }));

        fs::write(root.path().join("moved/still-watched"), "").expect("there is room");
        assert!(drain(&mut watcher).contains(&name(FileId(2), "still-watched")));

        fs::remove_dir_all(root.path().join("moved")).expect("it is there");
        assert!(drain(&mut watcher).contains(&Event::DirectoryGone { dir: FileId(2) }));
    }
}

#[test]
fn attributes_of_the_directory_itself() {
    for names in BOTH {
        let (_root, fd) = directory();
        let Some(mut watcher) = names_alone(&fd, names) else { continue };
        rustix::fs::fchmod(&fd, 0o711.into()).expect("it is ours");
        assert_eq!(drain(&mut watcher), [Event::DirectoryAttributes { dir: FileId::ROOT }]);
    }
}

#[test]
fn a_directory_watched_again_reports_under_its_newest_id() {
    for names in BOTH {
        let (root, fd) = directory();
        let Some(mut watcher) = names_alone(&fd, names) else { continue };
        watcher.watch_directory(FileId(7), fd.as_fd()).expect("it replaces the watch");
        watcher.forget_directory(FileId::ROOT);
        fs::write(root.path().join("a"), "").expect("there is room");
        assert_eq!(drain(&mut watcher).first(), Some(&name(FileId(7), "a")));

        fs::write(root.path().join("b"), "").expect("there is room");
        watcher.forget_directory(FileId(7));
        assert_eq!(drain(&mut watcher), [], "what was queued is dropped with the directory");

        watcher.watch_directory(FileId(8), fd.as_fd()).expect("there are watches left");
        fs::write(root.path().join("c"), "").expect("there is room");
        assert_eq!(drain(&mut watcher).first(), Some(&name(FileId(8), "c")));
    }
}

#[test]
fn a_file_is_not_watched_as_a_directory() {
    for names in BOTH {
        let (root, fd) = directory();
        let Some(mut watcher) = names_alone(&fd, names) else { continue };
        fs::write(root.path().join("a"), "").expect("there is room");
        assert!(watcher.watch_directory(FileId(2), open(&root.path().join("a")).as_fd()).is_err());
    }
}

#[test]
fn waiting_ends_with_an_event_a_wake_or_the_timeout() {
    for names in BOTH {
        let (root, fd) = directory();
        let Some(mut watcher) = names_alone(&fd, names) else { continue };
        let waker = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors left");
        let long = Duration::from_secs(60);

        assert!(!watcher.wait(Duration::from_millis(1), waker.as_fd()).expect("polling works"));
        let begun = Instant::now();
        let path = root.path().join("a");
        let writer = std::thread::spawn(move || fs::write(path, ""));
        assert!(watcher.wait(long, waker.as_fd()).expect("polling works"));
        writer.join().expect("no panic").expect("there is room");
        drain(&mut watcher);

        rustix::io::write(&waker, &1u64.to_ne_bytes()).expect("it is open");
        assert!(!watcher.wait(long, waker.as_fd()).expect("polling works"));
        assert!(begun.elapsed() < long);
    }
}

#[test]
fn filesystems_without_tracepoints_are_watched_by_inotify() {
    let shm = open("/dev/shm".as_ref());
    let limits = WatchLimits::default();
    let watcher = Watcher::open(shm.as_fd(), TrackerChoice::Auto, &limits).expect("inotify is always there");
    assert_eq!(watcher.tracker(), Tracker::Inotify);
    assert!(watcher.reason().contains("tmpfs"), "{}", watcher.reason());
    let error =
        Watcher::open(shm.as_fd(), TrackerChoice::Exact, &limits).err().expect("tmpfs has no tracepoints");
    assert!(error.to_string().contains("tmpfs"), "{error}");
}
