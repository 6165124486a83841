//! Named conditions that the capture can be in. Each is in status, in metrics, in heartbeats and on the points it affects,
//! and goes when its cause goes.

use super::{CutError, engine::Engine};
use crate::watch::Watcher;

/// While one of these holds no point is proven, or there are none at all, or they lack something.
pub(crate) const UNPROTECTED: [&str; 8] =
    [WATCH_LIMIT, UNREADABLE, ROOT_EMPTY, ROOT_GONE, GROUP_WAITS, POLLING, MOUNT_WITHIN, NEWEST_DAMAGED];

/// Directories are not watched because the kernel allows no more watches: points are `fuzzy`.
pub(crate) const WATCH_LIMIT: &str = "watch-limit";
/// Not every change raises an event, so the volume is compared again and again: points are `fuzzy`.
pub(crate) const POLLING: &str = "polling";
/// Something cannot be read: points are `fuzzy`.
pub(crate) const UNREADABLE: &str = "unreadable";
/// Something is mounted within the volume: points are without it.
pub(crate) const MOUNT_WITHIN: &str = "mount-within";
/// Events were lost; a scan restores the truth.
pub(crate) const UNVERIFIED: &str = "unverified";
/// No quiet instant has been found for long; lag grows.
pub(crate) const NOT_CONVERGING: &str = "not-converging";
/// The volume's root lost all its entries at once; not replicated as a deletion.
pub(crate) const ROOT_EMPTY: &str = "root-empty";
/// The volume is no longer at its path.
pub(crate) const ROOT_GONE: &str = "root-gone";
/// Another volume of the group cannot be cut, so this one is not either.
pub(crate) const GROUP_WAITS: &str = "group-waits";
/// The receiver's newest point cannot be opened; the volume is sent as a whole, and the next point rests on nothing older.
pub(crate) const NEWEST_DAMAGED: &str = "newest-damaged";
/// Exact ranges are wanted, and a permission is missing: costs more, proves the same but for what inotify cannot see.
pub(crate) const NO_TRACING: &str = "no-tracing";

impl Engine {
    /// Says what is missing of the best tracker.
    pub(super) fn tell_tracker(&self) {
        self.status.set_tracker(self.watcher.tracker().as_str(), &self.watcher.reasons());
        if self.polls() {
            self.status.set_condition(POLLING, self.watcher.reason());
        } else {
            self.status.clear_condition(POLLING);
        }
        if self.watcher.lacks_permission() {
            self.status.set_condition(NO_TRACING, self.watcher.reason());
        } else {
            self.status.clear_condition(NO_TRACING);
        }
    }

    /// Takes exact ranges once they are permitted.
    pub(super) fn try_exact(&mut self) -> Result<(), CutError> {
        if self.watcher.lacks_permission() {
            let again = self.watcher.open_again(self.volume.root())?;
            if !again.lacks_permission() {
                self.watch_anew(again);
            }
        }
        Ok(())
    }

    /// Goes on in the same directory after it was mounted again. Returns whether it is there.
    pub(super) fn take_up_again(&mut self) -> Result<bool, CutError> {
        let Some(volume) = self.volume.mounted_again() else { return Ok(false) };
        let watcher = self.watcher.open_again(volume.root())?;
        self.volume = volume;
        self.watch_anew(watcher);
        Ok(true)
    }

    /// Other sources watch nothing yet: everything is listed and compared.
    fn watch_anew(&mut self, watcher: Watcher) {
        tracing::info!(tracker = %watcher.tracker(), reason = watcher.reasons(), "watching anew");
        self.watcher = watcher;
        self.tell_tracker();
        self.rescan();
    }

    /// Ends the conditions whose cause is gone, also where what caused them was removed. Called when nothing is left to
    /// capture: what is tried again is dirty until it is known to work.
    pub(super) fn end_conditions(&self) {
        if self.unwatched.is_empty() {
            self.status.clear_condition(WATCH_LIMIT);
        }
        if self.unreadable_later.is_empty() {
            self.status.clear_condition(UNREADABLE);
        }
    }
}
