//! Every limit of watching, in one place.

use std::time::Duration;

/// Limits of one [`Watcher`](super::Watcher).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchLimits {
    /// Ring buffers of all CPUs together, in bytes. Each CPU gets an equal, power-of-two share, within
    /// [`RING_MIN_BYTES`] and `ring_bytes_per_cpu`.
    pub ring_bytes: usize,
    /// Largest ring buffer of one CPU, in bytes. An event takes about 64; halved as long as the kernel refuses to lock it.
    pub ring_bytes_per_cpu: usize,
    /// Inodes remembered as mapped. When full, every page dirtied outside a known write counts as a new mapping.
    pub mapped_inodes: usize,
    /// Threads whose last write is remembered, to tell pages dirtied by `write` from those dirtied by a mapping.
    pub writing_threads: usize,
    /// Inodes remembered as written with direct I/O. When full, every direct read counts as a write.
    pub direct_inodes: usize,
    /// How often one who waits looks into the rings: most of their events wake nobody, because inotify tells of the same.
    pub ring_look_every: Duration,
    /// Whoever has waited longer looks as seldom as he has waited, but at least this often: an idle volume costs nothing.
    pub ring_look_at_rest: Duration,
    /// inotify watches of this volume; the kernel's own limit holds besides.
    pub inotify_watches: usize,
    /// Bytes read from inotify or fanotify at once.
    pub names_buffer_bytes: usize,
    /// How long one who waits leaves the queue alone after it held nothing but events of others on the same filesystem: so
    /// many of theirs cost one wakeup, and an event of the volume may be told that much later.
    pub others_rest: Duration,
}

/// Smallest ring buffer of one CPU that is worth having outside tests, in bytes.
pub const RING_MIN_BYTES: usize = 64 * 1024;

impl Default for WatchLimits {
    fn default() -> Self {
        Self {
            ring_bytes: 32 * 1024 * 1024,
            ring_bytes_per_cpu: 4 * 1024 * 1024,
            mapped_inodes: 64 * 1024,
            writing_threads: 16 * 1024,
            direct_inodes: 16 * 1024,
            ring_look_every: Duration::from_millis(20),
            ring_look_at_rest: Duration::from_millis(250),
            inotify_watches: usize::MAX,
            names_buffer_bytes: 64 * 1024,
            others_rest: Duration::from_millis(1),
        }
    }
}
