//! The tree of a durable upper layer, as a file: a snapshot, then every change, in frames that are whole or not there.
//!
//! ```text
//! 0  magic "TLij" │ 4  length of the payload │ 8  number │ 16  kind │ 20  batch │ 24  hash of the frame before │ 40  hash │ 56  payload
//! ```
//! Numbers are little-endian; a hash is the first 16 bytes of BLAKE3, of the frame's first 40 bytes and its payload. Kinds: the header (JSON: what the journal is of), operations, and operations that end a batch.
//!
//! A batch is synced before the next is begun, so only the last can be torn, anywhere in it and with good frames behind the tear: then it is as if it had never been. Anything else that cannot be
//! read is damage, is told by a good frame of a later batch than the one that ends there, and is an error, not an end. A batch that could not be appended is written again at the same place.
//!
//! A journal is replaced, by a new snapshot, with a rename: it is there as a whole at any time. So that it stays short beside the tree that happens when it has grown to several times its snapshot.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    sync::Arc,
};

use prost::Message;
use serde::{Deserialize, Serialize};
use tidelock_proto::{
    Op, Tree,
    wire::{decode_ops, messages::Ops, split_ops},
};
use tidelock_receiver::flock::FileLock;

use super::disk::Disk;
use crate::{error::FailoverError, limits};

const MAGIC: [u8; 4] = *b"TLij";
const HEAD_BYTES: usize = 56;
const HEADER: u8 = 1;
const OPS: u8 = 2;
const LAST_OPS: u8 = 3;

/// Its name, and that of one that is being written.
const NAME: &str = "journal";
const NEW: &str = "journal.new";

/// What the journal is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    /// `TENANT/NAME`.
    pub(crate) volume: String,
    /// The point that lies below.
    pub(crate) point: String,
    /// Its tree.
    pub(crate) digest: String,
    /// The epoch that was ended, and the new primary's.
    pub(crate) old_epoch: u64,
    pub(crate) epoch: u64,
    /// What of the point was to be fetched, in bytes.
    pub(crate) total_bytes: u64,
}

/// An open journal; nobody else has it.
pub(crate) struct Journal {
    dir: PathBuf,
    file: File,
    disk: Arc<dyn Disk>,
    pub(crate) header: Header,
    /// Where the next frame goes.
    len: u64,
    number: u64,
    last: [u8; 16],
    /// The last batch that is whole.
    batch: u32,
    snapshot_bytes: u64,
    /// Held by one process.
    _lock: FileLock,
}

type Result<T> = std::result::Result<T, FailoverError>;

impl Journal {
    /// Takes the directory for this process alone.
    pub(crate) fn lock(dir: &std::path::Path) -> Result<FileLock> {
        let path = dir.join("lock");
        let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let taken = lock.and_then(FileLock::take).map_err(FailoverError::Instant)?;
        taken.map_err(|_| FailoverError::InstantInUse)
    }

    /// Whether there is one.
    pub(crate) fn is_there(dir: &std::path::Path) -> bool {
        dir.join(NAME).exists()
    }

    /// Begins one with a tree, durably.
    pub(crate) fn create(
        (dir, disk): (PathBuf, Arc<dyn Disk>),
        lock: FileLock,
        header: Header,
        tree: &Tree,
    ) -> Result<Self> {
        let file = options(true).open(dir.join(NEW)).map_err(FailoverError::Instant)?;
        let mut journal = Self {
            dir,
            file,
            disk,
            header,
            len: 0,
            number: 0,
            last: [0; 16],
            batch: 0,
            snapshot_bytes: 0,
            _lock: lock,
        };
        journal.begin(tree).and_then(|()| journal.install()).map_err(FailoverError::Instant)?;
        journal.sync_name().map_err(FailoverError::Instant)?;
        Ok(journal)
    }

    /// Fills a new one, durably.
    fn begin(&mut self, tree: &Tree) -> io::Result<()> {
        let header = serde_json::to_vec(&self.header)?;
        let mut frames = Vec::new();
        self.frame(&mut frames, HEADER, &header);
        self.file.write_all_at(&frames, 0)?;
        self.len = frames.len() as u64;
        self.write_ops(tree.snapshot())?;
        self.disk.sync(&self.file)
    }

    /// Gives it the name of the one that was before.
    fn install(&mut self) -> io::Result<()> {
        fs::rename(self.dir.join(NEW), self.dir.join(NAME))?;
        self.snapshot_bytes = self.len;
        Ok(())
    }

    fn sync_name(&self) -> io::Result<()> {
        self.disk.sync_names(&File::open(&self.dir)?)
    }

    /// Reads one; the tree is what it was at the last whole batch.
    pub(crate) fn open((dir, disk): (PathBuf, Arc<dyn Disk>), lock: FileLock) -> Result<(Self, Tree)> {
        let bytes = fs::read(dir.join(NAME)).map_err(FailoverError::Instant)?;
        let mut tree = Tree::new();
        let (mut header, mut waiting) = (None, Vec::new());
        let (mut at, mut number, mut last) = (0, 0, [0; 16]);
        // The end of the last whole batch.
        let mut good = (0, 0, [0; 16], 0);
        while let Some(frame) = Frame::read(&bytes[at..]).filter(|frame| frame.follows(number, last)) {
            at += HEAD_BYTES + frame.payload.len();
            (number, last) = (number + 1, frame.hash);
            match frame.kind {
                HEADER => header = serde_json::from_slice::<Header>(frame.payload).ok(),
                kind => {
                    waiting.extend(decode(frame.payload)?);
                    if kind == LAST_OPS {
                        waiting.drain(..).try_for_each(|op| tree.apply(&op))?;
                        good = (at, number, last, frame.batch);
                    }
                }
            }
        }
        if Frame::is_in(&bytes[at..], good.3 + 1) {
            return Err(FailoverError::InstantDamaged { at: at as u64 });
        }
        let header = header.filter(|_| good.0 > 0).ok_or(FailoverError::InstantDamaged { at: 0 })?;
        tree.seal()?;
        let file = options(false).open(dir.join(NAME)).map_err(FailoverError::Instant)?;
        let (len, number, last, batch) = (good.0 as u64, good.1, good.2, good.3);
        let cut = file.set_len(len).and_then(|()| disk.sync(&file));
        cut.map_err(FailoverError::Instant)?;
        let journal =
            Self { dir, file, disk, header, len, number, last, batch, snapshot_bytes: len, _lock: lock };
        Ok((journal, tree))
    }

    /// Appends a batch, durably. After an error it is as if nothing had been appended, and the same can be tried again,
    /// unless the error is one of syncing.
    pub(crate) fn append(&mut self, ops: Vec<Op>) -> std::result::Result<(), AppendError> {
        let before = (self.len, self.number, self.last, self.batch);
        let written = self.write_ops(ops.into_iter());
        if let Err(error) = written {
            (self.len, self.number, self.last, self.batch) = before;
            return Err(AppendError::Write(error));
        }
        self.disk.sync(&self.file).map_err(AppendError::Sync)
    }

    /// Whether a new snapshot would be much shorter.
    pub(crate) fn is_long(&self) -> bool {
        self.len > limits::INSTANT_JOURNAL_BYTES.max(self.snapshot_bytes.saturating_mul(4))
    }

    /// Replaces it by one that begins with this tree, all content of which is durable. After an error it is the old one, unless the error is one of syncing:
    /// then nobody knows which of them will be found.
    pub(crate) fn replace(&mut self, tree: &Tree) -> std::result::Result<(), AppendError> {
        let file = options(true).open(self.dir.join(NEW)).map_err(AppendError::Write)?;
        let old = std::mem::replace(&mut self.file, file);
        let before = (self.len, self.number, self.last, self.batch);
        (self.len, self.number, self.last, self.batch) = (0, 0, [0; 16], 0);
        if let Err(error) = self.begin(tree).and_then(|()| self.install()) {
            self.file = old;
            (self.len, self.number, self.last, self.batch) = before;
            return Err(AppendError::Write(error));
        }
        self.sync_name().map_err(AppendError::Sync)
    }

    fn write_ops(&mut self, ops: impl Iterator<Item = Op>) -> io::Result<()> {
        let mut groups = split_ops(ops).peekable();
        while let Some(ops) = groups.next() {
            let kind = if groups.peek().is_some() { OPS } else { LAST_OPS };
            let payload = Ops { ops }.encode_to_vec();
            let mut frames = Vec::with_capacity(HEAD_BYTES + payload.len());
            self.frame(&mut frames, kind, &payload);
            self.file.write_all_at(&frames, self.len)?;
            self.len += frames.len() as u64;
        }
        self.batch += 1;
        Ok(())
    }

    fn frame(&mut self, into: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        let begin = into.len();
        into.extend_from_slice(&MAGIC);
        into.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        into.extend_from_slice(&self.number.to_le_bytes());
        into.extend_from_slice(&[kind, 0, 0, 0]);
        into.extend_from_slice(&(self.batch + 1).to_le_bytes());
        into.extend_from_slice(&self.last);
        let hash = hash(&into[begin..], payload);
        into.extend_from_slice(&hash);
        into.extend_from_slice(payload);
        (self.number, self.last) = (self.number + 1, hash);
    }
}

/// Why a batch is not durable.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// It was not written.
    Write(io::Error),
    /// It may be there, or not.
    Sync(io::Error),
}

fn options(new: bool) -> fs::OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).create(new).truncate(new).mode(0o600);
    options
}

fn decode(payload: &[u8]) -> Result<Vec<Op>> {
    let part = Ops::decode(payload).map_err(|_| FailoverError::InstantDamaged { at: 0 })?;
    Ok(decode_ops(part.ops)?)
}

fn hash(head: &[u8], payload: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(payload);
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    short
}

/// A frame that is what its hash says.
struct Frame<'a> {
    number: u64,
    kind: u8,
    batch: u32,
    before: [u8; 16],
    hash: [u8; 16],
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..HEAD_BYTES).filter(|head| head.starts_with(&MAGIC))?;
        let len = u32::from_le_bytes(head[4..8].try_into().ok()?) as usize;
        let payload = bytes.get(HEAD_BYTES..HEAD_BYTES.checked_add(len)?)?;
        let found: [u8; 16] = head[40..56].try_into().ok()?;
        (hash(&head[..40], payload) == found).then_some(Self {
            number: u64::from_le_bytes(head[8..16].try_into().ok()?),
            kind: head[16],
            batch: u32::from_le_bytes(head[20..24].try_into().ok()?),
            before: head[24..40].try_into().ok()?,
            hash: found,
            payload,
        })
    }

    fn follows(&self, number: u64, last: [u8; 16]) -> bool {
        (self.number, self.before) == (number, last)
    }

    /// Whether a good frame of a later batch is anywhere in it.
    fn is_in(bytes: &[u8], batch: u32) -> bool {
        let starts = memchr_all(bytes);
        starts.into_iter().any(|at| Frame::read(&bytes[at..]).is_some_and(|frame| frame.batch > batch))
    }
}

/// Where a frame may begin.
fn memchr_all(bytes: &[u8]) -> Vec<usize> {
    bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidelock_proto::{
        FileId,
        tree::{Kind, Meta, Name},
    };

    use super::*;
    use crate::mount::disk::real;

    fn header() -> Header {
        Header {
            volume: "t/v".to_owned(),
            point: "1.1".to_owned(),
            digest: String::new(),
            old_epoch: 1,
            epoch: 2,
            total_bytes: 0,
        }
    }

    fn root() -> Tree {
        let mut tree = Tree::new();
        tree.apply(&Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() }).unwrap();
        tree.seal().unwrap();
        tree
    }

    /// A batch of two that belong together.
    fn batch(number: u64) -> Vec<Op> {
        let (id, name) = (FileId(number + 2), Name::new(format!("f{number}").as_bytes()).unwrap());
        vec![
            Op::Create { id, kind: Kind::File, meta: Meta::default() },
            Op::Link { dir: FileId::ROOT, name, id },
        ]
    }

    fn written(dir: &std::path::Path, batches: u64) -> Vec<u64> {
        let lock = Journal::lock(dir).unwrap();
        let mut journal = Journal::create((dir.to_owned(), real()), lock, header(), &root()).unwrap();
        let mut ends = vec![journal.len];
        for number in 0..batches {
            journal.append(batch(number)).unwrap();
            ends.push(journal.len);
        }
        ends
    }

    fn open(dir: &std::path::Path) -> Result<(Journal, Tree)> {
        Journal::open((dir.to_owned(), real()), Journal::lock(dir).unwrap())
    }

    #[test]
    fn cut_anywhere_it_is_what_it_was_at_the_last_whole_batch() {
        let dir = tempfile::tempdir().unwrap();
        let ends = written(dir.path(), 4);
        let whole = fs::read(dir.path().join(NAME)).unwrap();
        for cut in (ends[0]..=ends[4]).step_by(7).chain(ends.iter().copied()) {
            for garbage in [&b""[..], b"TLij and more that was never synced", &[0; 600]] {
                let mut bytes = whole[..cut as usize].to_vec();
                bytes.extend_from_slice(garbage);
                fs::write(dir.path().join(NAME), bytes).unwrap();
                let batches = ends.iter().filter(|end| **end <= cut).count() - 1;
                let (mut journal, tree) = open(dir.path()).unwrap();
                assert_eq!(tree.totals().inodes, 1 + batches as u64, "cut at {cut}");
                assert_eq!(journal.header, header());
                // It goes on from there.
                journal.append(batch(100)).unwrap();
                drop(journal);
                assert_eq!(open(dir.path()).unwrap().1.totals().inodes, 2 + batches as u64);
            }
        }
    }

    #[test]
    fn a_last_batch_of_which_only_later_frames_arrived_has_never_been() {
        let dir = tempfile::tempdir().unwrap();
        let ends = written(dir.path(), 2);
        let (mut journal, _) = open(dir.path()).unwrap();
        journal.append((2..20_000).flat_map(batch).collect()).unwrap();
        drop(journal);
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        let first = ends[2] as usize;
        let second = first + HEAD_BYTES + Frame::read(&whole[first..]).unwrap().payload.len();
        assert!(Frame::read(&whole[second..]).is_some(), "the batch has several frames");
        for lost in [first..first + 512, first..second, second - 512..second, second + 512..second + 1024] {
            let mut bytes = whole.clone();
            bytes[lost.clone()].fill(0);
            fs::write(&path, bytes).unwrap();
            let (mut journal, tree) = open(dir.path()).unwrap();
            assert_eq!(tree.totals().inodes, 3, "without {lost:?}");
            journal.append(batch(100)).unwrap();
            drop(journal);
            assert_eq!(open(dir.path()).unwrap().1.totals().inodes, 4);
        }
        // Once another batch has followed, the same is damage.
        fs::write(&path, &whole).unwrap();
        let (mut journal, _) = open(dir.path()).unwrap();
        journal.append(batch(30_000)).unwrap();
        drop(journal);
        let mut bytes = fs::read(&path).unwrap();
        bytes[first + 100] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(open(dir.path()), Err(FailoverError::InstantDamaged { .. })));
    }

    #[test]
    fn damage_before_the_end_is_no_end() {
        let dir = tempfile::tempdir().unwrap();
        let ends = written(dir.path(), 4);
        let whole = fs::read(dir.path().join(NAME)).unwrap();
        for at in (0..ends[3] as usize).step_by(11) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            fs::write(dir.path().join(NAME), bytes).unwrap();
            assert!(matches!(open(dir.path()), Err(FailoverError::InstantDamaged { .. })), "at {at}");
        }
    }

    #[test]
    fn a_new_snapshot_takes_its_place_and_nobody_else_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let ends = written(dir.path(), 50);
        let (mut journal, mut tree) = open(dir.path()).unwrap();
        assert!(matches!(Journal::lock(dir.path()), Err(FailoverError::InstantInUse)));
        journal.replace(&tree).unwrap();
        assert!(journal.len < ends[50] && !journal.is_long());
        for op in batch(50) {
            tree.apply(&op).unwrap();
        }
        journal.append(batch(50)).unwrap();
        drop(journal);
        let (_, found) = open(dir.path()).unwrap();
        assert!(found.digest() == tree.digest() && found == tree);
    }
}
