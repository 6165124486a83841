//! Chunks: how content gets its name, and how it travels and rests.

use std::{borrow::Cow, cell::RefCell};

use thiserror::Error;

use crate::{ids::ChunkId, limits};

/// The key that a tenant's chunk ids are made with, so that equal content of two tenants has different names and no
/// tenant can ask whether another one has something.
#[derive(Clone)]
pub struct ChunkKey([u8; 32]);

impl ChunkKey {
    /// The key of a tenant.
    pub fn of_tenant(tenant: &str) -> Self {
        Self(blake3::derive_key("tidelock chunk id v1", tenant.as_bytes()))
    }

    /// The id of a chunk with this content.
    pub fn id(&self, content: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.0, content).as_bytes())
    }
}

/// What the pages of some content are: for each [`limits::PAGE_BYTES`], and for a shorter one at the end, the first
/// [`limits::PAGE_SUM_BYTES`] of what its id would be. Two sides that compare them know which pages differ without sending any.
pub fn page_sums(key: &ChunkKey, content: &[u8]) -> Vec<u8> {
    let sums = content.chunks(limits::PAGE_BYTES).map(|page| key.id(page));
    sums.flat_map(|id| id.0.into_iter().take(limits::PAGE_SUM_BYTES)).collect()
}

impl std::fmt::Debug for ChunkKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkKey")
    }
}

/// How the payload of a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    /// The codec with this number on the wire and in the log.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why a chunk cannot be opened.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum ChunkError {
    /// Empty, or longer than a chunk may be.
    #[error("chunk of {0} bytes: 1 to {max} are allowed", max = limits::CHUNK_MAX_BYTES)]
    Length(usize),
    /// The codec's number is not known.
    #[error("chunk codec {0} is not known")]
    Codec(u32),
    /// The payload does not decompress to exactly the stated length.
    #[error("chunk payload does not decompress to its {0} bytes")]
    Payload(usize),
    /// The content is not what the id says.
    #[error("chunk {0} has other content than its id says")]
    Id(ChunkId),
}

/// Opens a payload: never allocates more than `len`, which is checked against the limit first, so that a bomb bursts
/// harmlessly.
pub fn open(codec: Codec, len: usize, payload: &[u8]) -> Result<Cow<'_, [u8]>, ChunkError> {
    if !(1..=limits::CHUNK_MAX_BYTES).contains(&len) {
        return Err(ChunkError::Length(len));
    }
    let content = match codec {
        Codec::Raw => Cow::Borrowed(payload),
        Codec::Zstd => {
            let decompressed = DECOMPRESSOR.with_borrow_mut(|it| it.context.decompress(payload, len));
            Cow::Owned(decompressed.map_err(|_| ChunkError::Payload(len))?)
        }
    };
    if content.len() == len { Ok(content) } else { Err(ChunkError::Payload(len)) }
}

/// Proves that a payload opens to the chunk it claims to be, with no copy of the content left over: in what is
/// received, most chunks are small, and making room for them costs more than opening them.
pub fn prove(
    key: &ChunkKey,
    id: ChunkId,
    codec: Codec,
    len: usize,
    payload: &[u8],
) -> Result<(), ChunkError> {
    if codec == Codec::Raw {
        return open_checked(key, id, codec, len, payload).map(drop);
    }
    if !(1..=limits::CHUNK_MAX_BYTES).contains(&len) {
        return Err(ChunkError::Length(len));
    }
    DECOMPRESSOR.with_borrow_mut(|Decompressor { context, scratch }| {
        scratch.resize(limits::CHUNK_MAX_BYTES, 0);
        match context.decompress_to_buffer(payload, &mut scratch[..len]) {
            Ok(got) if got == len => {}
            _ => return Err(ChunkError::Payload(len)),
        }
        if key.id(&scratch[..len]) == id { Ok(()) } else { Err(ChunkError::Id(id)) }
    })
}

/// One thread's zstd context, since making one costs more than opening a page, and the room that proofs are done in.
struct Decompressor {
    context: zstd::bulk::Decompressor<'static>,
    scratch: Vec<u8>,
}

thread_local! {
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor {
        context: zstd::bulk::Decompressor::new().expect("zstd has memory for its tables"),
        scratch: Vec::new(),
    });
}

/// Opens a payload and checks that it is the chunk it claims to be.
pub fn open_checked<'a>(
    key: &ChunkKey,
    id: ChunkId,
    codec: Codec,
    len: usize,
    payload: &'a [u8],
) -> Result<Cow<'a, [u8]>, ChunkError> {
    let content = open(codec, len, payload)?;
    if key.id(&content) == id { Ok(content) } else { Err(ChunkError::Id(id)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_bursts_at_the_stated_length() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compresses");
        assert!(bomb.len() < 64 << 10);
        assert_eq!(open(Codec::Zstd, 4096, &bomb), Err(ChunkError::Payload(4096)));
        assert_eq!(open(Codec::Zstd, 64 << 20, &bomb), Err(ChunkError::Length(64 << 20)));
        let key = ChunkKey::of_tenant("a");
        let id = key.id(&[0; 4096]);
        assert_eq!(prove(&key, id, Codec::Zstd, 4096, &bomb), Err(ChunkError::Payload(4096)));
        assert_eq!(prove(&key, id, Codec::Zstd, 64 << 20, &bomb), Err(ChunkError::Length(64 << 20)));
    }

    #[test]
    fn a_proof_takes_the_content_itself_and_nothing_else() {
        let (key, page) = (ChunkKey::of_tenant("a"), vec![7; 4096]);
        let (id, other) = (key.id(&page), key.id(b"other"));
        let payload = zstd::bulk::compress(&page, 1).expect("compresses");
        assert_eq!(prove(&key, id, Codec::Zstd, 4096, &payload), Ok(()));
        assert_eq!(prove(&key, id, Codec::Raw, 4096, &page), Ok(()));
        assert_eq!(prove(&key, other, Codec::Zstd, 4096, &payload), Err(ChunkError::Id(other)));
        assert_eq!(prove(&key, other, Codec::Raw, 4096, &page), Err(ChunkError::Id(other)));
        // What was proven before is not taken for what is missing now.
        assert_eq!(prove(&key, id, Codec::Zstd, 8192, &payload), Err(ChunkError::Payload(8192)));
    }

    #[test]
    fn tenants_name_the_same_content_differently() {
        let (a, b) = (ChunkKey::of_tenant("a"), ChunkKey::of_tenant("b"));
        assert_ne!(a.id(b"page"), b.id(b"page"));
        assert!(open_checked(&a, a.id(b"page"), Codec::Raw, 4, b"page").is_ok());
        assert_eq!(
            open_checked(&a, b.id(b"page"), Codec::Raw, 4, b"page"),
            Err(ChunkError::Id(b.id(b"page")))
        );
    }
}
