//! Compaction while the receiver runs: what is needed of the emptiest segments is written again, and they are removed.
//!
//! ```text
//! find what is needed → for a few of the emptiest segments: copy that → durable
//!   → journal, retired → durable → index durable → remove the files
//! ```
//! **A crash leaves a store that opens with every point.** Copies are records like any other, and where two say the same the newer counts. A file is removed only
//! after the record that permits its absence is durable, and an index that does not point into it; until then the old records are there, and beside them at
//! worst a copy. A segment that was retired and is still there is an ordinary segment in which nothing is needed: the next compaction removes it.
//!
//! **A log read from its beginning says the same.** Besides chunks and points a segment holds facts: tags, epochs, which points were dropped. For each volume that a retired segment
//! mentions, `journal` says anew what is known of it and which points it has, so that a dropped point whose record is still somewhere does not come back. Tags are written again.
//!
//! **What somebody counts on stays**, though no point refers to it yet: see [`super::owed`]. The mark of what is needed is made after everything that
//! was queued is durable; whatever is committed from then on refers to chunks that its sender has a lease on, and leases are kept in mind to the end.
//!
//! **A reader never sees the gap.** Who has looked up a place just before it moved finds no file, and looks it up again ([`Shared::again`]). A verification remembers places;
//! while one runs no segment is removed. Points that are open stay ([`super::pins`]), and so do their chunks.
//!
//! **It never stops halfway for want of room**: see [`super::space`].
//!
//! **Nothing is trusted.** A segment in which any record is damaged is not removed, and a store in which a point cannot be read is left alone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use prost::Message;
use tidelock_proto::{ChunkId, Epoch, PointId, Seq, VolumeName};

use super::{Batch, Record, Shared, Store, StoreError, batch::Room, open::store_id, reachable::Reachable};
use crate::{
    catalogue::{Step, decode_place, decode_step, is_hold},
    index::{Table, key},
    limits,
    log::{
        LogError, Place,
        entry::{CheckpointBody, ChunkEntry, CommitBody, Fact, Kind, RetiredBody},
        scan::{Found, read_sealed},
    },
    vault::{KeyError, Unopened},
};

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    /// Length of the log afterwards, in bytes.
    pub log_bytes: u64,
    /// Bytes of it that are needed.
    pub live_bytes: u64,
    /// Bytes of it that no point needs and a session counts on.
    pub owed_bytes: u64,
    /// There was no room to copy what is needed of some segments, so they stay.
    pub cramped: bool,
    /// Bytes of the segments that were removed.
    pub freed_bytes: u64,
    /// Bytes that were written again.
    pub copied_bytes: u64,
    /// Segments that were removed.
    pub segments: u64,
}

/// A segment that may be retired.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    segment: u32,
    len: u64,
    /// What has to be copied of it.
    live: u64,
}

/// Leaves those of the segments, the emptiest first, that are worth their copies, until the log is not much longer than what is needed. Tells how long it
/// is then, and whether one was left out for want of room.
pub(super) fn choose(
    emptiest: &mut Vec<Candidate>,
    log_bytes: u64,
    needed_bytes: u64,
    room: u64,
) -> (u64, bool) {
    let goal = needed_bytes / 100 * limits::COMPACT_GOAL_PERCENT;
    let (mut rest, mut cramped) = (log_bytes, false);
    emptiest.retain(|found| {
        let mut wanted = rest > goal && found.live <= found.len / 100 * limits::COMPACT_FULLEST_PERCENT;
        if wanted && found.live > room {
            (wanted, cramped) = (false, true);
        }
        rest -= if wanted { found.len - found.live } else { 0 };
        wanted
    });
    (rest, cramped)
}

impl Store {
    /// Gives back the space of what no point needs, until the log is not much longer than what is needed or the cycle has done its part. After each piece of work
    /// `pace` is told how long it took, and may wait. Not for a thread that must not block.
    pub fn retire(&self, pace: &mut dyn FnMut(Duration)) -> Result<Retired, StoreError> {
        let shared = self.shared();
        // What its points need is not known.
        self.check_keys()?;
        self.check_whole("giving space back")?;
        let _alone = shared.thinning.lock();
        self.finish_deletions()?;
        let _cycle = shared.owed.begin_cycle();
        // What was queued by those who have given up their leases before this cycle.
        shared.inbox.push(Batch::new().within(Room::Upkeep), None).wait()?;
        let Some(mark) = self.durable_mark() else { return Ok(Retired::default()) };
        let begun = Instant::now();
        let needed = Reachable::read(shared, self.log_bytes(mark))?;
        pace(begun.elapsed());
        let (live_bytes, owed_bytes) = (needed.bytes.values().sum(), needed.owed.values().sum());
        let mut done = Retired { live_bytes, owed_bytes, ..Retired::default() };
        let mut emptiest = shared.candidates_below(mark.segment, [&needed.bytes, &needed.owed])?;
        let log_bytes = self.log_bytes(mark);
        let mut room = shared.room_for_copies(log_bytes);
        (_, done.cramped) = choose(&mut emptiest, log_bytes, live_bytes + owed_bytes, room);
        emptiest.truncate(limits::COMPACT_CYCLE_SEGMENTS);
        while let Some(first) = emptiest.first() {
            if first.live > room {
                done.cramped = true;
                break;
            }
            let (mut live, most) = (0, room.min(limits::COMPACT_ROUND_BYTES.max(first.live)));
            let group = emptiest.iter().take(limits::COMPACT_ROUND_SEGMENTS).take_while(|found| {
                live += found.live;
                live <= most
            });
            let group: Vec<Candidate> = emptiest.drain(..group.count()).collect();
            // Somebody reads the log as a whole.
            let Some(_alone) = shared.segments.try_write() else { break };
            Round::new(self, &needed, &group, pace).run(&mut done)?;
            done.log_bytes = self.log_len();
            room = shared.room_for_copies(done.log_bytes);
        }
        done.log_bytes = self.log_len();
        Ok(done)
    }

    /// Whether every tenant's key is here that is needed to say what may go.
    pub(super) fn check_keys(&self) -> Result<(), StoreError> {
        match self.locked_tenants().into_iter().next() {
            Some(tenant) => Err(KeyError::Missing(tenant).into()),
            None => Ok(()),
        }
    }

    /// Length of the log, in bytes.
    pub fn log_len(&self) -> u64 {
        self.durable_mark().map_or(0, |mark| self.log_bytes(mark))
    }
}

impl Shared {
    /// Sealed segments, the emptiest first, given what has to be copied of each.
    pub(super) fn candidates_below(
        &self,
        end: u32,
        needed: [&HashMap<u32, u64>; 2],
    ) -> Result<Vec<Candidate>, StoreError> {
        let disk = self.log.disk();
        let mut candidates = Vec::new();
        for segment in disk.list().map_err(LogError::io("list", end))?.into_iter().filter(|at| *at < end) {
            let file = disk.open(segment).map_err(LogError::io("open", segment))?;
            let len = file.len().map_err(LogError::io("read", segment))?.max(1);
            let bytes = needed.map(|of| of.get(&segment).copied().unwrap_or(0));
            let live = bytes.iter().sum::<u64>().min(len);
            candidates.push(Candidate { segment, len, live });
        }
        candidates.sort_by_key(|found| (found.live * 1000 / found.len, found.segment));
        Ok(candidates)
    }

    /// Which segments the log may lack.
    pub(super) fn retired(&self) -> Result<RetiredBody, StoreError> {
        let value = self.index.get(Table::Catalogue, &[key::RETIRED])?;
        Ok(value.and_then(|value| RetiredBody::decode(&value[..]).ok()).unwrap_or_default())
    }

    /// Does something that looks up points and places in the index and reads them; again if points or segments went meanwhile.
    pub(super) fn again<T>(&self, mut read: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        loop {
            let before = self.moves.count();
            match read() {
                Err(error)
                    if (error.is_damage() || matches!(error, StoreError::NoSuchPoint(..)))
                        && self.moves.since(before) =>
                {
                    std::thread::yield_now();
                }
                other => return other,
            }
        }
    }

    fn step(&self, volume: &VolumeName, id: PointId) -> Result<Option<Step>, StoreError> {
        let value = self.index.get(Table::Catalogue, &key::point(key::POINT, volume, id))?;
        Ok(value.and_then(|value| decode_step(&value)))
    }

    fn place_of(&self, table: Table, key: &[u8]) -> Result<Option<Place>, StoreError> {
        Ok(self.index.get(table, key)?.and_then(|value| decode_place(&value)))
    }
}

/// How often points or segments went, for readers that were on their way to one.
#[derive(Default)]
pub(super) struct Moves {
    done: AtomicU64,
    going_on: AtomicU64,
}

/// Something goes until this is dropped.
pub(super) struct Moving<'a>(&'a Moves);

impl Moves {
    pub(super) fn begin(&self) -> Moving<'_> {
        self.going_on.fetch_add(1, Ordering::SeqCst);
        Moving(self)
    }

    pub(super) fn count(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Whether something goes, or has gone since the count was this.
    pub(super) fn since(&self, count: u64) -> bool {
        self.going_on.load(Ordering::SeqCst) > 0 || self.count() != count
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        // In this order: whoever sees none going on sees that it has gone.
        self.0.done.fetch_add(1, Ordering::SeqCst);
        self.0.going_on.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A chunk that no point needs.
struct Unneeded {
    key: Vec<u8>,
    /// As it is in the index.
    id: ChunkId,
    place: Place,
}

/// A few segments on their way out.
struct Round<'a> {
    shared: &'a Shared,
    needed: &'a Reachable,
    group: &'a [Candidate],
    segments: BTreeSet<u32>,
    /// Volumes that the segments mention.
    mentioned: BTreeSet<VolumeName>,
    unneeded: Vec<Unneeded>,
    batch: Batch,
    copied: u64,
    pace: &'a mut dyn FnMut(Duration),
}

impl<'a> Round<'a> {
    fn new(
        store: &'a Store,
        needed: &'a Reachable,
        group: &'a [Candidate],
        pace: &'a mut dyn FnMut(Duration),
    ) -> Self {
        Self {
            shared: store.shared(),
            needed,
            group,
            segments: BTreeSet::new(),
            mentioned: BTreeSet::new(),
            unneeded: Vec::new(),
            batch: Batch::new(),
            copied: 0,
            pace,
        }
    }

    fn run(mut self, done: &mut Retired) -> Result<(), StoreError> {
        for found in self.group {
            self.read(found.segment)?;
        }
        self.flush()?;
        self.copy_strays()?;
        self.flush()?;
        if self.segments.is_empty() {
            return Ok(());
        }
        let left = self.leave().and_then(|()| self.remove());
        self.shared.owed.end_leaving();
        left?;
        done.copied_bytes += self.copied;
        done.segments += self.segments.len() as u64;
        let gone = self.group.iter().filter(|found| self.segments.contains(&found.segment));
        done.freed_bytes += gone.map(|found| found.len).sum::<u64>();
        Ok(())
    }

    /// Copies what is needed of a segment, and counts it among those that go if it is whole.
    fn read(&mut self, segment: u32) -> Result<(), StoreError> {
        let disk = self.shared.log.disk();
        let Some(store) = store_id(disk)? else { return Ok(()) };
        let (mut failed, mut unneeded) = (None, Vec::new());
        let whole = read_sealed(disk, store, segment, &mut |found| {
            if failed.is_none() {
                failed = self.record(&found, &mut unneeded).err();
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if whole {
            self.segments.insert(segment);
            self.unneeded.append(&mut unneeded);
        } else {
            tracing::error!(
                segment,
                "segment is damaged and is not removed; `tidelock verify` says what that touches"
            );
        }
        Ok(())
    }

    fn record(&mut self, found: &Found, unneeded: &mut Vec<Unneeded>) -> Result<(), StoreError> {
        let damage = crate::log::Damage {
            segment: found.place.segment,
            offset: u64::from(found.place.offset),
            what: crate::log::DamageKind::Nonsense(found.number),
        };
        let nonsense = || StoreError::from(LogError::from(damage));
        let (fact, body) = self.shared.vault.fact(found).map_err(|error| match error {
            Unopened::Key(error, _) => StoreError::Key(error),
            Unopened::Damaged(what) => LogError::from(crate::log::Damage { what, ..damage }).into(),
        })?;
        if let Some(volume) = fact.volume() {
            if self.shared.volumes.read().entry(volume).is_none() {
                return Ok(());
            }
            if !self.mentioned.contains(volume) {
                self.mentioned.insert(volume.clone());
            }
        }
        match fact {
            Fact::Chunk { tenant, id, .. } => {
                let key = key::chunk(&tenant, &id);
                if self.shared.place_of(Table::Chunks, &key)? != Some(found.place) {
                    return Ok(());
                }
                let chunk = ChunkEntry::decode(body).ok_or_else(nonsense)?;
                if self.needed.needs(&id) {
                    return self.push(Record::Chunk(chunk));
                }
                unneeded.push(Unneeded { key, id, place: found.place });
                Ok(())
            }
            Fact::Commit { volume, point, .. } | Fact::Merged { volume, point, .. } => {
                let Some(step) = self.shared.step(&volume, point.id)? else { return Ok(()) };
                if step.place == found.place { self.copy_point(&volume, &step) } else { Ok(()) }
            }
            Fact::Checkpoint { volume, point, snapshot_bytes } => {
                let known =
                    self.shared.place_of(Table::Catalogue, &key::point(key::CHECKPOINT, &volume, point))?;
                if known != Some(found.place) || self.shared.step(&volume, point)?.is_none() {
                    return Ok(());
                }
                let body = CheckpointBody::decode(body).map_err(|_| nonsense())?;
                let chunks = body.chunks.chunks(32).map(ChunkId::from_slice).collect::<Option<_>>();
                let chunks = chunks.ok_or_else(nonsense)?;
                self.push(Record::Checkpoint { volume, point, chunks, snapshot_bytes })
            }
            // Which names hold a point now, the writer knows.
            Fact::Release { volume, point } => self.copy_holds(volume, point),
            Fact::Tag { volume, point, tag } if is_hold(&tag) => self.copy_holds(volume, point),
            Fact::Tag { volume, point, tag } => match self.shared.step(&volume, point)? {
                Some(_) => self.push(Record::Tag { volume, point, tag }),
                None => Ok(()),
            },
            // What these say is in the journal.
            Fact::Drop { .. } | Fact::Epoch { .. } | Fact::Volume { .. } | Fact::Journal { .. } => Ok(()),
            Fact::Retired(_) | Fact::Ops => Ok(()),
        }
    }

    fn copy_holds(&mut self, volume: VolumeName, point: PointId) -> Result<(), StoreError> {
        match self.shared.step(&volume, point)? {
            Some(_) => self.push(Record::Release { volume, point, copy: true }),
            None => Ok(()),
        }
    }

    fn copy_point(&mut self, volume: &VolumeName, step: &Step) -> Result<(), StoreError> {
        let (_, ops) = self.shared.operations(volume, step)?;
        self.push(Record::Merged { volume: volume.clone(), point: step.point.id, on: step.on, ops })
    }

    /// Points elsewhere whose operations are in these segments.
    fn copy_strays(&mut self) -> Result<(), StoreError> {
        let needed = self.needed;
        for (segment, volume, id) in &needed.strays {
            if !self.segments.contains(segment) {
                continue;
            }
            let Some(step) = self.shared.step(volume, *id)? else { continue };
            let (body, _) = self.shared.operations(volume, &step)?;
            let here = |body: &CommitBody| {
                body.parts.iter().any(|part| self.segments.contains(&Place::from(*part).segment))
            };
            if here(&body) {
                self.copy_point(volume, &step)?;
                self.mentioned.insert(volume.clone());
            }
        }
        Ok(())
    }

    /// From here on nobody is told any more that an unneeded chunk is there.
    fn leave(&mut self) -> Result<(), StoreError> {
        loop {
            let ids: Vec<ChunkId> = self.unneeded.iter().map(|chunk| chunk.id).collect();
            let Err(counted) = self.shared.owed.leave(&self.segments, &ids) else { return Ok(()) };
            for at in counted.into_iter().rev() {
                let chunk = self.unneeded.swap_remove(at);
                let body = self.shared.log.read(chunk.place, Kind::Chunk)?;
                if let Some(entry) = ChunkEntry::decode(body) {
                    self.push(Record::Chunk(entry))?;
                }
            }
            self.flush()?;
        }
    }

    /// Permits the absence of the segments, durably, and removes them.
    fn remove(&mut self) -> Result<(), StoreError> {
        self.shared.check_stop()?;
        for volume in std::mem::take(&mut self.mentioned) {
            let (kept, upto) = self.shared.kept_runs(&volume)?;
            self.push(Record::Journal { volume, kept, upto })?;
        }
        let segments: Vec<u32> = self.segments.iter().copied().collect();
        let chunks = std::mem::take(&mut self.unneeded).into_iter().map(|chunk| chunk.key).collect();
        self.push(Record::Retired { all: self.shared.retired()?.with(&segments), chunks })?;
        self.flush()?;
        self.shared.index.persist_now()?;
        let (log, disk) = (&self.shared.log, self.shared.log.disk());
        let _moving = self.shared.moves.begin();
        for segment in &segments {
            disk.remove(*segment).map_err(LogError::io("remove", *segment))?;
            log.forget(*segment);
        }
        disk.sync_names().map_err(LogError::io("remove", segments[0]))?;
        Ok(())
    }

    fn push(&mut self, record: Record) -> Result<(), StoreError> {
        self.batch.push(record);
        if self.batch.bytes() >= limits::COMPACT_BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.shared.check_stop()?;
        let begun = Instant::now();
        self.copied += self.batch.bytes() as u64;
        let batch = std::mem::take(&mut self.batch).within(Room::Relief);
        self.shared.inbox.push(batch, None).wait()?;
        (self.pace)(begun.elapsed());
        Ok(())
    }
}

impl Shared {
    /// The points there are, as runs, and the newest of them.
    fn kept_runs(&self, volume: &VolumeName) -> Result<(Vec<(PointId, PointId)>, PointId), StoreError> {
        let end = PointId::new(Epoch(u64::MAX), Seq(u64::MAX));
        let (mut next, end) =
            (key::point(key::POINT, volume, PointId::default()), key::point(key::POINT, volume, end));
        let mut runs: Vec<(PointId, PointId)> = Vec::new();
        loop {
            let page = self.index.range(&next, &end, false, limits::POINTS_PAGE)?;
            let Some((last, _)) = page.last() else { break };
            next = [last, &[0][..]].concat();
            for (id, _) in page.iter().filter_map(|(entry, _)| key::read_point(entry)) {
                match runs.last_mut() {
                    Some((_, last)) if last.epoch == id.epoch && last.seq.next() == id.seq => *last = id,
                    _ => runs.push((id, id)),
                }
            }
        }
        let upto = runs.last().map_or_else(PointId::default, |(_, last)| *last);
        Ok((runs, upto))
    }
}
