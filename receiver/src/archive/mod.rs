//! The object tier: a copy of the log in an object store, from which a receiver with an empty disk opens the store.
//!
//! ```text
//! log segments ──pieces──▶ data/…      (named by their content)
//!      └──────────────────▶ chain/N    (an entry: a manifest, or the next bytes of the last segment)
//! ```
//! The **chain** is a sequence of small objects with consecutive numbers, each created with `If-None-Match: *`. A manifest names all
//! pieces of all segments up to a mark of the log; an entry with a tail carries the bytes that follow. The newest manifest with the
//! tails behind it is what the archive is. Creating an entry is the one commit point, and the fence.
//!
//! **Every stage that is interrupted leaves a prefix that opens.**
//! - *Pieces uploaded, no entry:* nobody names them. The next attempt finds them by name and length and does not upload them again; the
//!   sweep after the next manifest removes what nobody needs.
//! - *Entry created:* all pieces it names were written before, so it opens. A lost answer is told from a lost race by reading the
//!   entry back; until that is known the same bytes are tried again, never others under the same number.
//! - *Removal:* only what older manifests named and the newest does not, and entries before it. Interrupted, it leaves garbage. Who
//!   reads an older manifest meanwhile misses an object, and reads the chain again.
//!
//! **What a manifest names is a store.** Its segments are listed before the mark is taken ([`source`]), and compaction removes a segment
//! only after the record that permits its absence is durable: that record is before the mark. Everything before the mark is synced, so it
//! is never cut off at a next open, and bytes before it never change. So the log that is fetched is one that this store had.
//!
//! **Two receivers.** Of two that add an entry with the same number one fails, reads a stranger's name in what is there, and never adds
//! another. Removal comes after the remover's own entry, and what it removes no later manifest can name: a piece's name holds the hash of
//! bytes with a random salt. So nothing rests on clocks; the lease ([`lease`]) only keeps a newcomer from taking over from a holder that
//! lives. A store whose archive was taken over has another history from then on, and is refused ([`attach`]).
//!
//! The price: bytes that arrive slowly are uploaded a few times, first in tails, then in pieces that double; a manifest names every piece
//! (40 bytes for each 16 MiB) and is written with each new piece; each sealed segment is read once more for its outline.
//!
//! **What opening needs comes first** ([`hydrate`]), the rest when it is read ([`reach`]) and in the background ([`fill`]). While parts are only in the archive nothing of the chain that names them goes: this receiver compacts only when it is whole, and
//! another one that takes over makes this one's archive lost, which it says.

mod attach;
mod bucket;
mod entry;
mod error;
mod fill;
mod hydrate;
mod lease;
mod local;
mod manifest;
mod mend;
mod plan;
mod reach;
mod recognise;
mod source;
mod state;
mod task;
#[cfg(test)]
mod tests;
mod upload;
mod url;

use std::{path::Path, time::Duration};

pub use error::ArchiveError;
pub(crate) use fill::Filler;
pub use hydrate::Fetched;
pub(crate) use mend::Mend;
pub(crate) use recognise::is_archive;
pub(crate) use state::Observed;
pub(crate) use task::{Archive, Handle, Opening};
pub use url::ArchiveUrl;

use crate::{
    limits,
    store::{Store, StoreOptions},
};

/// When a sidecar is told that its point is durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ack {
    /// When it is on the receiver's disk.
    #[default]
    Local,
    /// When it is in the archive, too.
    Archive,
}

/// How an archive is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it is.
    pub url: ArchiveUrl,
    /// When acknowledgements are given.
    pub ack: Ack,
    /// How often what is new is added; [`limits::ARCHIVE_INTERVAL`] or [`limits::ARCHIVE_ACK_INTERVAL`] if absent.
    pub interval: Option<Duration>,
    /// How long another receiver must see nothing of this one before it takes over.
    pub lease: Duration,
}

impl Options {
    fn interval(&self) -> Duration {
        self.interval.unwrap_or(match self.ack {
            Ack::Local => limits::ARCHIVE_INTERVAL,
            Ack::Archive => limits::ARCHIVE_ACK_INTERVAL,
        })
    }
}

/// Opens a store that no receiver uses, some of whose segments may still be in the archive only: what is read is fetched. Nothing in the archive changes.
pub fn open(url: &ArchiveUrl, dir: &Path, options: StoreOptions) -> Result<Store, ArchiveError> {
    let reach = reach::Reach::open(url)?;
    Ok(Store::prepare(dir)?.open_with(options, Some(reach))?)
}

/// Fetches an archive's newest state into an empty directory, which then opens as a store. Nothing in the archive changes, and whoever
/// writes it goes on. Also tells who that is.
pub async fn fetch(url: &ArchiveUrl, dir: &Path) -> Result<(Fetched, String), ArchiveError> {
    let bucket = bucket::Bucket::new(url.open()?);
    let mut attempt = 0;
    let mut head = bucket.head().await?.ok_or(ArchiveError::Empty)?;
    let prepared = Store::prepare(dir)?;
    if attach::has_log(dir) {
        return Err(ArchiveError::NotEmpty(dir.to_owned()));
    }
    loop {
        match hydrate::hydrate(&bucket, &mut head, prepared.dir(), hydrate::Amount::All).await {
            // Whoever writes the archive has removed it since.
            Err(ArchiveError::Missing(_)) if attempt < limits::ARCHIVE_MOVED_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
            Ok(fetched) => return Ok((fetched, head.who)),
        }
        head = bucket.head().await?.ok_or(ArchiveError::Empty)?;
    }
}
