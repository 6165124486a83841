//! One segment that is partly here.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    super::{
        disk::SegmentFile,
        frame::RECORDS_START,
        outline::{HASH_BYTES, block_hash, block_range},
    },
    fetch::{Absent, Altered, Fetch, FetchError, NoArchive},
    presence::Presence,
};
use crate::limits;

/// A segment that is partly here.
pub(super) struct PartFile {
    pub(super) segment: u32,
    pub(super) len: u64,
    pub(super) file: Arc<dyn SegmentFile>,
    pub(super) presence: Arc<Presence>,
    pub(super) source: Bytes,
    pub(super) hashes: Bytes,
    pub(super) fetch: Option<Arc<dyn Fetch>>,
}

impl PartFile {
    /// Has these bytes here.
    pub(super) fn ensure(&self, range: Range<u64>) -> io::Result<()> {
        // The header was written before the segment was offered.
        if self.presence.is_whole() || range.end <= RECORDS_START || range.is_empty() {
            return Ok(());
        }
        let block = limits::OUTLINE_BLOCK_BYTES;
        let (mut at, end) = (range.start / block, range.end.min(self.len).div_ceil(block));
        while at < end {
            if self.is_here(at)? {
                at += 1;
                continue;
            }
            if let Some(lost) = self.presence.state.lock().lost.get(&at) {
                return Err(io::Error::other(lost.clone()));
            }
            let most = self.ahead_of(at).max(end);
            let mut stop = at + 1;
            while stop < most.min(self.presence.blocks) && !self.presence.has(stop) {
                stop += 1;
            }
            match self.bring(at, stop) {
                // Not all of it need be lost.
                Err(error) if error.lost && stop > at + 1 => {
                    self.bring(at, at + 1).map_err(|error| self.give_up(at, error))?;
                    at += 1;
                }
                other => {
                    other.map_err(|error| self.give_up(at, error))?;
                    at = stop;
                }
            }
        }
        Ok(())
    }

    /// Up to which block it is worth to fetch if this one is missing.
    fn ahead_of(&self, block: u64) -> u64 {
        let state = self.presence.state.lock();
        let most = limits::PART_FILL_BYTES / limits::OUTLINE_BLOCK_BYTES;
        match state.ahead.end == block && !state.ahead.is_empty() {
            true => block + (2 * (state.ahead.end - state.ahead.start)).min(most),
            false => block + 1,
        }
    }

    /// Whether a block has the bytes that it should have.
    fn is_here(&self, block: u64) -> io::Result<bool> {
        if self.presence.has(block) {
            return Ok(true);
        }
        let range = block_range(block, self.len);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let here = match self.file.read_at(&mut bytes, range.start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            other => other.map(|()| self.is(block, &bytes))?,
        };
        if here {
            self.presence.set(block);
        }
        Ok(here)
    }

    fn is(&self, block: u64, bytes: &[u8]) -> bool {
        let at = block as usize * HASH_BYTES;
        self.hashes[at..at + HASH_BYTES] == block_hash(bytes)
    }

    /// Fetches blocks, and keeps those that are what they should be.
    fn bring(&self, first: u64, end: u64) -> Result<(), FetchError> {
        let range = block_range(first, self.len).start..block_range(end - 1, self.len).end;
        let missing = || FetchError { lost: false, source: Arc::new(NoArchive) };
        let fetch = self.fetch.as_ref().ok_or_else(missing)?;
        let bytes = fetch.fetch(self.segment, &self.source, range.clone())?;
        let altered = |offset| {
            let name = fetch.name(self.segment, &self.source, offset);
            FetchError { lost: true, source: Arc::new(Altered(name)) }
        };
        if bytes.len() as u64 != range.end - range.start {
            return Err(altered(range.start));
        }
        for block in first..end {
            let at = block_range(block, self.len);
            let found = &bytes[(at.start - range.start) as usize..(at.end - range.start) as usize];
            if !self.is(block, found) {
                return Err(altered(at.start));
            }
            let here = self.file.write_at(found, at.start);
            here.map_err(|error| FetchError { lost: false, source: Arc::new(error) })?;
            self.presence.set(block);
        }
        self.presence.state.lock().ahead = first..end;
        Ok(())
    }

    /// What is said of a block that cannot be had.
    fn give_up(&self, block: u64, error: FetchError) -> io::Error {
        let FetchError { lost, source } = error;
        let absent = Absent { offset: block * limits::OUTLINE_BLOCK_BYTES, lost, source };
        if lost {
            self.presence.state.lock().lost.insert(block, absent.clone());
        }
        io::Error::other(absent)
    }
}

impl SegmentFile for PartFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.ensure(offset..offset + buffer.len() as u64)?;
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change()?;
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change()?;
        self.file.allocate(len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change()?;
        self.file.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl PartFile {
    /// Nobody writes to it before it is whole.
    fn change(&self) -> io::Result<()> {
        match self.presence.is_whole() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::ResourceBusy, "the segment is still being fetched")),
        }
    }
}
