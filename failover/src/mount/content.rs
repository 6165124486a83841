//! The content of a mounted point: fetched when it is read, a chunk at a time, and kept as long as there is room.
//!
//! A mount outlives the connection it was made with. When a fetch fails, the receiver is reached anew and asked for the point's tree again, which pins
//! the point there, and the fetch is tried once more; a receiver that is away costs the reader an I/O error and nothing else.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use tidelock_proto::{ChunkId, VolumeName, point::Point, tree::Piece};

use super::Reach;
use crate::{access::Access, error::FailoverError, limits};

pub(super) struct Content {
    access: Mutex<Arc<Access>>,
    reach: Option<Reach>,
    volume: VolumeName,
    point: Point,
    cache: Cache<ChunkId, Bytes, Length>,
}

/// A chunk weighs what it takes.
#[derive(Clone)]
struct Length;

impl Weighter<ChunkId, Bytes> for Length {
    fn weight(&self, _: &ChunkId, content: &Bytes) -> u64 {
        content.len() as u64
    }
}

impl Content {
    pub(super) fn new(
        access: Arc<Access>,
        reach: Option<Reach>,
        volume: VolumeName,
        point: Point,
        cache_bytes: u64,
    ) -> Self {
        let items = usize::try_from(cache_bytes / limits::MOUNT_CHUNK_BYTES).unwrap_or(usize::MAX);
        let cache = Cache::with_weighter(items.max(1), cache_bytes, Length);
        Self { access: Mutex::new(access), reach, volume, point, cache }
    }

    /// The chunks that the pieces refer to.
    pub(super) fn chunks(
        &self,
        wanted: impl Iterator<Item = ChunkId>,
    ) -> Result<HashMap<ChunkId, Bytes>, FailoverError> {
        let wanted: BTreeSet<ChunkId> = wanted.collect();
        let mut found = HashMap::with_capacity(wanted.len());
        let mut missing = Vec::new();
        for id in wanted {
            match self.cache.get(&id) {
                Some(content) => drop(found.insert(id, content)),
                None => missing.push(id),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let access = self.access.lock().clone();
        match self.fetch(&access, &missing, &mut found) {
            Ok(()) => Ok(found),
            Err(error) => {
                let access = self.reach_again(&access, error)?;
                self.fetch(&access, &missing, &mut found)?;
                Ok(found)
            }
        }
    }

    fn fetch(
        &self,
        access: &Access,
        missing: &[ChunkId],
        found: &mut HashMap<ChunkId, Bytes>,
    ) -> Result<(), FailoverError> {
        let each = &mut |index: usize, content: Bytes| {
            let id = missing[index];
            self.cache.insert(id, content.clone());
            found.insert(id, content);
            true
        };
        access.chunks(&self.volume).fetch(missing, each).map_err(FailoverError::Content)
    }

    /// A new connection in the place of the one that has failed, unless another reader has made one meanwhile.
    fn reach_again(&self, failed: &Arc<Access>, error: FailoverError) -> Result<Arc<Access>, FailoverError> {
        let mut current = self.access.lock();
        if !Arc::ptr_eq(&current, failed) {
            return Ok(current.clone());
        }
        let Some(reach) = &self.reach else { return Err(error) };
        let access = reach()?;
        access.tree(&self.volume, &self.point)?;
        *current = Arc::new(access);
        Ok(current.clone())
    }
}

/// The bytes of a piece that is backed by a chunk.
pub(super) fn part<'a>(
    chunks: &'a HashMap<ChunkId, Bytes>,
    piece: &Piece,
) -> Result<&'a [u8], FailoverError> {
    let Some(chunk) = piece.chunk else { return Ok(&[]) };
    let from = chunk.at as usize;
    let to = usize::try_from(piece.len).ok().and_then(|len| from.checked_add(len));
    let content = chunks.get(&chunk.id).zip(to).and_then(|(content, to)| content.get(from..to));
    content.ok_or(FailoverError::LostChunk(chunk.id))
}
