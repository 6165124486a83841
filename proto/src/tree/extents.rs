//! The content of a regular file: which part of which chunk backs each range, and where the holes are.

use std::collections::BTreeMap;

use crate::ids::ChunkId;

/// A place in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkRef {
    /// The chunk.
    pub id: ChunkId,
    /// The first byte used, counted in its uncompressed content.
    pub at: u32,
}

/// A run of bytes being written: data from a chunk, or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    /// Length in bytes, above 0; for data at most the length of a chunk.
    pub len: u64,
    /// Where the bytes are; `None` is a hole.
    pub chunk: Option<ChunkRef>,
}

/// A run of a file that is backed by part of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Length in bytes.
    pub len: u32,
    /// Where the bytes are.
    pub chunk: ChunkRef,
}

/// Size and extents of a file. What no extent covers is a hole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtentMap {
    size: u64,
    extents: BTreeMap<u64, Extent>,
}

impl ExtentMap {
    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The number of extents.
    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// Whether the file has no data at all; it may still have a size.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// All extents as (offset, extent), in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Extent)> {
        self.extents.iter().map(|(offset, extent)| (*offset, *extent))
    }

    /// The extents that touch `start..end`, whole, in order.
    pub fn touching(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, Extent)> {
        let first = self
            .extents
            .range(..start)
            .next_back()
            .filter(|(offset, extent)| **offset + u64::from(extent.len) > start)
            .map_or(start, |(offset, _)| *offset);
        // An empty range must not reach `BTreeMap::range` with its ends crossed.
        self.extents.range(first.min(end)..end).map(|(offset, extent)| (*offset, *extent))
    }

    /// The data and holes of `start..end`, cut to that range and without gaps. The end is not bounded by the size.
    pub fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = start;
        for (offset, extent) in self.touching(start, end) {
            let from = offset.max(start);
            let to = (offset + u64::from(extent.len)).min(end);
            if from > at {
                pieces.push(Piece { len: from - at, chunk: None });
            }
            pieces.push(Piece { len: to - from, chunk: Some(skip(extent.chunk, from - offset)) });
            at = to;
        }
        if end > at {
            pieces.push(Piece { len: end - at, chunk: None });
        }
        pieces
    }

    /// Removes all data of `start..end`, telling `changed` of every extent that goes (`false`) or comes (`true`).
    pub(super) fn clear(&mut self, start: u64, end: u64, changed: &mut dyn FnMut(u64, Extent, bool)) {
        let touched: Vec<(u64, Extent)> = self.touching(start, end).collect();
        for (offset, extent) in touched {
            self.extents.remove(&offset);
            changed(offset, extent, false);
            let stop = offset + u64::from(extent.len);
            if offset < start {
                self.insert(offset, Extent { len: narrow(start - offset), chunk: extent.chunk }, changed);
            }
            if stop > end {
                let chunk = skip(extent.chunk, end - offset);
                self.insert(end, Extent { len: narrow(stop - end), chunk }, changed);
            }
        }
    }

    /// Adds an extent where there is none.
    pub(super) fn insert(&mut self, offset: u64, extent: Extent, changed: &mut dyn FnMut(u64, Extent, bool)) {
        self.extents.insert(offset, extent);
        changed(offset, extent, true);
    }

    pub(super) fn set_size(&mut self, size: u64) {
        self.size = size;
    }
}

fn skip(chunk: ChunkRef, bytes: u64) -> ChunkRef {
    ChunkRef { id: chunk.id, at: chunk.at + narrow(bytes) }
}

fn narrow(len: u64) -> u32 {
    u32::try_from(len).expect("an extent is no longer than a chunk")
}
