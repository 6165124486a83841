//! Capturing inodes: attributes and bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{fs::OFlags, io::Errno};
use tidelock_proto::{
    FileId, Op,
    limits::PIECES_PER_OP_MAX,
    tree::{ChunkRef, Content, Extent, ExtentMap, Piece, Timestamp},
};

use super::{
    CutError,
    dirty::{FileDirt, Seen},
    engine::Engine,
    hurry,
    pages::Different,
    ranges::RangeSet,
};
use crate::capture::{CaptureError, Found, Segment, barrier, data_segments, read_xattrs, write_back};
use crate::limits::{PAGE_BYTES, REFINE_PARTS, SLICE_BYTES};

const OPEN_FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);
const OPEN_NODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);

impl Engine {
    /// Captures what is dirty of one inode, at most about a slice of its bytes; the rest goes back. Returns the bytes
    /// read.
    pub(super) fn capture_inode(&mut self, id: FileId, mut dirt: FileDirt) -> Result<u64, CutError> {
        let (Some(inode), Some(identity)) = (self.stage.get(id), self.stage.identity(id)) else {
            return Ok(0);
        };
        let is_file = matches!(inode.content, Content::File(_));
        let Some(path) = self.stage.tree().path(id) else {
            // No name just now: the commit's end removes it, or a name comes with a later event.
            self.nameless.entry(id).or_default().dirt.push(dirt);
            return Ok(0);
        };
        let opened = if is_file {
            self.open_for_reading(&path, identity)
        } else {
            self.volume.open_identified(&path, identity, OPEN_NODE)
        };
        let (fd, found) = match opened {
            Ok(opened) => opened,
            Err(CaptureError::Moved) => {
                self.look_up_again(id);
                self.nameless.entry(id).or_default().dirt.push(dirt);
                return Ok(0);
            }
            Err(CaptureError::Io(errno)) => {
                self.unreadable_later.insert(id, dirt);
                self.unreadable(id, errno);
                return Ok(0);
            }
        };
        dirt.settle = dirt.settle.take().filter(|_| !dirt.is_announced());
        if dirt.settle.is_some_and(|seen| is_file && seen.ctime != found.ctime()) {
            // Changed since, and nothing says how: a change time that is not recorded has the next scan look.
            return Ok(0);
        }
        if std::mem::take(&mut dirt.compare) && is_file && self.differs(id, &found) {
            dirt.suspect_all();
        }
        match self.capture_open(id, &fd, &found, &mut dirt) {
            Ok(bytes) => {
                if !dirt.changed.is_empty() || !dirt.suspect.is_empty() {
                    self.dirty.put_back(id, dirt);
                }
                Ok(bytes)
            }
            Err(CutError::Capture(CaptureError::Io(errno))) => {
                // What was taken from the sets is not known to be captured: everything is suspect.
                dirt.suspect_all();
                dirt.attributes = true;
                self.unreadable_later.insert(id, dirt);
                self.unreadable(id, errno);
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a file without touching its access time where that is allowed.
    fn open_for_reading(
        &mut self,
        path: &[u8],
        identity: crate::capture::Identity,
    ) -> Result<(OwnedFd, Found), CaptureError> {
        match self.volume.open_identified(path, identity, OPEN_FILE | OFlags::NOATIME) {
            Err(CaptureError::Io(Errno::PERM)) => self.volume.open_identified(path, identity, OPEN_FILE),
            opened => opened,
        }
    }

    fn capture_open(
        &mut self,
        id: FileId,
        fd: &OwnedFd,
        found: &Found,
        dirt: &mut FileDirt,
    ) -> Result<u64, CutError> {
        let (mut found, mut bytes) = (*found, 0);
        let (whole, seen) = (dirt.suspect.covers(0, u64::MAX), dirt.settle.take());
        // A change time from before this, seen after the barrier, is of no write that is still under way.
        let settled_before = self.settled_before();
        if self.is_file(id) {
            barrier(fd.as_fd());
            // Looked at after the barrier and before the bytes: a later change has a later event.
            found = found.again(fd.as_fd()).map_err(CaptureError::from)?;
            let before = self.capture_size(id, found.size())?;
            // Growth alone need not be announced as bytes: what a truncation left behind the former end is compared.
            if !dirt.changed.covers(before - before % PAGE_BYTES, found.size()) {
                dirt.suspect.insert(before, found.size());
            }
            let read = !(dirt.changed.is_empty() && dirt.suspect.is_empty());
            if dirt.write_back || (read && self.is_mapped(found.identity().inode)) {
                write_back(fd.as_fd(), 0, u64::MAX);
                dirt.write_back = false;
            }
            bytes += self.capture_changed(id, fd.as_fd(), found.size(), &mut dirt.changed)?;
            bytes += self.capture_suspect(id, fd.as_fd(), found.size(), dirt, bytes)?;
        }
        self.capture_meta(id, &found, whole, seen, settled_before)?;
        dirt.times = false;
        if std::mem::take(&mut dirt.attributes) {
            self.capture_xattrs(id, fd.as_fd())?;
        }
        Ok(bytes)
    }

    /// Records the size; returns the one before.
    fn capture_size(&mut self, id: FileId, size: u64) -> Result<u64, CutError> {
        let before = self.stage.get(id).and_then(|inode| inode.extents()).map_or(0, ExtentMap::size);
        if before != size {
            self.stage.apply(Op::Resize { id, size })?;
        }
        Ok(before)
    }

    fn capture_meta(
        &mut self,
        id: FileId,
        found: &Found,
        whole: bool,
        seen: Option<Seen>,
        settled_before: Timestamp,
    ) -> Result<(), CutError> {
        let Some(before) = self.stage.get(id).map(|inode| inode.meta) else { return Ok(()) };
        let meta = match self.is_sure(id, found, whole, seen) {
            true => found.meta(settled_before),
            false => found.meta(Timestamp::default()),
        };
        if meta != before {
            self.stage.apply(Op::SetMeta { id, meta })?;
        }
        self.note_unsettled(id, found.ctime(), settled_before);
        Ok(())
    }

    fn capture_xattrs(&mut self, id: FileId, fd: BorrowedFd<'_>) -> Result<(), CutError> {
        let xattrs = read_xattrs(fd).map_err(CaptureError::from)?;
        if self.stage.get(id).is_some_and(|inode| inode.xattrs != xattrs) {
            self.stage.apply(Op::SetXattrs { id, xattrs })?;
        }
        Ok(())
    }

    /// Bytes that an exact source named: read and shipped as they are, in whole pages.
    fn capture_changed(
        &mut self,
        id: FileId,
        fd: BorrowedFd<'_>,
        size: u64,
        changed: &mut RangeSet,
    ) -> Result<u64, CutError> {
        let mut total = 0;
        while total < SLICE_BYTES
            && let Some((start, end)) = changed.take(SLICE_BYTES)
        {
            let start = start - start % PAGE_BYTES;
            let end = end.checked_next_multiple_of(PAGE_BYTES).map_or(size, |end| end.min(size));
            if start >= size {
                // Beyond the end, like everything after it.
                *changed = RangeSet::default();
                break;
            }
            total += self.ship_range(id, fd, start, end)?;
        }
        Ok(total)
    }

    /// Reads `start..end` and stages it as written.
    fn ship_range(&mut self, id: FileId, fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64, CutError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.fill(fd, &mut buffer, start, end);
        let result = read.and_then(|read| {
            let content = &buffer[..read];
            let stop = start + read as u64;
            let segments = if content.chunks(PAGE_BYTES as usize).any(is_zero) {
                data_segments(fd, start, stop).map_err(CaptureError::from)?
            } else {
                vec![Segment { start, end: stop, data: true }]
            };
            let mut pieces = Vec::new();
            for segment in segments {
                let part = &content[(segment.start - start) as usize..(segment.end - start) as usize];
                self.pack(part, segment.data, false, &mut pieces);
            }
            self.write(id, start, pieces)?;
            Ok(read as u64)
        });
        self.buffer = buffer;
        result
    }

    /// Bytes that may differ: compared along the tree's extents, so that unchanged parts keep their boundaries.
    fn capture_suspect(
        &mut self,
        id: FileId,
        fd: BorrowedFd<'_>,
        size: u64,
        dirt: &mut FileDirt,
        spent: u64,
    ) -> Result<u64, CutError> {
        let mut total = 0;
        dirt.suspect.cut_off(size);
        while spent + total < SLICE_BYTES {
            let Some((start, end)) = dirt.suspect.take_from(dirt.from, SLICE_BYTES) else {
                // A lap is over; what is left was changed during it.
                dirt.from = 0;
                break;
            };
            dirt.from = end;
            let (start, end) = self.at_extents(id, start, end);
            let end = end.min(size);
            for segment in data_segments(fd, start, end).map_err(CaptureError::from)? {
                if segment.data {
                    total += self.compare(id, fd, segment.start, segment.end)?;
                } else {
                    self.compare_hole(id, segment)?;
                }
            }
        }
        Ok(total)
    }

    /// Widens a range so that it cuts no extent.
    pub(super) fn at_extents(&self, id: FileId, start: u64, end: u64) -> (u64, u64) {
        let Some(extents) = self.stage.get(id).and_then(|inode| inode.extents()) else { return (start, end) };
        let first = extents.touching(start, start + 1).next().map_or(start, |(offset, _)| offset);
        let last = extents.touching(end - 1, end).next();
        (first, last.map_or(end, |(offset, extent)| end.max(offset + u64::from(extent.len))))
    }

    fn compare_hole(&mut self, id: FileId, hole: Segment) -> Result<(), CutError> {
        let extents = self.stage.get(id).and_then(|inode| inode.extents());
        if extents.is_some_and(|extents| extents.touching(hole.start, hole.end).next().is_some()) {
            self.write(id, hole.start, vec![Piece { len: hole.end - hole.start, chunk: None }])?;
        }
        Ok(())
    }

    /// Reads a run of data and stages what is not in the tree already.
    fn compare(&mut self, id: FileId, fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64, CutError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = self.fill(fd, &mut buffer, start, end);
        let result = read.and_then(|read| {
            self.stage_differences(id, start, &buffer[..read])?;
            Ok(read as u64)
        });
        self.buffer = buffer;
        result
    }

    fn stage_differences(&mut self, id: FileId, start: u64, content: &[u8]) -> Result<(), CutError> {
        let end = start + content.len() as u64;
        let part = |from: u64, to: u64| &content[(from - start) as usize..(to - start) as usize];
        let extents: Vec<(u64, Extent)> = match self.stage.get(id).and_then(|inode| inode.extents()) {
            Some(extents) => extents.touching(start, end).collect(),
            None => return Ok(()),
        };
        let within =
            |offset: u64, extent: &Extent| (offset.max(start), (offset + u64::from(extent.len)).min(end));
        // Only a whole chunk can be told by its id.
        let is_whole = |offset: u64, extent: &Extent| {
            let (from, to) = within(offset, extent);
            from == offset && to - from == u64::from(extent.len) && extent.chunk.at == 0
        };
        let whole = extents.iter().filter(|(offset, extent)| is_whole(*offset, extent));
        let parts: Vec<&[u8]> =
            whole.map(|(from, extent)| part(*from, from + u64::from(extent.len))).collect();
        let mut ids = hurry::ids(&self.packer, &parts, self.cores).into_iter();
        let (mut at, mut different) = (start, Vec::new());
        for (offset, extent) in extents {
            let (from, to) = within(offset, &extent);
            if at < from {
                self.stage_new(id, at, part(at, from))?;
            }
            if !is_whole(offset, &extent) || ids.next() != Some(extent.chunk.id) {
                let content = (from - start) as usize..(to - start) as usize;
                let at = u64::from(extent.chunk.at) + (from - offset);
                different.push(Different { offset: from, content, chunk: (extent.chunk.id, at) });
            }
            at = to;
        }
        if at < end {
            self.stage_new(id, at, part(at, end))?;
        }
        self.stage_different(id, content, different)
    }

    /// A run that differs, as it is.
    pub(super) fn stage_run(&mut self, id: FileId, start: u64, content: &[u8]) -> Result<(), CutError> {
        let mut pieces = Vec::new();
        self.pack(content, true, false, &mut pieces);
        self.write(id, start, pieces)
    }

    /// A run that the tree has nothing for: cut by content; it may be known elsewhere.
    fn stage_new(&mut self, id: FileId, start: u64, content: &[u8]) -> Result<(), CutError> {
        let mut pieces = Vec::new();
        self.pack(content, true, true, &mut pieces);
        self.write(id, start, pieces)
    }

    /// An extent that changed somewhere: shipped in smaller parts, so that the next change there costs less.
    pub(super) fn stage_refined(&mut self, id: FileId, start: u64, content: &[u8]) -> Result<(), CutError> {
        let part = (content.len() as u64 / REFINE_PARTS).next_multiple_of(PAGE_BYTES).max(PAGE_BYTES);
        let mut pieces = Vec::new();
        for part in content.chunks(part as usize) {
            self.pack(part, true, false, &mut pieces);
        }
        self.write(id, start, pieces)
    }

    /// Packs a run into chunks for the receiver; a run without data becomes a hole.
    fn pack(&mut self, content: &[u8], data: bool, ask: bool, pieces: &mut Vec<Piece>) {
        if content.is_empty() {
            return;
        }
        if !data {
            pieces.push(Piece { len: content.len() as u64, chunk: None });
            return;
        }
        for packed in self.packer.pack(content) {
            let chunk = Some(ChunkRef { id: packed.id, at: 0 });
            pieces.push(Piece { len: u64::from(packed.len), chunk });
            #[cfg(test)]
            {
                let content = tidelock_proto::chunk::open(packed.codec, packed.len as usize, &packed.payload);
                self.tap.insert(packed.id, content.expect("packed a moment ago").into_owned());
            }
            self.outbox.chunk(packed, ask);
        }
    }

    fn write(&mut self, id: FileId, start: u64, pieces: Vec<Piece>) -> Result<(), CutError> {
        let mut offset = start;
        for pieces in pieces.chunks(PIECES_PER_OP_MAX) {
            self.stage.apply(Op::Write { id, offset, pieces: pieces.to_vec() })?;
            offset += pieces.iter().map(|piece| piece.len).sum::<u64>();
        }
        Ok(())
    }

    /// Reads `start..end` into the buffer; less if the file ends before, which its own event will tell.
    pub(super) fn fill(
        &mut self,
        fd: BorrowedFd<'_>,
        buffer: &mut Vec<u8>,
        start: u64,
        end: u64,
    ) -> Result<usize, CutError> {
        let len = usize::try_from(end - start).expect("a slice fits in memory");
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let read = hurry::read(fd, &mut buffer[..len], start, self.cores).map_err(CaptureError::from)?;
        self.status.counters.read_bytes.add(read as u64);
        Ok(read)
    }
}

fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}
