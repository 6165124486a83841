//! Chunks that the receiver has lost, from a volume that still has their content.
//!
//! Where a chunk was, the tree knows: each extent names its chunk and the place within it. The file is read there, and what is read is sent if it
//! is what the id says; so nothing can be wrong with it, whatever has happened to the file since, and no cut is involved.
//!
//! The price: a chunk of which the file has only a part now, because the rest was overwritten, is not found. A chunk that is in very many
//! places is looked for in the first few.

use std::{collections::HashMap, os::fd::AsFd};

use rustix::{fs::OFlags, io::Errno};
use tidelock_proto::{ChunkId, FileId, limits::CHUNK_MAX_BYTES};

use super::engine::Engine;
use crate::{
    capture::{CaptureError, read_at},
    limits,
    pack::Packed,
};

const OPEN_FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);

/// A chunk that is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    /// Length of its content, in bytes, as far as it is known.
    len: u64,
    /// Where it begins: files, and offsets in bytes.
    places: Vec<(FileId, u64)>,
}

impl Engine {
    /// Gives those chunks to the outbox that the volume still has, and then says how many.
    pub(super) fn resend(&mut self, wanted: &[(ChunkId, u32)]) {
        let found = self.find_again(wanted);
        let (asked, sent) = (wanted.len(), found.len());
        tracing::warn!(asked, sent, "the receiver has lost chunks and asked for them again");
        found.into_iter().for_each(|packed| self.outbox.chunk(packed, false));
        self.outbox.resent(u32::try_from(sent).unwrap_or(u32::MAX));
    }

    /// Those of the chunks that the volume still has.
    pub(super) fn find_again(&mut self, wanted: &[(ChunkId, u32)]) -> Vec<Packed> {
        let mut found = Vec::new();
        for (id, wanted) in self.places_of(wanted) {
            let content = wanted.places.iter().find_map(|(file, start)| {
                self.read_again(*file, *start, wanted.len).filter(|content| self.packer.id(content) == id)
            });
            found.extend(content.map(|content| self.packer.pack_one(&content)));
        }
        found
    }

    /// Where the tree has these chunks.
    fn places_of(&self, wanted: &[(ChunkId, u32)]) -> HashMap<ChunkId, Wanted> {
        let known = |(id, len): &(ChunkId, u32)| (*id, Wanted { len: u64::from(*len), places: Vec::new() });
        let mut chunks: HashMap<ChunkId, Wanted> = wanted.iter().map(known).collect();
        for (file, inode) in self.stage.tree().iter() {
            for (offset, extent) in inode.extents().into_iter().flat_map(|extents| extents.iter()) {
                let Some(wanted) = chunks.get_mut(&extent.chunk.id) else { continue };
                wanted.len = wanted.len.max(u64::from(extent.chunk.at) + u64::from(extent.len));
                let start = offset.checked_sub(u64::from(extent.chunk.at)).map(|start| (file, start));
                let room = wanted.places.len() < limits::RESEND_PLACES_MAX;
                wanted.places.extend(start.filter(|place| room && wanted.places.last() != Some(place)));
            }
        }
        chunks
    }

    /// These bytes of a file, if it can be read and has as many. Its access time is left alone where that is allowed.
    fn read_again(&self, file: FileId, start: u64, len: u64) -> Option<Vec<u8>> {
        let mut content = vec![0; usize::try_from(len).ok().filter(|len| *len <= CHUNK_MAX_BYTES)?];
        let (identity, path) = (self.stage.identity(file)?, self.stage.tree().path(file)?);
        let opened = match self.volume.open_identified(&path, identity, OPEN_FILE | OFlags::NOATIME) {
            Err(CaptureError::Io(Errno::PERM)) => self.volume.open_identified(&path, identity, OPEN_FILE),
            opened => opened,
        };
        let (fd, _) = opened.ok()?;
        let read = read_at(fd.as_fd(), &mut content, start).ok()?;
        (read == content.len()).then_some(content)
    }
}
