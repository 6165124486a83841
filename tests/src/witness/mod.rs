//! The write-order witness: nine counters in nine directories, bumped one after the other, by three ways of writing.
//!
//! A program writes 1 to counter 0, then to counter 1, … to counter 8, then 2 to counter 0, and so on. At every instant
//! the volume went through, the counters therefore fall along the chain by at most one step, once. A copy whose
//! files were read at different moments shows it: that is what [`check`] finds.
//!
//! The ways of writing follow one another in all pairs but one: overwrite → append → replace → overwrite.

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
}

/// Counters of the chain.
pub const LENGTH: usize = 9;

/// The values of all counters, in the order they are written.
pub type Counters = [u64; LENGTH];

/// How the counter at this place of the chain is written.
pub fn way(place: usize) -> Way {
    [Way::Overwrite, Way::Append, Way::Replace][place % 3]
}

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
