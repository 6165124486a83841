//! A disk in memory that forgets, tears and fails.
//!
//! What was not synced is kept apart, sector by sector: a crash image takes any part of it. Names are as volatile as
//! content until they are synced.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};

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
}

#[derive(Clone, Default)]
struct File {
    live: Vec<u8>,
    durable: Arc<Vec<u8>>,
    named: bool,
    /// Sectors that differ from what is durable, perhaps.
    dirty: std::collections::BTreeSet<usize>,
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
        }))
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
        if call >= self.0.fail_at.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(if call.is_multiple_of(2) {
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
        Ok(())
    }
}

impl File {
    fn crash(&self, left: Left, rng: &mut StdRng) -> Option<Vec<u8>> {
        let share = match left {
            Left::Nothing => 0.0,
            Left::Sectors(share) => share,
            Left::Everything => 1.0,
        };
        if !self.named && !rng.random_bool(share) {
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
        Ok(self.0.files.lock().keys().copied().collect())
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        self.call()?;
        let fresh = self.0.files.lock().insert(segment, File::default()).is_none();
        assert!(fresh, "segment {segment} was there already");
        self.open(segment)
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        if !self.0.files.lock().contains_key(&segment) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(SimFile { disk: self.clone(), segment }))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.call()?;
        self.0.files.lock().remove(&segment);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.on_sync()?;
        self.0.files.lock().values_mut().for_each(|file| file.named = true);
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
        self.with(|file| file.live.resize(file.live.len().max(len as usize), 0));
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.call()?;
        self.with(|file| {
            file.live.resize(len as usize, 0);
            file.dirty.retain(|sector| sector * SECTOR < len as usize);
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.on_sync()?;
        self.with(|file| {
            file.durable = Arc::new(file.live.clone());
            file.dirty.clear();
        });
        Ok(())
    }
}
