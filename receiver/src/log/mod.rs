//! The log: the only durable truth of a store. Everything else can be rebuilt from it.
//!
//! One writer appends records to the last segment; a segment that is full is sealed and never changes again. What a
//! crash may leave behind, and how it is told from damage, is argued in [`scan`] and, case by case, in `docs/format.md`.
//!
//! The price of one log for all volumes: a busy volume's records lie between an idle one's. In return there is one
//! `fdatasync` for everybody, and a seal covers all.

mod ahead;
pub mod disk;
pub mod entry;
pub mod frame;
pub(crate) mod outline;
pub(crate) mod part;
pub mod reader;
pub mod scan;
pub mod writer;

use std::{fmt, io, sync::Arc};

use thiserror::Error;

use crate::vault::KeyError;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment.
    pub segment: u32,
    /// Where its header begins, in bytes.
    pub offset: u32,
    /// Length of its body, in bytes.
    pub len: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} at {}", self.segment, self.offset)
    }
}

/// Up to where the log is known: everything before `offset` of `segment` is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The segment.
    pub segment: u32,
    /// The end of the last record in it, in bytes.
    pub offset: u32,
    /// The number of that record.
    pub number: u64,
}

/// Bytes of the log that are not what was written there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("segment {segment} is damaged at {offset} ({what})")]
pub struct Damage {
    /// The segment.
    pub segment: u32,
    /// Where the damage begins, in bytes.
    pub offset: u64,
    /// What was found.
    pub what: DamageKind,
}

/// What kind of damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DamageKind {
    /// A record's header is intact, its body is not.
    #[error("record {0}: its body does not match its checksum")]
    Body(u64),
    /// These records are not there.
    #[error("records {first} to {last} are not readable")]
    Missing {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// A record is as it was written by somebody, and does not open with its tenant's key.
    #[error("record {0} does not open with its tenant's key")]
    Cipher(u64),
    /// A record is intact and says something that cannot be.
    #[error("record {0} does not make sense")]
    Nonsense(u64),
    /// There is no intact record where one was expected.
    #[error("no intact record here")]
    NotThere,
    /// Both copies of the segment's header are damaged.
    #[error("its header is not readable")]
    Header,
    /// The segment is not there at all.
    #[error("the file is missing")]
    File,
}

/// Why the log cannot be used.
#[derive(Debug, Clone, Error)]
pub enum LogError {
    /// The file system said no.
    #[error("{what} segment {segment}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// With which segment.
        segment: u32,
        /// What it said.
        source: Arc<io::Error>,
    },
    /// Written by a later Tidelock.
    #[error("segment {segment} has format version {found}; this build reads up to {}", frame::LOG_VERSION)]
    Version {
        /// The segment.
        segment: u32,
        /// Its version.
        found: u32,
    },
    /// A segment of another store, or under another's name.
    #[error("segment {0} belongs to another store or has another's name")]
    Foreign(u32),
    /// There is no room for another segment. Nothing was written, and trying again later is right.
    #[error("another segment needs {wanted} bytes, and {available} are left")]
    Full {
        /// It is the log's cap, not the disk.
        capped: bool,
        /// Bytes that are left.
        available: u64,
        /// Bytes that have to be left.
        wanted: u64,
    },
    /// It is encrypted, and the key is not the right one.
    #[error(transparent)]
    Key(KeyError),
    /// What should be there is not.
    #[error(transparent)]
    Damaged(#[from] Damage),
}

impl LogError {
    pub(crate) fn io(what: &'static str, segment: u32) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, segment, source: Arc::new(source) }
    }
}
