//! What a store would need if some of its points were gone: a thinning that writes nothing, and counts.
//!
//! It is the thinning itself ([`super::thin::merge`]) with another outlet, so what it says of merged operations and checkpoints is what would be written, to the byte. Ids of chunks go into
//! [`Filter`]s, so memory is bounded; the price is that a chunk may be taken for one that stays although it goes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use prost::Message;
use tidelock_proto::{ChunkId, ChunkKey, Epoch, Op, PointId, Seq, Tree, VolumeName, wire};

use super::{
    Cause, Shared, StoreError, checkpoint, encode_model_ops,
    filter::Filter,
    reachable::Need,
    thin::{Outlet, merge},
};
use crate::{
    catalogue::{Step, decode_place},
    index::{Table, key},
    limits,
    log::{
        Place,
        entry::{CheckpointBody, CommitBody},
        frame::stride,
    },
    vault,
};

/// What is needed.
pub(super) struct Needs {
    chunks: Filter,
    /// Bytes that the log has already, by segment.
    pub(super) bytes: HashMap<u32, u64>,
    /// Bytes that would have to be written.
    pub(super) written: u64,
}

impl Needs {
    pub(super) fn new(log_bytes: u64) -> Self {
        let chunks = Filter::new(log_bytes, limits::PLAN_FILTER_BYTES);
        Self { chunks, bytes: HashMap::new(), written: 0 }
    }

    pub(super) fn total(&self) -> u64 {
        self.bytes.values().sum::<u64>() + self.written
    }

    /// How likely it is that a chunk which nothing needs is counted.
    pub(super) fn doubt(&self) -> f64 {
        self.chunks.doubt()
    }

    fn add(&mut self, need: &Need) {
        match need {
            Need::Record(place) => self.weigh(*place),
            Need::Chunk(id) => self.chunks.insert(id),
        }
    }

    fn weigh(&mut self, place: Place) {
        *self.bytes.entry(place.segment).or_default() += stride(place.len as usize);
    }
}

/// Whoever waits for a survey; lets it rest, and ends it.
pub(super) struct Meter<'a> {
    shared: &'a Shared,
    pace: &'a mut dyn FnMut(Duration) -> bool,
    begun: Instant,
    was_full: bool,
}

impl<'a> Meter<'a> {
    pub(super) fn new(shared: &'a Shared, pace: &'a mut dyn FnMut(Duration) -> bool) -> Self {
        Self { shared, pace, begun: Instant::now(), was_full: shared.inbox.full().is_some() }
    }

    /// To be called between two points.
    pub(super) fn step(&mut self) -> Result<(), StoreError> {
        self.shared.check_stop()?;
        // Whoever makes room must not wait for somebody who only asks.
        if !self.was_full && self.shared.inbox.full().is_some() {
            return Err(StoreError::Restless);
        }
        let took = self.begun.elapsed();
        if took < limits::PLAN_STEP {
            return Ok(());
        }
        let more = (self.pace)(took);
        self.begun = Instant::now();
        if more { Ok(()) } else { Err(StoreError::Closed) }
    }
}

/// What a survey of one volume has found.
#[derive(Default)]
pub(super) struct Found {
    /// Bytes of records, chunks left out, that are needed now and would not be.
    pub(super) freed: u64,
    /// Bytes that would be written.
    pub(super) written: u64,
    /// Points that would get a new checkpoint.
    anew: HashSet<PointId>,
}

/// Adds to `after` what a volume would need without the points in `gone`, and to `now` what it needs.
pub(super) fn survey(
    shared: &Shared,
    volume: &VolumeName,
    gone: &HashSet<PointId>,
    mut now: Option<&mut Needs>,
    after: &mut Needs,
    meter: &mut Meter<'_>,
) -> Result<Found, StoreError> {
    let steps = shared.steps(volume)?;
    let mut freed = 0;
    for (id, step) in &steps {
        meter.step()?;
        match (stays_as_it_is(*id, step, gone), &mut now) {
            (true, now) => shared.needs_of_point(volume, step, &mut |need| {
                now.iter_mut().for_each(|now| now.add(&need));
                after.add(&need);
            })?,
            (false, Some(now)) => shared.needs_of_point(volume, step, &mut |need| {
                now.add(&need);
                freed += record_bytes(&need);
            })?,
            (false, None) => {}
        }
    }
    let mut dry = Dry::new(shared, volume, &steps, after, meter);
    merge(shared, volume, &steps, gone, &mut dry)?;
    let (written, anew) = (dry.written, dry.anew);
    after.written += written;
    each_checkpoint(shared, volume, &steps, &mut |id, place| {
        meter.step()?;
        let stays = !gone.contains(&id) && !anew.contains(&id);
        shared.needs_of_checkpoint(volume, id, place, &mut |need| {
            now.iter_mut().for_each(|now| now.add(&need));
            match stays {
                true => after.add(&need),
                false => freed += record_bytes(&need),
            }
        })
    })?;
    Ok(Found { freed, written, anew })
}

/// Bytes of the chunks that a volume's points need now and that `after`, which has all volumes, does not. None that is in `counted` is counted, and
/// those that are come in.
pub(super) fn freed_chunks(
    shared: &Shared,
    volume: &VolumeName,
    gone: &HashSet<PointId>,
    found: &Found,
    (after, counted): (&Needs, &mut Filter),
    meter: &mut Meter<'_>,
) -> Result<u64, StoreError> {
    let steps = shared.steps(volume)?;
    let (mut freed, mut failed) = (0, None);
    let mut count = |need: Need| {
        let Need::Chunk(id) = need else { return };
        if failed.is_some() || after.chunks.contains(&id) || counted.contains(&id) {
            return;
        }
        counted.insert(&id);
        match shared.index.get(Table::Chunks, &key::chunk(volume.tenant(), &id)) {
            Ok(value) => {
                let place = value.and_then(|value| decode_place(&value));
                freed += place.map_or(0, |place| stride(place.len as usize));
            }
            Err(error) => failed = Some(error),
        }
    };
    for (_, step) in steps.iter().filter(|(id, step)| !stays_as_it_is(**id, step, gone)) {
        meter.step()?;
        shared.needs_of_point(volume, step, &mut count)?;
    }
    each_checkpoint(shared, volume, &steps, &mut |id, place| {
        if gone.contains(&id) || found.anew.contains(&id) {
            meter.step()?;
            shared.needs_of_checkpoint(volume, id, place, &mut count)?;
        }
        Ok(())
    })?;
    failed.map_or(Ok(freed), |error| Err(error.into()))
}

/// Adds the chunks that are needed, now and after; tells the bytes of those that go, and those that nobody needs and somebody counts on, by segment.
pub(super) fn weigh_chunks(
    shared: &Shared,
    mut now: Option<&mut Needs>,
    after: &mut Needs,
    meter: &mut Meter<'_>,
) -> Result<(u64, HashMap<u32, u64>), StoreError> {
    let (mut next, mut freed, mut owed) = (Vec::new(), 0, HashMap::new());
    loop {
        meter.step()?;
        let page = shared.index.chunks_from(&next, limits::POINTS_PAGE)?;
        let Some((last, _)) = page.last() else { return Ok((freed, owed)) };
        next = [last, &[0][..]].concat();
        let chunks: Vec<(ChunkId, Place)> = page
            .iter()
            .filter_map(|(entry, value)| Some((key::chunk_id(entry)?, decode_place(value)?)))
            .collect();
        let counted_on = shared.owed.counts_on(chunks.iter().map(|(id, _)| id));
        for ((id, place), counted_on) in chunks.into_iter().zip(counted_on) {
            let stays = after.chunks.contains(&id);
            let there = now.as_ref().map_or(stays, |now| now.chunks.contains(&id));
            let bytes = stride(place.len as usize);
            if stays {
                after.weigh(place);
            } else if counted_on {
                *owed.entry(place.segment).or_default() += bytes;
            }
            if let Some(now) = now.as_mut().filter(|_| there) {
                now.weigh(place);
                freed += if stays { 0 } else { bytes };
            }
        }
    }
}

/// A filter for [`freed_chunks`].
pub(super) fn nothing_counted(log_bytes: u64) -> Filter {
    Filter::new(log_bytes, limits::PLAN_FILTER_BYTES)
}

fn stays_as_it_is(id: PointId, step: &Step, gone: &HashSet<PointId>) -> bool {
    !gone.contains(&id) && step.on.is_none_or(|on| !gone.contains(&on))
}

fn record_bytes(need: &Need) -> u64 {
    match need {
        Need::Record(place) => stride(place.len as usize),
        Need::Chunk(_) => 0,
    }
}

fn each_checkpoint(
    shared: &Shared,
    volume: &VolumeName,
    steps: &BTreeMap<PointId, Step>,
    each: &mut dyn FnMut(PointId, Place) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let end = PointId::new(Epoch(u64::MAX), Seq(u64::MAX));
    let (mut next, end) =
        (key::point(key::CHECKPOINT, volume, PointId::default()), key::point(key::CHECKPOINT, volume, end));
    loop {
        let page = shared.index.range(&next, &end, false, limits::POINTS_PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        next = [last, &[0][..]].concat();
        for (entry, value) in &page {
            let id = key::read_point(entry).map_or_else(PointId::default, |(id, _)| id);
            if !steps.contains_key(&id) {
                continue;
            }
            let unreadable = || {
                let cause = Cause::Unreadable("index entry");
                StoreError::Damaged { volume: volume.clone(), point: id, cause }
            };
            each(id, decode_place(value).ok_or_else(unreadable)?)?;
        }
    }
}

/// Takes what a thinning would write.
struct Dry<'a, 'm> {
    shared: &'a Shared,
    volume: &'a VolumeName,
    steps: &'a BTreeMap<PointId, Step>,
    after: &'a mut Needs,
    meter: &'a mut Meter<'m>,
    /// What encryption adds to a record.
    more: usize,
    written: u64,
    anew: HashSet<PointId>,
}

impl<'a, 'm> Dry<'a, 'm> {
    fn new(
        shared: &'a Shared,
        volume: &'a VolumeName,
        steps: &'a BTreeMap<PointId, Step>,
        after: &'a mut Needs,
        meter: &'a mut Meter<'m>,
    ) -> Self {
        let tenant = volume.tenant();
        let more = shared.vault.cipher(tenant).map_or(0, |_| vault::overhead_bytes(tenant));
        Self { shared, volume, steps, after, meter, more, written: 0, anew: HashSet::new() }
    }

    fn write(&mut self, body_len: usize) {
        self.written += stride(body_len + self.more);
    }
}

impl Outlet for Dry<'_, '_> {
    fn merged(&mut self, point: PointId, on: Option<PointId>, ops: Vec<Op>) -> Result<u64, StoreError> {
        self.meter.step()?;
        for op in &ops {
            self.shared.needs_of_op(self.volume, op, &mut |need| self.after.add(&need));
        }
        let parts = encode_model_ops(ops);
        let ops_bytes = parts.iter().map(|part| part.len() as u64).sum();
        let step = &self.steps[&point];
        let mut body = CommitBody {
            volume: self.volume.to_string(),
            point: Some(wire::point_to_wire(&step.point)),
            ops_bytes,
            on: on.map(wire::point_id_to_wire),
            ..CommitBody::default()
        };
        match &parts[..] {
            [] => {}
            [one] if one.len() <= limits::INLINE_OPS_MAX_BYTES => body.ops = one.clone(),
            parts => {
                for part in parts {
                    self.write(part.len());
                    body.parts.push(Place { len: part.len() as u32, ..step.place }.into());
                }
            }
        }
        self.write(body.encoded_len());
        Ok(ops_bytes)
    }

    fn checkpoint(&mut self, point: PointId, tree: &Tree) -> Result<(), StoreError> {
        let (shared, volume) = (self.shared, self.volume);
        let key = ChunkKey::of_tenant(volume.tenant());
        let (mut chunks, mut snapshot_bytes) = (0, 0);
        checkpoint::each_chunk(tree, &mut |content| {
            self.meter.step()?;
            (chunks, snapshot_bytes) = (chunks + 1, snapshot_bytes + content.len() as u64);
            let id = shared.vault.blind(volume.tenant(), &key.id(content));
            let known = self.after.chunks.contains(&id)
                || shared.index.get(Table::Chunks, &key::chunk(volume.tenant(), &id))?.is_some();
            if !known {
                // Tenant, id, codec and length come before the payload.
                self.write(1 + volume.tenant().len() + 32 + 1 + 4 + checkpoint::packed(content).1.len());
            }
            self.after.chunks.insert(&id);
            Ok(())
        })?;
        shared.needs_of_tree(volume, tree, &mut |need| self.after.add(&need));
        let body = CheckpointBody {
            volume: volume.to_string(),
            point: Some(wire::point_id_to_wire(point)),
            chunks: vec![0; chunks * 32].into(),
            snapshot_bytes,
        };
        self.write(body.encoded_len());
        self.anew.insert(point);
        Ok(())
    }
}
