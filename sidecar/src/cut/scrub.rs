//! The hands of the scrub: looking at inodes without capturing them (see [`crate::scrub`]).
//!
//! It runs when nothing is dirty, so the tree is what the volume should be. Reading does not touch access times where
//! that is allowed, and does not keep what it read in the kernel's cache longer than anything else.

use std::{
    collections::BTreeSet,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use rustix::{
    fs::{OFlags, RawDir},
    io::Errno,
};
use tidelock_proto::{
    FileId,
    tree::{Content, Extent, Timestamp},
};

use super::{CutError, engine::Engine};
use crate::{
    capture::{CaptureError, Found, data_segments, read_xattrs},
    scrub::{INODE_BYTES, PIECE_BYTES, Task},
};

const OPEN_FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);
const OPEN_DIRECTORY: OFlags = OPEN_FILE.union(OFlags::DIRECTORY);
const OPEN_NODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);
/// Numbers of inodes tried in one piece: most may be of inodes that are gone.
const IDS_PER_PIECE: u64 = 4096;

/// What came of looking at an inode, or at a piece of its bytes.
enum Seen {
    /// It is as the tree has it; so many bytes were read, and this is where the next piece of it begins.
    Equal { read: u64, next: Option<u64> },
    /// It is not, in this.
    Different(&'static str),
}

impl Engine {
    /// Does what the scrub has to do now: at most a piece. Afterwards something may be dirty.
    pub(super) fn scrub(&mut self, now: Instant) -> Result<(), CutError> {
        match self.scrub.poll(now) {
            Some(Task::Missed(doubt)) => self.missed(doubt.id, doubt.what),
            Some(Task::Compare { id, offset }) => self.scrub_piece(now, id, offset)?,
            None => {}
        }
        Ok(())
    }

    /// After a drain: an event that tells of what is in doubt ends the doubt.
    pub(super) fn scrub_heard(&mut self) {
        let Some(id) = self.scrub.in_doubt() else { return };
        let named =
            self.stage.tree().names(id).any(|(dir, name)| self.dirty.has_entry(*dir, name.as_bytes()));
        if named || self.dirty.concerns(id) {
            self.scrub.on_announced();
        }
    }

    fn scrub_piece(&mut self, now: Instant, mut id: FileId, mut offset: u64) -> Result<(), CutError> {
        let end = self.stage.tree().next_id();
        let (mut spent, mut tried) = (0, 0);
        while id < end && spent < PIECE_BYTES && tried < IDS_PER_PIECE {
            tried += 1;
            let mut next = None;
            if self.stage.get(id).is_some() {
                match self.look_at(id, offset)? {
                    Seen::Equal { read, next: there } => {
                        spent += read + INODE_BYTES;
                        next = there;
                    }
                    Seen::Different(what) => {
                        // Not dirty by now, or an event would have told; the doubt says whether one comes.
                        self.scrub.on_difference(now, id, what);
                        spent += PIECE_BYTES;
                    }
                }
            }
            (id, offset) = next.map_or((FileId(id.0 + 1), 0), |offset| (id, offset));
        }
        self.status.counters.scrubbed_bytes.add(spent);
        self.scrub.advance(now, spent, (id < end).then_some((id, offset)));
        Ok(())
    }

    fn look_at(&mut self, id: FileId, offset: u64) -> Result<Seen, CutError> {
        match self.look(id, offset) {
            Ok(seen) => Ok(seen),
            // A directory that is removed while it is read has no entries to tell.
            Err(CutError::Capture(CaptureError::Moved | CaptureError::Io(Errno::NOENT))) => {
                Ok(Seen::Different("name"))
            }
            Err(CutError::Capture(CaptureError::Io(errno))) => {
                self.unreadable(id, errno);
                Ok(Seen::Equal { read: 0, next: None })
            }
            Err(error) => Err(error),
        }
    }

    fn look(&mut self, id: FileId, offset: u64) -> Result<Seen, CutError> {
        let equal = Ok(Seen::Equal { read: 0, next: None });
        let (Some(inode), Some(identity)) = (self.stage.get(id), self.stage.identity(id)) else {
            return equal;
        };
        let flags = match &inode.content {
            Content::File(_) => OPEN_FILE,
            Content::Directory(_) => OPEN_DIRECTORY,
            _ => OPEN_NODE,
        };
        let Some(path) = self.stage.tree().path(id) else { return equal };
        let quiet = if flags == OPEN_NODE { flags } else { flags | OFlags::NOATIME };
        let (fd, found) = match self.volume.open_identified(&path, identity, quiet) {
            Err(CaptureError::Io(Errno::PERM)) => self.volume.open_identified(&path, identity, flags)?,
            opened => opened?,
        };
        if let Some(what) = self.attributes_differ(id, &fd, &found)? {
            return Ok(Seen::Different(what));
        }
        match flags {
            OPEN_DIRECTORY => self.names_differ(id, &fd),
            OPEN_FILE if found.size() > offset => self.bytes_differ(id, &fd, found.size(), offset),
            _ => equal,
        }
    }

    fn attributes_differ(
        &self,
        id: FileId,
        fd: &OwnedFd,
        found: &Found,
    ) -> Result<Option<&'static str>, CutError> {
        let Some(inode) = self.stage.get(id) else { return Ok(None) };
        let (had, has) = (inode.meta, found.meta(Timestamp::default()));
        let recorded = had.origin.ctime != Timestamp::default();
        if inode.extents().is_some_and(|extents| extents.size() != found.size()) {
            return Ok(Some("size"));
        }
        if (had.mode, had.uid, had.gid, had.mtime) != (has.mode, has.uid, has.gid, has.mtime) {
            return Ok(Some("attributes"));
        }
        if recorded && inode.extents().is_some() && had.origin.ctime != found.ctime() {
            // Whatever it was, nothing told of it. A store through a mapping shows itself like this.
            return Ok(Some("change time"));
        }
        let xattrs = read_xattrs(fd.as_fd()).map_err(CaptureError::from)?;
        Ok((xattrs != inode.xattrs).then_some("extended attributes"))
    }

    fn names_differ(&self, id: FileId, fd: &OwnedFd) -> Result<Seen, CutError> {
        let mut missing: BTreeSet<&[u8]> = BTreeSet::new();
        if let Some(entries) = self.stage.tree().entries(id) {
            missing.extend(entries.keys().map(|name| name.as_bytes()));
        }
        let mut read = 0;
        let mut buffer = vec![MaybeUninit::uninit(); 64 * 1024];
        let mut entries = RawDir::new(fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(CaptureError::from)?;
            let name = entry.file_name().to_bytes();
            read += name.len() as u64;
            if !missing.remove(name) && !matches!(name, b"." | b"..") && !self.is_left_out(id, name) {
                return Ok(Seen::Different("entries"));
            }
        }
        Ok(if missing.is_empty() { Seen::Equal { read, next: None } } else { Seen::Different("entries") })
    }

    /// Compares a piece of a file's bytes along its extents. What cannot be told by a chunk's id is captured anew: no doubt
    /// is needed for that, because a capture is right whatever it finds.
    fn bytes_differ(&mut self, id: FileId, fd: &OwnedFd, size: u64, offset: u64) -> Result<Seen, CutError> {
        let (start, end) = self.at_extents(id, offset, size.min(offset.saturating_add(PIECE_BYTES)));
        let end = end.min(size);
        let _ = rustix::fs::fadvise(fd, 0, None, rustix::fs::Advice::NoReuse);
        let extents: Vec<(u64, Extent)> = self
            .stage
            .get(id)
            .and_then(|inode| inode.extents())
            .into_iter()
            .flat_map(|e| e.touching(start, end))
            .collect();
        let mut at = start;
        let mut unlike = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut read = 0;
        for (from, extent) in extents {
            let to = from + u64::from(extent.len);
            if at < from {
                unlike.extend(self.data_in(fd, at, from)?);
            }
            let got = self.fill(fd.as_fd(), &mut buffer, from, to)?;
            read += got as u64;
            if extent.chunk.at != 0 || self.packer.id(&buffer[..got]) != extent.chunk.id {
                unlike.push((from, to));
            }
            at = at.max(to);
        }
        self.buffer = buffer;
        if at < end {
            unlike.extend(self.data_in(fd, at, end)?);
        }
        for (from, to) in unlike {
            self.dirty.file(id).suspect.insert(from, to);
        }
        Ok(Seen::Equal { read, next: (end < size).then_some(end) })
    }

    /// Where there is data in what the tree has as a hole.
    fn data_in(&self, fd: &OwnedFd, start: u64, end: u64) -> Result<Option<(u64, u64)>, CutError> {
        let segments = data_segments(fd.as_fd(), start, end).map_err(CaptureError::from)?;
        Ok(segments.iter().any(|segment| segment.data).then_some((start, end)))
    }

    /// A change that nothing told of: counted, said, and captured.
    fn missed(&mut self, id: FileId, what: &'static str) {
        if self.stage.get(id).is_none() {
            return;
        }
        self.status.counters.missed_changes.add(1);
        let path = self.stage.tree().path(id).unwrap_or_default();
        let path = String::from_utf8_lossy(&path).into_owned();
        tracing::warn!(path, what, "the scrub found a change that no event told of");
        self.look_up_again(id);
        if self.stage.tree().entries(id).is_some() {
            self.dirty.directory(id, false);
        }
        self.suspect(id);
        let dirt = self.dirty.file(id);
        (dirt.attributes, dirt.write_back) = (true, true);
    }
}
