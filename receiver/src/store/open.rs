//! Opening: from whatever the last run left to a store that is whole.
//!
//! 1. Take the lock.
//! 2. Open the index; its mark says up to where it covers the log.
//! 3. Read the log from there, or from its beginning if there is no mark or the log ends before it.
//! 4. Remove a segment that was being created, cut off a torn tail, sync.
//! 5. Put what was read into the index, and only now offer it.
//!
//! Step 4 comes before 5 because after a crash of the process alone, records may be readable that are not on disk yet.

use std::{
    collections::BTreeSet,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use tidelock_proto::{PointId, point::Point};
use tokio::sync::{Semaphore, watch};

use super::{
    Inner, Opened, Shared, Store, StoreError, StoreOptions, Threads, checkpoint, compact,
    inbox::Inbox,
    lock::StoreLock,
    read::{holds_of, points_in, rest_of},
    writer::Writer,
};
use crate::{
    background,
    catalogue::{Catalogue, Known, decode_point},
    index::{Encrypted, Index, Put, Table, key},
    limits,
    log::{
        Damage, LogError, Mark,
        disk::{DirDisk, Disk},
        entry::Fact,
        frame::{RECORDS_START, SegmentHeader},
        part::{Fetch, PartDisk},
        reader::LogReader,
        scan::{Found, Outcome, scan},
        writer::{LogOptions, LogWriter},
    },
    vault::{KeyError, KeyId, Unopened, Vault},
};

pub(super) fn open(dir: &Path, options: StoreOptions) -> Result<Store, StoreError> {
    prepare(dir)?.open(options)
}

/// A directory that is this process's to open as a store.
#[derive(Debug)]
pub(crate) struct Prepared {
    dir: PathBuf,
    lock: StoreLock,
}

impl Prepared {
    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// See [`Store::open`].
    pub(crate) fn open(self, options: StoreOptions) -> Result<Store, StoreError> {
        self.open_with(options, None)
    }

    /// The same; what is not here of its segments is fetched when it is read.
    pub(crate) fn open_with(
        self,
        options: StoreOptions,
        fetch: Option<Arc<dyn Fetch>>,
    ) -> Result<Store, StoreError> {
        open_locked(&self.dir, options, self.lock, fetch)
    }
}

/// Creates the directory if it is not there, refuses it if it is something else's, and locks it.
pub(super) fn prepare(dir: &Path) -> Result<Prepared, StoreError> {
    create_dir(dir).map_err(StoreError::dir(dir, "cannot be created"))?;
    if let Some(found) = foreign(dir).map_err(StoreError::dir(dir, "cannot be read"))? {
        return Err(StoreError::NotEmpty { dir: dir.to_owned(), found });
    }
    Ok(Prepared { dir: dir.to_owned(), lock: StoreLock::take(dir)? })
}

/// Something in a directory that is not a store yet and had better not become one.
fn foreign(dir: &Path) -> std::io::Result<Option<std::ffi::OsString>> {
    if dir.join("log").is_dir() {
        return Ok(None);
    }
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        // What is there on a new file system, and what an attempt leaves that ended before there was a log.
        if !["lost+found", "lock", "index", "archive", "archive.new", "fetch.new"]
            .iter()
            .any(|known| name == *known)
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// [`open`] after the index was removed. The index may know of durable records that the log has lost; whoever asks for this
/// gives up that knowledge, and a torn tail is then only cut off.
pub(super) fn rebuild(dir: &Path, options: StoreOptions) -> Result<Store, StoreError> {
    let lock = StoreLock::take(dir)?;
    match std::fs::remove_dir_all(dir.join("index")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::dir(dir, "cannot remove its index")(error));
        }
        _ => {}
    }
    open_locked(dir, options, lock, None)
}

fn open_locked(
    dir: &Path,
    options: StoreOptions,
    lock: StoreLock,
    fetch: Option<Arc<dyn Fetch>>,
) -> Result<Store, StoreError> {
    compact::clear(dir)?;
    let log = dir.join("log");
    let disk = || -> std::io::Result<Arc<dyn Disk>> {
        create_dir(&log)?;
        Ok(match PartDisk::open(&log, fetch)? {
            Some(parts) => Arc::new(parts),
            None => Arc::new(DirDisk::new(&log)),
        })
    };
    let disk = disk().map_err(StoreError::dir(dir, "cannot open its log"))?;
    open_on(disk, dir, options, lock)
}

/// Creates a directory that outlives a crash, if it is not there.
fn create_dir(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    // What a volume keeps from others must not be readable here.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // A relative path of one part has an empty parent.
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    std::fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Opens a store whose log is on any kind of disk; the index and the lock are in `dir`.
pub(super) fn open_on(
    disk: Arc<dyn Disk>,
    dir: &Path,
    options: StoreOptions,
    lock: StoreLock,
) -> Result<Store, StoreError> {
    let store = store_id(&*disk)?.unwrap_or_else(rand::random);
    let cache_bytes = options.index_cache_bytes;
    let index_dir = dir.join("index");
    let vault = Arc::new(Vault::new(store, options.keys.clone()));
    let (mut index, mut mark) = Index::open(&index_dir, store, cache_bytes, &vault)?;
    let behind = learn(&index, &vault)?;
    let mut opened = Opened::default();
    // A log that ends before the index does has lost something; what is left is read as a whole.
    let mut known = match known_durable(&index, mark) {
        Ok(Some(known)) => known,
        Ok(None) | Err(StoreError::Index(_)) => {
            tracing::warn!("index is not readable; rebuilding it from the log");
            drop(index);
            index = Index::create(&index_dir, store, cache_bytes, &vault)?;
            mark = None;
            0
        }
        Err(error) => return Err(error),
    };
    let mut promised = None;
    if let Some(found) = mark.filter(|mark| !reaches(&*disk, *mark)) {
        tracing::error!(segment = found.segment, "log ends before the index does");
        promised = Catalogue::load(index.range(&[key::VOLUME], &[key::VOLUME + 1], false, usize::MAX)?);
        drop(index);
        index = Index::create(&index_dir, store, cache_bytes, &vault)?;
        mark = None;
    }
    let stale = index.is_stale().unwrap_or(false);
    if stale {
        tracing::info!("the index lacks what a repair has given the log; rebuilding it");
    }
    if behind {
        tracing::info!("a key that was missing is here; rebuilding the index from the log");
    }
    if behind || stale {
        drop(index);
        index = Index::create(&index_dir, store, cache_bytes, &vault)?;
        mark = None;
    }
    let volumes = match mark {
        Some(_) => Catalogue::load(index.range(&[key::VOLUME], &[key::VOLUME + 1], false, usize::MAX)?),
        None => Some(Catalogue::default()),
    };
    let mut replay = Replay {
        index: &index,
        vault: &vault,
        volumes: volumes.unwrap_or_default(),
        puts: Vec::new(),
        nonsense: Vec::new(),
        records: 0,
        noted: BTreeSet::new(),
        behind: BTreeSet::new(),
        failed: None,
    };
    known = known.max(mark.map_or(0, |mark| mark.number));
    let outcome = scan(&*disk, store, mark, known, &mut |found| replay.handle(&found))?;
    replay.check()?;
    let writer = resume(&disk, store, &options, &outcome)?;
    replay.finish(writer.mark())?;
    opened.torn = outcome.torn || outcome.unborn.is_some();
    opened.rebuilt = mark.is_none() && replay.records > 0;
    opened.replayed = replay.records;
    opened.damaged = outcome.damaged + replay.nonsense.len() as u64;
    opened.damage = outcome.damage;
    opened.damage.append(&mut replay.nonsense);
    for damage in &opened.damage {
        tracing::error!(%damage, "log is damaged");
    }
    let volumes = replay.volumes;
    let locked = vault.locked();
    let promised = promised.iter().flat_map(Catalogue::iter);
    // Whose key is not here was not looked for.
    for (volume, had) in promised.filter(|(volume, _)| !locked.iter().any(|one| one == volume.tenant())) {
        let left = volumes.entry(volume).map(|info| info.last.id);
        if left < Some(had.last.id) {
            opened.lost.push((volume.clone(), had.last.id));
            let left = left.map(|id| id.to_string()).unwrap_or_default();
            tracing::error!(
                %volume, last = %had.last.id, left,
                "points that were acknowledged are lost with the end of the log; what they had comes again from the sidecar, if it lives"
            );
        }
    }
    for tenant in locked {
        tracing::error!(
            tenant,
            "tenant is encrypted and its key was not given; its volumes are neither offered nor taken"
        );
    }
    Ok(start(disk, vault, index, volumes, writer, options, opened, lock))
}

/// Tells the vault which tenants are encrypted, as far as the index knows. Whether it lacks records of one whose key is here by now.
fn learn(index: &Index, vault: &Vault) -> Result<bool, StoreError> {
    let Ok(Encrypted { tenants, behind }) = index.encrypted() else { return Ok(false) };
    for (tenant, id) in tenants {
        vault.learn(&tenant, id)?;
    }
    Ok(behind.iter().any(|tenant| vault.cipher(tenant).is_some()))
}

/// The number of the newest record that the index has heard of; `None` if it makes no sense. It hears only of durable ones.
fn known_durable(index: &Index, mark: Option<Mark>) -> Result<Option<u64>, StoreError> {
    let volumes = index.range(&[key::VOLUME], &[key::VOLUME + 1], false, usize::MAX)?;
    let Some(volumes) = Catalogue::load(volumes) else { return Ok(None) };
    let newest = volumes.iter().map(|(_, info)| info.as_of).max().unwrap_or(0);
    Ok(Some(newest.max(mark.map_or(0, |mark| mark.number))))
}

/// The identity in the first segment whose header can be read.
pub(super) fn store_id(disk: &dyn Disk) -> Result<Option<[u8; 16]>, StoreError> {
    let mut segments = disk.list().map_err(LogError::io("list", 0))?;
    segments.sort_unstable();
    for segment in segments {
        let file = disk.open(segment).map_err(LogError::io("open", segment))?;
        // A crash may have left a segment that is shorter than both copies of its header.
        let len = file.len().map_err(LogError::io("read", segment))?.min(RECORDS_START);
        let mut page = vec![0; len as usize];
        let header = file.read_at(&mut page, 0).ok().and_then(|()| SegmentHeader::decode(&page));
        if let Some(header) = header {
            return Ok(Some(header.store));
        }
    }
    Ok(None)
}

fn reaches(disk: &dyn Disk, mark: Mark) -> bool {
    disk.open(mark.segment).and_then(|file| file.len()).is_ok_and(|len| len >= u64::from(mark.offset))
}

fn resume(
    disk: &Arc<dyn Disk>,
    store: [u8; 16],
    options: &StoreOptions,
    outcome: &Outcome,
) -> Result<LogWriter, StoreError> {
    if let Some(unborn) = outcome.unborn {
        disk.remove(unborn).and_then(|()| disk.sync_names()).map_err(LogError::io("remove", unborn))?;
    }
    let range = limits::SEGMENT_BYTES_RANGE;
    // So that the cap is reached in steps that are small beside it.
    let wanted = options.cap_bytes.map_or(u64::MAX, |cap| cap / limits::CAP_SEGMENTS);
    let segment_bytes = options.segment_bytes.min(wanted).clamp(*range.start(), *range.end());
    let options = LogOptions {
        store,
        segment_bytes,
        reserve_bytes: options.reserve_bytes,
        cap_bytes: options.cap_bytes,
        salt: rand::random,
    };
    Ok(LogWriter::resume(disk.clone(), options, outcome.end)?)
}

#[allow(clippy::too_many_arguments)]
fn start(
    disk: Arc<dyn Disk>,
    vault: Arc<Vault>,
    index: Index,
    volumes: Catalogue,
    writer: LogWriter,
    options: StoreOptions,
    opened: Opened,
    lock: StoreLock,
) -> Store {
    let shared = Arc::new(Shared {
        inbox: Inbox::default(),
        index,
        log: LogReader::new(disk, vault.clone()),
        vault,
        volumes: RwLock::new(volumes.clone()),
        checkpoints: checkpoint::Wanted::default(),
        owed: Default::default(),
        segments: Default::default(),
        moves: Default::default(),
        thinning: parking_lot::Mutex::new(()),
        pins: Default::default(),
        named: Default::default(),
        space: super::space::Space { cap_bytes: options.cap_bytes, reserve_bytes: options.reserve_bytes },
        stopping: Default::default(),
    });
    let started = |thread: std::io::Result<_>| Some(thread.expect("the system can start a thread"));
    let writer = Writer::new(shared.clone(), writer, volumes);
    let (for_writer, for_index, for_checkpoints) = (shared.clone(), shared.clone(), shared.clone());
    let threads = Threads {
        writer: started(std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || {
            let _guard = PanicGuard(for_writer);
            writer.run();
        })),
        checkpoints: started(background::spawn("store-checkpoint", move || {
            checkpoint::run(&for_checkpoints)
        })),
        index: started(background::spawn("store-index", move || for_index.index.run())),
    };
    let queue_kib = u32::try_from(options.queue_bytes / 1024).unwrap_or(u32::MAX).max(1);
    let room = Arc::new(Semaphore::new(queue_kib as usize));
    Store(Arc::new(Inner {
        shared,
        room,
        queue_kib,
        opened,
        threads,
        _lock: lock,
        open: watch::Sender::new(()),
    }))
}

/// Nobody waits for a writer that panicked.
struct PanicGuard(Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What was queued is dropped, and with it everybody's wait.
            drop(self.0.inbox.poison(StoreError::Closed));
        }
    }
}

/// Takes records of the log into the index and the volumes.
struct Replay<'a> {
    index: &'a Index,
    vault: &'a Vault,
    volumes: Catalogue,
    puts: Vec<Put>,
    nonsense: Vec<Damage>,
    records: u64,
    /// Tenants of which it was said that they are encrypted.
    noted: BTreeSet<String>,
    /// Tenants some of whose records were passed over.
    behind: BTreeSet<String>,
    failed: Option<StoreError>,
}

impl Replay<'_> {
    fn handle(&mut self, found: &Found) {
        if self.failed.is_some() {
            return;
        }
        self.records += 1;
        if let Err(error) = self.take_in(found) {
            self.failed = Some(error);
        }
    }

    fn take_in(&mut self, found: &Found) -> Result<(), StoreError> {
        let fact = match self.vault.fact(found) {
            Ok((fact, _)) => fact,
            Err(Unopened::Key(KeyError::Missing(tenant), id)) => return self.pass_over(&tenant, id),
            Err(Unopened::Key(error, _)) => return Err(error.into()),
            Err(Unopened::Damaged(what)) => {
                let (segment, offset) = (found.place.segment, u64::from(found.place.offset));
                self.nonsense.push(Damage { segment, offset, what });
                return Ok(());
            }
        };
        if let Some(tenant) = fact.tenant() {
            self.learn(tenant, found.encrypted)?;
        }
        let mut known = Known::default();
        match &fact {
            Fact::Epoch { volume, base, .. } => {
                self.flush(None)?;
                let value = self.index.get(Table::Catalogue, &key::point(key::POINT, volume, *base))?;
                known.base = value.and_then(|value| decode_point(&value)).map(|(_, point): (_, Point)| point);
            }
            Fact::Commit { volume, .. } => {
                if let Some(end) = self.volumes.end_of_deleted(volume) {
                    self.flush(None)?;
                    known.gone = points_in(self.index, volume, &[(PointId::default(), end)])?;
                    known.rest = rest_of(self.index, volume, end)?;
                }
            }
            Fact::Release { volume, point } => {
                self.flush(None)?;
                known.released = holds_of(self.index, volume, *point)?;
            }
            Fact::Drop { volume, runs, .. } => {
                self.flush(None)?;
                known.gone = points_in(self.index, volume, runs)?;
            }
            Fact::Journal { volume, kept, upto, .. } => {
                self.flush(None)?;
                let all = points_in(self.index, volume, &[(PointId::default(), *upto)])?;
                let stays = |id: &PointId| {
                    let at = kept.partition_point(|(_, last)| last < id);
                    kept.get(at).is_some_and(|(first, _)| first <= id)
                };
                known.gone = all.into_iter().filter(|id| !stays(id)).collect();
                if kept.is_empty() {
                    known.rest = rest_of(self.index, volume, *upto)?;
                }
            }
            _ => {}
        }
        self.volumes.apply(found.number, &fact, found.place, &known, &mut self.puts);
        if self.puts.len() >= limits::INDEX_RECENT_ENTRIES / 2 {
            self.flush(None)?;
        }
        Ok(())
    }

    /// A record of a tenant whose key is not here: the index lacks it, and says so.
    fn pass_over(&mut self, tenant: &str, id: KeyId) -> Result<(), StoreError> {
        self.vault.learn(tenant, id)?;
        if self.behind.insert(tenant.to_owned()) {
            self.note(key::of_tenant(key::ENCRYPTED, tenant), id.to_vec());
            self.note(key::of_tenant(key::BEHIND, tenant), Vec::new());
        }
        Ok(())
    }

    /// The tenant has a record, which is encrypted or not.
    fn learn(&mut self, tenant: &str, encrypted: bool) -> Result<(), StoreError> {
        let Some(cipher) = self.vault.cipher(tenant) else { return Ok(()) };
        if !encrypted {
            return Err(KeyError::Plain(tenant.to_owned()).into());
        }
        self.vault.learn(tenant, cipher.id())?;
        // The vault may know it from an index that is gone by now.
        if !self.noted.contains(tenant) {
            self.noted.insert(tenant.to_owned());
            self.note(key::of_tenant(key::ENCRYPTED, tenant), cipher.id().to_vec());
        }
        Ok(())
    }

    fn note(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.puts.push(Put { table: Table::Catalogue, key, value: Some(value) });
    }

    /// Before anything is written: the keys that were given go with what there is.
    fn check(&mut self) -> Result<(), StoreError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        for (volume, _) in self.volumes.iter() {
            let tenant = volume.tenant();
            if self.vault.cipher(tenant).is_some() && !self.vault.is_encrypted(tenant) {
                return Err(KeyError::Plain(tenant.to_owned()).into());
            }
        }
        Ok(())
    }

    /// Writes into the index what was read so far. It has no mark before the whole log is read.
    fn flush(&mut self, mark: Option<Mark>) -> Result<(), StoreError> {
        self.index.load(std::mem::take(&mut self.puts), mark)?;
        Ok(())
    }

    fn finish(&mut self, mark: Mark) -> Result<(), StoreError> {
        self.flush(Some(mark))
    }
}
