//! Re-reads a store and says what is damaged, and which points that touches.
//!
//! 1. Every segment up to the durable end: each record's checksums, each chunk against its id, each entry of the index ([`log`]).
//! 2. Every volume: each commit replayed, each tree against the digest that was committed, each checkpoint against the same
//!    digest, each chunk a file is made of against what the first pass has seen ([`volume`]).
//!
//! It runs beside a receiver that goes on taking commits: nothing behind the end at its beginning is looked at, nothing is locked.
//!
//! Memory: one tree and, while a checkpoint is compared, a second one; sixteen bytes for each segment and each damaged place, because
//! what is remembered of the log is its runs of intact records. The price of that is that the index must be right about which
//! record is where; an entry that differs from the log is itself looked at and told.

mod finding;
mod log;
mod repair;
mod volume;
mod wire;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use tidelock_proto::{ChunkId, VolumeName};

pub use finding::{Fault, Finding, Touched};
pub(crate) use repair::Mending;

use crate::store::{Store, StoreError};

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bytes of the log read, of how many.
    Log {
        /// So far.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// Points replayed, of how many.
    Points {
        /// So far.
        done: u64,
        /// Of how many.
        total: u64,
    },
}

/// What was looked at, and how much is wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Intact records.
    pub records: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Intact chunks, each of them opened and compared with its id.
    pub chunks: u64,
    /// Volumes replayed.
    pub volumes: u64,
    /// Points replayed.
    pub points: u64,
    /// Checkpoints compared.
    pub checkpoints: u64,
    /// Points that cannot be restored whole.
    pub damaged_points: u64,
    /// Findings told.
    pub findings: u64,
    /// Chunks that a sidecar has sent again before.
    pub resent_chunks: u64,
    /// Bytes of the log that were written again from the archive before.
    pub restored_bytes: u64,
}

/// What a verification says while it runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It goes on.
    Progress(Progress),
    /// Something is wrong.
    Finding(Finding),
}

/// Verifies the log and the volumes that are `wanted`. Tells `on` what it finds; when that answers `false` it stops, and there is no
/// summary. Takes as long as reading the whole log and replaying every commit: not for a thread that must not block.
///
/// Damage is no error here: an error means that the store could not be looked at.
pub fn verify(
    store: &Store,
    wanted: &dyn Fn(&VolumeName) -> bool,
    on: &mut dyn FnMut(Event) -> bool,
) -> Result<Option<Summary>, StoreError> {
    Ok(examine(store, wanted, on)?.map(|(summary, _)| summary))
}

/// What a repair begins with.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    /// Chunks of each volume that cannot be read.
    pub(crate) chunks: BTreeMap<VolumeName, Vec<ChunkId>>,
    /// Faults of the log itself.
    pub(crate) faults: Vec<Fault>,
}

/// [`verify`], and what it found for a repair.
pub(crate) fn examine(
    store: &Store,
    wanted: &dyn Fn(&VolumeName) -> bool,
    on: &mut dyn FnMut(Event) -> bool,
) -> Result<Option<(Summary, Broken)>, StoreError> {
    let broken = Broken::default();
    let mut run = Run { on, stop: AtomicBool::new(false), summary: Summary::default(), broken };
    // A part of the log that is not here says nothing of its health.
    store.complete()?;
    let _whole = store.keep_segments();
    let Some(until) = store.durable_mark() else {
        return Ok(Some((run.summary, run.broken)));
    };
    let volumes: Vec<VolumeName> = store.volumes().into_iter().filter(|volume| wanted(volume)).collect();
    let log = log::read(store, until, &mut run)?;
    let mut touched = vec![false; log.faults().len()];
    let total = volumes.iter().filter_map(|volume| store.volume(volume)).map(|info| info.points).sum();
    for volume in &volumes {
        if run.stopped() {
            return Ok(None);
        }
        run.summary.volumes += 1;
        let found = volume::check(store, volume, &log, total, &mut run)?;
        for (fault, hit) in found {
            let fault = match fault {
                volume::Blame::Log(index) => {
                    touched[index] = true;
                    log.faults()[index].clone()
                }
                volume::Blame::Own(fault) => fault,
            };
            run.tell(Finding { fault, volume: Some(volume.clone()), touched: Some(hit) });
        }
    }
    for (fault, _) in log.faults().iter().zip(touched).filter(|(_, touched)| !touched) {
        run.tell(Finding { fault: fault.clone(), volume: None, touched: None });
    }
    run.broken.faults = log.faults().to_vec();
    Ok((!run.stopped()).then_some((run.summary, run.broken)))
}

/// One verification.
struct Run<'a> {
    on: &'a mut dyn FnMut(Event) -> bool,
    stop: AtomicBool,
    summary: Summary,
    broken: Broken,
}

impl Run<'_> {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn say(&mut self, event: Event) {
        if !self.stopped() && !(self.on)(event) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    fn tell(&mut self, finding: Finding) {
        self.summary.findings += 1;
        self.say(Event::Finding(finding));
    }
}
