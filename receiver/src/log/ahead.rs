//! Zeros ahead of the end of the log, so that an `fdatasync` has nothing to wait for but its own bytes.
//!
//! Space that is only reserved is marked as never written. The first write to it changes that mark, which is metadata, so on ext4 and xfs its `fdatasync` has to
//! commit the file system's journal too. Where zeros were written and synced before, it overwrites, and does not. (The same is told of PostgreSQL's `wal_init_zero`.)
//! A thread of its own writes them, a step ahead of the end, only for small groups: of a large one the journal is a small part, and everything would be written twice.
//!
//! # Why nothing can be lost by it
//!
//! Reserved space reads as zeros, and zeros are all that is written, so the file reads the same before, during and after, whatever a crash leaves of it. What
//! must not happen is that zeros come after a record in the same place, or behind a file that was cut:
//!
//! - A step is begun only above everything that was appended so far, in whole pages, and there is one at a time.
//! - The writer asks for what it is about to write ([`Ahead::claim`]) and waits if a step reaches into that.
//! - Before a segment is cut or left it waits for the step ([`Ahead::rest`]).
//!
//! The thread has the segment open anew: the kernel tells a failed write-back once to each open file, and its `fdatasync` covers the records of others. Through the
//! writer's own file it could take an error that the writer then never hears of.

use std::{io, ops::Range, sync::Arc, thread::JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::disk::{Disk, SegmentFile};
use crate::limits;

/// What is written ahead of one log's end.
pub(super) struct Ahead {
    disk: Arc<dyn Disk>,
    /// The segment that it is about, opened for this alone.
    file: Option<(u32, Arc<dyn SegmentFile>)>,
    /// Up to here there are zeros, or will be after the step.
    upto: u64,
    /// The step that is under way.
    step: Option<Range<u64>>,
    /// It failed, or gains nothing here: space that is reserved does as well.
    off: bool,
    thread: Option<Thread>,
}

struct Thread {
    steps: Sender<(Arc<dyn SegmentFile>, Range<u64>)>,
    done: Receiver<io::Result<bool>>,
    handle: JoinHandle<()>,
}

impl Ahead {
    /// Nothing yet.
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, file: None, upto: 0, step: None, off: false, thread: None }
    }

    /// Before bytes are written that end at `end`.
    pub(super) fn claim(&mut self, end: u64) {
        if self.step.as_ref().is_some_and(|step| step.start < end) {
            self.rest();
        }
    }

    /// Waits for the step that is under way.
    pub(super) fn rest(&mut self) {
        if self.step.is_some()
            && let Some(thread) = &self.thread
        {
            let ended = thread.done.recv().unwrap_or(Ok(false));
            self.ended(ended);
        }
    }

    /// After a group of `grown` bytes that ends at `at` was made durable: the next step, if it is time.
    pub(super) fn follow(&mut self, segment: u32, at: u64, capacity: u64, grown: u64) {
        if let Some(thread) = &self.thread
            && let Ok(ended) = thread.done.try_recv()
        {
            self.ended(ended);
        }
        if self.off || self.step.is_some() || grown > limits::AHEAD_GROUP_MAX_BYTES {
            return;
        }
        if self.file.as_ref().is_none_or(|(number, _)| *number != segment) {
            match self.disk.open(segment) {
                Ok(file) => (self.file, self.upto) = (Some((segment, file)), 0),
                Err(error) => return self.ended(Err(error)),
            }
        }
        let from = self.upto.max(at.next_multiple_of(limits::AHEAD_PAGE_BYTES));
        let to = (at + limits::AHEAD_BYTES).min(capacity);
        if from.saturating_sub(at) <= limits::AHEAD_BYTES / 2 && from < to {
            self.begin(from..to);
        }
    }

    fn begin(&mut self, step: Range<u64>) {
        let Some((_, file)) = &self.file else { return };
        let thread = match &self.thread {
            Some(thread) => thread,
            None => match Thread::start() {
                Ok(thread) => self.thread.insert(thread),
                Err(error) => return self.ended(Err(error)),
            },
        };
        if thread.steps.send((file.clone(), step.clone())).is_ok() {
            self.upto = step.end;
            self.step = Some(step);
        }
    }

    fn ended(&mut self, ended: io::Result<bool>) {
        self.step = None;
        match ended {
            Ok(gains) => self.off = !gains,
            Err(error) => {
                self.off = true;
                tracing::warn!(%error, "zeros cannot be written ahead of the log's end; goes on without");
            }
        }
        if self.off {
            self.file = None;
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Whoever opens the segment next must find nobody writing.
        if let Some(Thread { steps, handle, .. }) = self.thread.take() {
            drop(steps);
            let _ = handle.join();
        }
    }
}

impl Thread {
    fn start() -> io::Result<Self> {
        let (steps, taken) = bounded::<(Arc<dyn SegmentFile>, Range<u64>)>(1);
        let (tell, done) = bounded(1);
        let handle = std::thread::Builder::new().name("store-ahead".to_owned()).spawn(move || {
            for (file, step) in taken {
                let _ = tell.send(file.write_zeros(step));
            }
        })?;
        Ok(Self { steps, done, handle })
    }
}

#[cfg(test)]
mod tests;
