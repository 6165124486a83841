//! What the sources tell the cut loop: hints that something changed, never what it changed to.

use tidelock_proto::FileId;

/// A hint that something changed.
///
/// `dir` is the [`FileId`] under which the caller asked for the directory to be watched; `inode` is the raw inode
/// number on the volume's device. A hint may be wrong (nothing changed, or a failed call changed half of it), may come
/// more than once, and may come *before* the change it announces; it is never missing, except after [`Event::Lost`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The entry `name` of watched directory `dir` may have appeared, gone, or now be another inode.
    Name { dir: FileId, name: Box<[u8]> },
    /// The inode behind entry `name` of `dir` changed attributes (mode, owner, xattrs, times, link count).
    Attributes { dir: FileId, name: Box<[u8]> },
    /// Attributes of the watched directory itself changed.
    DirectoryAttributes { dir: FileId },
    /// The file behind entry `name` of `dir` changed in content or size; where is not known. Follows its effect.
    /// `closed_write` says that a descriptor opened for writing was closed, which is no change by itself.
    Content { dir: FileId, name: Box<[u8]>, closed_write: bool },
    /// Exact source only: these bytes of `inode` may have changed. `len` is [`TO_END`] when the range has no end.
    Range { inode: u64, offset: u64, len: u64 },
    /// Exact source only: `inode` was, or is about to be, cut short to `size` bytes. What it had from there on is gone; if
    /// it has grown again it has holes there, or what was written since.
    Cut { inode: u64, size: u64 },
    /// Exact source only: `inode` is, or may be, mapped for shared writing. From now on its pages must be written back
    /// (`sync_file_range`) before they are read, and the whole file must be written back and verified once, now.
    /// Sent once, until the inode leaves the kernel's memory and is mapped anew.
    Mapped { inode: u64 },
    /// Exact source only: `inode` may have grown. Below its former size nothing changed that another event does not tell.
    Size { inode: u64 },
    /// The watched directory itself was deleted or moved, or its filesystem unmounted. It may still be watched (after
    /// a move) or not (all else).
    DirectoryGone { dir: FileId },
    /// Events were lost: only a scan restores the truth.
    Lost(LostReason),
}

/// The length of a range that goes to the end of the file, wherever that is.
pub const TO_END: u64 = u64::MAX;

/// Why events were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// A ring buffer was full.
    #[error("ring buffer of CPU {cpu} overflowed ({lost} events)")]
    RingOverflow {
        /// The CPU that raised the events.
        cpu: u32,
        /// How many, if the kernel says so; at least 1.
        lost: u64,
    },
    /// A ring buffer held what this program cannot decode; the rest of it was skipped.
    #[error("ring buffer of CPU {cpu} held a malformed record")]
    RingMalformed {
        /// The CPU that raised the events.
        cpu: u32,
    },
    /// The inotify queue was full.
    #[error("inotify queue overflowed: raise fs.inotify.max_queued_events")]
    QueueOverflow,
    /// The fanotify queue was full.
    #[error("fanotify queue overflowed: raise fs.fanotify.max_queued_events")]
    NamesOverflow,
    /// The fanotify queue held what this program cannot decode, or an event that does not say where it happened.
    #[error("fanotify queue held a malformed record")]
    QueueMalformed,
    /// CPUs were brought online or taken offline; what a new CPU did before it was watched is unknown.
    #[error("the set of online CPUs changed")]
    CpusChanged,
}
