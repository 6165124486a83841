//! An upper layer that outlives its process: what was written to a mounted point, and what of it is local, on a real file system.
//!
//! ```text
//! files/ID    the local content of inode ID, each byte where the file has it; whatever else is in it means nothing
//! journal     the tree: a snapshot, then every change of it, in order ([`super::journal`])
//! ```
//! The tree says which ranges are local: their extents are slots ([`Durable::slot`]) instead of chunks. A range that is still a chunk's is *absent* and is read from the receiver, verified;
//! one that no extent covers is a hole. So presence is no second truth beside the tree, and the file alone never decides anything.
//!
//! **The order.** A write goes to `files/ID` first and changes the tree in memory. [`Durable::take`] gathers, under the lock of the tree, the changes since the last time and the files
//! that they speak of. Whoever commits syncs these files, then appends the changes as one frame and syncs the journal, and only then answers `fsync`. What destroys content (a
//! hole, a shorter file, a file without a name) changes the tree at once and `files/` only after its frame is durable ([`Discard`]); a write to where such a thing is
//! still to be done waits for it.
//!
//! **Cut off at any instant** (a killed process, lost power), the journal ends with some frame, and the tree is what it was when that was taken:
//! - A range that became local before it: its content was synced before the frame. Later writes in place may be there or not, as in any file system, and are there if they were synced.
//! - A range that became local after it is absent again (or a hole, or beyond the end): what the file has there is not looked at. It was never acknowledged.
//! - Content that was given up after it is there still, because nothing was destroyed yet.
//! - Hydration writes only ranges that are absent, under the lock of the tree, syncs them, and makes local only what is absent still. So it never writes over the application: not in memory, because
//!   absence is looked at again, and not after a crash, because a write that was acknowledged is local in the journal.
//!
//! All changes are in one order and frames are whole or not there, so what survives is a prefix of what was done to names, sizes and attributes: more than most file systems promise.
//!
//! The price: every `fsync` also waits for the data of other files that was written for the first time since the last one, as with an ordered journal; and one lock orders all writes.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use tidelock_proto::{ChunkId, FileId, Op, Tree, tree::ChunkRef};

use super::{
    disk::Disk,
    scratch::{MARK, SLOT_BYTES},
};
use crate::limits;

/// The files of local content. Paths go through the descriptor of their directory, which a mount may hide.
pub(crate) struct Files {
    dir: OwnedFd,
    disk: Arc<dyn Disk>,
    open: Mutex<HashMap<FileId, Arc<File>>>,
    /// One was made since their names were synced.
    made: Mutex<bool>,
}

impl Files {
    pub(crate) fn new(dir: OwnedFd, disk: Arc<dyn Disk>) -> Self {
        Self { dir, disk, open: Mutex::default(), made: Mutex::default() }
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into()
    }

    pub(crate) fn path(&self, id: FileId) -> PathBuf {
        self.dir().join(id.0.to_string())
    }

    /// Opens the file of an inode; made for this user alone if it is not there.
    pub(crate) fn get(&self, id: FileId) -> io::Result<Arc<File>> {
        let mut open = self.open.lock();
        if let Some(file) = open.get(&id) {
            return Ok(file.clone());
        }
        if open.len() >= limits::INSTANT_OPEN_FILES {
            // What is in use or unsynced somebody else holds, too.
            open.clear();
        }
        let mut options = File::options();
        options.read(true).write(true).mode(0o600);
        let file = match options.open(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = options.create_new(true).open(self.path(id))?;
                *self.made.lock() = true;
                file
            }
            opened => opened?,
        };
        let file = Arc::new(file);
        open.insert(id, file.clone());
        Ok(file)
    }

    fn remove(&self, id: FileId) -> io::Result<()> {
        self.open.lock().remove(&id);
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the content of one of them durable.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        self.disk.sync(file)
    }

    /// Makes the names of new files durable; whoever comes second waits for the first.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        let mut made = self.made.lock();
        if *made {
            self.disk.sync_names(&self.dir)?;
            *made = false;
        }
        Ok(())
    }

    /// Removes what no inode of the tree has.
    pub(crate) fn sweep(&self, tree: &Tree) -> io::Result<()> {
        for entry in fs::read_dir(self.dir())? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.parse().ok()).map(FileId);
            if let Some(id) = id.filter(|id| tree.get(*id).is_none()) {
                self.remove(id)?;
            }
        }
        Ok(())
    }
}

/// What is to be destroyed once it is durable that nobody needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Discard {
    Range(FileId, u64, u64),
    File(FileId),
}

/// What was changed since the last commit. It is used under the lock of the tree.
pub(crate) struct Durable {
    files: Arc<Files>,
    /// The number of the batch that is being gathered.
    number: u64,
    pending: Vec<Op>,
    /// Whose attributes are to be told.
    metas: BTreeSet<FileId>,
    /// Whose data `pending` speaks of.
    fresh: HashSet<FileId>,
    /// Written, and not synced since.
    dirty: HashMap<FileId, Arc<File>>,
    /// Files that somebody waits for.
    wanted: HashSet<FileId>,
    /// Somebody waits for more than data.
    whole: bool,
    /// With the batch that says so.
    discards: Vec<(u64, Discard)>,
}

/// What is to be made durable: the files, and then the changes.
pub(crate) struct Taken {
    pub(crate) number: u64,
    pub(crate) files: Vec<Arc<File>>,
    pub(crate) ops: Vec<Op>,
}

impl Durable {
    pub(crate) fn new(files: Arc<Files>) -> Self {
        Self {
            files,
            number: 1,
            pending: Vec::new(),
            metas: BTreeSet::new(),
            fresh: HashSet::new(),
            dirty: HashMap::new(),
            wanted: HashSet::new(),
            whole: false,
            discards: Vec::new(),
        }
    }

    /// The name of what is local of a stretch: it tells the file and the stretch.
    pub(crate) fn slot(id: FileId, stretch: u64) -> ChunkId {
        let mut slot = [0; 32];
        slot[..16].copy_from_slice(&MARK);
        slot[16..24].copy_from_slice(&id.0.to_be_bytes());
        slot[24..].copy_from_slice(&(stretch / SLOT_BYTES).to_be_bytes());
        ChunkId(slot)
    }

    pub(super) fn write(&mut self, to: ChunkRef, bytes: &[u8]) -> io::Result<()> {
        let (id, offset) = place(to)?;
        let file = match self.dirty.get(&id) {
            Some(file) => file.clone(),
            None => self.files.get(id)?,
        };
        self.dirty.insert(id, file.clone());
        file.write_all_at(bytes, offset)
    }

    pub(super) fn read(&self, from: ChunkRef, into: &mut [u8]) -> io::Result<()> {
        let (id, offset) = place(from)?;
        self.files.get(id)?.read_exact_at(into, offset)
    }

    pub(super) fn give_back(&mut self, chunk: ChunkRef, len: u64) {
        if let Ok((id, offset)) = place(chunk) {
            self.discards.push((self.number, Discard::Range(id, offset, offset + len)));
        }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        fstatvfs(&self.files.dir).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// The tree was changed.
    pub(super) fn applied(&mut self, op: &Op) {
        match op {
            Op::SetMeta { id, .. } => {
                self.metas.insert(*id);
                return;
            }
            Op::Write { id, .. } => {
                self.fresh.insert(*id);
            }
            _ => {}
        }
        self.pending.push(op.clone());
    }

    /// An inode is gone for good.
    pub(super) fn gone(&mut self, id: FileId) {
        self.dirty.remove(&id);
        self.discards.push((self.number, Discard::File(id)));
    }

    /// Whether something is still to be destroyed where somebody is about to write.
    pub(super) fn must_settle(&self, id: FileId, start: u64, end: u64) -> bool {
        self.discards.iter().any(|(_, discard)| match discard {
            Discard::Range(other, from, to) => *other == id && *from < end && start < *to,
            Discard::File(_) => false,
        })
    }

    /// Somebody waits for a file, or for all names and attributes; tells in which batch they are.
    pub(crate) fn ask(&mut self, file: Option<FileId>, data_only: bool) -> u64 {
        self.wanted.extend(file);
        self.whole |= !data_only;
        self.number
    }

    /// Whether there is anything to be made durable.
    pub(crate) fn is_clean(&self) -> bool {
        self.pending.is_empty() && self.metas.is_empty() && self.dirty.is_empty() && self.discards.is_empty()
    }

    /// Somebody waits for all that was written.
    pub(crate) fn ask_all(&mut self) -> u64 {
        self.wanted.extend(self.dirty.keys().copied());
        self.whole = true;
        self.number
    }

    /// Takes what was changed, with the attributes as they are now.
    pub(crate) fn take(&mut self, tree: &Tree) -> Taken {
        let number = self.number;
        self.number += 1;
        let mut ops = std::mem::take(&mut self.pending);
        if self.whole || !ops.is_empty() {
            let metas = std::mem::take(&mut self.metas);
            let known = metas.into_iter().filter_map(|id| Some((id, tree.get(id)?.meta)));
            ops.extend(known.map(|(id, meta)| Op::SetMeta { id, meta }));
        }
        let fresh = std::mem::take(&mut self.fresh);
        let wanted = std::mem::take(&mut self.wanted);
        let files = fresh.union(&wanted).filter_map(|id| self.dirty.remove(id)).collect();
        self.whole = false;
        Taken { number, files, ops }
    }

    /// What was taken could not be appended: it comes before what was changed since.
    pub(crate) fn put_back(&mut self, mut ops: Vec<Op>) {
        ops.append(&mut self.pending);
        self.pending = ops;
    }

    /// A batch is durable: what it has given up goes.
    pub(crate) fn settled(&mut self, number: u64) {
        let (now, later) = std::mem::take(&mut self.discards).into_iter().partition(|(at, _)| *at <= number);
        self.discards = later;
        let now: Vec<(u64, Discard)> = now;
        for (_, discard) in now {
            // Space that cannot be given back is lost until the end, and nothing else.
            let _ = match discard {
                Discard::File(id) => self.files.remove(id),
                Discard::Range(id, from, to) => self.files.get(id).and_then(|file| {
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    Ok(fallocate(&*file, hole, from, to - from)?)
                }),
            };
        }
    }

    pub(crate) fn files(&self) -> &Arc<Files> {
        &self.files
    }
}

/// Which file a part of a slot is in, and where.
fn place(chunk: ChunkRef) -> io::Result<(FileId, u64)> {
    let number = |at: usize| chunk.id.0[at..at + 8].try_into().map(u64::from_be_bytes).ok();
    let start = number(24).and_then(|stretch| stretch.checked_mul(SLOT_BYTES));
    let offset = start.and_then(|start| start.checked_add(chunk.at.into()));
    number(16).map(FileId).zip(offset).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
