//! The one thread that writes.
//!
//! ```text
//! take everything waiting → check and append each record → one fdatasync → index → volumes → receipts
//! ```
//! There is no timer: while one `fdatasync` runs, the next group gathers behind it. An idle store writes and syncs the
//! moment a batch arrives; a busy one shares each `fdatasync` among all who wait. Answers, refusals included, wait for the
//! `fdatasync` of their group, because a refusal may rest on a record that is only written.
//!
//! A refused record (a lower epoch, a gap) ends its batch: commits before it stand, what follows it is refused with it.
//! Only its chunks are written regardless, because others may already count on them. After an error of the disk the writer
//! answers everything with [`StoreError::Poisoned`] until the store is opened again.
//!
//! A full disk is no such error: what does not fit any more is refused with all that is queued behind it, promotions excepted, and the
//! writer looks for space from time to time.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;
use tidelock_proto::{Epoch, PointId, VolumeName, limits as model, point::Point, wire};

use super::{
    Shared, StoreError,
    batch::{Batch, Commit, Record},
    inbox::{Waiting, chunk_keys},
    read::{end_key, holds_of, points_in, rest_of},
};
use crate::{
    catalogue::{Catalogue, Known, VolumeInfo, decode_place, decode_step, encode_volume, is_hold},
    index::{Put, Table, key},
    limits,
    log::{
        Place,
        entry::{
            CheckpointBody, CommitBody, DropBody, EpochBody, Fact, JournalBody, Kind, ReleaseBody,
            RetiredBody, RunMessage, TagBody,
        },
        writer::{LogWriter, Spend},
    },
    vault::{Cipher, KeyError, OVERHEAD_BYTES},
};

pub(super) struct Writer {
    shared: Arc<Shared>,
    log: LogWriter,
    /// What the volumes will be once everything appended is durable.
    ahead: Catalogue,
    group: Group,
}

/// What was appended since the last `fdatasync`.
#[derive(Default)]
struct Group {
    puts: Vec<Put>,
    touched: Vec<VolumeName>,
    points: HashMap<(VolumeName, PointId), Point>,
    bases: Vec<(VolumeName, PointId)>,
    /// Dropped, and still in the index.
    gone: HashSet<(VolumeName, PointId)>,
}

/// Why a record was not appended.
enum Refused {
    /// The record cannot be; the store is fine.
    Record(StoreError),
    /// There is no space; the log is fine.
    Full(StoreError),
    /// The disk failed.
    Disk(StoreError),
}

impl<E: Into<StoreError>> From<E> for Refused {
    fn from(error: E) -> Self {
        match error.into() {
            error @ StoreError::Full { .. } => Self::Full(error),
            error => Self::Disk(error),
        }
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, log: LogWriter, volumes: Catalogue) -> Self {
        Self { shared, log, ahead: volumes, group: Group::default() }
    }

    /// Writes until the inbox is closed and empty, or the disk fails.
    pub(super) fn run(mut self) {
        while let Some(taken) = self.shared.inbox.take(limits::GROUP_BYTES) {
            self.look_for_space();
            match self.write_group(&taken) {
                Ok(answers) => {
                    for (waiting, answer) in taken.into_iter().zip(answers) {
                        drop(waiting.room);
                        let _ = waiting.reply.send(answer);
                    }
                }
                Err(error) => return self.poison(error, taken),
            }
        }
    }

    fn look_for_space(&mut self) {
        self.log.spend_reserve(Spend::Nothing);
        if self.shared.inbox.full().is_some() && self.log.check_space().is_ok() {
            tracing::info!("there is space again; store goes on");
            self.shared.inbox.refill();
        }
    }

    /// The log has no space: everybody who waits hears of it.
    fn fill(&self, error: StoreError) {
        if self.shared.inbox.full().is_none() {
            tracing::error!(%error, "store is full; it takes promotions and nothing else");
        }
        for waiting in self.shared.inbox.fill(error.clone()) {
            let _ = waiting.reply.send(Err(error.clone()));
        }
    }

    fn poison(&self, error: StoreError, taken: Vec<Waiting>) {
        tracing::error!(%error, "store takes no more writes until it is reopened");
        let poison = StoreError::Poisoned(Arc::new(error));
        let queued = self.shared.inbox.poison(poison.clone());
        for waiting in taken.into_iter().chain(queued) {
            let _ = waiting.reply.send(Err(poison.clone()));
        }
    }

    /// Writes a group and makes it durable; the answer to each batch, or why the disk failed.
    fn write_group(&mut self, taken: &[Waiting]) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let mut answers = Vec::with_capacity(taken.len());
        // What did not fit: nor does what may use no more of the reserve, and who counts on pending chunks may have counted on its.
        let mut full: Option<(Spend, StoreError)> = None;
        for waiting in taken {
            let spend = waiting.batch.spends();
            let counts = waiting.batch.generation.is_some();
            if let Some((_, error)) = full.as_ref().filter(|(refused, _)| counts || spend <= *refused) {
                answers.push(Err(error.clone()));
                continue;
            }
            self.log.spend_reserve(spend);
            answers.push(match self.append(&waiting.batch) {
                Ok(()) => Ok(()),
                Err(Refused::Record(error)) => Err(error),
                Err(Refused::Full(error)) => Err(full.insert((spend, error)).1.clone()),
                Err(Refused::Disk(error)) => return Err(error),
            });
        }
        self.settle(taken)?;
        if let Some((_, error)) = full {
            self.fill(error);
        }
        Ok(answers)
    }

    /// Makes the group durable, and only then visible.
    fn settle(&mut self, taken: &[Waiting]) -> Result<(), StoreError> {
        self.log.sync()?;
        let group = std::mem::take(&mut self.group);
        let moving = (!group.gone.is_empty()).then(|| self.shared.moves.begin());
        let named = group.puts.iter().any(|put| put.table == Table::Catalogue && key::is_named(&put.key));
        self.shared.index.put(group.puts, self.log.mark())?;
        drop(moving);
        if named {
            // Others of the group are read once more than need be.
            self.shared.named.forget(group.touched.iter());
        }
        {
            let mut volumes = self.shared.volumes.write();
            for volume in &group.touched {
                if let Some(info) = self.ahead.entry(volume) {
                    volumes.set(volume.clone(), info.clone());
                }
            }
        }
        let keys = taken.iter().flat_map(|waiting| chunk_keys(&waiting.batch)).map(|(key, _)| key);
        self.shared.inbox.settle(keys);
        self.shared.pins.settle();
        for volume in group.touched {
            if let Some(info) = self.ahead.get(&volume).filter(|info| info.wants_checkpoint()) {
                self.shared.checkpoints.want(volume, info.last.id);
            }
        }
        for (volume, base) in group.bases {
            self.shared.checkpoints.want_base(volume, base);
        }
        Ok(())
    }

    fn append(&mut self, batch: &Batch) -> Result<(), Refused> {
        let mut refused = None;
        for record in &batch.records {
            if refused.is_some() && !matches!(record, Record::Chunk(_)) {
                continue;
            }
            match self.append_record(record) {
                Err(Refused::Record(error)) => refused = Some(error),
                other => other?,
            }
        }
        refused.map_or(Ok(()), |error| Err(Refused::Record(error)))
    }

    fn append_record(&mut self, record: &Record) -> Result<(), Refused> {
        match record {
            Record::Chunk(chunk) => {
                let head = chunk.encode_head();
                let body = [&head[..], &chunk.payload];
                let place = self.append_body(Some(&chunk.tenant), Kind::Chunk, &body, "chunk")?;
                let (tenant, id) = (chunk.tenant.clone(), self.shared.vault.blind(&chunk.tenant, &chunk.id));
                self.apply(&Fact::Chunk { tenant, id, len: chunk.len }, place, &Known::default());
            }
            Record::Commit(commit) => self.append_commit(commit)?,
            Record::Checkpoint { volume, point, chunks, snapshot_bytes } => {
                self.existing(volume, *point)?;
                let body = CheckpointBody {
                    volume: volume.to_string(),
                    point: Some(wire::point_id_to_wire(*point)),
                    chunks: chunks.iter().flat_map(|id| id.0).collect::<Vec<u8>>().into(),
                    snapshot_bytes: *snapshot_bytes,
                };
                let fact = Fact::Checkpoint {
                    volume: volume.clone(),
                    point: *point,
                    snapshot_bytes: *snapshot_bytes,
                };
                self.append_fact(Kind::Checkpoint, &body, &fact, &Known::default())?;
            }
            Record::Epoch { volume, expected, epoch, base } => {
                self.shared.vault.check(volume.tenant()).map_err(|error| Refused::Record(error.into()))?;
                self.ahead.check_epoch(volume, *expected, *epoch).map_err(Refused::Record)?;
                let point = self.existing(volume, *base)?;
                let body = EpochBody {
                    volume: volume.to_string(),
                    epoch: epoch.0,
                    base: Some(wire::point_id_to_wire(*base)),
                };
                let fact = Fact::Epoch { volume: volume.clone(), epoch: *epoch, base: *base };
                self.append_fact(
                    Kind::Epoch,
                    &body,
                    &fact,
                    &Known { base: Some(point), ..Known::default() },
                )?;
                self.group.bases.push((volume.clone(), *base));
            }
            Record::Tag { volume, point, tag } => {
                self.existing(volume, *point)?;
                self.check_tag(volume, *point, tag)?;
                self.append_tag(volume, *point, tag)?;
            }
            Record::Release { volume, point, copy } => self.append_release(volume, *point, *copy)?,
            Record::Merged { volume, point, on, ops } => self.append_merged(volume, *point, *on, ops)?,
            Record::Journal { volume, kept, upto } => {
                let no_volume = || Refused::Record(StoreError::NoSuchVolume(volume.clone()));
                let info = self.ahead.entry(volume).ok_or_else(no_volume)?.clone();
                match info.deleted {
                    true => {
                        self.append_journal(volume, &info, &[], info.end_of_deleted(), &Known::default())?
                    }
                    false => self.append_journal(volume, &info, kept, *upto, &Known::default())?,
                }
            }
            Record::Delete { volume, expected, upto } => self.append_delete(volume, *expected, *upto)?,
            Record::Retired { all, chunks } => {
                self.append_fact(Kind::Retired, all, &Fact::Retired(all.clone()), &Known::default())?;
                self.forget(all, chunks)?;
            }
            Record::Drop { volume, epoch, runs, oldest_ns } => {
                self.append_drop(volume, *epoch, runs, *oldest_ns)?;
            }
        }
        Ok(())
    }

    fn append_commit(&mut self, commit: &Commit) -> Result<(), Refused> {
        let Commit { volume, point, ops } = commit;
        self.shared.vault.check(volume.tenant()).map_err(|error| Refused::Record(error.into()))?;
        self.ahead.check_commit(volume, point).map_err(Refused::Record)?;
        let known = match self.ahead.end_of_deleted(volume) {
            Some(end) => self.deleted_up_to(volume, end)?,
            None => Known::default(),
        };
        let body = self.append_ops(volume, point, ops)?;
        let fact = Fact::Commit { volume: volume.clone(), point: point.clone(), ops_bytes: body.ops_bytes };
        self.append_fact(Kind::Commit, &body, &fact, &known)?;
        if point.parent.is_none() {
            self.shared.checkpoints.on_begun_anew(volume);
        }
        self.group.points.insert((volume.clone(), point.id), point.clone());
        Ok(())
    }

    /// The body of a point's record, behind the parts of it that are records of their own.
    fn append_ops(
        &mut self,
        volume: &VolumeName,
        point: &Point,
        ops: &[Bytes],
    ) -> Result<CommitBody, Refused> {
        let mut body = CommitBody {
            volume: volume.to_string(),
            point: Some(wire::point_to_wire(point)),
            ops_bytes: ops.iter().map(|part| part.len() as u64).sum(),
            ..CommitBody::default()
        };
        match ops {
            [] => {}
            [one] if one.len() <= limits::INLINE_OPS_MAX_BYTES => body.ops = one.clone(),
            parts => {
                let (tenant, what) = (Some(volume.tenant()), "part of a commit's operations");
                parts.iter().try_for_each(|part| fits(part.len(), what))?;
                for part in parts {
                    body.parts.push(self.append_body(tenant, Kind::Ops, &[part], what)?.into());
                }
            }
        }
        Ok(body)
    }

    fn append_merged(
        &mut self,
        volume: &VolumeName,
        id: PointId,
        on: Option<PointId>,
        ops: &[Bytes],
    ) -> Result<(), Refused> {
        let point = self.existing(volume, id)?;
        match on {
            Some(on) => drop(self.existing(volume, on)?),
            None if self.builds_on_nothing(volume, id)? => {}
            None => {
                let key = key::point(key::CHECKPOINT, volume, id);
                if self.shared.index.get(Table::Catalogue, &key).map_err(StoreError::from)?.is_none() {
                    return Err(Refused::Record(StoreError::NoSuchPoint(volume.clone(), id)));
                }
            }
        }
        let mut body = self.append_ops(volume, &point, ops)?;
        body.on = on.map(wire::point_id_to_wire);
        let fact = Fact::Merged { volume: volume.clone(), point, on };
        self.append_fact(Kind::Merged, &body, &fact, &Known::default())
    }

    fn append_release(&mut self, volume: &VolumeName, point: PointId, copy: bool) -> Result<(), Refused> {
        self.existing(volume, point)?;
        let held = self.holds(volume, point)?;
        let body = ReleaseBody { volume: volume.to_string(), point: Some(wire::point_id_to_wire(point)) };
        let fact = Fact::Release { volume: volume.clone(), point };
        let known = Known { released: held.clone(), ..Known::default() };
        self.append_fact(Kind::Release, &body, &fact, &known)?;
        for tag in held.into_iter().filter(|_| copy) {
            self.append_tag(volume, point, &tag)?;
        }
        Ok(())
    }

    /// The names that hold a point, those of this group included.
    fn holds(&self, volume: &VolumeName, point: PointId) -> Result<Vec<String>, Refused> {
        let mut held: BTreeSet<String> =
            holds_of(&self.shared.index, volume, point).map_err(StoreError::from)?.into_iter().collect();
        let (from, to) = (key::point(key::TAG, volume, point), end_key(key::TAG, volume, point));
        for put in self.group.puts.iter().filter(|put| put.key >= from && put.key < to) {
            let Some(tag) = key::read_point(&put.key).map(|(_, tag)| String::from_utf8_lossy(tag)) else {
                continue;
            };
            match put.value {
                Some(_) if is_hold(&tag) => drop(held.insert(tag.into_owned())),
                _ => drop(held.remove(&*tag)),
            }
        }
        Ok(held.into_iter().collect())
    }

    fn append_tag(&mut self, volume: &VolumeName, point: PointId, tag: &str) -> Result<(), Refused> {
        let id = Some(wire::point_id_to_wire(point));
        let body = TagBody { volume: volume.to_string(), point: id, tag: tag.to_owned() };
        let fact = Fact::Tag { volume: volume.clone(), point, tag: tag.to_owned() };
        self.append_fact(Kind::Tag, &body, &fact, &Known::default())
    }

    /// Whether a point's operations apply to an empty tree, or are not needed, already.
    fn builds_on_nothing(&self, volume: &VolumeName, id: PointId) -> Result<bool, Refused> {
        let key = key::point(key::POINT, volume, id);
        let value = self.shared.index.get(Table::Catalogue, &key).map_err(StoreError::from)?;
        Ok(value.and_then(|value| decode_step(&value)).is_some_and(|step| step.on.is_none()))
    }

    /// What is dropped was chosen a while ago: it is looked at again whether it may go.
    fn append_drop(
        &mut self,
        volume: &VolumeName,
        epoch: Epoch,
        runs: &[(PointId, PointId)],
        oldest_ns: u64,
    ) -> Result<(), Refused> {
        let no_volume = || Refused::Record(StoreError::NoSuchVolume(volume.clone()));
        let info = self.ahead.get(volume).ok_or_else(no_volume)?;
        if info.epoch != epoch {
            let (volume, current) = (volume.clone(), info.epoch);
            return Err(Refused::Record(StoreError::EpochMoved { volume, expected: epoch, current }));
        }
        let last = info.last.id;
        let gone = points_in(&self.shared.index, volume, runs).map_err(StoreError::from)?;
        for (first, end) in runs {
            let (from, to) = (key::point(key::TAG, volume, *first), end_key(key::TAG, volume, *end));
            let tagged = !self.shared.tags(volume, *first, *end)?.is_empty()
                || self.group.puts.iter().any(|put| put.key >= from && put.key < to);
            if tagged || (*first..=*end).contains(&last) {
                return Err(Refused::Record(StoreError::InUse(volume.clone(), *first)));
            }
        }
        if let Err(held) = self.shared.pins.let_go(volume, runs) {
            return Err(Refused::Record(StoreError::InUse(volume.clone(), held)));
        }
        let count = gone.len() as u64;
        self.group.gone.extend(gone.iter().map(|id| (volume.clone(), *id)));
        let runs_body = runs.iter().map(RunMessage::of).collect();
        let body = DropBody { volume: volume.to_string(), runs: runs_body, count, oldest_ns };
        let fact = Fact::Drop { volume: volume.clone(), runs: runs.to_vec(), count, oldest_ns };
        self.append_fact(Kind::Drop, &body, &fact, &Known { gone, ..Known::default() })
    }

    /// A journal in which no point stays.
    fn append_delete(
        &mut self,
        volume: &VolumeName,
        expected: Option<Epoch>,
        upto: PointId,
    ) -> Result<(), Refused> {
        self.shared.vault.check(volume.tenant()).map_err(|error| Refused::Record(error.into()))?;
        let no_volume = || Refused::Record(StoreError::NoSuchVolume(volume.clone()));
        let info = self.ahead.entry(volume).ok_or_else(no_volume)?;
        match expected {
            Some(expected) if info.epoch != expected => {
                let (volume, current) = (volume.clone(), info.epoch);
                return Err(Refused::Record(StoreError::EpochMoved { volume, expected, current }));
            }
            Some(_) if info.deleted => return Err(no_volume()),
            None if !info.deleted => return Ok(()),
            _ => {}
        }
        let tombstone = info.tombstone();
        let (first, end) = (PointId::default(), tombstone.end_of_deleted());
        if let Err(held) = self.shared.pins.let_go(volume, &[(first, end)]) {
            return Err(Refused::Record(StoreError::PointOpen(volume.clone(), held)));
        }
        let known = self.deleted_up_to(volume, upto.min(end))?;
        self.group.gone.extend(known.gone.iter().map(|id| (volume.clone(), *id)));
        if expected.is_some() {
            // So that all it had can be given back.
            self.log.end_segment();
        }
        // What is not removed from the index now is gone all the same if the log is read anew.
        self.append_journal(volume, &tombstone, &[], end, &known)
    }

    /// What the index knows of points up to this one.
    fn deleted_up_to(&self, volume: &VolumeName, upto: PointId) -> Result<Known, StoreError> {
        let gone = points_in(&self.shared.index, volume, &[(PointId::default(), upto)])?;
        let rest = rest_of(&self.shared.index, volume, upto)?;
        Ok(Known { gone, rest, ..Known::default() })
    }

    fn append_journal(
        &mut self,
        volume: &VolumeName,
        info: &VolumeInfo,
        kept: &[(PointId, PointId)],
        upto: PointId,
        known: &Known,
    ) -> Result<(), Refused> {
        let info: Bytes = encode_volume(info).into();
        let body = JournalBody {
            volume: volume.to_string(),
            info: info.clone(),
            kept: kept.iter().map(RunMessage::of).collect(),
            upto: Some(wire::point_id_to_wire(upto)),
        };
        let fact = Fact::Journal { volume: volume.clone(), info, kept: kept.to_vec(), upto };
        self.append_fact(Kind::Journal, &body, &fact, known)
    }

    /// Takes chunks out of the index that are only in retired segments.
    fn forget(&mut self, retired: &RetiredBody, chunks: &[Vec<u8>]) -> Result<(), Refused> {
        // Written again by somebody in this very group.
        let again = self.group.puts.iter().filter(|put| put.table == Table::Chunks);
        let again: HashSet<Vec<u8>> = again.map(|put| put.key.clone()).collect();
        for key in chunks.iter().filter(|key| !again.contains(*key)) {
            let value = self.shared.index.get(Table::Chunks, key).map_err(StoreError::from)?;
            let place = value.and_then(|value| decode_place(&value));
            if place.is_some_and(|place| retired.contains(place.segment)) {
                self.group.puts.push(Put { table: Table::Chunks, key: key.clone(), value: None });
            }
        }
        Ok(())
    }

    fn append_fact(
        &mut self,
        kind: Kind,
        body: &impl Message,
        fact: &Fact,
        known: &Known,
    ) -> Result<(), Refused> {
        let body = body.encode_to_vec();
        let place = self.append_body(fact.tenant(), kind, &[&body], "record")?;
        self.apply(fact, place, known);
        Ok(())
    }

    /// Appends a record, encrypted if its tenant is.
    fn append_body(
        &mut self,
        tenant: Option<&str>,
        kind: Kind,
        body: &[&[u8]],
        what: &'static str,
    ) -> Result<Place, Refused> {
        fits(body.iter().map(|part| part.len()).sum(), what)?;
        let Some((tenant, cipher)) = tenant.zip(tenant.map(|name| self.cipher(name)).transpose()?.flatten())
        else {
            return Ok(self.log.append(None, kind, body)?);
        };
        let place = self.log.append(Some(&cipher), kind, body)?;
        if self.shared.vault.learn(tenant, cipher.id()).map_err(StoreError::from)? {
            let (key, value) = (key::of_tenant(key::ENCRYPTED, tenant), Some(cipher.id().to_vec()));
            self.group.puts.push(Put { table: Table::Catalogue, key, value });
        }
        Ok(place)
    }

    /// What the tenant's records are encrypted with. One that has plain data does not become encrypted.
    fn cipher(&self, tenant: &str) -> Result<Option<Arc<Cipher>>, Refused> {
        let refused = |error: KeyError| Refused::Record(error.into());
        let vault = &self.shared.vault;
        let Some(cipher) = vault.cipher_to_write(tenant).map_err(refused)? else { return Ok(None) };
        if !vault.is_encrypted(tenant) {
            let chunks =
                self.shared.index.chunks_from(&key::chunks_of(tenant), 1).map_err(StoreError::from)?;
            let plain = chunks.iter().any(|(key, _)| key.starts_with(&key::chunks_of(tenant)));
            if plain || self.ahead.iter().any(|(volume, _)| volume.tenant() == tenant) {
                return Err(refused(KeyError::Plain(tenant.to_owned())));
            }
        }
        Ok(Some(cipher))
    }

    fn apply(&mut self, fact: &Fact, place: Place, known: &Known) {
        let number = self.log.mark().number;
        self.ahead.apply(number, fact, place, known, &mut self.group.puts);
        if let Some(volume) = fact.volume()
            && !self.group.touched.contains(volume)
        {
            self.group.touched.push(volume.clone());
        }
    }

    /// A point that is in the store, or was appended in this group.
    fn existing(&self, volume: &VolumeName, id: PointId) -> Result<Point, Refused> {
        if self.ahead.get(volume).is_none() {
            return Err(Refused::Record(self.shared.no_volume(volume)));
        }
        if self.group.gone.contains(&(volume.clone(), id)) {
            return Err(Refused::Record(StoreError::NoSuchPoint(volume.clone(), id)));
        }
        if let Some(point) = self.group.points.get(&(volume.clone(), id)) {
            return Ok(point.clone());
        }
        match self.shared.find_point(volume, id)? {
            Some((_, point)) => Ok(point),
            None => Err(Refused::Record(StoreError::NoSuchPoint(volume.clone(), id))),
        }
    }

    fn check_tag(&self, volume: &VolumeName, point: PointId, tag: &str) -> Result<(), Refused> {
        if tag.is_empty() || tag.len() > model::TAG_MAX_BYTES {
            return Err(Refused::Record(StoreError::Limit("length of a tag")));
        }
        let tags = self.shared.tags(volume, point, point)?;
        let tags = tags.get(&point).map_or(&[][..], Vec::as_slice);
        if tags.len() >= model::TAGS_MAX && !tags.iter().any(|known| known == tag) {
            return Err(Refused::Record(StoreError::Limit("tags of a point")));
        }
        Ok(())
    }
}

fn fits(bytes: usize, what: &'static str) -> Result<(), Refused> {
    if bytes + OVERHEAD_BYTES <= limits::RECORD_MAX_BYTES {
        Ok(())
    } else {
        Err(Refused::Record(StoreError::Limit(what)))
    }
}
