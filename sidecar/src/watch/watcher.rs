//! All event sources of one volume, behind one drain and one wait.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidelock_proto::FileId;

use super::names::Names;
use super::{Event, NamesChoice, RangeSource, Source, Unavailable, WatchError, WatchLimits, silent};

/// Which sources the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrackerChoice {
    /// The best there is.
    #[default]
    Auto,
    /// Exact ranges, or fail.
    Exact,
    /// No ranges: names and "this file changed" alone.
    Inotify,
    /// Comparisons of the whole volume, whatever events say.
    Poll,
}

/// All that the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SourceChoice {
    /// How changes are tracked.
    pub tracker: TrackerChoice,
    /// Where names come from.
    pub names: NamesChoice,
}

impl From<TrackerChoice> for SourceChoice {
    fn from(tracker: TrackerChoice) -> Self {
        Self { tracker, names: NamesChoice::default() }
    }
}

/// Which sources are in use. Shown in status and in every recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracker {
    /// Names from inotify or fanotify, byte ranges from tracepoints.
    Exact,
    /// Names and "this file changed" from inotify, or from fanotify, which says the same.
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
    names: Names,
    ranges: Option<RangeSource>,
    reason: String,
    polls: bool,
    /// Exact ranges are wanted, and only a permission is missing.
    not_permitted: bool,
    choice: SourceChoice,
    limits: WatchLimits,
}

impl Watcher {
    /// Starts watching the filesystem that holds `root`. No directory is watched yet. A kernel that grants no inotify
    /// instance now is asked again with every directory.
    pub fn open(
        root: BorrowedFd<'_>,
        choice: impl Into<SourceChoice>,
        limits: &WatchLimits,
    ) -> Result<Self, WatchError> {
        let choice = choice.into();
        let mut not_permitted = false;
        let mut polls = choice.tracker == TrackerChoice::Poll;
        let ranges = match choice.tracker {
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
        let names = Names::open(root, choice.names, limits)?;
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

    /// Why there are ranges, or none: a short fragment for one log line.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Why these sources were chosen, those of names, too: a fragment for one log line.
    pub fn reasons(&self) -> String {
        format!("{}; {}", self.reason, self.names.reason())
    }

    /// Whether [`Self::reasons`] are others than when this was last asked: more directories than inotify can watch.
    pub fn take_changed(&mut self) -> bool {
        self.names.take_changed()
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
    ///
    /// Names come first: a file's [`Event::Content`] is queued after the ranges of the same change, so whoever is told
    /// that a file changed is told by the same drain where.
    pub fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        self.names.drain(events)?;
        match &mut self.ranges {
            Some(ranges) => ranges.drain(events),
            None => Ok(()),
        }
    }

    /// Whether an event is known to be queued without asking the kernel.
    fn has_queued(&self) -> bool {
        self.names.has_pending() || self.ranges.as_ref().is_some_and(|ranges| !ranges.is_empty())
    }

    #[cfg(test)]
    pub(super) fn directories(&self) -> (usize, usize) {
        self.names.directories()
    }

    /// How many CPUs would wake who waits.
    #[cfg(test)]
    pub(super) fn listening(&self) -> usize {
        self.ranges.as_ref().map_or(0, RangeSource::listening)
    }

    /// Blocks until an event is queued, `waker` is readable, or `timeout` passes. Returns whether an event is queued.
    pub fn wait(&mut self, timeout: Duration, waker: BorrowedFd<'_>) -> Result<bool, WatchError> {
        wait_any(&mut [self], &[waker], timeout)
    }
}

/// Wakeups without an event after which one wait goes on without them.
const WAKEUPS_FOR_NOTHING_MAX: u32 = 8;

/// Blocks until an event is queued in any of these, one of `wakers` is readable, or `timeout` passes. Returns whether an
/// event is queued.
///
/// A wakeup costs the application an interrupt to itself, so only those range events wake that inotify may not follow (a page
/// is dirtied, or mapped), and only while somebody waits here. What else inotify does not tell (`libaio`, a name outside the
/// volume) is found by looking into the rings now and then, which is a read of memory: ever more seldom as the wait grows longer.
///
/// A marked filesystem wakes for everybody's events. Those of others are read and dropped here, and the queue is then left alone
/// for a moment ([`WatchLimits::others_rest`]).
pub fn wait_any(
    watchers: &mut [&mut Watcher],
    wakers: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<bool, WatchError> {
    let queued = listen_and_wait(watchers, wakers, timeout)?;
    watchers.iter().flat_map(|watcher| &watcher.ranges).try_for_each(RangeSource::hush)?;
    Ok(queued)
}

/// As [`wait_any`], for names alone: whatever is in the rings can wait, and wakes nobody.
pub fn wait_for_names(
    watchers: &[&Watcher],
    wakers: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<bool, WatchError> {
    if watchers.iter().any(|watcher| watcher.names.has_pending()) {
        return Ok(true);
    }
    let names: Vec<_> = watchers.iter().flat_map(|watcher| watcher.names.pollable()).collect();
    let [woken, named] = poll_readable(&[wakers, &names], timeout)?;
    Ok(woken || named)
}

fn listen_and_wait(
    watchers: &mut [&mut Watcher],
    wakers: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<bool, WatchError> {
    if watchers.iter().any(|watcher| watcher.has_queued()) {
        return Ok(true);
    }
    watchers.iter().flat_map(|watcher| &watcher.ranges).try_for_each(RangeSource::listen)?;
    let looks = watchers
        .iter()
        .filter(|watcher| watcher.ranges.is_some())
        .map(|watcher| (watcher.limits.ring_look_every, watcher.limits.ring_look_at_rest))
        .min();
    let others_rest = watchers.iter().map(|watcher| watcher.limits.others_rest).max().unwrap_or_default();
    let begun = Instant::now();
    let mut rest_until = None;
    // A wakeup that came before the last drain is told only now: once. Whatever else wakes for nothing must not do so in a
    // circle.
    let mut for_nothing = 0;
    loop {
        if watchers.iter().any(|watcher| watcher.has_queued()) {
            return Ok(true);
        }
        let now = Instant::now();
        let waited = now - begun;
        let left = timeout.saturating_sub(waited);
        let look = looks.map(|(every, at_rest)| every.max(waited.min(at_rest)));
        let rest = rest_until.map(|until: Instant| until.saturating_duration_since(now));
        let rest = rest.filter(|rest| !rest.is_zero());
        let look = [look, rest].into_iter().flatten().fold(left, Duration::min);
        let names: Vec<_> = match rest {
            None => watchers.iter().flat_map(|watcher| watcher.names.pollable()).collect(),
            Some(_) => Vec::new(),
        };
        let wakeups: Vec<_> = match for_nothing {
            WAKEUPS_FOR_NOTHING_MAX.. => Vec::new(),
            _ => watchers.iter().flat_map(|watcher| &watcher.ranges).flat_map(Source::pollable).collect(),
        };
        match poll_readable(&[wakers, &names, &wakeups], look)? {
            [_, true, _] => {
                for watcher in &mut *watchers {
                    if watcher.names.look()? {
                        return Ok(true);
                    }
                }
                rest_until = Some(Instant::now() + others_rest);
            }
            [true, ..] => return Ok(watchers.iter().any(|watcher| watcher.has_queued())),
            [.., true] => for_nothing += 1,
            _ if look == left => return Ok(watchers.iter().any(|watcher| watcher.has_queued())),
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
