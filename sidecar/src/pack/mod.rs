//! Packing: changed content becomes chunks with a name and a payload.
//!
//! A long run is cut by its content with FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", 2020), so that content that moved keeps its chunks. A short run is one chunk: a
//! page write ships a page. The price is that a short run is found again only as a whole.
//!
//! Hashing and compression of many chunks are shared with a few threads; the caller works too, and a single chunk
//! never leaves its thread. Ids and boundaries depend on the content alone; whether a payload was compressed may differ
//! from run to run.

mod compress;
mod pool;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use fastcdc::v2020::FastCDC;
use tidelock_proto::{ChunkId, ChunkKey, chunk::Codec, limits::CHUNK_MAX_BYTES};

use crate::limits;
use compress::Compressor;
use pool::Pool;

/// zstd's level if nobody says otherwise: the fastest of the ordinary ones.
pub const LEVEL_DEFAULT: i32 = 1;

/// A chunk ready to be shipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The name of its content.
    pub id: ChunkId,
    /// How the payload is to be opened.
    pub codec: Codec,
    /// Length of the content, in bytes.
    pub len: u32,
    /// What crosses the wire.
    pub payload: Bytes,
}

/// Packs the content of one volume.
pub struct Packer {
    worker: Worker,
    pool: Option<Pool>,
}

/// What each thread needs: the tenant's key and a compressor of its own.
struct Worker {
    key: ChunkKey,
    compressor: Compressor,
}

impl Packer {
    /// `threads` is how many pack at once, the caller among them, from 1 to [`limits::PACK_THREADS_MAX`]; `level` is
    /// zstd's.
    pub fn new(key: ChunkKey, threads: usize, level: i32) -> Self {
        let helpers = threads.clamp(1, limits::PACK_THREADS_MAX) - 1;
        let pool = (helpers > 0).then(|| Pool::start(helpers, || Worker::new(key.clone(), level)));
        Self { worker: Worker::new(key, level), pool }
    }

    /// How many threads to use if nobody says otherwise: a sidecar leaves the machine to its application.
    pub fn threads_default() -> usize {
        std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
    }

    /// Cuts `content`, one run of a file, into chunks, in order and without gaps. Empty content has none.
    pub fn pack(&mut self, content: &[u8]) -> Vec<Packed> {
        let parts: Vec<&[u8]> = cut(content);
        match &self.pool {
            Some(pool) if parts.len() > 1 => pool.pack(&parts, &mut self.worker),
            _ => parts.into_iter().map(|part| self.worker.pack(part)).collect(),
        }
    }

    /// `content`, at most a chunk long, as one chunk.
    pub fn pack_one(&mut self, content: &[u8]) -> Packed {
        self.worker.pack(content)
    }

    /// The id that `content`, at most a chunk long, would have: for reads that only verify.
    pub fn id(&self, content: &[u8]) -> ChunkId {
        self.worker.key.id(content)
    }
}

fn cut(content: &[u8]) -> Vec<&[u8]> {
    if content.len() <= limits::SMALL_RUN_MAX_BYTES {
        return if content.is_empty() { Vec::new() } else { vec![content] };
    }
    FastCDC::new(content, limits::CHUNK_MIN_BYTES, limits::CHUNK_AVERAGE_BYTES, CHUNK_MAX_BYTES)
        .map(|chunk| &content[chunk.offset..chunk.offset + chunk.length])
        .collect()
}

impl Worker {
    fn new(key: ChunkKey, level: i32) -> Self {
        Self { key, compressor: Compressor::new(level) }
    }

    fn pack(&mut self, content: &[u8]) -> Packed {
        match self.compressor.compress(content) {
            Some(payload) => self.packed(content, Codec::Zstd, payload),
            None => self.packed(content, Codec::Raw, Bytes::copy_from_slice(content)),
        }
    }

    /// As [`Worker::pack`], without copying what does not compress.
    fn pack_owned(&mut self, content: Bytes) -> Packed {
        match self.compressor.compress(&content) {
            Some(payload) => self.packed(&content, Codec::Zstd, payload),
            None => self.packed(&content.clone(), Codec::Raw, content),
        }
    }

    fn packed(&self, content: &[u8], codec: Codec, payload: Bytes) -> Packed {
        let len = u32::try_from(content.len()).expect("a chunk is far below 4 GiB");
        Packed { id: self.key.id(content), codec, len, payload }
    }
}
