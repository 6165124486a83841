//! All event sources of one volume, behind one drain and one wait.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidelock_proto::FileId;

use super::inotify::InotifySource;
use super::{Event, RangeSource, Source, Unavailable, WatchError, WatchLimits, silent};

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
    /// Comparisons of the whole volume, whatever events say.
    Poll,
}

/// Which sources are in use. Shown in status and in every recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracker {
    /// Names from inotify, byte ranges from tracepoints.
    Exact,
    /// Names and "this file changed" from inotify.
    Inotify,
    /// The same, but not every change raises an event, so the whole volume is compared again and again. Nothing that is
    /// captured like this is known to have been an instant.
    Poll,
}

impl Tracker {
    /// The name in status, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Inotify => "inotify",
            Self::Poll => "poll",
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
    polls: bool,
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
        let mut polls = choice == TrackerChoice::Poll;
        let ranges = match choice {
            TrackerChoice::Auto => match silent::why(root) {
                Some(why) => {
                    polls = true;
                    Err(why)
                }
                None => RangeSource::open(root, limits).map_err(|why| {
                    not_permitted = matches!(why, Unavailable::NotPermitted | Unavailable::NoTracefs);
                    why.to_string()
                }),
            },
            TrackerChoice::Exact => match RangeSource::open(root, limits)? {
                ranges if ranges.is_exact() => Ok(ranges),
                _ => return Err(Unavailable::NoRanges.into()),
            },
            TrackerChoice::Inotify | TrackerChoice::Poll => Err("asked for".to_owned()),
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
        Ok(Self { names, ranges, reason, polls, not_permitted, choice, limits: limits.clone() })
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
            _ if self.polls => Tracker::Poll,
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

/// Wakeups without an event after which one wait goes on without them.
const WAKEUPS_FOR_NOTHING_MAX: u32 = 8;

/// Blocks until an event is queued in any of these, one of `wakers` is readable, or `timeout` passes. Returns whether an
/// event is queued.
///
/// A wakeup costs the application an interrupt to itself, so only those range events wake that inotify may not follow: a page
/// is dirtied, or mapped. What else inotify does not tell (`libaio`, a name outside the volume) is found by looking into the
/// rings now and then, which is a read of memory: ever more seldom as the wait grows longer.
pub fn wait_any(
    watchers: &[&Watcher],
    wakers: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<bool, WatchError> {
    let rings: Vec<_> = watchers.iter().flat_map(|watcher| &watcher.ranges).collect();
    let names: Vec<_> =
        watchers.iter().flat_map(|watcher| &watcher.names).flat_map(Source::pollable).collect();
    let wakeups: Vec<_> = rings.iter().flat_map(|ranges| ranges.pollable()).collect();
    let look_every = watchers
        .iter()
        .filter(|watcher| watcher.ranges.is_some())
        .map(|watcher| (watcher.limits.ring_look_every, watcher.limits.ring_look_at_rest))
        .min();
    let queued = || rings.iter().any(|ranges| !ranges.is_empty());
    let begun = Instant::now();
    // A wakeup that came before the last drain is told only now: once. Whatever else wakes for nothing must not do so in a
    // circle.
    let mut for_nothing = 0;
    loop {
        if queued() {
            return Ok(true);
        }
        let waited = begun.elapsed();
        let left = timeout.saturating_sub(waited);
        let look = look_every.map_or(left, |(every, at_rest)| every.max(waited.min(at_rest)).min(left));
        let wakeups = if for_nothing < WAKEUPS_FOR_NOTHING_MAX { &wakeups[..] } else { &[] };
        match poll_readable(&[wakers, &names, wakeups], look)? {
            [_, true, _] => return Ok(true),
            [true, ..] => return Ok(queued()),
            [.., true] => for_nothing += 1,
            _ if look == left => return Ok(queued()),
            _ => {}
        }
    }
}

/// Waits for any of the descriptors to be readable; returns whether one is, for each group of them.
fn poll_readable<const N: usize>(
    groups: &[&[BorrowedFd<'_>]; N],
    timeout: Duration,
) -> Result<[bool; N], WatchError> {
    let mut polled: Vec<PollFd<'_>> = groups
        .iter()
        .flat_map(|group| group.iter())
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(WatchError::Io { operation: "poll", source: error.into() }),
    }
    let mut polled = polled.iter();
    Ok(groups
        .map(|group| polled.by_ref().take(group.len()).filter(|fd| !fd.revents().is_empty()).count() > 0))
}
