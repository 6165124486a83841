//! What can go wrong while watching.

use std::io;

/// Why a directory or a volume cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel allows this user no more watches.
    #[error(
        "the limit of {limit} inotify watches is reached: raise it on the node with \
         `sysctl -w fs.inotify.max_user_watches={}`",
        limit.saturating_mul(4)
    )]
    WatchLimit {
        /// `fs.inotify.max_user_watches`, shared by everything this user runs on the node.
        limit: u64,
    },
    /// The kernel allows this user no more inotify instances.
    #[error(
        "the limit of {limit} inotify instances is reached: raise it on the node with \
         `sysctl -w fs.inotify.max_user_instances={}`",
        limit.saturating_mul(4).max(128)
    )]
    InstanceLimit {
        /// `fs.inotify.max_user_instances`, shared by everything this user runs on the node.
        limit: u64,
    },
    /// Exact ranges were asked for by name and cannot be had.
    #[error("exact ranges are not available: {0}")]
    ExactUnavailable(#[from] Unavailable),
    /// Names from fanotify were asked for and cannot be had.
    #[error("names from fanotify are not available: {0}")]
    FanotifyUnavailable(#[from] NoFanotify),
    /// A system call failed.
    #[error("{operation} failed: {source}")]
    Io {
        /// The system call, with what it was for.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why exact ranges cannot be had for a volume.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Only those of ext4 and xfs are known to be complete.
    #[error("no exact tracepoints are known for a filesystem of type {filesystem}")]
    Filesystem {
        /// The type, as in `/proc/self/mountinfo`.
        filesystem: String,
    },
    /// btrfs tells of locked ranges, by readers too, but not of changed ones.
    #[error("btrfs has no tracepoint that names the bytes of a change")]
    NoRanges,
    /// Stores to persistent memory raise no event.
    #[error("the filesystem may use DAX, whose stores raise no events")]
    Dax,
    /// ext4 with data journaling dirties pages behind the writer's back.
    #[error("the filesystem journals data (data=journal)")]
    DataJournal,
    /// The mount of the volume is not in `/proc/self/mountinfo`, or its device is not in `/sys`.
    #[error("the filesystem's mount or device cannot be identified")]
    UnknownDevice,
    /// The kernel's tracepoints are not readable.
    #[error("no readable tracefs at /sys/kernel/tracing or /sys/kernel/debug/tracing")]
    NoTracefs,
    /// This kernel lacks a tracepoint, or a field of it.
    #[error("the kernel has no tracepoint {event} with the expected fields")]
    MissingTracepoint {
        /// `group/name`.
        event: &'static str,
    },
    /// The kernel does not let this process trace.
    #[error("perf_event_open is not permitted: CAP_PERFMON is needed")]
    NotPermitted,
    /// Any other failure to set the tracepoints up.
    #[error("{operation} failed: {source}")]
    Io {
        /// What failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why the filesystem of a volume cannot be marked with fanotify.
#[derive(Debug, thiserror::Error)]
pub enum NoFanotify {
    /// The kernel does not let this process mark a filesystem.
    #[error("CAP_SYS_ADMIN is needed")]
    NotPermitted,
    /// The kernel does not report directories by handle and entries by name.
    #[error("the kernel has no FAN_REPORT_DFID_NAME (Linux 5.9)")]
    Kernel,
    /// No handles that last, or a btrfs subvolume.
    #[error("this filesystem's file handles cannot be relied on")]
    Filesystem,
    /// The kernel allows this user no more groups.
    #[error("the limit of fanotify groups is reached: raise fs.fanotify.max_user_groups")]
    GroupLimit,
    /// Any other failure to mark the filesystem.
    #[error("{operation} failed: {source}")]
    Io {
        /// What failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl NoFanotify {
    /// Names the operation that failed, and the failures with a known cause.
    pub(super) fn of(operation: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NotPermitted,
            Some(libc::EMFILE) => Self::GroupLimit,
            Some(libc::EINVAL | libc::ENOSYS) if operation == "fanotify_init" => Self::Kernel,
            Some(libc::ENODEV | libc::EXDEV | libc::EOPNOTSUPP) => Self::Filesystem,
            _ => Self::Io { operation, source },
        }
    }
}

impl Unavailable {
    /// For `map_err`: names the operation that failed, and the two failures with a known remedy.
    pub(super) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if operation == "perf_event_open" => Self::NotPermitted,
            _ => Self::Io { operation, source },
        }
    }
}
