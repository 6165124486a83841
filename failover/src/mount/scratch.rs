//! Where that is kept which was written to a mounted point: one file without a name, gone with the process however that ends.
//!
//! It consists of slots as long as the longest chunk. A stretch of a file of this length, aligned to it, has its own slot once something was written there, and
//! what was written is in the slot where it is in the stretch. A slot is named like a chunk, so the tree itself keeps track of what is where, and
//! what was overwritten needs no place of its own. The price is that an extent never spans stretches. Slots are not used again: what was deleted is
//! given back to the file system as a hole.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use tidelock_proto::{ChunkId, limits::CHUNK_MAX_BYTES, tree::ChunkRef};

/// Length of a slot and of the stretch of a file that it is for, in bytes.
pub(super) const SLOT_BYTES: u64 = CHUNK_MAX_BYTES as u64;

/// No content has an id that begins so, as far as BLAKE3 is to be believed.
pub(super) const MARK: [u8; 16] = *b"tidelock-scratch";

pub(super) struct Scratch {
    file: File,
    next_slot: u64,
}

impl Scratch {
    /// On the file system of `directory`.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile_in(directory)?, next_slot: 0 })
    }

    /// A slot that was never used.
    pub(super) fn new_slot(&mut self) -> ChunkId {
        let mut id = [0; 32];
        id[..16].copy_from_slice(&MARK);
        id[16..24].copy_from_slice(&self.next_slot.to_be_bytes());
        self.next_slot += 1;
        ChunkId(id)
    }

    pub(super) fn write(&self, to: ChunkRef, bytes: &[u8]) -> io::Result<()> {
        let Some(range) = place(to, bytes.len() as u64) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.file.write_all_at(bytes, range.start)
    }

    pub(super) fn read(&self, from: ChunkRef, into: &mut [u8]) -> io::Result<()> {
        let Some(range) = place(from, into.len() as u64) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.file.read_exact_at(into, range.start)
    }

    /// Nobody needs this any more. Where the file system cannot punch holes the space is lost until the end.
    pub(super) fn give_back(&self, chunk: ChunkRef, len: u64) {
        if let Some(range) = place(chunk, len) {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&self.file, hole, range.start, range.end - range.start);
        }
    }

    /// How much more can be written, in bytes.
    pub(super) fn free_bytes(&self) -> u64 {
        fstatvfs(&self.file).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// Whether a chunk is a slot, of this kind or of [`super::durable`].
pub(crate) fn is_slot(id: ChunkId) -> bool {
    id.0[..16] == MARK
}

/// Where a part of a slot is in the file.
fn place(chunk: ChunkRef, len: u64) -> Option<Range<u64>> {
    let slot = chunk.id.0[16..24].try_into().map(u64::from_be_bytes).ok().filter(|_| is_slot(chunk.id))?;
    let start = slot.checked_mul(SLOT_BYTES)?.checked_add(chunk.at.into())?;
    (u64::from(chunk.at) + len <= SLOT_BYTES).then_some(start..start + len)
}
