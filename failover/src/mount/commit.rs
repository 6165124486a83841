//! Making durable what was changed in an upper layer that outlives its process, in the order that [`super::durable`] argues.
//!
//! Commits come one after the other. Who waits for one that has not begun yet is served by it together with all others that wait: a group commit. Changes that nobody waits for are committed
//! once a second, so `syncfs`, which the kernel does not hand on, is not far off.
//!
//! When a sync fails nobody knows any more what is durable: from then on every change and every `fsync` is an error until the command is run anew, which reads what is there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use fuser::Errno;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use tidelock_proto::{FileId, Tree};

use super::{
    journal::{AppendError, Header, Journal},
    layer::Answer,
    reading::Inner,
    scratch::is_slot,
};
use crate::{access::Access, error::FailoverError, limits};

/// The extended attribute of the root that tells how far hydration is; no listing has it.
pub(crate) const HYDRATION: &[u8] = b"user.tidelock.hydration";

/// What a durable upper layer needs besides itself.
pub(crate) struct Keeper {
    pub(crate) header: Header,
    /// `None` once it was closed.
    journal: Mutex<Option<Journal>>,
    /// Everything up to this batch is durable.
    done: AtomicU64,
    failed: AtomicBool,
    /// Reads that wait for the receiver.
    waiting: Arc<AtomicUsize>,
    /// No more waiting.
    stop: Mutex<bool>,
    stopped: Condvar,
}

/// One of the reads that may wait on a thread of its own.
pub(crate) struct Waiter(Arc<AtomicUsize>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far hydration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hydration {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point that lies below.
    pub point: String,
    /// The epoch of the new primary.
    pub epoch: u64,
    /// What of the point was to be fetched, in bytes.
    pub total_bytes: u64,
    /// What of it is neither local nor overwritten, in bytes.
    pub absent_bytes: u64,
    /// Whether nothing is.
    pub complete: bool,
    /// A sync failed: no change is taken any more, and the command has to be run anew.
    pub failed: bool,
}

impl Keeper {
    pub(crate) fn new(journal: Journal) -> Self {
        Self {
            header: journal.header.clone(),
            journal: Mutex::new(Some(journal)),
            done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            waiting: Arc::default(),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
        }
    }

    /// Leave to wait on a thread of one's own, unless too many do.
    pub(super) fn waiter(&self) -> Option<Waiter> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiter = Waiter(self.waiting.clone());
        (before < limits::INSTANT_WAITERS).then_some(waiter)
    }

    /// Tries until it can be had, for a while.
    pub(super) fn patiently<T>(
        &self,
        fetch: impl Fn() -> Result<T, FailoverError>,
    ) -> Result<T, FailoverError> {
        let begun = Instant::now();
        let mut told = false;
        loop {
            let error = match fetch() {
                Ok(content) => return Ok(content),
                Err(error) => error,
            };
            if begun.elapsed() >= limits::INSTANT_PATIENCE || self.rest(limits::INSTANT_RETRY) {
                return Err(error);
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(error = &error as &dyn std::error::Error, "a read waits for the receiver");
            }
        }
    }

    /// Sleeps; tells whether this is the end.
    pub(crate) fn rest(&self, pause: std::time::Duration) -> bool {
        let mut stop = self.stop.lock();
        let until = Instant::now() + pause;
        while !*stop {
            if self.stopped.wait_until(&mut stop, until).timed_out() {
                break;
            }
        }
        *stop
    }

    /// Nobody waits any longer.
    pub(crate) fn stop(&self) {
        *self.stop.lock() = true;
        self.stopped.notify_all();
    }

    fn fail(&self, what: &str, error: &std::io::Error) -> Errno {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "cannot {what}: nothing more is written; run the command anew"
            );
        }
        Errno::EIO
    }
}

impl Inner {
    /// Whether changes can be made durable.
    pub(super) fn check_whole(&self) -> Answer<()> {
        let failed = self.keeper.as_ref().is_some_and(|keeper| keeper.failed.load(Ordering::Relaxed));
        if failed { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Writes bytes of a file, once what is to be destroyed there is.
    pub(super) fn write_bytes(&self, id: FileId, offset: u64, bytes: &[u8]) -> Answer<()> {
        self.check_whole()?;
        let end = offset.saturating_add(bytes.len() as u64);
        loop {
            let mut layer = self.layer.write();
            if layer.durable().is_none_or(|durable| !durable.must_settle(id, offset, end)) {
                layer.write(id, offset, bytes)?;
                return layer.modified(id);
            }
            drop(layer);
            self.commit(None, false)?;
        }
    }

    /// Makes durable all names and attributes, unless it is only about data, and a file's content.
    pub(crate) fn commit(&self, file: Option<FileId>, data_only: bool) -> Answer<()> {
        let number = match self.layer.write().durable() {
            Some(durable) => durable.ask(file, data_only),
            None => return Ok(()),
        };
        self.commit_to(number)
    }

    /// Makes everything durable.
    pub(crate) fn commit_all(&self) -> Answer<()> {
        // What a failed commit had taken is not to be seen any more.
        self.check_whole()?;
        let number = match self.layer.write().durable() {
            Some(durable) if !durable.is_clean() => durable.ask_all(),
            _ => return Ok(()),
        };
        self.commit_to(number)
    }

    fn commit_to(&self, number: u64) -> Answer<()> {
        let Some(keeper) = &self.keeper else { return Ok(()) };
        let mut journal = keeper.journal.lock();
        self.check_whole()?;
        if keeper.done.load(Ordering::Relaxed) >= number {
            return Ok(());
        }
        let journal = journal.as_mut().ok_or(Errno::EIO)?;
        let (taken, files) = {
            let mut layer = self.layer.write();
            let (tree, Some(durable)) = layer.parts() else { return Ok(()) };
            (durable.take(tree), durable.files().clone())
        };
        for file in &taken.files {
            files.sync(file).map_err(|error| keeper.fail("sync a file", &error))?;
        }
        if !taken.ops.is_empty() {
            files.sync_names().map_err(|error| keeper.fail("sync the names of files", &error))?;
            match journal.append(taken.ops.clone()) {
                Ok(()) => {}
                Err(AppendError::Sync(error)) => return Err(keeper.fail("sync the journal", &error)),
                Err(AppendError::Write(error)) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot write the journal");
                    if let Some(durable) = self.layer.write().durable() {
                        durable.put_back(taken.ops);
                    }
                    return Err(error.into());
                }
            }
        }
        keeper.done.store(taken.number, Ordering::Relaxed);
        if let Some(durable) = self.layer.write().durable() {
            durable.settled(taken.number);
        }
        if journal.is_long() {
            self.shorten(keeper, journal)?;
        }
        Ok(())
    }

    /// Begins the journal anew with the tree as it is. All wait meanwhile, so that what the tree says is durable.
    fn shorten(&self, keeper: &Keeper, journal: &mut Journal) -> Answer<()> {
        let mut layer = self.layer.write();
        let (tree, Some(durable)) = layer.parts() else { return Ok(()) };
        let number = durable.ask_all();
        let taken = durable.take(tree);
        for file in &taken.files {
            durable.files().sync(file).map_err(|error| keeper.fail("sync a file", &error))?;
        }
        durable.files().sync_names().map_err(|error| keeper.fail("sync the names of files", &error))?;
        match journal.replace(tree) {
            Ok(()) => {}
            Err(AppendError::Sync(error)) => return Err(keeper.fail("sync the journal's name", &error)),
            Err(AppendError::Write(error)) => {
                // The old one is as good.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the journal cannot be made shorter"
                );
                durable.put_back(taken.ops);
                return Ok(());
            }
        }
        keeper.done.store(number, Ordering::Relaxed);
        durable.settled(number);
        Ok(())
    }

    /// What is neither local nor overwritten, in bytes.
    pub(crate) fn absent_bytes(&self) -> u64 {
        let layer = self.layer.read();
        let files = layer.tree().iter().filter_map(|(_, inode)| inode.extents());
        let extents = files.flat_map(|extents| extents.iter().map(|(_, extent)| extent).collect::<Vec<_>>());
        extents.filter(|extent| !is_slot(extent.chunk.id)).map(|extent| u64::from(extent.len)).sum()
    }

    /// How far hydration is; nothing if this is no such mount.
    pub(crate) fn hydration(&self) -> Option<Hydration> {
        let keeper = self.keeper.as_ref()?;
        let Header { volume, point, epoch, total_bytes, .. } = keeper.header.clone();
        let absent_bytes = self.absent_bytes();
        let failed = keeper.failed.load(Ordering::Relaxed);
        Some(Hydration {
            volume,
            point,
            epoch,
            total_bytes,
            absent_bytes,
            complete: absent_bytes == 0,
            failed,
        })
    }

    /// Batches that are durable.
    #[cfg(test)]
    pub(super) fn commits(&self) -> u64 {
        self.keeper.as_ref().map_or(0, |keeper| keeper.done.load(Ordering::Relaxed))
    }

    /// Nobody waits any longer.
    #[cfg(test)]
    pub(super) fn stop(&self) {
        self.keeper.iter().for_each(Keeper::stop);
    }

    /// What the journal is of.
    pub(crate) fn header(&self) -> Option<&Header> {
        self.keeper.as_ref().map(|keeper| &keeper.header)
    }

    /// The receiver, if it is reached.
    pub(crate) fn access(&self) -> Option<Arc<Access>> {
        self.content.access()
    }

    /// The tree as it is.
    pub(crate) fn tree(&self) -> Tree {
        self.layer.read().tree().clone()
    }

    pub(super) fn told_progress(&self) -> Option<Vec<u8>> {
        serde_json::to_vec(&self.hydration()?).ok()
    }

    /// Commits what nobody waits for, until the end.
    pub(crate) fn commit_now_and_then(&self) {
        let Some(keeper) = &self.keeper else { return };
        while !keeper.rest(limits::INSTANT_COMMIT_PAUSE) {
            // What fails is told, and told again to whoever waits.
            let _ = self.commit_all();
        }
    }

    /// The last commit of all, with nobody left who has a file open; the journal is given up.
    pub(crate) fn close(&self) -> Answer<Option<Journal>> {
        let Some(keeper) = &self.keeper else { return Ok(None) };
        keeper.stop();
        while keeper.waiting.load(Ordering::Relaxed) > 0 {
            thread::sleep(limits::CHECK_POLL);
        }
        self.layer.write().abandon()?;
        self.commit_all()?;
        Ok(keeper.journal.lock().take())
    }
}
