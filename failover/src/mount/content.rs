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
    /// None yet, where the receiver was away at the beginning.
    access: Mutex<Option<Arc<Access>>>,
    reach: Option<Reach>,
    volume: VolumeName,
    /// To be pinned; one that is held by a name needs no pin.
    point: Option<Point>,
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
        access: Option<Arc<Access>>,
        reach: Option<Reach>,
        volume: VolumeName,
        point: Option<Point>,
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
        let each = &mut |index: usize, content: Bytes| {
            let id = missing[index];
            self.cache.insert(id, content.clone());
            found.insert(id, content);
            true
        };
        self.fetch(&missing, each)?;
        Ok(found)
    }

    /// Whether a chunk is in memory.
    pub(super) fn has(&self, id: ChunkId) -> bool {
        self.cache.peek(&id).is_some()
    }

    /// Chunks that nobody will ask for again.
    pub(super) fn chunks_once(
        &self,
        wanted: BTreeSet<ChunkId>,
    ) -> Result<HashMap<ChunkId, Bytes>, FailoverError> {
        let (mut found, mut missing) = (HashMap::with_capacity(wanted.len()), Vec::new());
        for id in wanted {
            match self.cache.peek(&id) {
                Some(content) => drop(found.insert(id, content)),
                None => missing.push(id),
            }
        }
        if !missing.is_empty() {
            self.fetch(&missing, &mut |index, content| {
                found.insert(missing[index], content);
                true
            })?;
        }
        Ok(found)
    }

    /// Fetches, and once more when the connection is lost.
    fn fetch(
        &self,
        missing: &[ChunkId],
        each: &mut dyn FnMut(usize, Bytes) -> bool,
    ) -> Result<(), FailoverError> {
        let access = self.access.lock().clone();
        let error = match &access {
            Some(access) => match access.chunks(&self.volume).fetch(missing, each) {
                Ok(()) => return Ok(()),
                Err(error) => FailoverError::Content(error),
            },
            None => FailoverError::Unreached,
        };
        let access = self.reach_again(access.as_ref(), error)?;
        access.chunks(&self.volume).fetch(missing, each).map_err(FailoverError::Content)
    }

    /// What is reached now, if anything is.
    pub(super) fn access(&self) -> Option<Arc<Access>> {
        self.access.lock().clone()
    }

    /// A new connection in the place of the one that has failed, unless another reader has made one meanwhile.
    fn reach_again(
        &self,
        failed: Option<&Arc<Access>>,
        error: FailoverError,
    ) -> Result<Arc<Access>, FailoverError> {
        let mut current = self.access.lock();
        if let Some(other) =
            current.as_ref().filter(|current| failed.is_none_or(|failed| !Arc::ptr_eq(current, failed)))
        {
            return Ok(other.clone());
        }
        let Some(reach) = &self.reach else { return Err(error) };
        let access = Arc::new(reach()?);
        if let Some(point) = &self.point {
            access.tree(&self.volume, point)?;
        }
        *current = Some(access.clone());
        Ok(access)
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
