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

mod fetch;
mod file;
mod kept;
mod presence;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;

pub(crate) use fetch::{Absent, Fetch, FetchError, absent};
use file::PartFile;
pub(crate) use kept::create;
use kept::{outline_path, part_path, read_part, remove};
use presence::Presence;

use super::{
    LogError,
    disk::{DirDisk, Disk, SegmentFile},
    outline::{Outline, block_range},
};
use crate::limits;

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
