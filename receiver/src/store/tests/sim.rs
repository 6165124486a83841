//! A disk in memory that forgets, tears and fails.
//!
//! What was not synced is kept apart, sector by sector: a crash image takes any part of it. Names are as volatile as
//! content until they are synced. A sync that fails loses what it was for: the sectors are readable, clean, and not durable,
//! as with a kernel that drops the pages it could not write.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::log::disk::{Disk, SegmentFile};

const SECTOR: usize = 512;

/// How much of what was not synced a crash leaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Left {
    Nothing,
    /// Every sector with this chance.
    Sectors(f64),
    Everything,
}

/// What a crash left, and how many commits had been acknowledged before it.
pub(super) struct Crash {
    pub(super) files: BTreeMap<u32, Vec<u8>>,
    pub(super) acknowledged: u64,
    /// The epoch that was acknowledged.
    pub(super) epoch: u64,
    pub(super) left: Left,
    pub(super) sync: u64,
}

#[derive(Clone)]
pub(super) struct SimDisk(Arc<Sim>);

struct Sim {
    files: Mutex<BTreeMap<u32, File>>,
    /// Calls that change something, counted.
    calls: AtomicU64,
    /// The call from which on everything fails.
    fail_at: AtomicU64,
    acknowledged: AtomicU64,
    epoch: AtomicU64,
    crashes: Mutex<Option<(StdRng, Vec<Crash>)>>,
    /// Only the call `fail_at` fails.
    once: AtomicBool,
    moments: Mutex<Option<Vec<Moment>>>,
    /// What the test says of itself at each moment.
    note: AtomicU64,
    /// Bytes of the whole disk.
    size: AtomicU64,
    /// A byte that cannot be read: its segment and offset.
    unread: Mutex<Option<(u32, u64)>>,
}

/// The disk just before a sync.
pub(super) struct Moment {
    files: BTreeMap<u32, File>,
    /// See [`SimDisk::note`].
    pub(super) note: u64,
}

impl Moment {
    /// Everything that a crash may leave of what is not synced, as far as order of sectors goes: for every boundary between two
    /// sectors all before it, all behind it; for every sector all others; each with the old length of the file and the new one, with its
    /// name and without.
    pub(super) fn images(&self) -> impl Iterator<Item = BTreeMap<u32, Vec<u8>>> {
        let dirty: Vec<(u32, usize)> = self
            .files
            .iter()
            .flat_map(|(number, file)| file.dirty.iter().map(|sector| (*number, *sector)))
            .collect();
        let count = dirty.len();
        let unnamed = self.files.values().any(|file| !file.named || file.removed && !file.gone);
        let resized = self.files.values().any(|file| file.live_len() != file.durable.len());
        let mut kept: Vec<(usize, usize, bool)> = (0..=count).map(|to| (0, to, true)).collect();
        kept.extend((1..count).map(|from| (from, count, true)));
        kept.extend((1..count.saturating_sub(1)).map(|at| (at, at + 1, false)));
        let kept = kept.into_iter().flat_map(move |kept| {
            [(true, true), (true, false), (false, false)]
                .into_iter()
                .filter(move |(named, long)| (*named || unnamed) && (*long || resized || !*named))
                .map(move |(named, long)| (kept, named, long))
        });
        kept.map(move |((from, to, inside), named, long)| {
            let keeps = |at: usize| (from..to).contains(&at) == inside;
            // A name that was made or removed is on disk, or what was there before is.
            let present = self
                .files
                .iter()
                .filter(|(_, file)| !file.gone && if named { !file.removed } else { file.named });
            present
                .map(|(number, file)| {
                    let sectors =
                        dirty.iter().enumerate().filter(|(at, (owner, _))| owner == number && keeps(*at));
                    (*number, file.image(sectors.map(|(_, (_, sector))| *sector), long))
                })
                .collect()
        })
    }
}

#[derive(Clone, Default)]
struct File {
    live: Vec<u8>,
    durable: Arc<Vec<u8>>,
    named: bool,
    /// The shortest it was since the last sync, if it was cut.
    cut: Option<usize>,
    /// Sectors that differ from what is durable, perhaps.
    dirty: std::collections::BTreeSet<usize>,
    /// Removed, and that is not durable.
    removed: bool,
    /// It was, durably; who has it open can still read it.
    gone: bool,
}

impl SimDisk {
    pub(super) fn new(files: BTreeMap<u32, Vec<u8>>) -> Self {
        let file = |bytes: Vec<u8>| File {
            durable: Arc::new(bytes.clone()),
            live: bytes,
            named: true,
            ..File::default()
        };
        Self(Arc::new(Sim {
            files: Mutex::new(files.into_iter().map(|(number, bytes)| (number, file(bytes))).collect()),
            calls: AtomicU64::new(0),
            fail_at: AtomicU64::new(u64::MAX),
            acknowledged: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            crashes: Mutex::new(None),
            once: AtomicBool::new(false),
            moments: Mutex::new(None),
            note: AtomicU64::new(0),
            size: AtomicU64::new(u64::MAX),
            unread: Mutex::new(None),
        }))
    }

    /// Whatever has this byte of a segment in it cannot be read any more; with none, everything can.
    pub(super) fn unread(&self, byte: Option<(u32, u64)>) {
        *self.0.unread.lock() = byte;
    }

    /// From now on remembers the moment before each sync.
    pub(super) fn watch(&self) {
        *self.0.moments.lock() = Some(Vec::new());
    }

    pub(super) fn moments(&self) -> Vec<Moment> {
        self.0.moments.lock().take().unwrap_or_default()
    }

    /// What is to be remembered with the moments from now on.
    pub(super) fn note(&self, note: u64) {
        self.0.note.store(note, Ordering::SeqCst);
    }

    /// What is durable and nothing else.
    pub(super) fn durable(&self) -> BTreeMap<u32, Vec<u8>> {
        self.crash(Left::Nothing, &mut StdRng::seed_from_u64(0))
    }

    /// The disk has this many bytes from now on.
    pub(super) fn resize(&self, bytes: u64) {
        self.0.size.store(bytes, Ordering::SeqCst);
    }

    pub(super) fn used(&self) -> u64 {
        self.0.files.lock().values().filter(|file| !file.removed).map(|file| file.live.len() as u64).sum()
    }

    /// This call fails, and none after it.
    pub(super) fn fail_once(&self, call: u64) {
        self.0.once.store(true, Ordering::SeqCst);
        self.fail_from(call);
    }

    /// From now on keeps crash images of the moment before each sync.
    pub(super) fn record(&self, rng: StdRng) {
        *self.0.crashes.lock() = Some((rng, Vec::new()));
    }

    pub(super) fn recorded(&self) -> Vec<Crash> {
        self.0.crashes.lock().take().map_or_else(Vec::new, |(_, crashes)| crashes)
    }

    pub(super) fn acknowledge(&self) {
        self.0.acknowledged.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn acknowledge_epoch(&self, epoch: u64) {
        self.0.epoch.store(epoch, Ordering::SeqCst);
    }

    pub(super) fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// Every call from this one on fails.
    pub(super) fn fail_from(&self, call: u64) {
        self.0.fail_at.store(call, Ordering::SeqCst);
    }

    /// What a crash now would leave.
    pub(super) fn crash(&self, left: Left, rng: &mut StdRng) -> BTreeMap<u32, Vec<u8>> {
        let files = self.0.files.lock();
        files.iter().filter_map(|(number, file)| Some((*number, file.crash(left, rng)?))).collect()
    }

    fn call(&self) -> io::Result<()> {
        let call = self.0.calls.fetch_add(1, Ordering::SeqCst);
        let fail_at = self.0.fail_at.load(Ordering::SeqCst);
        if call == fail_at || (call > fail_at && !self.0.once.load(Ordering::SeqCst)) {
            let alone = self.0.once.load(Ordering::SeqCst);
            return Err(io::Error::from_raw_os_error(if alone || call.is_multiple_of(2) {
                libc::EIO
            } else {
                libc::ENOSPC
            }));
        }
        Ok(())
    }

    fn on_sync(&self) -> io::Result<()> {
        self.call()?;
        if let Some((rng, crashes)) = self.0.crashes.lock().as_mut() {
            let acknowledged = self.0.acknowledged.load(Ordering::SeqCst);
            let epoch = self.0.epoch.load(Ordering::SeqCst);
            let share = rng.random_range(0.05..0.95);
            for left in [Left::Nothing, Left::Sectors(share), Left::Everything] {
                let files = self.crash(left, rng);
                crashes.push(Crash { files, acknowledged, epoch, left, sync: self.calls() });
            }
        }
        if let Some(moments) = self.0.moments.lock().as_mut() {
            let note = self.0.note.load(Ordering::SeqCst);
            let files = self.0.files.lock().iter().map(|(number, file)| (*number, file.remember())).collect();
            moments.push(Moment { files, note });
        }
        Ok(())
    }
}

impl File {
    fn live_len(&self) -> usize {
        if self.live.is_empty() { self.durable.len() } else { self.live.len() }
    }

    /// The same, without a copy of what is durable.
    fn remember(&self) -> Self {
        let clean = self.dirty.is_empty() && self.live.len() == self.durable.len();
        Self { live: if clean { Vec::new() } else { self.live.clone() }, ..self.shallow() }
    }

    fn shallow(&self) -> Self {
        Self {
            live: Vec::new(),
            durable: self.durable.clone(),
            named: self.named,
            cut: self.cut,
            removed: self.removed,
            gone: self.gone,
            dirty: self.dirty.clone(),
        }
    }

    /// The file if these sectors of what is not synced were kept, with its new length or what it had.
    fn image(&self, kept: impl Iterator<Item = usize>, long: bool) -> Vec<u8> {
        let mut bytes = self.durable.to_vec();
        for sector in kept {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.live.len());
            if start < end {
                bytes.resize(bytes.len().max(end), 0);
                bytes[start..end].copy_from_slice(&self.live[start..end]);
            }
        }
        if long {
            bytes.resize(self.live_len(), 0);
        }
        bytes
    }

    fn crash(&self, left: Left, rng: &mut StdRng) -> Option<Vec<u8>> {
        let share = match left {
            Left::Nothing => 0.0,
            Left::Sectors(share) => share,
            Left::Everything => 1.0,
        };
        if self.gone || !self.named && !rng.random_bool(share) || self.removed && rng.random_bool(share) {
            return None;
        }
        let mut bytes = self.durable.to_vec();
        for sector in self.dirty.iter().filter(|_| rng.random_bool(share)) {
            let start = sector * SECTOR;
            let end = (start + SECTOR).min(self.live.len());
            // Beyond the file's new end there is nothing to tear.
            if start < end {
                bytes.resize(bytes.len().max(end), 0);
                bytes[start..end].copy_from_slice(&self.live[start..end]);
            }
        }
        if rng.random_bool(share) {
            bytes.resize(self.live.len(), 0);
        }
        Some(bytes)
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<u32>> {
        Ok(self.0.files.lock().iter().filter(|(_, file)| !file.removed).map(|(number, _)| *number).collect())
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        self.call()?;
        let before = self.0.files.lock().insert(segment, File::default());
        let fresh = before.is_none_or(|file| file.removed);
        assert!(fresh, "segment {segment} was there already");
        self.open(segment)
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        if self.0.files.lock().get(&segment).is_none_or(|file| file.removed) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(SimFile { disk: self.clone(), segment }))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.call()?;
        if let Some(file) = self.0.files.lock().get_mut(&segment) {
            file.removed = true;
        }
        Ok(())
    }

    fn available(&self) -> io::Result<u64> {
        Ok(self.0.size.load(Ordering::SeqCst).saturating_sub(self.used()))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.on_sync()?;
        let mut files = self.0.files.lock();
        files.values_mut().for_each(|file| file.gone = file.removed);
        files.values_mut().for_each(|file| file.named = true);
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    segment: u32,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut File) -> T) -> T {
        act(self.disk.0.files.lock().get_mut(&self.segment).expect("the segment is there"))
    }
}

impl SegmentFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|file| file.live.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + buffer.len() as u64;
        if self.disk.0.unread.lock().is_some_and(|(number, at)| number == self.segment && range.contains(&at))
        {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.with(|file| {
            let offset = offset as usize;
            let bytes = file.live.get(offset..offset + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.call()?;
        self.with(|file| {
            let (start, end) = (offset as usize, offset as usize + bytes.len());
            file.live.resize(file.live.len().max(end), 0);
            file.live[start..end].copy_from_slice(bytes);
            file.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        });
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.disk.call()?;
        if len.saturating_sub(self.len()?) > self.disk.available()? {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.with(|file| file.live.resize(file.live.len().max(len as usize), 0));
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.call()?;
        self.with(|file| {
            file.live.resize(len as usize, 0);
            file.cut = Some(file.cut.unwrap_or(usize::MAX).min(len as usize));
            file.dirty.retain(|sector| sector * SECTOR < len as usize);
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.disk.on_sync();
        self.with(|file| {
            if synced.is_ok() {
                let durable = Arc::make_mut(&mut file.durable);
                durable.truncate(file.cut.unwrap_or(usize::MAX));
                durable.resize(file.live.len(), 0);
                for sector in &file.dirty {
                    let (start, end) = (sector * SECTOR, (sector * SECTOR + SECTOR).min(file.live.len()));
                    durable[start..end].copy_from_slice(&file.live[start..end]);
                }
            }
            file.dirty.clear();
            file.cut = None;
        });
        synced
    }
}
