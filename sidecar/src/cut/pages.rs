//! Finding what differs within a chunk that the receiver has, without sending the chunk.
//!
//! A chunk's id tells that something in it differs, and not what: without more, a page that was written on the way costs the extent
//! that it is in, sixteen pages on average. Where a volume is compared with a tree that was never this directory's, as on the way
//! home, most of what differs is of that kind. There the receiver is asked what the pages of such chunks are
//! ([`tidelock_proto::chunk::page_sums`]), and only pages that differ are shipped; what is left of the extent goes on referring
//! to a part of its chunk.
//!
//! The price is that the cutter waits for an answer for each slice in which something differs, a round trip. So it is done only in the first
//! comparison, when there is no cut to be late with. No answer, for whatever reason, means that the extents are shipped.

use std::ops::Range;

use bytes::Bytes;
use tidelock_proto::{
    ChunkId, FileId,
    limits::{PAGE_BYTES, PAGE_SUM_BYTES, PAGES_BATCH_MAX},
};

use super::{CutError, engine::Engine};

/// A run of a file that is not what the tree says.
pub(super) struct Different {
    /// Where it is in the file.
    pub(super) offset: u64,
    pub(super) content: Range<usize>,
    /// The chunk that the tree has there, and where in it this run begins.
    pub(super) chunk: (ChunkId, u64),
}

impl Engine {
    /// Ships what differs, or as little around it as can be told.
    pub(super) fn stage_different(
        &mut self,
        id: FileId,
        content: &[u8],
        different: Vec<Different>,
    ) -> Result<(), CutError> {
        for batch in different.chunks(PAGES_BATCH_MAX) {
            let answer = match self.by_pages {
                true => self.outbox.pages(batch.iter().map(|run| run.chunk.0).collect()),
                false => None,
            };
            let answer = answer.unwrap_or_else(|| vec![Bytes::new(); batch.len()]);
            for (run, sums) in batch.iter().zip(answer) {
                let content = &content[run.content.clone()];
                match sums_from(&sums, run.chunk.1) {
                    Some(sums) => self.stage_pages(id, run.offset, content, sums)?,
                    None => self.stage_refined(id, run.offset, content)?,
                }
            }
        }
        Ok(())
    }

    /// A page without a sum differs, and so does one that is not the whole of its page in the chunk.
    pub(super) fn stage_pages(
        &mut self,
        id: FileId,
        offset: u64,
        content: &[u8],
        sums: &[u8],
    ) -> Result<(), CutError> {
        let sums = sums.chunks(PAGE_SUM_BYTES).map(Some).chain(std::iter::repeat(None));
        let is_equal = |page, sum: Option<&[u8]>| {
            sum.is_some_and(|sum| sum.len() == PAGE_SUM_BYTES && self.packer.id(page).0.starts_with(sum))
        };
        let equal: Vec<bool> =
            content.chunks(PAGE_BYTES).zip(sums).map(|(page, sum)| is_equal(page, sum)).collect();
        let mut first = 0;
        for run in equal.chunk_by(|one, next| one == next) {
            let (start, end) = (first * PAGE_BYTES, ((first + run.len()) * PAGE_BYTES).min(content.len()));
            if !run[0] {
                self.stage_run(id, offset + start as u64, &content[start..end])?;
            }
            first += run.len();
        }
        Ok(())
    }
}

/// The sums of a chunk's pages from `at` on; `None` if there are none, or no page begins there.
pub(super) fn sums_from(sums: &Bytes, at: u64) -> Option<&[u8]> {
    let (page, within) = (at / PAGE_BYTES as u64, at % PAGE_BYTES as u64);
    let sums = sums.get(usize::try_from(page).ok()? * PAGE_SUM_BYTES..)?;
    (within == 0 && !sums.is_empty()).then_some(sums)
}
