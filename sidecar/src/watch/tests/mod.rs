//! The watcher on real filesystems.

mod fanotify;
mod measure;
mod names;
mod overflow;
mod paths;
mod volume;
mod waiting;

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tidelock_proto::FileId;

pub(crate) use self::volume::Volume as MountedVolume;
use self::volume::Volume;
use super::{Event, NamesChoice, SourceChoice, TrackerChoice, WatchLimits, Watcher};

/// A volume with an exact watcher on its root directory.
struct Watched {
    volume: Volume,
    watcher: Watcher,
}

impl Watched {
    fn open(volume: Volume, limits: &WatchLimits) -> Self {
        Self::with_names(volume, NamesChoice::Inotify, limits)
    }

    fn with_names(volume: Volume, names: NamesChoice, limits: &WatchLimits) -> Self {
        let root = volume.open_directory(".");
        let choice = SourceChoice { tracker: TrackerChoice::Exact, names };
        let mut watcher =
            Watcher::open(root.as_fd(), choice, limits).expect("tracepoints are there for root");
        watcher.watch_directory(FileId::ROOT, root.as_fd()).expect("there are watches left");
        Self { volume, watcher }
    }

    /// Everything that was queued before this call.
    fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.watcher.drain(&mut events).expect("draining works");
        events
    }

    fn file(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(self.volume.path(name)).expect("the file can be opened")
    }
}

/// Runs a test on ext4 and on xfs.
fn on_each_filesystem(test: impl Fn(Watched)) {
    for kind in ["ext4", "xfs"] {
        if let Some(volume) = Volume::mount(kind) {
            test(Watched::open(volume, &WatchLimits::default()));
        }
    }
}

/// Both sources of names.
const BOTH: [NamesChoice; 2] = [NamesChoice::Inotify, NamesChoice::Fanotify];

/// A watcher of `root` without ranges; `None`, with the reason printed, where this source of names cannot be had. Under CI
/// it must be.
fn names_alone(root: impl AsFd, names: NamesChoice) -> Option<Watcher> {
    let choice = SourceChoice { tracker: TrackerChoice::Inotify, names };
    match Watcher::open(root.as_fd(), choice, &WatchLimits::default()) {
        Ok(mut watcher) => {
            watcher.watch_directory(FileId::ROOT, root.as_fd()).expect("there are watches left");
            Some(watcher)
        }
        Err(why) if names == NamesChoice::Inotify || std::env::var_os("CI").is_some() => {
            panic!("{names:?}: {why}")
        }
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

fn inode(file: &File) -> u64 {
    file.metadata().expect("an open file has metadata").ino()
}

/// Whether the ranges of the inode cover these bytes together.
fn covers(events: &[Event], inode: u64, mut start: u64, end: u64) -> bool {
    for event in events {
        if let Event::Range { inode: changed, offset, len } = event
            && *changed == inode
            && *offset <= start
        {
            start = start.max(offset.saturating_add(*len));
        }
    }
    start >= end
}

fn mapped(events: &[Event], inode: u64) -> bool {
    events.contains(&Event::Mapped { inode })
}

fn no_loss(events: &[Event]) -> bool {
    !events.iter().any(|event| matches!(event, Event::Lost(_)))
}
