//! Where missing bytes come from, and why they do not.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use thiserror::Error;

/// Where bytes of segments are to be had.
pub(crate) trait Fetch: Send + Sync {
    /// The bytes of a range of a segment; `source` is what the segment's `.part` file says. Blocks the thread.
    fn fetch(&self, segment: u32, source: &Bytes, range: Range<u64>) -> Result<Bytes, FetchError>;
    /// What these bytes are a part of, for people.
    fn name(&self, segment: u32, source: &Bytes, offset: u64) -> String;
}

/// Why bytes cannot be fetched.
#[derive(Debug, Clone, Error)]
#[error("{source}")]
pub(crate) struct FetchError {
    /// Trying again later does not help.
    pub(crate) lost: bool,
    pub(crate) source: Arc<dyn std::error::Error + Send + Sync>,
}

/// Bytes of the log that are not here and cannot be had now.
#[derive(Debug, Clone, Error)]
#[error("its bytes from {offset} on are not here yet, and cannot be fetched from the archive: {source}")]
pub(crate) struct Absent {
    /// Where in the segment they begin.
    pub(crate) offset: u64,
    /// The archive does not have them either.
    pub(crate) lost: bool,
    pub(super) source: Arc<dyn std::error::Error + Send + Sync>,
}

/// There is nobody to fetch anything.
#[derive(Debug, Error)]
#[error(
    "no archive was given; start the receiver with its --archive, which completes the store, or give --archive beside --store"
)]
pub(super) struct NoArchive;

/// The archive has other bytes than it had when it was outlined.
#[derive(Debug, Error)]
#[error("object {0:?} of the archive is not what was uploaded")]
pub(super) struct Altered(pub(super) String);

/// What an error of reading says of missing bytes.
pub(crate) fn absent(error: &io::Error) -> Option<&Absent> {
    error.get_ref()?.downcast_ref()
}
