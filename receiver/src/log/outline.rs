//! What the index needs to know of a sealed segment, without its content: so that a store opens before its segments are here.
//!
//! An outline has the segment's header, for every record its place and what the catalogue takes from it (of a chunk all but the payload, of a commit all but its operations), and a hash of every
//! block of the segment, by which bytes that are fetched later are known for what was there when it was made. It is made only of a segment in which every record is intact.
//!
//! **What is encrypted stays so.** What is left of an encrypted record is encrypted again with its tenant's key, bound to the record's number and to being an outline ([`OUTLINED`]). So an outline says no more than the
//! index does without the key: places, kinds and lengths.
//!
//! The price: about 100 bytes for a chunk or a commit, and 16 for each [`limits::OUTLINE_BLOCK_BYTES`].

use std::{io, ops::Range};

use bytes::Bytes;
use prost::Message;

use super::{
    Place,
    disk::Disk,
    entry::{ChunkEntry, CommitBody, Kind},
    frame::{RECORDS_START, SegmentHeader},
    scan::{Found, read_sealed},
};
use crate::{
    limits,
    log::LogError,
    vault::{Unopened, Vault},
};

/// Set in the kind that an encrypted record of an outline is bound to.
pub(crate) const OUTLINED: u8 = 0x80;

/// Bytes of a block's hash.
pub(crate) const HASH_BYTES: usize = 16;

#[derive(Clone, PartialEq, Message)]
struct OutlineBody {
    #[prost(uint32, tag = "1")]
    segment: u32,
    /// Length of the segment.
    #[prost(uint64, tag = "2")]
    len: u64,
    /// Its first bytes, up to the first record.
    #[prost(bytes = "bytes", tag = "3")]
    page: Bytes,
    #[prost(uint32, tag = "4")]
    block_bytes: u32,
    /// Halves of the BLAKE3 of the blocks.
    #[prost(bytes = "bytes", tag = "5")]
    hashes: Bytes,
    #[prost(message, repeated, tag = "6")]
    records: Vec<RecordBody>,
}

/// Numbers have no gaps, from the one in the header on.
#[derive(Clone, PartialEq, Message)]
struct RecordBody {
    #[prost(uint32, tag = "1")]
    offset: u32,
    #[prost(uint32, tag = "2")]
    len: u32,
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(bool, tag = "4")]
    encrypted: bool,
    #[prost(bytes = "bytes", tag = "5")]
    body: Bytes,
}

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outline {
    body: OutlineBody,
    header: SegmentHeader,
}

impl Outline {
    /// Makes the outline of a sealed segment; `None` if something in it is damaged or a key is missing.
    pub(crate) fn make(
        disk: &dyn Disk,
        store: [u8; 16],
        segment: u32,
        vault: &Vault,
    ) -> Result<Option<Bytes>, LogError> {
        let (mut records, mut closed) = (Vec::new(), false);
        let whole = read_sealed(disk, store, segment, &mut |found| {
            let Found { place, kind, encrypted, .. } = found;
            match reduced(&found, vault) {
                Ok(body) => records.push(RecordBody {
                    offset: place.offset,
                    len: place.len,
                    kind: u32::from(kind),
                    encrypted,
                    body,
                }),
                Err(_) => closed = true,
            }
        })?;
        if !whole || closed {
            return Ok(None);
        }
        let file = disk.open(segment).map_err(LogError::io("open", segment))?;
        let read = || -> io::Result<OutlineBody> {
            let len = file.len()?;
            let (mut page, mut hashes) = (vec![0; RECORDS_START as usize], Vec::new());
            file.read_at(&mut page, 0)?;
            let mut buffer = vec![0; limits::OUTLINE_BLOCK_BYTES as usize];
            for block in 0..len.div_ceil(limits::OUTLINE_BLOCK_BYTES) {
                let range = block_range(block, len);
                let bytes = &mut buffer[..(range.end - range.start) as usize];
                file.read_at(bytes, range.start)?;
                hashes.extend_from_slice(&block_hash(bytes));
            }
            let block_bytes = limits::OUTLINE_BLOCK_BYTES as u32;
            Ok(OutlineBody { segment, len, page: page.into(), block_bytes, hashes: hashes.into(), records })
        };
        let body = read().map_err(LogError::io("read", segment))?;
        Ok(Some(body.encode_to_vec().into()))
    }

    /// Reads an outline whose bytes are known to be what was made; `None` if it is none of this segment.
    pub(crate) fn decode(bytes: Bytes, segment: u32) -> Option<Self> {
        let body = OutlineBody::decode(bytes).ok()?;
        let header = SegmentHeader::decode(&body.page)?;
        let blocks = body.len.div_ceil(limits::OUTLINE_BLOCK_BYTES);
        let fits = body.segment == segment
            && header.segment == segment
            && u64::from(body.block_bytes) == limits::OUTLINE_BLOCK_BYTES
            && body.page.len() as u64 == RECORDS_START
            && body.len >= RECORDS_START
            && body.hashes.len() as u64 == blocks * HASH_BYTES as u64;
        fits.then_some(Self { body, header })
    }

    /// Length of the segment.
    pub(crate) fn len(&self) -> u64 {
        self.body.len
    }

    /// Its bytes before the first record.
    pub(crate) fn page(&self) -> &[u8] {
        &self.body.page
    }

    pub(crate) fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The hashes of its blocks, one after the other.
    pub(crate) fn hashes(&self) -> Bytes {
        self.body.hashes.clone()
    }

    /// The records, as a reading of the log would find them.
    pub(crate) fn records(&self) -> impl Iterator<Item = Found> {
        let segment = self.body.segment;
        self.body.records.iter().zip(self.header.first..).map(move |(record, number)| Found {
            place: Place { segment, offset: record.offset, len: record.len },
            number,
            kind: u8::try_from(record.kind).unwrap_or(0),
            encrypted: record.encrypted,
            outlined: true,
            body: record.body.clone(),
        })
    }
}

/// The bytes of a block of a segment that is so long.
pub(crate) fn block_range(block: u64, len: u64) -> Range<u64> {
    let start = block * limits::OUTLINE_BLOCK_BYTES;
    start..(start + limits::OUTLINE_BLOCK_BYTES).min(len)
}

pub(crate) fn block_hash(bytes: &[u8]) -> [u8; HASH_BYTES] {
    blake3::hash(bytes).as_bytes()[..HASH_BYTES].try_into().expect("half of 32 bytes")
}

/// What is left of a record's body.
fn reduced(found: &Found, vault: &Vault) -> Result<Bytes, Unopened> {
    let body = vault.body(found)?;
    let left = match Kind::from_tag(found.kind) {
        Some(Kind::Chunk) => {
            let payload = ChunkEntry::decode(body.clone()).map_or(0, |entry| entry.payload.len());
            body.slice(..body.len() - payload)
        }
        Some(Kind::Ops) => Bytes::new(),
        Some(Kind::Commit | Kind::Merged) => match CommitBody::decode(body.clone()) {
            Ok(commit) => {
                CommitBody { ops: Bytes::new(), parts: Vec::new(), ..commit }.encode_to_vec().into()
            }
            Err(_) => body,
        },
        _ => body,
    };
    if found.encrypted { vault.seal_again(found, OUTLINED, &left) } else { Ok(left) }
}
