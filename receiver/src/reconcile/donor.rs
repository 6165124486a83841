//! Content that is likely there already: another directory on the same file system shares its blocks with the target, if the file system can (xfs with reflinks, btrfs).
//!
//! Between the first pass and the second every file that is still without data becomes a copy-on-write clone of the file at its path in the donor. That is a guess and nothing more.
//! The second pass takes what it finds for old content: each extent is compared with its chunk, by the chunk's id or byte by byte, and what should be a hole is looked at, so what the guess
//! got wrong is written from the store, and the result is the tree's whatever the donor holds. So the donor may be at another point, may be changed while it is
//! cloned (a clone has its own blocks from then on, and a torn one is only a bad guess), and may be damaged. The price of not trusting it is that all of it is read once; what is saved is fetching,
//! writing, and the space.
//!
//! The donor is read through descriptors that stay beneath it, as the target is.

use std::{
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::{
    fd::OwnedFd,
    fs::{self, FileType, OFlags, ioctl_ficlone},
    io::Errno,
};
use tidelock_proto::{FileId, tree::ExtentMap};

use super::{
    ReconcileError, Result, Run,
    beneath::{Dir, Root},
    names::FileWork,
};

/// A directory whose files may be cloned.
#[derive(Debug)]
pub struct Donor(Root);

impl Donor {
    /// Opens it; it may be renamed and changed afterwards.
    pub fn open(path: &Path) -> Result<Self> {
        Root::open(path).map(Self)
    }
}

/// What became of one file.
enum Outcome {
    /// It has so many bytes of the donor's now.
    Cloned(u64),
    /// It has data, or there is nothing to clone.
    Left,
    /// No file can be cloned.
    Never(Errno),
}

/// Clones what it can of `files`, which then have old content.
pub(super) fn run(run: &Run<'_>, files: &mut [FileWork]) -> Result<()> {
    let Some(donor) = &run.options.donor else { return Ok(()) };
    let next = AtomicUsize::new(0);
    let cloned = parking_lot::Mutex::new(Vec::new());
    run.on_workers(|report| {
        let mut at = None;
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            run.check_stopped()?;
            match clone(run, &donor.0, file.id, &mut at)? {
                Outcome::Cloned(bytes) => {
                    report.files_cloned += 1;
                    report.bytes_cloned += bytes;
                    cloned.lock().push((file.id, bytes));
                }
                Outcome::Left => {}
                Outcome::Never(errno) => {
                    next.fetch_add(files.len(), Ordering::Relaxed);
                    report.clone_missed.get_or_insert(std::io::Error::from(errno).to_string());
                }
            }
        }
        Ok(())
    })?;
    let cloned: std::collections::HashMap<FileId, u64> = cloned.into_inner().into_iter().collect();
    for file in files {
        file.old_bytes = cloned.get(&file.id).copied().unwrap_or(file.old_bytes);
    }
    Ok(())
}

/// Gives a file the blocks of another one.
#[cfg(not(test))]
fn share(to: &OwnedFd, from: &OwnedFd) -> rustix::io::Result<()> {
    ioctl_ficlone(to, from)
}

/// Tests run where nothing can be shared, too: a copy is the same to whoever reads it.
#[cfg(test)]
fn share(to: &OwnedFd, from: &OwnedFd) -> rustix::io::Result<()> {
    let copy = |_| {
        let left = |from: &OwnedFd| Ok(fs::fstat(from)?.st_size as u64 - fs::tell(from)?);
        while left(from)? > 0 {
            fs::copy_file_range(from, None, to, None, left(from)? as usize)?;
        }
        Ok(())
    };
    ioctl_ficlone(to, from).or_else(copy)
}

/// The directory of the target and of the donor that the last file was in; most files are in the same as the one before.
type At<'a> = Option<(FileId, Dir<'a>, Option<Dir<'a>>)>;

fn clone<'a>(run: &'a Run<'_>, donor: &'a Root, id: FileId, at: &mut At<'a>) -> Result<Outcome> {
    let Some((dir, name)) = run.tree.names(id).next() else { return Ok(Outcome::Left) };
    if at.as_ref().is_none_or(|(there, ..)| there != dir) {
        // A directory that the donor has not, or not for this user, has nothing to clone.
        let below = donor.dir(run.tree.path(*dir).unwrap_or_default()).ok();
        *at = Some((*dir, run.dir(*dir)?, below));
    }
    let Some((_, target, Some(source))) = at else { return Ok(Outcome::Left) };
    let Ok(source) = source.place(name.as_bytes()).open(OFlags::RDONLY) else { return Ok(Outcome::Left) };
    let place = target.place(name.as_bytes());
    let fail = |what| move |errno| ReconcileError::io(what, place.full(), errno);
    let fd = place.open(OFlags::RDWR)?;
    let empty = fs::fstat(&fd).map_err(fail("look at"))?.st_blocks == 0;
    let file = fs::fstat(&source)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_blocks > 0);
    if !empty || !file {
        return Ok(Outcome::Left);
    }
    match share(&fd, &source) {
        Ok(()) => {}
        Err(errno @ (Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS)) => {
            return Ok(Outcome::Never(errno));
        }
        // This file's own trouble (a swap file, a full disk), and none of the run's.
        Err(_) => return Ok(Outcome::Left),
    }
    run.mark_changed(id);
    let cloned = fs::fstat(&fd).map_err(fail("look at"))?;
    let size = run.tree.get(id).and_then(|inode| inode.extents()).map_or(0, ExtentMap::size);
    fs::ftruncate(&fd, size).map_err(fail("set the size of"))?;
    Ok(Outcome::Cloned(u64::try_from(cloned.st_size).unwrap_or(0).min(size)))
}
