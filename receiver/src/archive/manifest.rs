//! What is archived, and the names of its objects.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::log::Mark;

/// Bytes of a segment in an object of their own. The name says what is in it, so an object is never written again with another
/// content, and one that is there with its name and length needs no upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where in the segment it begins, in bytes.
    pub(super) offset: u64,
    /// Its length, in bytes.
    pub(super) len: u64,
    /// The first half of the BLAKE3 of its bytes.
    pub(super) hash: [u8; 16],
}

impl Piece {
    pub(super) fn of(offset: u64, bytes: &[u8]) -> Self {
        Self { offset, len: bytes.len() as u64, hash: hash(bytes) }
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Whether these are its bytes.
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.len && hash(bytes) == self.hash
    }

    pub(super) fn name(&self, segment: u32) -> String {
        let hash: String = self.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{DATA}/{segment:010}-{:010}-{}-{hash}", self.offset, self.len)
    }
}

/// What is known of a segment without its bytes (`log/outline.rs`), as an object beside its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outlined {
    /// Its length, in bytes.
    pub(super) len: u64,
    /// The first half of the BLAKE3 of its bytes.
    pub(super) hash: [u8; 16],
}

impl Outlined {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { len: bytes.len() as u64, hash: hash(bytes) }
    }

    /// Whether these are its bytes.
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.len && hash(bytes) == self.hash
    }

    pub(super) fn name(&self, segment: u32) -> String {
        let hash: String = self.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{DATA}/{segment:010}-outline-{}-{hash}", self.len)
    }
}

fn hash(bytes: &[u8]) -> [u8; 16] {
    let hash = blake3::hash(bytes);
    hash.as_bytes()[..16].try_into().expect("half of 32 bytes")
}

/// Where the pieces are.
pub(super) const DATA: &str = "data";
/// Where the entries are.
pub(super) const CHAIN: &str = "chain";

/// The name of an entry: their order is that of their numbers.
pub(super) fn entry_name(number: u64) -> String {
    format!("{CHAIN}/{number:020}")
}

/// The number in the name of an entry.
pub(super) fn entry_number(name: &str) -> Option<u64> {
    name.strip_prefix(CHAIN)?.strip_prefix('/')?.parse().ok()
}

/// A log up to a mark: what opens as a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// The store's identity; zeros before there is a segment.
    pub(super) store: [u8; 16],
    /// The pieces of each segment, from its beginning on without gaps.
    pub(super) segments: BTreeMap<u32, Vec<Piece>>,
    /// Outlines of sealed segments; not all have one.
    pub(super) outlines: BTreeMap<u32, Outlined>,
    /// Up to where the log is archived.
    pub(super) mark: Mark,
}

/// Bytes of the last segment that an entry of the chain carries itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tail {
    /// Where in the segment they begin.
    pub(super) offset: u64,
    pub(super) bytes: Bytes,
}

/// What the chain says as a whole: its newest manifest, with the tails behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The newest entry.
    pub(super) number: u64,
    /// The entry with the newest manifest; older ones are not needed.
    pub(super) base: u64,
    /// Who wrote the newest entry.
    pub(super) holder: [u8; 16],
    /// The same for people.
    pub(super) who: String,
    /// The mark is that of the last tail.
    pub(super) manifest: Manifest,
    pub(super) tails: Vec<Tail>,
}

impl Head {
    /// The names of all pieces and outlines.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let pieces = self.manifest.segments.iter();
        let pieces = pieces.flat_map(|(segment, pieces)| pieces.iter().map(|piece| piece.name(*segment)));
        let outlines = self.manifest.outlines.iter().map(|(segment, outline)| outline.name(*segment));
        pieces.chain(outlines).collect()
    }

    /// Up to where a segment is in pieces and tails, in bytes.
    pub(super) fn covered(&self, segment: u32) -> u64 {
        if segment == self.manifest.mark.segment {
            return u64::from(self.manifest.mark.offset);
        }
        self.manifest.segments.get(&segment).and_then(|pieces| pieces.last()).map_or(0, Piece::end)
    }

    pub(super) fn tail_bytes(&self) -> u64 {
        self.tails.iter().map(|tail| tail.bytes.len() as u64).sum()
    }
}
