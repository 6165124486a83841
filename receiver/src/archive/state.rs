//! How the archive is doing, for status, metrics and acknowledgements.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::error::ArchiveError;

/// What keeps the archive from having what the log has.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// The object store does not answer as it should; it is tried again.
    Unreachable,
    /// Another receiver has it, or it is not this store's: for good.
    Lost(ArchiveError),
}

/// Which part of the work fails or not.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Upload,
    Lease,
}

/// What is known at this instant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    /// The condition that holds, by its name.
    pub(crate) condition: Option<&'static str>,
    /// For how long the archive has lacked something that is durable here.
    pub(crate) lag: Duration,
    /// How much of it, in bytes.
    pub(crate) missing_bytes: u64,
    /// Uploaded since the start, in bytes.
    pub(crate) uploaded_bytes: u64,
    /// Objects removed since the start.
    pub(crate) removed_objects: u64,
    /// Entries added to the chain since the start.
    pub(crate) entries: u64,
}

/// Shared by the task and by whoever asks.
pub(super) struct State {
    inner: Mutex<Inner>,
    /// The number of the last record that is archived.
    archived: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    /// The archive was compared with the log, and is its own.
    agreed: bool,
    /// By part.
    trouble: [Option<Trouble>; 2],
    behind_since: Option<Instant>,
    counts: Observed,
}

impl State {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::default(), archived: watch::Sender::new(0) }
    }

    pub(super) fn archived(&self) -> watch::Receiver<u64> {
        self.archived.subscribe()
    }

    /// The archive was compared with the log: it is this log's.
    pub(super) fn on_agreed(&self) {
        self.inner.lock().agreed = true;
    }

    /// Whether it is certain that the archive is this log's.
    pub(super) fn is_agreed(&self) -> bool {
        let agreed = self.inner.lock().agreed;
        agreed && self.lost().is_none()
    }

    /// Everything up to this record is archived.
    pub(super) fn on_archived(&self, number: u64) {
        self.archived.send_if_modified(|archived| std::mem::replace(archived, number) != number);
    }

    /// The log has this many bytes that the archive has not, as of `now`.
    pub(super) fn on_missing(&self, now: Instant, bytes: u64) {
        let mut inner = self.inner.lock();
        inner.counts.missing_bytes = bytes;
        match bytes {
            0 => inner.behind_since = None,
            _ => _ = inner.behind_since.get_or_insert(now),
        }
    }

    pub(super) fn on_uploaded(&self, bytes: u64) {
        self.inner.lock().counts.uploaded_bytes += bytes;
    }

    pub(super) fn on_entry(&self) {
        self.inner.lock().counts.entries += 1;
    }

    pub(super) fn on_removed(&self, objects: u64) {
        self.inner.lock().counts.removed_objects += objects;
    }

    /// A part works: whether it did not before.
    pub(super) fn on_fine(&self, part: Part) -> bool {
        self.inner.lock().trouble[part as usize].take().is_some()
    }

    /// It does not: whether that is new.
    pub(super) fn on_trouble(&self, part: Part, trouble: Trouble) -> bool {
        let mut inner = self.inner.lock();
        let before = inner.trouble[part as usize].replace(trouble);
        before.is_none()
    }

    /// Why the archive is not this store's any more.
    pub(super) fn lost(&self) -> Option<ArchiveError> {
        self.inner.lock().trouble.iter().flatten().find_map(|trouble| match trouble {
            Trouble::Lost(error) => Some(error.clone()),
            Trouble::Unreachable => None,
        })
    }

    pub(super) fn observe(&self, now: Instant) -> Observed {
        let inner = self.inner.lock();
        let lag = inner.behind_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let condition = inner.trouble.iter().flatten().next().map(|trouble| match trouble {
            Trouble::Unreachable => "archive-unreachable",
            Trouble::Lost(_) => "archive-lost",
        });
        Observed { condition, lag, ..inner.counts.clone() }
    }
}
