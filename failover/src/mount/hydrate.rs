//! What is absent of a durable upper layer becomes local, in the background.
//!
//! A batch is fetched and verified, written to the files where the tree still has the chunk, under the lock of the tree; synced; and made local where the tree has the chunk even then. What the application
//! writes in between is its own and stays ([`super::durable`] argues it). What cannot be had is passed over and tried again later.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    time::Instant,
};

use tidelock_proto::{
    FileId,
    tree::{ChunkRef, Extent},
};

use super::{reading::Inner, scratch::is_slot};
use crate::{error::FailoverError, limits};

/// A range that was absent when it was looked.
#[derive(Clone, Copy)]
struct Absent {
    id: FileId,
    offset: u64,
    extent: Extent,
}

/// A range of a file, and the place in a chunk that it must still be for it.
type Still = (FileId, u64, u64, ChunkRef);

impl Inner {
    /// Hydrates until nothing is absent, or until the end. Tells whether nothing is.
    pub(crate) fn hydrate(&self) -> bool {
        let Some(keeper) = &self.keeper else { return true };
        let mut told = Instant::now();
        let mut missed: Option<String> = None;
        loop {
            let mut files = self.absent_files();
            if files.is_empty() {
                return true;
            }
            let mut any = false;
            while let Some((id, from)) = files.pop_front() {
                if keeper.rest(std::time::Duration::ZERO) || self.check_whole().is_err() {
                    return false;
                }
                let (batch, next) = self.next_batch(&mut files, id, from);
                if let Some(next) = next {
                    files.push_front(next);
                }
                match self.bring(&batch) {
                    Ok(()) => any = true,
                    Err(error) => {
                        let reason = error.to_string();
                        if missed.as_ref() != Some(&reason) {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "cannot hydrate; it is tried again"
                            );
                            missed = Some(reason);
                        }
                        if keeper.rest(limits::INSTANT_RETRY) {
                            return false;
                        }
                    }
                }
                if told.elapsed() >= limits::INSTANT_TOLD {
                    told = Instant::now();
                    tracing::info!(absent_bytes = self.absent_bytes(), "hydrating");
                }
            }
            if !any && keeper.rest(limits::INSTANT_RETRY) {
                return false;
            }
        }
    }

    /// Files that have something absent.
    fn absent_files(&self) -> VecDeque<(FileId, u64)> {
        let layer = self.layer.read();
        let absent = layer.tree().iter().filter(|(_, inode)| {
            inode.extents().is_some_and(|extents| extents.iter().any(|(_, extent)| !is_slot(extent.chunk.id)))
        });
        absent.map(|(id, _)| (id, 0)).collect()
    }

    /// Absent ranges from a place on, of further files if one has few; and where to go on in the last one.
    fn next_batch(
        &self,
        files: &mut VecDeque<(FileId, u64)>,
        mut id: FileId,
        mut from: u64,
    ) -> (Vec<Absent>, Option<(FileId, u64)>) {
        let layer = self.layer.read();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        loop {
            let extents = layer.inode(id).ok().and_then(|inode| inode.extents());
            for (offset, extent) in extents.into_iter().flat_map(|extents| extents.touching(from, u64::MAX)) {
                if bytes >= limits::INSTANT_BATCH_BYTES || batch.len() >= limits::CHUNKS_PER_REQUEST {
                    return (batch, Some((id, offset)));
                }
                if !is_slot(extent.chunk.id) {
                    bytes += u64::from(extent.len);
                    batch.push(Absent { id, offset, extent });
                }
            }
            match files.pop_front() {
                Some(next) => (id, from) = next,
                None => return (batch, None),
            }
        }
    }

    /// Makes ranges local.
    fn bring(&self, batch: &[Absent]) -> Result<(), FailoverError> {
        let ids: BTreeSet<_> = batch.iter().map(|absent| absent.extent.chunk.id).collect();
        let chunks = self.content.chunks_once(ids)?;
        let mut written = Vec::new();
        let mut synced = BTreeMap::new();
        for absent in batch {
            let Extent { len, chunk } = absent.extent;
            let from = chunk.at as usize;
            let content = chunks.get(&chunk.id).and_then(|content| content.get(from..from + len as usize));
            let content = content.ok_or(FailoverError::LostChunk(chunk.id))?;
            // One after the other: nobody waits long for the tree.
            let mut layer = self.layer.write();
            let still = self.still(&layer, absent.id, absent.offset, u64::from(len), chunk);
            let Some(durable) = layer.durable().filter(|_| !still.is_empty()) else { continue };
            let file = durable.files().get(absent.id).map_err(FailoverError::Instant)?;
            for (_, offset, len, place) in &still {
                let from = (place.at - chunk.at) as usize;
                let part = &content[from..from + *len as usize];
                std::os::unix::fs::FileExt::write_all_at(&*file, part, *offset)
                    .map_err(FailoverError::Instant)?;
            }
            synced.entry(absent.id).or_insert(file);
            written.extend(still);
        }
        let files = self.layer.write().durable().map(|durable| durable.files().clone());
        let sync = || -> io::Result<()> {
            let Some(files) = files else { return Ok(()) };
            synced.values().try_for_each(|file| files.sync(file))?;
            files.sync_names()
        };
        // Nothing of it was made local: it is written again.
        sync().map_err(FailoverError::Instant)?;
        for (id, offset, len, chunk) in written {
            let mut layer = self.layer.write();
            for (_, offset, len, _) in self.still(&layer, id, offset, len, chunk) {
                layer.adopt(id, offset, offset + len).map_err(|_| FailoverError::InstantLost)?;
            }
        }
        Ok(())
    }

    /// The parts of a range that are still for the same place of the same chunk.
    fn still(
        &self,
        layer: &super::layer::Layer,
        id: FileId,
        offset: u64,
        len: u64,
        chunk: ChunkRef,
    ) -> Vec<Still> {
        let Some(extents) = layer.inode(id).ok().and_then(|inode| inode.extents()) else { return Vec::new() };
        let mut at = offset;
        let mut still = Vec::new();
        for piece in extents.pieces(offset, offset + len) {
            let place = ChunkRef { id: chunk.id, at: chunk.at + (at - offset) as u32 };
            if piece.chunk == Some(place) {
                still.push((id, at, piece.len, place));
            }
            at += piece.len;
        }
        still
    }
}
