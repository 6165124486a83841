//! The cut: crash consistency without stopping the application.
//!
//! The idea is a sequence lock over a file system, reached by the pre-copy rounds of a live migration:
//!
//! ```text
//! loop:
//!     started := now
//!     new := drain every event source
//!     if new is empty and everything announced before is captured:
//!         commit; the cut is the instant `started`
//!     capture part of what was announced
//! ```
//!
//! # Why the commit is an instant of the volume
//!
//! Claim: at the commit the captured tree contains every change that had returned to its program before `started`, and
//! of changes still in flight at `started` any part or none, which is what a crash at `started` could have left.
//!
//! 1. *Every returned change was announced.* The kernel queues the event of a change before the system call that made
//!    it returns (stores through a mapping: before the faulting store executes). A change that returned before
//!    `started` is thus in the queue when the drain that began at `started` takes it, or was taken earlier; an event the
//!    kernel had to drop is itself announced ([`crate::watch::Event::Lost`]) and makes the whole volume dirty.
//! 2. *Everything announced is captured.* [`dirty::Dirty`] drops nothing but what was captured or belongs to an inode that
//!    is gone; the commit requires it to be empty after that drain.
//! 3. *A capture that follows an announcement sees its effect.* inotify events follow their effect; so do those of fanotify,
//!    which the kernel queues at the same places, and all that is said of inotify here holds for it ([`crate::watch::FanotifySource`]). Of the exact events
//!    some come before it, while their writer holds the inode's lock; the capture passes through that lock before it
//!    looks ([`crate::capture::barrier`], table in [`crate::watch`]). Where a writer is announced before it takes the lock
//!    (`fallocate`), the inotify event that follows the effect makes the same bytes dirty again.
//! 4. *Nothing captured is stale.* If something changed after it was read and before `started`, then by 1 its event
//!    was found by a drain after the read, so by 2 it was read again, by 3 with its effect. Hence at the last drain all
//!    captured state equals the volume's at `started`, but for changes in flight.
//! 5. *Reads are not torn across a cut.* A page read while it is written may mix old and new bytes; its writer is
//!    then in flight and its event queued or about to be; if it returns before `started` the page was read again
//!    by 4; if not, a crash could have torn it in the same way: the kernel makes no promise for a write in flight.
//! 6. *Names.* A rename is seen at two names looked up at two instants. Passing through the directories' locks before
//!    the drain ([`names`]) makes its events visible to that drain if half of it was seen; then there is another
//!    round, and the round that finds no event saw all of it or none. An inode without a name is dropped only at the commit.
//! 7. *Two sources.* Both are drained between any capture and the commit, so the argument holds for each alone. inotify
//!    is drained first: an `IN_MODIFY` that was seen has its range event in the same drain, or earlier.
//! 8. *Causality between programs.* If one program saw a change complete and then made its own, and the second is in the cut,
//!    so is the first: it returned earlier, hence before `started` or in the same drain.
//!
//! # Why it is one instant of all volumes of a group
//!
//! All volumes of a sidecar are cut together ([`cutter`]): a round drains the sources of all of them, captures what is dirty in
//! any, and they are committed, under one number, only after a drain over all of them that found nothing in any. `started` is the
//! moment before that drain takes from its first source.
//!
//! 1. *Each volume is captured at `started`.* For each the drain of its sources began after `started`, and after the last
//!    read of it, which was in an earlier round; so the argument above holds for it with the same `started`. That the sources
//!    are drained one after the other does no harm: what a later one announces besides, because it changed after `started`,
//!    makes its volume dirty and the round is not the last.
//! 2. *Nothing later is in it.* Every read was done before the last drain began, so of a change that began after
//!    `started` nothing is in any volume.
//! 3. *Causality across volumes.* If a program saw a change of one volume complete and then made one in another (a log record, then the
//!    page it describes), and the second is in the cut or part of it is, then it began before `started` by 2, so the
//!    first had returned before `started`, and is in the cut by 1.
//!
//! 2 is what cutters of their own could not give: each would be right for an instant, and the instants would differ.
//! The commits are given to one session for each volume and become durable one by one. So a number is a point of the
//! group only where every volume has it; the names of the volumes are in each commit for whoever looks ([`tidelock_proto::point::Cut`]).
//!
//! # While the application is paused
//!
//! Nothing above asks whether the application runs, so nothing above changes where [`crate::pause`] stops it. A pause only makes it likely
//! that a drain finds nothing. What it does not stop (work that the kernel does by itself, programs that were not
//! selected; the list is in [`crate::pause`]) is announced like anything else and gives another round, never a wrong cut.
//!
//! # After a loss
//!
//! A loss is announced by the drain that would have found what was lost, so no commit before it is touched, and every later
//! change has its event. The scan that follows compares each file by size and change time, then by content. A change time
//! moves before a write raises its event, so what was lost moved it. The comparison is not deceived as long as no change time
//! is recorded under which something was lost. A write moves it once, when it begins, and may then go on for seconds (a large
//! one, or one that has to wait for the disk) and raise its events all that time. So it is recorded (`Engine::is_sure`) either
//!
//! - with the whole content: it was seen after the barrier, which waits for the writes under way, and before the bytes; and it was
//!   older than a second when the barrier began, so whatever began later has another one;
//! - or at the second look: at the first, after the barrier, it was older than a second, so every write under it had returned and
//!   queued its events; between the two looks there was a drain, which would have told of a loss; at the second look it
//!   is still the same, so nothing began since. While a scan lasts this is not enough, because the loss may be older.
//!
//! Direct writes share the lock, so the barrier does not wait for them. One that its device holds up for more than a second,
//! and whose completion is then lost, could be missed until the scrub finds it.
//!
//! # Limits
//!
//! What is not claimed: with the `inotify` tracker, stores through a mapping and writes by `libaio` are announced only when
//! the file is closed (`IN_CLOSE_WRITE`) or the scrub finds them ([`crate::scrub`]), because the kernel has no inotify event for them (on btrfs tracepoints announce
//! them, where they are permitted); and a change made through a name that was
//! linked, used and removed again between two drains is announced by that name alone. The point records its tracker.
//! A call that is refused and has changed times before (xfs does so for a range that cannot be collapsed) is announced by nobody: the
//! times are found by the scrub.
//! With the `poll` tracker nothing is claimed: changes that others make raise no event, so step 1 does not hold, and its points are `fuzzy`.

mod absorb;
mod conditions;
mod cutter;
mod departure;
mod desk;
pub(crate) mod dirty;
mod engine;
mod errands;
mod excluded;
mod files;
mod hurry;
mod member;
mod mounts;
mod names;
mod pace;
mod pages;
mod ranges;
mod resend;
mod scrub;
mod search;
mod stage;
mod takeover;
#[cfg(test)]
mod tests;

use thiserror::Error;
use tidelock_proto::tree::TreeError;

pub(crate) use conditions::UNPROTECTED;
pub(crate) use cutter::{Cutter, CutterConfig, Ended};
pub(crate) use departure::Departure;
pub(crate) use desk::{Busy, Desk, Placed, Progress, Quiesced};
pub(crate) use engine::Engine;

use crate::{capture::CaptureError, watch::WatchError};

/// Why cutting cannot go on as it is.
#[derive(Debug, Error)]
pub enum CutError {
    /// Something could not be captured now.
    #[error("cannot capture: {0}")]
    Capture(#[from] CaptureError),
    /// The event sources failed.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// What was captured makes no tree: a fault of this program, or a file system that shows one directory twice. The
    /// volume is compared anew with the receiver's tree.
    #[error("captured state makes no tree: {0}")]
    Tree(#[from] TreeError),
}
