//! Where that is kept which was written to a mounted point: for as long as the mount lasts, or for good.

use std::io;

use tidelock_proto::{ChunkId, FileId, tree::ChunkRef};

use super::{durable::Durable, scratch::Scratch};

/// What is written over a point; there is one of a mount.
#[allow(clippy::large_enum_variant)]
pub(super) enum Upper {
    /// Gone with the process.
    Scratch(Scratch),
    /// Outlives it.
    Durable(Durable),
}

impl Upper {
    /// The slot of a stretch of a file that begins at `stretch`.
    pub(super) fn new_slot(&mut self, id: FileId, stretch: u64) -> ChunkId {
        match self {
            Self::Scratch(scratch) => scratch.new_slot(),
            Self::Durable(_) => Durable::slot(id, stretch),
        }
    }

    pub(super) fn write(&mut self, to: ChunkRef, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Scratch(scratch) => scratch.write(to, bytes),
            Self::Durable(durable) => durable.write(to, bytes),
        }
    }

    pub(super) fn read(&self, from: ChunkRef, into: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Scratch(scratch) => scratch.read(from, into),
            Self::Durable(durable) => durable.read(from, into),
        }
    }

    /// Nobody needs this any more.
    pub(super) fn give_back(&mut self, chunk: ChunkRef, len: u64) {
        match self {
            Self::Scratch(scratch) => scratch.give_back(chunk, len),
            Self::Durable(durable) => durable.give_back(chunk, len),
        }
    }

    /// How much more can be written, in bytes.
    pub(super) fn free_bytes(&self) -> u64 {
        match self {
            Self::Scratch(scratch) => scratch.free_bytes(),
            Self::Durable(durable) => durable.free_bytes(),
        }
    }
}
