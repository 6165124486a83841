//! A directory of segments some of which are only partly here: what is missing is fetched when it is read.
//!
//! ```text
//! 0000000007.seg       as long as the segment, with holes where nothing was fetched yet
//! 0000000007.part      where its bytes are to be had, and the hashes of its blocks; once it is gone the segment is like any other
//! 0000000007.outline   what an open needs of its records
//! ```
//! Above this nobody knows the difference: a segment that is not here is a slow one.
//!
//! **Nothing is believed before its hash is compared**, neither what comes from afar nor what is here. There is no list of what is here that could be wrong after a crash: a block is here if its bytes have the hash that the `.part` file
//! says, which is looked at once for each block and remembered in memory. So a process that is killed at any moment, and a machine that loses what was not synced, leave blocks that are here and blocks that are fetched again.
//! The `.part` file goes when all blocks are here and synced.
//!
//! **Nothing but fetched bytes is written** to such a segment: it is sealed, and whoever wants to give space back or to mend waits until it is whole.
//!
//! What cannot be had is an error of reading ([`Absent`]), told with the reason, and never damage while trying again may help. What the archive itself has lost reads like a bad sector.
//!
//! The price: a block is read and hashed once more after a restart, and two readers of one block may fetch it twice.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use thiserror::Error;

use super::{
    LogError,
    disk::{DirDisk, Disk, SegmentFile},
    frame::RECORDS_START,
    outline::{HASH_BYTES, Outline, block_hash, block_range},
};
use crate::limits;

/// Where bytes of segments are to be had.
pub(crate) trait Fetch: Send + Sync {
    /// The bytes of a range of a segment; `source` is what the segment's `.part` file says. Blocks the thread.
    fn fetch(&self, segment: u32, source: &Bytes, range: Range<u64>) -> Result<Bytes, FetchError>;
    /// What these bytes are a part of, for people.
    fn name(&self, segment: u32, source: &Bytes, offset: u64) -> String;
}

/// Why bytes cannot be fetched.
#[derive(Debug, Clone, Error)]
#[error("{source}")]
pub(crate) struct FetchError {
    /// Trying again later does not help.
    pub(crate) lost: bool,
    pub(crate) source: Arc<dyn std::error::Error + Send + Sync>,
}

/// Bytes of the log that are not here and cannot be had now.
#[derive(Debug, Clone, Error)]
#[error("its bytes from {offset} on are not here yet, and cannot be fetched from the archive: {source}")]
pub(crate) struct Absent {
    /// Where in the segment they begin.
    pub(crate) offset: u64,
    /// The archive does not have them either.
    pub(crate) lost: bool,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

/// There is nobody to fetch anything.
#[derive(Debug, Error)]
#[error(
    "no archive was given; start the receiver with its --archive, which completes the store, or give --archive beside --store"
)]
struct NoArchive;

/// The archive has other bytes than it had when it was outlined.
#[derive(Debug, Error)]
#[error("object {0:?} of the archive is not what was uploaded")]
struct Altered(String);

/// What an error of reading says of missing bytes.
pub(crate) fn absent(error: &io::Error) -> Option<&Absent> {
    error.get_ref()?.downcast_ref()
}

#[derive(Clone, PartialEq, Message)]
struct PartBody {
    #[prost(uint64, tag = "1")]
    len: u64,
    #[prost(bytes = "bytes", tag = "2")]
    source: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    hashes: Bytes,
    /// BLAKE3 of the `.outline` file.
    #[prost(bytes = "bytes", tag = "4")]
    outline: Bytes,
}

/// Makes a segment of which nothing but its outline is here. The directory is not in use yet and is synced by the caller.
pub(crate) fn create(
    dir: &Path,
    segment: u32,
    outline: &Outline,
    bytes: &Bytes,
    source: Bytes,
) -> io::Result<()> {
    let file = DirDisk::new(dir).create(segment)?;
    file.write_at(outline.page(), 0)?;
    file.truncate(outline.len())?;
    file.sync()?;
    let hash = blake3::hash(bytes);
    let body = PartBody {
        len: outline.len(),
        source,
        hashes: outline.hashes(),
        outline: Bytes::copy_from_slice(hash.as_bytes()),
    };
    let body = body.encode_to_vec();
    let checked = [&blake3::hash(&body).as_bytes()[..], &body].concat();
    write_synced(&outline_path(dir, segment), bytes)?;
    write_synced(&part_path(dir, segment), &checked)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn part_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:010}.part"))
}

fn outline_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:010}.outline"))
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PartDisk(Arc<Inner>);

struct Inner {
    path: PathBuf,
    dir: DirDisk,
    fetch: Option<Arc<dyn Fetch>>,
    /// Segments that are not whole.
    parts: Mutex<BTreeMap<u32, Arc<Presence>>>,
}

/// What is known to be here of a segment.
struct Presence {
    state: Mutex<State>,
    blocks: u64,
    /// All of it.
    whole: AtomicBool,
    /// The archive lacks some of it.
    lost: AtomicBool,
}

struct State {
    bits: Vec<u64>,
    here: u64,
    /// Those that the archive does not have either.
    lost: BTreeMap<u64, Absent>,
    /// Where the last fetch ended, and how long it was: who reads on gets more at once.
    ahead: Range<u64>,
}

impl Presence {
    fn new(len: u64) -> Self {
        let blocks = len.div_ceil(limits::OUTLINE_BLOCK_BYTES);
        let bits = vec![0; blocks.div_ceil(64) as usize];
        let state = Mutex::new(State { bits, here: 0, lost: BTreeMap::new(), ahead: 0..0 });
        Self { state, blocks, whole: AtomicBool::new(false), lost: AtomicBool::new(false) }
    }

    fn has(&self, block: u64) -> bool {
        self.state.lock().bits[(block / 64) as usize] & (1 << (block % 64)) != 0
    }

    fn set(&self, block: u64) {
        let mut state = self.state.lock();
        let word = &mut state.bits[(block / 64) as usize];
        let was = *word;
        *word |= 1 << (block % 64);
        state.here += u64::from(was != *word);
    }

    /// The first block that may be had.
    fn next_wanted(&self) -> Option<u64> {
        let state = self.state.lock();
        let has = |block: &u64| state.bits[(*block / 64) as usize] & (1 << (*block % 64)) != 0;
        (0..self.blocks).find(|block| !has(block) && !state.lost.contains_key(block))
    }

    fn missing(&self) -> u64 {
        self.blocks - self.state.lock().here
    }

    fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }
}

impl PartDisk {
    /// The segments of a directory; `None` if all of them are whole.
    pub(crate) fn open(path: &Path, fetch: Option<Arc<dyn Fetch>>) -> io::Result<Option<Self>> {
        let mut parts = BTreeMap::new();
        for entry in std::fs::read_dir(path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".part"));
            if let Some(segment) = number.and_then(|number| number.parse::<u32>().ok()) {
                let len = read_part(path, segment)?.len;
                parts.insert(segment, Arc::new(Presence::new(len)));
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let inner = Inner { path: path.to_owned(), dir: DirDisk::new(path), fetch, parts: Mutex::new(parts) };
        Ok(Some(Self(Arc::new(inner))))
    }

    /// Whether something is still to be fetched, and can be as far as is known.
    pub(crate) fn is_filling(&self) -> bool {
        self.0.parts.lock().values().any(|presence| !presence.lost.load(Ordering::Relaxed))
    }

    /// Bytes that are not known to be here.
    pub(crate) fn absent_bytes(&self) -> u64 {
        let parts = self.0.parts.lock();
        parts.values().map(|presence| presence.missing() * limits::OUTLINE_BLOCK_BYTES).sum()
    }

    /// Fetches a little of what is missing, or finds that it is here; `false` when there is nothing more to do. What the archive has lost is left out from then on.
    pub(crate) fn fill(&self) -> Result<bool, LogError> {
        let next = {
            let parts = self.0.parts.lock();
            let mut all = parts.iter().filter(|(_, presence)| !presence.lost.load(Ordering::Relaxed));
            all.next().map(|(segment, presence)| (*segment, presence.clone()))
        };
        let Some((segment, presence)) = next else { return Ok(false) };
        let failed = LogError::io("read", segment);
        let file = match self.part(segment, presence.clone()) {
            // Somebody else has completed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_part(segment) => {
                self.forget(segment, &presence);
                return Ok(true);
            }
            other => other.map_err(&failed)?,
        };
        let Some(first) = presence.next_wanted() else {
            match presence.missing() {
                0 => self.settle(segment, &file).map_err(LogError::io("complete", segment))?,
                _ => presence.lost.store(true, Ordering::Relaxed),
            }
            return Ok(true);
        };
        let start = block_range(first, file.len).start;
        let end = (start + limits::PART_FILL_BYTES).min(file.len);
        match file.ensure(start..end) {
            Err(error) if absent(&error).is_some_and(|absent| absent.lost) => {
                tracing::error!(segment, %error, "a part of the store is lost; `tidelock verify` says which points that touches");
                Ok(true)
            }
            other => other.map(|()| true).map_err(failed),
        }
    }

    /// A segment all of whose blocks are here becomes like any other.
    fn settle(&self, segment: u32, file: &PartFile) -> io::Result<()> {
        file.file.sync()?;
        remove(&part_path(&self.0.path, segment))?;
        self.0.dir.sync_names()?;
        // Without the other it means nothing.
        remove(&outline_path(&self.0.path, segment))?;
        self.forget(segment, &file.presence);
        Ok(())
    }

    /// The segment is whole: its `.part` file goes only then.
    fn forget(&self, segment: u32, presence: &Presence) {
        presence.whole.store(true, Ordering::Release);
        self.0.parts.lock().remove(&segment);
    }

    fn is_part(&self, segment: u32) -> bool {
        part_path(&self.0.path, segment).exists()
    }

    fn part(&self, segment: u32, presence: Arc<Presence>) -> io::Result<PartFile> {
        let body = read_part(&self.0.path, segment)?;
        Ok(PartFile {
            segment,
            len: body.len,
            file: self.0.dir.open(segment)?,
            presence,
            source: body.source,
            hashes: body.hashes,
            fetch: self.0.fetch.clone(),
        })
    }
}

fn read_part(dir: &Path, segment: u32) -> io::Result<PartBody> {
    let bytes = Bytes::from(std::fs::read(part_path(dir, segment))?);
    let body = bytes.get(32..).filter(|body| blake3::hash(body).as_bytes()[..] == bytes[..32]);
    let body = body.and_then(|body| PartBody::decode(body).ok());
    let fits = |body: &PartBody| {
        body.hashes.len() as u64 == body.len.div_ceil(limits::OUTLINE_BLOCK_BYTES) * HASH_BYTES as u64
    };
    let damaged = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} is damaged: what is missing of the segment is in the archive; start with an empty --store",
                part_path(dir, segment).display()
            ),
        )
    };
    body.filter(fits).ok_or_else(damaged)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Disk for PartDisk {
    fn list(&self) -> io::Result<Vec<u32>> {
        self.0.dir.list()
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        self.0.dir.create(segment)
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        let presence = self.0.parts.lock().get(&segment).cloned();
        let Some(presence) = presence else { return self.0.dir.open(segment) };
        match self.part(segment, presence.clone()) {
            // It became whole just now.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.is_part(segment) => {
                self.0.dir.open(segment)
            }
            other => Ok(Arc::new(other?)),
        }
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.0.dir.remove(segment)?;
        if self.0.parts.lock().remove(&segment).is_some() {
            remove(&part_path(&self.0.path, segment))?;
            remove(&outline_path(&self.0.path, segment))?;
        }
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.0.dir.sync_names()
    }

    fn available(&self) -> io::Result<u64> {
        // What is to come needs its space.
        Ok(self.0.dir.available()?.saturating_sub(self.absent_bytes()))
    }

    fn outline(&self, segment: u32) -> io::Result<Option<Outline>> {
        if !self.0.parts.lock().contains_key(&segment) {
            return Ok(None);
        }
        let body = read_part(&self.0.path, segment)?;
        let bytes = match std::fs::read(outline_path(&self.0.path, segment)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => Bytes::from(other?),
        };
        // Without an outline the segment is read as a whole.
        let whole = blake3::hash(&bytes).as_bytes()[..] == body.outline[..];
        Ok(whole.then(|| Outline::decode(bytes, segment)).flatten())
    }

    fn parts(&self) -> Option<&PartDisk> {
        Some(self)
    }
}

/// A segment that is partly here.
struct PartFile {
    segment: u32,
    len: u64,
    file: Arc<dyn SegmentFile>,
    presence: Arc<Presence>,
    source: Bytes,
    hashes: Bytes,
    fetch: Option<Arc<dyn Fetch>>,
}

impl PartFile {
    /// Has these bytes here.
    fn ensure(&self, range: Range<u64>) -> io::Result<()> {
        // The header was written before the segment was offered.
        if self.presence.is_whole() || range.end <= RECORDS_START || range.is_empty() {
            return Ok(());
        }
        let block = limits::OUTLINE_BLOCK_BYTES;
        let (mut at, end) = (range.start / block, range.end.min(self.len).div_ceil(block));
        while at < end {
            if self.is_here(at)? {
                at += 1;
                continue;
            }
            if let Some(lost) = self.presence.state.lock().lost.get(&at) {
                return Err(io::Error::other(lost.clone()));
            }
            let most = self.ahead_of(at).max(end);
            let mut stop = at + 1;
            while stop < most.min(self.presence.blocks) && !self.presence.has(stop) {
                stop += 1;
            }
            match self.bring(at, stop) {
                // Not all of it need be lost.
                Err(error) if error.lost && stop > at + 1 => {
                    self.bring(at, at + 1).map_err(|error| self.give_up(at, error))?;
                    at += 1;
                }
                other => {
                    other.map_err(|error| self.give_up(at, error))?;
                    at = stop;
                }
            }
        }
        Ok(())
    }

    /// Up to which block it is worth to fetch if this one is missing.
    fn ahead_of(&self, block: u64) -> u64 {
        let state = self.presence.state.lock();
        let most = limits::PART_FILL_BYTES / limits::OUTLINE_BLOCK_BYTES;
        match state.ahead.end == block && !state.ahead.is_empty() {
            true => block + (2 * (state.ahead.end - state.ahead.start)).min(most),
            false => block + 1,
        }
    }

    /// Whether a block has the bytes that it should have.
    fn is_here(&self, block: u64) -> io::Result<bool> {
        if self.presence.has(block) {
            return Ok(true);
        }
        let range = block_range(block, self.len);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let here = match self.file.read_at(&mut bytes, range.start) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            other => other.map(|()| self.is(block, &bytes))?,
        };
        if here {
            self.presence.set(block);
        }
        Ok(here)
    }

    fn is(&self, block: u64, bytes: &[u8]) -> bool {
        let at = block as usize * HASH_BYTES;
        self.hashes[at..at + HASH_BYTES] == block_hash(bytes)
    }

    /// Fetches blocks, and keeps those that are what they should be.
    fn bring(&self, first: u64, end: u64) -> Result<(), FetchError> {
        let range = block_range(first, self.len).start..block_range(end - 1, self.len).end;
        let missing = || FetchError { lost: false, source: Arc::new(NoArchive) };
        let fetch = self.fetch.as_ref().ok_or_else(missing)?;
        let bytes = fetch.fetch(self.segment, &self.source, range.clone())?;
        let altered = |offset| {
            let name = fetch.name(self.segment, &self.source, offset);
            FetchError { lost: true, source: Arc::new(Altered(name)) }
        };
        if bytes.len() as u64 != range.end - range.start {
            return Err(altered(range.start));
        }
        for block in first..end {
            let at = block_range(block, self.len);
            let found = &bytes[(at.start - range.start) as usize..(at.end - range.start) as usize];
            if !self.is(block, found) {
                return Err(altered(at.start));
            }
            let here = self.file.write_at(found, at.start);
            here.map_err(|error| FetchError { lost: false, source: Arc::new(error) })?;
            self.presence.set(block);
        }
        self.presence.state.lock().ahead = first..end;
        Ok(())
    }

    /// What is said of a block that cannot be had.
    fn give_up(&self, block: u64, error: FetchError) -> io::Error {
        let FetchError { lost, source } = error;
        let absent = Absent { offset: block * limits::OUTLINE_BLOCK_BYTES, lost, source };
        if lost {
            self.presence.state.lock().lost.insert(block, absent.clone());
        }
        io::Error::other(absent)
    }
}

impl SegmentFile for PartFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.ensure(offset..offset + buffer.len() as u64)?;
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change()?;
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change()?;
        self.file.allocate(len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change()?;
        self.file.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl PartFile {
    /// Nobody writes to it before it is whole.
    fn change(&self) -> io::Result<()> {
        match self.presence.is_whole() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::ResourceBusy, "the segment is still being fetched")),
        }
    }
}
