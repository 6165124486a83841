//! Compaction: the log is written anew with what its points still need, and takes the place of the old one at once.
//!
//! ```text
//! thin → copy what is live to compact.new/log → sync → verify the copy, compare it with the store → exchange the two
//! directories → remove the old log
//! ```
//! **A crash leaves one whole log.** Until the exchange, which is one rename, the old log is untouched; after it the new one is
//! complete and durable. `compact.new` is removed by whoever opens the store next. The new log has a store id of its own, so an index of the
//! old one is never taken for its index: it is made anew.
//!
//! **Nothing is trusted.** The copy is opened and verified like any store, every point's tree against its digest, every chunk
//! against its id, and has to hold the same volumes, points and tags. A store with damage is not compacted at all.
//!
//! The price: the receiver must be stopped, as long as it takes to read the store twice and to write what is live once; the disk must hold
//! both; and 40 bytes of memory for each live chunk.

use std::{collections::HashSet, fs::File, path::Path, sync::Arc};

use bytes::Bytes;
use prost::Message;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tidelock_proto::{
    ChunkId, Op, PointId, VolumeName,
    wire::{self, messages},
};

use super::{Store, StoreError, StoreOptions, lock::StoreLock};
use crate::{
    catalogue::{Step, encode_volume},
    limits,
    log::{
        Mark,
        disk::{DirDisk, Disk},
        entry::{CheckpointBody, ChunkEntry, CommitBody, Kind, TagBody, VolumeBody},
        frame::{RECORD_HEADER_BYTES, RECORDS_START},
        scan::End,
        writer::{LogOptions, LogWriter},
    },
    retention::Policy,
    vault::Cipher,
    verify,
};

/// What a compaction is to do.
#[derive(Debug, Clone, Default)]
pub struct CompactOptions {
    /// Points that this policy does not keep at this time (nanoseconds since 1970) go first.
    pub thin: Option<(Policy, u64)>,
    /// This volume goes as a whole.
    pub without: Option<VolumeName>,
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Compacted {
    /// Length of the log before, in bytes.
    pub before_bytes: u64,
    /// Length of the log now, in bytes.
    pub after_bytes: u64,
    /// Points that were dropped by the policy.
    pub dropped: u64,
    /// Points there are now.
    pub points: u64,
    /// Chunks there are now.
    pub chunks: u64,
}

impl Store {
    /// Compacts the store in `dir`, which nobody must have open. Until this returns without an error, or is interrupted at its very end,
    /// the store is what it was, but for the points that the policy dropped.
    pub fn compact(
        dir: &Path,
        options: StoreOptions,
        what: &CompactOptions,
    ) -> Result<Compacted, StoreError> {
        let new = dir.join(NEW);
        let store = Self::open(dir, options.clone())?;
        store.check_keys()?;
        whole(&store, "the store")?;
        if let Some(name) = what.without.as_ref().filter(|name| store.volume(name).is_none()) {
            return Err(StoreError::NoSuchVolume(name.clone()));
        }
        let names: Vec<_> =
            store.volumes().into_iter().filter(|name| Some(name) != what.without.as_ref()).collect();
        let mut done = Compacted::default();
        if let Some((policy, now_ns)) = &what.thin {
            for name in &names {
                done.dropped += store.thin(name, policy, *now_ns)?.dropped;
            }
        }
        store.quiesce();
        let Some(mark) = store.durable_mark() else { return Ok(done) };
        done.before_bytes = store.log_bytes(mark);
        let log = new.join("log");
        std::fs::create_dir_all(&log).map_err(StoreError::dir(&new, "cannot be created"))?;
        let mut copy = Copy::new(&store, &log, &options)?;
        for name in &names {
            copy.volume(name)?;
        }
        copy.tombstones()?;
        copy.log.sync()?;
        done.chunks = copy.copied.len() as u64;
        done.points = copy.points;
        drop(copy);
        done.after_bytes = compare(&store, &new, options, &names)?;
        drop(store);
        exchange(dir, &new, mark)?;
        Ok(done)
    }
}

/// Where the new log is written, within the store.
pub(super) const NEW: &str = "compact.new";

/// Removes what an interrupted compaction left: an unfinished new log, or the old one.
pub(super) fn clear(dir: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(dir.join(NEW)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::dir(dir, "cannot remove what a compaction left in it")(error))
        }
        _ => Ok(()),
    }
}

/// Every record, chunk and point of a store is as it was written.
fn whole(store: &Store, which: &'static str) -> Result<(), StoreError> {
    let mut first = None;
    let summary = verify::verify(store, &|_| true, &mut |event| {
        if let verify::Event::Finding(finding) = event {
            first.get_or_insert_with(|| finding.to_string());
        }
        true
    })?;
    match (summary, first) {
        (Some(summary), None) if summary.findings == 0 => Ok(()),
        (_, first) => Err(StoreError::NotCompacted(which, first.unwrap_or_default())),
    }
}

/// The copy, opened as the store it will be, is whole and says the same. The answer is the length of its log.
fn compare(
    store: &Store,
    new: &Path,
    options: StoreOptions,
    names: &[VolumeName],
) -> Result<u64, StoreError> {
    let copy = Store::open(new, options)?;
    whole(&copy, "the new log")?;
    let other = |what: String| StoreError::NotCompacted("the new log", what);
    if copy.volumes() != names {
        return Err(other("it has other volumes".to_owned()));
    }
    for name in names {
        let info =
            |store: &Store| store.volume(name).map(|info| crate::store::VolumeInfo { as_of: 0, ..info });
        if info(store) != info(&copy) {
            return Err(other(format!("it says something else of {name}")));
        }
        let mut next = PointId::default();
        loop {
            let page = store.points_from(name, next, limits::POINTS_PAGE)?;
            if page != copy.points_from(name, next, limits::POINTS_PAGE)? {
                return Err(other(format!("it has other points of {name}")));
            }
            let Some(last) = page.last() else { break };
            next = PointId::new(last.id.epoch, last.id.seq.next());
        }
    }
    Ok(copy.durable_mark().map_or(0, |mark| copy.log_bytes(mark)))
}

/// Puts the new log in the place of the old one, if nobody has written to that since `mark`.
fn exchange(dir: &Path, new: &Path, mark: Mark) -> Result<(), StoreError> {
    let failed = |what| StoreError::dir(dir, what);
    let _lock = StoreLock::take(dir)?;
    if !ends_at(&DirDisk::new(&dir.join("log")), mark).map_err(failed("cannot read its log"))? {
        return Err(StoreError::NotCompacted("the store", "somebody has written to it meanwhile".to_owned()));
    }
    let sync = |path: &Path| File::open(path).and_then(|dir| dir.sync_all());
    sync(new).and_then(|()| sync(dir)).map_err(failed("cannot be synced"))?;
    renameat_with(CWD, dir.join("log"), CWD, new.join("log"), RenameFlags::EXCHANGE)
        .map_err(|error| failed("cannot exchange its log")(error.into()))?;
    sync(dir).and_then(|()| sync(new)).map_err(failed("cannot be synced"))?;
    clear(dir)
}

fn ends_at(disk: &dyn Disk, mark: Mark) -> std::io::Result<bool> {
    if disk.list()?.into_iter().max() != Some(mark.segment) {
        return Ok(false);
    }
    let mut next = [0; RECORD_HEADER_BYTES];
    match disk.open(mark.segment)?.read_at(&mut next, u64::from(mark.offset)) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(true),
        read => read.map(|()| next.iter().all(|byte| *byte == 0)),
    }
}

/// The new log being written.
struct Copy<'a> {
    store: &'a Store,
    log: LogWriter,
    copied: HashSet<(Arc<str>, ChunkId)>,
    tenant: Arc<str>,
    points: u64,
}

impl<'a> Copy<'a> {
    fn new(store: &'a Store, log: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let range = limits::SEGMENT_BYTES_RANGE;
        let segment_bytes = options.segment_bytes.clamp(*range.start(), *range.end());
        // The copy may use the reserve: it is how a full disk gets space back.
        let options = LogOptions {
            store: rand::random(),
            segment_bytes,
            reserve_bytes: 0,
            cap_bytes: None,
            salt: rand::random,
        };
        let end =
            End { segment: 0, offset: RECORDS_START, proven: RECORDS_START, number: 0, continues: None };
        let log = LogWriter::resume(Arc::new(DirDisk::new(log)), options, end)?;
        Ok(Self { store, log, copied: HashSet::new(), tenant: "".into(), points: 0 })
    }

    fn volume(&mut self, volume: &VolumeName) -> Result<(), StoreError> {
        self.tenant = volume.tenant().into();
        let mut next = PointId::default();
        loop {
            let page = self.store.placed_points(volume, next, limits::POINTS_PAGE)?;
            let Some((last, _)) = page.last() else { break };
            next = PointId::new(last.epoch, last.seq.next());
            for (id, step) in &page {
                let step = step.as_ref().ok_or_else(|| StoreError::NoSuchPoint(volume.clone(), *id))?;
                self.point(volume, step)?;
            }
        }
        let info = self.store.volume(volume).ok_or_else(|| StoreError::NoSuchVolume(volume.clone()))?;
        let body = VolumeBody { volume: volume.to_string(), info: encode_volume(&info).into() };
        self.append(Kind::Volume, &body)
    }

    /// From which epoch on deleted volumes may begin anew.
    fn tombstones(&mut self) -> Result<(), StoreError> {
        let all = self.store.shared().volumes.read().clone();
        for (volume, info) in all.iter().filter(|(_, info)| info.deleted) {
            self.tenant = volume.tenant().into();
            let body = VolumeBody { volume: volume.to_string(), info: encode_volume(info).into() };
            self.append(Kind::Volume, &body)?;
        }
        Ok(())
    }

    /// A point, everything that it needs before it, its checkpoint and tags behind it.
    fn point(&mut self, volume: &VolumeName, step: &Step) -> Result<(), StoreError> {
        self.points += 1;
        let log = &self.store.shared().log;
        let nonsense = || StoreError::NoSuchPoint(volume.clone(), step.point.id);
        let mut body = CommitBody::decode(log.read(step.place, step.kind)?).map_err(|_| nonsense())?;
        let parts = body.parts.iter().map(|part| log.read((*part).into(), Kind::Ops));
        let parts: Vec<Bytes> = parts.collect::<Result<_, _>>()?;
        for part in parts.iter().chain([&body.ops]) {
            let ops = messages::Ops::decode(part.clone()).map_err(|_| nonsense())?;
            for op in wire::decode_ops(ops.ops).map_err(|_| nonsense())? {
                let Op::Write { pieces, .. } = op else { continue };
                for chunk in pieces.into_iter().filter_map(|piece| piece.chunk) {
                    self.chunk(chunk.id)?;
                }
            }
        }
        if step.on.is_none() {
            let tree = self.store.tree_at(volume, step.point.id)?;
            let files = tree.iter().filter_map(|(_, inode)| inode.extents());
            for (_, extent) in files.flat_map(|extents| extents.iter().collect::<Vec<_>>()) {
                self.chunk(extent.chunk.id)?;
            }
        }
        body.parts.clear();
        for part in &parts {
            let cipher = self.cipher();
            body.parts.push(self.log.append(cipher.as_deref(), Kind::Ops, &[part])?.into());
        }
        body.on = step.on.map(wire::point_id_to_wire);
        self.append(Kind::Merged, &body)?;
        if let Some(place) = self.store.checkpoint_place(volume, step.point.id)? {
            let body = self.store.shared().log.read(place, Kind::Checkpoint)?;
            let body = CheckpointBody::decode(body).map_err(|_| nonsense())?;
            for id in body.chunks.chunks(32) {
                self.chunk(ChunkId::from_slice(id).ok_or_else(nonsense)?)?;
            }
            self.append(Kind::Checkpoint, &body)?;
        }
        for tag in self.store.point(volume, step.point.id)?.tags {
            let point = Some(wire::point_id_to_wire(step.point.id));
            self.append(Kind::Tag, &TagBody { volume: volume.to_string(), point, tag })?;
        }
        Ok(())
    }

    fn chunk(&mut self, id: ChunkId) -> Result<(), StoreError> {
        if !self.copied.insert((self.tenant.clone(), id)) {
            return Ok(());
        }
        let stored = self.store.read_chunk(&self.tenant, id)?;
        let entry = ChunkEntry {
            tenant: self.tenant.to_string(),
            id,
            codec: stored.codec,
            len: stored.len,
            payload: stored.payload,
        };
        let cipher = self.cipher();
        self.log.append(cipher.as_deref(), Kind::Chunk, &[&entry.encode_head(), &entry.payload])?;
        Ok(())
    }

    fn append(&mut self, kind: Kind, body: &impl Message) -> Result<(), StoreError> {
        let cipher = self.cipher();
        self.log.append(cipher.as_deref(), kind, &[&body.encode_to_vec()])?;
        Ok(())
    }

    /// Of the tenant whose volume is being copied.
    fn cipher(&self) -> Option<Arc<Cipher>> {
        self.store.vault().cipher(&self.tenant)
    }
}
