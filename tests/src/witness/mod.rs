//! The write-order witness: counters in directories of their own, bumped one after the other, each in its own way.
//!
//! A program writes 1 to counter 0, then to counter 1, … to the last, then 2 to counter 0, and so on. At every instant
//! the volume went through, the counters therefore fall along the chain by at most one step, once. A copy whose
//! files were read at different moments shows it: that is what [`check`] finds.
//!
//! There are two chains. [`CALLS`] is for every tracker: the ways of writing follow one another in all pairs but one, overwrite →
//! append → replace → overwrite. [`ALL`] has those, too, that inotify does not see; where two volumes take turns
//! along it, each has every way.

pub mod check;
mod read;
mod tree;
mod write;

pub use read::{Directory, Source, counters, counters_in};
pub use tree::InTree;
pub use write::{Done, Writer, read_log};

/// How a counter is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Eight bytes by pwrite at the start of one file.
    Overwrite,
    /// Eight bytes more at the end of a log; a new log now and then, and the old one is unlinked after.
    Append,
    /// A new file renamed over the old one.
    Replace,
    /// A page by pwrite with `O_DIRECT` at the start of one file.
    Direct,
    /// Eight bytes by io_uring at the start of one file.
    Uring,
    /// Eight bytes stored through a mapping at the start of one file.
    Mapped,
}

impl Way {
    /// Bytes of the file of a counter that is written in place; the value is in the first eight.
    fn file_bytes(self) -> usize {
        match self {
            Self::Direct | Self::Mapped => 4096,
            _ => 8,
        }
    }
}

/// How the counters are written, in order.
pub type Chain = &'static [Way];

/// What inotify sees.
pub const CALLS: Chain = &{
    use Way::{Append, Overwrite, Replace};
    [Overwrite, Append, Replace, Overwrite, Append, Replace, Overwrite, Append, Replace]
};

/// Everything.
pub const ALL: Chain = &{
    use Way::{Append, Direct, Mapped, Overwrite, Replace, Uring};
    [Overwrite, Append, Replace, Direct, Uring, Mapped, Append, Replace, Direct, Uring, Mapped, Overwrite]
};

/// Counters of the chain [`CALLS`].
pub const LENGTH: usize = CALLS.len();

/// The values of all counters, in the order they are written.
pub type Counters = Vec<u64>;

/// The directory of the counter at this place of the chain.
pub fn directory(place: usize) -> String {
    format!("counter-{place}")
}

/// The file of a counter that is overwritten or replaced.
const FILE: &str = "value";
/// A replacement before its rename.
const NEXT_FILE: &str = "value.next";
/// Appended logs are `log-0000000001` and so on; the highest with content counts.
const LOG_PREFIX: &str = "log-";
/// Records of a log before the next one begins.
const LOG_RECORDS: u64 = 2000;
