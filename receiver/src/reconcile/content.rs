//! The second pass: content, in spans of files, on several threads.
//!
//! An extent that is a whole chunk is compared by hashing what is there; what is left (new data, parts of chunks)
//! is collected over files and fetched in batches. A chunk is opened once for all the extents of a batch that refer to it,
//! and written as it arrives, so memory does not grow with the batch. Holes are holes: an extent of zeros is
//! written where there was a hole, and data in a hole is punched out.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use rustix::{
    fd::OwnedFd,
    fs::{self, FallocateFlags, OFlags, SeekFrom},
    io::Errno,
};
use tidelock_proto::{
    ChunkId, FileId,
    tree::{Extent, ExtentMap},
};

use super::{Phase, Progress, Report, Result, Run, error::ReconcileError, names::FileWork};
use crate::limits;

/// A part of a file: the extents and holes that begin in `start..end`.
struct Span {
    file: FileWork,
    start: u64,
    end: u64,
}

/// An open file of the target.
struct Open {
    id: FileId,
    fd: OwnedFd,
}

/// Where part of a chunk belongs.
struct Target {
    file: Arc<Open>,
    offset: u64,
    extent: Extent,
    /// There was content before: write only if it differs.
    compare: bool,
}

/// Extents that wait for their chunks.
#[derive(Default)]
struct Batch {
    ids: Vec<ChunkId>,
    targets: HashMap<ChunkId, Vec<Target>>,
    bytes: usize,
    files: usize,
}

struct Worker<'a, 'r> {
    run: &'r Run<'a>,
    report: &'r mut Report,
    batch: Batch,
    buffer: Vec<u8>,
    done_bytes: &'r AtomicU64,
    total_bytes: u64,
}

/// Compares and writes the content of `files`.
pub(super) fn run(run: &Run<'_>, files: &[FileWork]) -> Result<()> {
    let spans: Vec<Span> = files.iter().flat_map(|file| spans(run, *file)).collect();
    let total_bytes = spans.iter().map(|span| span.end - span.start).sum();
    let (next, done_bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    run.on_workers(|report| {
        let buffer = vec![0; limits::RECONCILE_BUFFER_BYTES];
        let (batch, done_bytes) = (Batch::default(), &done_bytes);
        let mut worker = Worker { run, report, batch, buffer, done_bytes, total_bytes };
        while let Some(span) = spans.get(next.fetch_add(1, Ordering::Relaxed)) {
            worker.span(span)?;
        }
        worker.flush()
    })
}

fn spans(run: &Run<'_>, file: FileWork) -> impl Iterator<Item = Span> {
    let size = run.tree.get(file.id).and_then(|inode| inode.extents()).map_or(0, ExtentMap::size);
    let step = limits::RECONCILE_SPAN_BYTES;
    (0..size.div_ceil(step)).map(move |number| {
        let start = number * step;
        Span { file, start, end: (start + step).min(size) }
    })
}

impl Worker<'_, '_> {
    fn span(&mut self, span: &Span) -> Result<()> {
        self.run.check_stopped()?;
        let extents = self.run.tree.get(span.file.id).and_then(|inode| inode.extents());
        let Some(extents) = extents else { return Ok(()) };
        let file = Arc::new(self.open(span.file.id)?);
        self.batch.files += 1;
        // Up to here something may have been before, in whole blocks.
        let old_bytes = span.file.old_bytes.next_multiple_of(self.run.block_bytes);
        // Nothing is known of the allocation yet.
        let mut allocated = 0..0;
        let mut at = span.start;
        for (offset, extent) in extents.touching(span.start, span.end) {
            if offset >= span.start {
                self.hole(&file, at, offset, old_bytes)?;
                if offset >= old_bytes || !self.is_right(&file, offset, extent, &mut allocated)? {
                    self.want(&file, offset, extent, offset < old_bytes)?;
                }
            }
            at = offset + u64::from(extent.len);
        }
        self.hole(&file, at, span.end, old_bytes)?;
        let len = span.end - span.start;
        let done = self.done_bytes.fetch_add(len, Ordering::Relaxed) + len;
        (self.run.progress)(Progress { phase: Phase::Content, done, total: self.total_bytes });
        if self.batch.files >= limits::RECONCILE_BATCH_FILES { self.flush() } else { Ok(()) }
    }

    fn open(&self, id: FileId) -> Result<Open> {
        let Some((dir, name)) = self.run.tree.names(id).next() else {
            unreachable!("a sealed tree has a name for every inode but the root")
        };
        let dir = self.run.dir(*dir)?;
        let fd = dir.place(name.as_bytes()).open(OFlags::RDWR)?;
        Ok(Open { id, fd })
    }

    /// Whether the extent is there already. One whose content is right but which lies in a hole is written back here.
    fn is_right(
        &mut self,
        file: &Arc<Open>,
        offset: u64,
        extent: Extent,
        allocated: &mut std::ops::Range<u64>,
    ) -> Result<bool> {
        if extent.chunk.at != 0 {
            return Ok(false);
        }
        let len = extent.len as usize;
        read_at(self.run, file, &mut self.buffer[..len], offset)?;
        self.report.bytes_compared += len as u64;
        if self.run.options.key.id(&self.buffer[..len]) != extent.chunk.id {
            return Ok(false);
        }
        let end = offset + len as u64;
        if !(allocated.start <= offset && end <= allocated.end) {
            *allocated = offset..next_hole(self.run, file, offset)?;
        }
        if end > allocated.end {
            write_at(self.run, file, &self.buffer[..len], offset, self.report)?;
        }
        Ok(true)
    }

    fn want(&mut self, file: &Arc<Open>, offset: u64, extent: Extent, compare: bool) -> Result<()> {
        let id = extent.chunk.id;
        let targets = self.batch.targets.entry(id).or_default();
        if targets.is_empty() {
            self.batch.ids.push(id);
        }
        targets.push(Target { file: file.clone(), offset, extent, compare });
        self.batch.bytes += extent.len as usize;
        let full = self.batch.ids.len() >= limits::RECONCILE_BATCH_CHUNKS
            || self.batch.bytes >= limits::RECONCILE_BATCH_BYTES;
        if full { self.flush() } else { Ok(()) }
    }

    /// Fetches what the batch waits for and writes it where it belongs.
    fn flush(&mut self) -> Result<()> {
        let mut batch = std::mem::take(&mut self.batch);
        if batch.ids.is_empty() {
            return Ok(());
        }
        self.run.check_stopped()?;
        let mut outcome = Ok(());
        let fetched = self.run.chunks.fetch(&batch.ids, &mut |index, content| {
            let Some(targets) = batch.ids.get(index).and_then(|id| batch.targets.remove(id)) else {
                return true;
            };
            self.report.bytes_fetched += content.len() as u64;
            outcome = targets.iter().try_for_each(|target| self.put(target, &content));
            outcome.is_ok() && !self.run.stop.load(Ordering::Relaxed)
        });
        outcome?;
        self.run.check_stopped()?;
        fetched.map_err(ReconcileError::Chunks)?;
        match batch.targets.into_keys().next() {
            Some(missing) => Err(ReconcileError::Chunk(missing)),
            None => Ok(()),
        }
    }

    fn put(&mut self, target: &Target, content: &Bytes) -> Result<()> {
        let from = target.extent.chunk.at as usize;
        let len = target.extent.len as usize;
        let Some(wanted) = content.get(from..from + len) else {
            return Err(ReconcileError::Chunk(target.extent.chunk.id));
        };
        if target.compare {
            let there = &mut self.buffer[..len];
            read_at(self.run, &target.file, there, target.offset)?;
            self.report.bytes_compared += len as u64;
            if there == wanted
                && next_hole(self.run, &target.file, target.offset)? >= target.offset + len as u64
            {
                return Ok(());
            }
        }
        write_at(self.run, &target.file, wanted, target.offset, self.report)
    }

    /// Makes `start..end` a hole, where content was before `old_bytes`.
    fn hole(&mut self, file: &Arc<Open>, start: u64, end: u64, old_bytes: u64) -> Result<()> {
        let end = end.min(old_bytes);
        if start >= end {
            return Ok(());
        }
        // Holes are whole blocks; what the range has of the blocks at its edges must read as zeros.
        let block = self.run.block_bytes;
        let size = self.run.tree.get(file.id).and_then(|inode| inode.extents()).map_or(0, ExtentMap::size);
        let first = start.next_multiple_of(block).min(end);
        let last = if end >= size { end } else { (end / block * block).max(first) };
        let data = first < last && next_data(self.run, file, first)?.is_some_and(|data| data < last);
        if data || !self.is_zero(file, start, first)? || !self.is_zero(file, last, end)? {
            self.run.touch()?;
            self.punch(file, start, if end >= size { end.next_multiple_of(block) } else { end })?;
            self.report.holes_made += 1;
            self.run.mark_changed(file.id);
        }
        Ok(())
    }

    fn is_zero(&mut self, file: &Arc<Open>, start: u64, end: u64) -> Result<bool> {
        let mut at = start;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
            read_at(self.run, file, &mut self.buffer[..len], at)?;
            if self.buffer[..len].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += len as u64;
        }
        Ok(true)
    }

    fn punch(&mut self, file: &Arc<Open>, start: u64, end: u64) -> Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fs::fallocate(&file.fd, mode, start, end - start) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.zero(file, start, end),
            Err(errno) => Err(fail(self.run, file, "make a hole in", errno)),
        }
    }

    /// For file systems without holes: zeros read the same.
    fn zero(&mut self, file: &Arc<Open>, start: u64, end: u64) -> Result<()> {
        let size = self.run.tree.get(file.id).and_then(|inode| inode.extents()).map_or(0, ExtentMap::size);
        let (mut at, end) = (start, end.min(size));
        while at < end {
            let step = (end - at).min(self.buffer.len() as u64);
            if !self.is_zero(file, at, at + step)? {
                let zeros = vec![0; usize::try_from(step).unwrap_or(0)];
                write_at(self.run, file, &zeros, at, self.report)?;
            }
            at += step;
        }
        Ok(())
    }
}

fn fail(run: &Run<'_>, file: &Open, what: &'static str, errno: Errno) -> ReconcileError {
    ReconcileError::io(what, run.root.full(&run.tree.path(file.id).unwrap_or_default()), errno)
}

/// Reads exactly; a file that is shorter reads as zeros, for somebody else cut it and the write will show.
fn read_at(run: &Run<'_>, file: &Open, buffer: &mut [u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(&file.fd, &mut buffer[done..], offset + done as u64) {
            Ok(0) => {
                buffer[done..].fill(0);
                break;
            }
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(run, file, "read", errno)),
        }
    }
    Ok(())
}

fn write_at(run: &Run<'_>, file: &Open, content: &[u8], offset: u64, report: &mut Report) -> Result<()> {
    run.touch()?;
    run.mark_changed(file.id);
    let mut done = 0;
    while done < content.len() {
        match rustix::io::pwrite(&file.fd, &content[done..], offset + done as u64) {
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fail(run, file, "write", errno)),
        }
    }
    report.bytes_written += content.len() as u64;
    Ok(())
}

/// The first hole at or after `offset`; the end of the file counts as one, and a file system that does not tell has no other.
fn next_hole(run: &Run<'_>, file: &Open, offset: u64) -> Result<u64> {
    match fs::seek(&file.fd, SeekFrom::Hole(offset)) {
        Ok(hole) => Ok(hole),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(u64::MAX),
        Err(errno) => Err(fail(run, file, "look for holes in", errno)),
    }
}

/// The first data at or after `offset`, if there is any.
fn next_data(run: &Run<'_>, file: &Open, offset: u64) -> Result<Option<u64>> {
    match fs::seek(&file.fd, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
        Err(errno) => Err(fail(run, file, "look for data in", errno)),
    }
}
