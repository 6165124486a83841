//! The other way: damaged segments of a store get the bytes back that its archive has.
//!
//! The archive is a prefix of the log of whoever holds it, and each piece and entry is checked before it is used. What becomes of the bytes is the
//! store's to judge (`verify/repair.rs`). A part that is damaged there as well is named and left out.
//!
//! The price: a segment is held in memory while it is mended.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use super::{bucket::Bucket, error::ArchiveError, hydrate::fetch, manifest::Head};
use crate::server::blocking;

/// Where bytes of a segment go.
pub(crate) trait Mend: Send + Sync + 'static {
    /// The store's identity.
    fn id(&self) -> std::io::Result<Option<[u8; 16]>>;
    /// Makes records whole again that are so in this copy of the segment; tells how many bytes were written. What the copy lacks is zeros.
    fn mend(&self, segment: u32, copy: Vec<u8>) -> std::io::Result<u64>;
}

/// Bytes written again. `holder` is whoever keeps the archive from the store that is mended.
pub(super) async fn mend(
    bucket: &Bucket,
    holder: [u8; 16],
    store: Arc<dyn Mend>,
    segments: &BTreeSet<u32>,
) -> Result<u64, ArchiveError> {
    let failed = ArchiveError::local("log".as_ref());
    let head = bucket.head().await?.ok_or(ArchiveError::Empty)?;
    if head.holder != holder {
        return Err(ArchiveError::TakenOver { who: head.who });
    }
    let id = {
        let store = store.clone();
        blocking(move || store.id()).await.map_err(&failed)?
    };
    // Without any header that can be read there is nothing to compare with.
    if id.is_some_and(|id| id != head.manifest.store) {
        return Err(ArchiveError::Diverged);
    }
    let mut written = 0;
    for segment in segments {
        let copy = copy(bucket, &head, *segment).await;
        let (store, segment) = (store.clone(), *segment);
        written += blocking(move || store.mend(segment, copy)).await.map_err(&failed)?;
    }
    Ok(written)
}

/// What the archive has of a segment and is whole, with zeros for the rest.
async fn copy(bucket: &Bucket, head: &Head, segment: u32) -> Vec<u8> {
    let mut copy = Vec::new();
    let mut add = |offset: u64, bytes: &Bytes| {
        let from = usize::try_from(offset).expect("segments have 32 bits");
        copy.resize(copy.len().max(from + bytes.len()), 0);
        copy[from..from + bytes.len()].copy_from_slice(bytes);
    };
    for piece in head.manifest.segments.get(&segment).into_iter().flatten() {
        match fetch(bucket, segment, piece).await {
            Ok(bytes) => add(piece.offset, &bytes),
            Err(error) => tracing::warn!(%error, segment, "the archive cannot mend this part of a segment"),
        }
    }
    if segment == head.manifest.mark.segment {
        head.tails.iter().for_each(|tail| add(tail.offset, &tail.bytes));
    }
    copy
}
