//! All event sources of one volume, behind one drain and one wait.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidelock_proto::FileId;

use super::inotify::InotifySource;
use super::{Event, Source, WatchError, WatchLimits};

/// Which sources the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrackerChoice {
    /// The best there is.
    #[default]
    Auto,
    /// Exact ranges, or fail.
    Exact,
    /// inotify alone.
    Inotify,
}

/// Which sources are in use. Shown in status and in every recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracker {
    /// Names from inotify, byte ranges from tracepoints.
    Exact,
    /// Names and "this file changed" from inotify.
    Inotify,
}

impl Tracker {
    /// The name in status, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Inotify => "inotify",
        }
    }
}

impl fmt::Display for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All sources of one volume.
pub struct Watcher {
    names: InotifySource,
    reason: String,
}

impl Watcher {
    /// Starts watching the filesystem that holds `root`. No directory is watched yet.
    pub fn open(
        _root: BorrowedFd<'_>,
        _choice: TrackerChoice,
        limits: &WatchLimits,
    ) -> Result<Self, WatchError> {
        Ok(Self { names: InotifySource::open(limits)?, reason: "inotify was asked for".to_owned() })
    }

    /// Which sources are in use.
    pub fn tracker(&self) -> Tracker {
        Tracker::Inotify
    }

    /// Why these sources were chosen: a short fragment for one log line.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Watches the directory `fd`, whose events are reported as those of `dir`. From when this returns every change in
    /// it raises events; list it only afterwards. Watching an inode again moves its watch to the newer id.
    pub fn watch_directory(&mut self, dir: FileId, fd: BorrowedFd<'_>) -> Result<(), WatchError> {
        self.names.watch_directory(dir, fd)
    }

    /// Stops watching a directory.
    pub fn forget_directory(&mut self, dir: FileId) {
        self.names.forget_directory(dir);
    }

    /// Takes every event the kernel has queued before this call, without blocking.
    pub fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        self.names.drain(events)
    }

    /// Blocks until an event is queued, `waker` is readable, or `timeout` passes. Returns whether an event is queued.
    pub fn wait(&mut self, timeout: Duration, waker: BorrowedFd<'_>) -> Result<bool, WatchError> {
        let mut polled: Vec<PollFd<'_>> = vec![PollFd::from_borrowed_fd(waker, PollFlags::IN)];
        polled
            .extend(self.names.pollable().into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) => Ok(polled[1..].iter().any(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(WatchError::Io { operation: "poll", source: error.into() }),
        }
    }
}
