//! The first pass: the log, record by record.
//!
//! What is remembered are runs of intact records. A place outside all runs is one that cannot be read, and the fault that
//! ended the run before it is to blame.

use std::collections::BTreeMap;

use bytes::Bytes;
use tidelock_proto::{
    ChunkKey,
    chunk::{self, ChunkError},
};

use super::{Event, Fault, Progress, Run};
use crate::{
    limits,
    log::{
        Damage, DamageKind, Mark, Place,
        entry::{ChunkEntry, Fact, Kind},
        frame::stride,
        scan::{Bound, Found},
    },
    store::{Store, StoreError},
    vault::{KeyError, Unopened},
};

/// What was seen of the log.
pub(super) struct Log {
    runs: Vec<Intact>,
    /// In the order of their places; those without a place come last.
    faults: Vec<Fault>,
    /// The end of what was looked at.
    until: Mark,
}

/// Records one after the other, all intact.
#[derive(Debug, Clone, Copy)]
struct Intact {
    segment: u32,
    from: u64,
    to: u64,
}

pub(super) fn read(store: &Store, until: Mark, run: &mut Run<'_>) -> Result<Log, StoreError> {
    let total = store.log_bytes(until);
    let mut pass = Pass {
        store,
        tenant: None,
        log: Log { runs: Vec::new(), faults: Vec::new(), until },
        done: 0,
        said: 0,
        index: None,
        locked: BTreeMap::new(),
        retired: store.has_retired()?,
        failed: None,
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let outcome = store.scan_log(Bound { until, stop: &stop }, &mut |found| {
        if let Err(error) = pass.record(&found, total, run) {
            pass.failed.get_or_insert(error);
        }
        if run.stopped() || pass.failed.is_some() {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    })?;
    if let Some(error) = pass.failed {
        return Err(error);
    }
    run.summary.log_bytes = total;
    let mut log = pass.log;
    log.faults.extend(outcome.damage.into_iter().map(Fault::Log));
    log.faults.sort_by_key(|fault| fault.place());
    log.faults.extend(pass.index.map(|(count, example)| Fault::Index { count, example }));
    let locked = pass.locked.into_iter();
    log.faults.extend(locked.map(|(tenant, count)| Fault::Locked { tenant, count }));
    Ok(log)
}

impl Log {
    /// Everything that is wrong with the log itself.
    pub(super) fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Whether this place was written after the log was read.
    pub(super) fn is_behind(&self, place: Place) -> bool {
        (place.segment, place.offset) >= (self.until.segment, self.until.offset)
    }

    /// Whether an intact record was seen at this place.
    pub(super) fn is_intact(&self, place: Place) -> bool {
        let at = (place.segment, u64::from(place.offset));
        let before = self.runs.partition_point(|run| (run.segment, run.from) <= at);
        before > 0 && {
            let run = self.runs[before - 1];
            run.segment == place.segment && at.1 < run.to
        }
    }

    /// The fault that this place is lost to: the last one at or before it in its segment.
    pub(super) fn blame(&self, place: Place) -> Option<usize> {
        let at = Some((place.segment, u64::from(place.offset)));
        let placed = self.faults.iter().take_while(|fault| fault.place().is_some()).count();
        let before = self.faults[..placed].partition_point(|fault| fault.place() <= at);
        let index = before.checked_sub(1)?;
        (self.faults[index].place()?.0 == place.segment).then_some(index)
    }
}

struct Pass<'a> {
    store: &'a Store,
    /// The key of the tenant whose chunk was read last.
    tenant: Option<(String, ChunkKey)>,
    log: Log,
    done: u64,
    said: u64,
    /// Records that the index does not hold, and where the first of them is.
    index: Option<(u64, Place)>,
    /// Records of tenants whose keys are not here.
    locked: BTreeMap<String, u64>,
    /// Segments were retired.
    retired: bool,
    failed: Option<StoreError>,
}

impl Pass<'_> {
    fn record(&mut self, found: &Found, total: u64, run: &mut Run<'_>) -> Result<(), StoreError> {
        run.summary.records += 1;
        self.done += stride(found.body.len());
        if self.done >= self.said + limits::VERIFY_PROGRESS_BYTES {
            self.said = self.done;
            run.say(Event::Progress(Progress::Log { done: self.done.min(total), total }));
        }
        let fault = match self.store.vault().body(found) {
            Ok(body) if found.kind == Kind::Chunk as u8 => self.chunk(found, body, run)?,
            Ok(body) => self.fact(found, body)?,
            Err(Unopened::Damaged(what)) => Some(fault(found, what)),
            Err(Unopened::Key(
                KeyError::Missing(tenant) | KeyError::Wrong(tenant) | KeyError::Plain(tenant),
                _,
            )) => {
                *self.locked.entry(tenant).or_default() += 1;
                None
            }
        };
        match fault {
            None => self.extend(found.place),
            Some(fault) if self.log.faults.len() < limits::DAMAGE_LISTED => self.log.faults.push(fault),
            Some(_) => {}
        }
        Ok(())
    }

    fn chunk(&mut self, found: &Found, body: Bytes, run: &mut Run<'_>) -> Result<Option<Fault>, StoreError> {
        let Some(entry) = ChunkEntry::decode(body) else { return Ok(Some(nonsense(found))) };
        if let Err(error) = self.open(&entry) {
            return Ok(Some(Fault::Chunk { place: found.place, error }));
        }
        run.summary.chunks += 1;
        let place = self.store.chunk_place(&entry.tenant, &entry.id)?;
        let other = |place| place == found.place || self.store.is_intact(place, Kind::Chunk);
        // One that no point needed went with a segment; another copy of it may be left. Whether one is missing that is needed shows with the points.
        let known = place.map_or(self.retired, other);
        self.compare(found, known);
        Ok(None)
    }

    fn open(&mut self, entry: &ChunkEntry) -> Result<(), ChunkError> {
        let key = match &self.tenant {
            Some((tenant, key)) if *tenant == entry.tenant => key,
            _ => {
                let key = ChunkKey::of_tenant(&entry.tenant);
                &self.tenant.insert((entry.tenant.clone(), key)).1
            }
        };
        chunk::open_checked(key, entry.id, entry.codec, entry.len as usize, &entry.payload).map(drop)
    }

    fn fact(&mut self, found: &Found, body: Bytes) -> Result<Option<Fault>, StoreError> {
        match Fact::decode(found.kind, body) {
            None => return Ok(Some(nonsense(found))),
            Some(Fact::Commit { volume, point, .. } | Fact::Merged { volume, point, .. }) => {
                let known = self.store.knows_point(&volume, point.id, found.place)?;
                self.compare(found, known);
            }
            Some(_) => {}
        }
        Ok(None)
    }

    /// Whether the index knows this record, or another one that says the same.
    fn compare(&mut self, found: &Found, known: bool) {
        if !known {
            self.index.get_or_insert((0, found.place)).0 += 1;
        }
    }

    fn extend(&mut self, place: Place) {
        let from = u64::from(place.offset);
        let to = from + stride(place.len as usize);
        match self.log.runs.last_mut() {
            Some(run) if run.segment == place.segment && run.to == from => run.to = to,
            _ => self.log.runs.push(Intact { segment: place.segment, from, to }),
        }
    }
}

fn nonsense(found: &Found) -> Fault {
    fault(found, DamageKind::Nonsense(found.number))
}

fn fault(found: &Found, what: DamageKind) -> Fault {
    Fault::Log(Damage { segment: found.place.segment, offset: u64::from(found.place.offset), what })
}
