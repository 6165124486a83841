//! All event sources of one volume, behind one drain and one wait.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidelock_proto::FileId;

use super::inotify::InotifySource;
use super::{Event, RangeSource, Source, Unavailable, WatchError, WatchLimits};

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
    /// `None` as long as the kernel grants no inotify instance: then no directory can be watched.
    names: Option<InotifySource>,
    ranges: Option<RangeSource>,
    reason: String,
    /// Exact ranges are wanted, and only a permission is missing.
    not_permitted: bool,
    choice: TrackerChoice,
    limits: WatchLimits,
}

impl Watcher {
    /// Starts watching the filesystem that holds `root`. No directory is watched yet. A kernel that grants no inotify
    /// instance now is asked again with every directory.
    pub fn open(
        root: BorrowedFd<'_>,
        choice: TrackerChoice,
        limits: &WatchLimits,
    ) -> Result<Self, WatchError> {
        let mut not_permitted = false;
        let ranges = match choice {
            TrackerChoice::Auto => RangeSource::open(root, limits).map_err(|why| {
                not_permitted = matches!(why, Unavailable::NotPermitted | Unavailable::NoTracefs);
                why.to_string()
            }),
            TrackerChoice::Exact => match RangeSource::open(root, limits)? {
                ranges if ranges.is_exact() => Ok(ranges),
                _ => return Err(Unavailable::NoRanges.into()),
            },
            TrackerChoice::Inotify => Err("asked for".to_owned()),
        };
        let names = match InotifySource::open(limits) {
            Ok(names) => Some(names),
            Err(WatchError::InstanceLimit { .. }) => None,
            Err(error) => return Err(error),
        };
        let (ranges, reason) = match ranges {
            Ok(ranges) if !ranges.is_exact() => {
                (Some(ranges), format!("{}; those of dirtied pages are used besides", Unavailable::NoRanges))
            }
            Ok(ranges) if ranges.sees_mappings() => {
                (Some(ranges), "all tracepoints are available".to_owned())
            }
            Ok(ranges) => (Some(ranges), "tracepoints are available, except for new mappings".to_owned()),
            Err(why) => (None, why),
        };
        Ok(Self { names, ranges, reason, not_permitted, choice, limits: limits.clone() })
    }

    /// The same choice of sources for another root, or again for this one.
    pub fn open_again(&self, root: BorrowedFd<'_>) -> Result<Self, WatchError> {
        Self::open(root, self.choice, &self.limits)
    }

    /// Whether exact ranges are wanted and there but for a permission or a mount of tracefs: see [`Self::reason`].
    pub fn lacks_permission(&self) -> bool {
        self.not_permitted
    }

    /// Which sources are in use.
    pub fn tracker(&self) -> Tracker {
        match &self.ranges {
            Some(ranges) if ranges.is_exact() => Tracker::Exact,
            _ => Tracker::Inotify,
        }
    }

    /// Why these sources were chosen: a short fragment for one log line.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Watches the directory `fd`, whose events are reported as those of `dir`. From when this returns every change in
    /// it raises events; list it only afterwards. Watching an inode again moves its watch to the newer id.
    pub fn watch_directory(&mut self, dir: FileId, fd: BorrowedFd<'_>) -> Result<(), WatchError> {
        let names = match &mut self.names {
            Some(names) => names,
            none => none.insert(InotifySource::open(&self.limits)?),
        };
        names.watch_directory(dir, fd)
    }

    /// Stops watching a directory.
    pub fn forget_directory(&mut self, dir: FileId) {
        if let Some(names) = &mut self.names {
            names.forget_directory(dir);
        }
    }

    /// Takes every event the kernel has queued before this call, without blocking.
    ///
    /// inotify comes first: a file's [`Event::Content`] is queued after the ranges of the same change, so whoever is told
    /// that a file changed is told by the same drain where.
    pub fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        if let Some(names) = &mut self.names {
            names.drain(events)?;
        }
        match &mut self.ranges {
            Some(ranges) => ranges.drain(events),
            None => Ok(()),
        }
    }

    /// Blocks until an event is queued, `waker` is readable, or `timeout` passes. Returns whether an event is queued.
    pub fn wait(&mut self, timeout: Duration, waker: BorrowedFd<'_>) -> Result<bool, WatchError> {
        wait_any(&[self], &[waker], timeout)
    }
}

/// Blocks until an event is queued in any of these, one of `wakers` is readable, or `timeout` passes. Returns whether an
/// event is queued.
pub fn wait_any(
    watchers: &[&Watcher],
    wakers: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<bool, WatchError> {
    // A ring tells of each wakeup only once, and most of its events cause none.
    let queued = |watcher: &&Watcher| watcher.ranges.as_ref().is_some_and(|ranges| !ranges.is_empty());
    if watchers.iter().any(queued) {
        return Ok(true);
    }
    let names = watchers.iter().flat_map(|watcher| &watcher.names).flat_map(Source::pollable);
    let mut polled: Vec<PollFd<'_>> =
        wakers.iter().copied().chain(names).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) => Ok(polled[wakers.len()..].iter().any(|fd| !fd.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(WatchError::Io { operation: "poll", source: error.into() }),
    }
}
