//! Event sources for the cut loop.
//!
//! An event is a hint; the volume is the truth. What a source promises is that a hint is never missing: the kernel queues
//! the event of a change before the system call that made the change returns, so a drain that starts after a program has
//! seen its call return finds the event. Events that the kernel had to drop are themselves an event, [`Event::Lost`].
//!
//! Everything here is synchronous and used by one thread, the cutter of the volume.

mod error;
mod event;
mod fanotify;
mod inotify;
mod limits;
mod names;
mod ranges;
mod record;
mod silent;
#[cfg(test)]
mod tests;
mod watcher;
mod without;

use std::os::fd::BorrowedFd;

pub use error::{NoFanotify, Unavailable, WatchError};
pub use event::{Event, LostReason, TO_END};
pub use fanotify::FanotifySource;
pub use inotify::InotifySource;
pub use limits::{RING_MIN_BYTES, WatchLimits};
pub use names::NamesChoice;
pub use ranges::RangeSource;
#[cfg(test)]
pub(crate) use tests::MountedVolume;
pub use watcher::{SourceChoice, Tracker, TrackerChoice, Watcher, wait_any, wait_for_names};

/// Something that queues events.
pub trait Source: Send {
    /// The name of the source in logs.
    fn name(&self) -> &'static str;

    /// Takes every event the kernel has queued before this call, without blocking.
    fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError>;

    /// Descriptors that become readable when an event is queued.
    fn pollable(&self) -> Vec<BorrowedFd<'_>>;
}
