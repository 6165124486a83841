//! The plain directory takes the place of the mount, once everything is local and nobody is there any more.
//!
//! ```text
//! files/ID ─trim, rename─▶ tree/PATH ─reconcile: names, attributes, sync─▶ moving ─rename each entry─▶ DIR ─▶ attributes of the root ─▶ own directory and marker go
//! ```
//! No content is copied. Each step can be repeated, so it goes on after an interruption anywhere: a file is in `files` or at its path, an entry in `tree` or in DIR. A file with content that is in neither is an
//! error before anything is made, so nothing ever stands in for it.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate, seek},
    io::Errno,
};
use tidelock_proto::{
    ChunkId, ChunkKey, FileId, Tree, VolumeName,
    tree::{ExtentMap, Name},
};
use tidelock_receiver::reconcile::{
    self, Chunks, ChunksError, INSTANT, Options, Phase, Progress, ReconcileError,
};

use super::place::{absent, label, sync};
use crate::{
    error::FailoverError,
    mount::durable::Files,
    restore::{Event, Step},
};

/// Everything is local: nothing is to be fetched.
struct Nothing;

impl Chunks for Nothing {
    fn fetch(&self, _: &[ChunkId], _: &mut dyn FnMut(usize, Bytes) -> bool) -> Result<(), ChunksError> {
        Ok(())
    }
}

/// Puts the tree together, and in the mount's place.
pub(crate) fn complete(
    volume: &VolumeName,
    directory: &Path,
    files: &Files,
    tree: Tree,
    events: &(dyn Fn(Event) + Sync),
) -> Result<(), FailoverError> {
    events(Event::Step(Step::Complete));
    let own = directory.join(INSTANT);
    let tree = Arc::new(tree);
    let target = own.join("tree");
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    make(&target).map_err(FailoverError::Instant)?;
    let local: Vec<(FileId, &ExtentMap, Vec<PathBuf>)> = tree
        .iter()
        .filter_map(|(id, inode)| Some((id, inode.extents()?, paths(&tree, id, &target))))
        .collect();
    let lost = local.iter().find(|(id, extents, paths)| {
        !extents.is_empty() && !files.path(*id).exists() && !paths.first().is_some_and(|path| path.is_file())
    });
    if let Some((.., paths)) = lost {
        let path = paths.first().cloned().unwrap_or_default();
        let source = io::ErrorKind::NotFound.into();
        return Err(ReconcileError::Io { what: "find what was written to", path, source }.into());
    }
    let total = local.len() as u64;
    for (done, (id, extents, paths)) in (0..).zip(local) {
        events(names(done, total));
        let from = files.path(id);
        let Some((first, others)) = paths.split_first() else { continue };
        let place = || {
            if from.exists() {
                trim(&from, extents)?;
                first.parent().map_or(Ok(()), make)?;
                fs::rename(&from, first)?;
            }
            // All of its names, so that none is made anew as another file.
            for other in others.iter().filter(|other| first.is_file() && !other.exists()) {
                other.parent().map_or(Ok(()), make)?;
                fs::hard_link(first, other)?;
            }
            Ok(())
        };
        place().map_err(FailoverError::Instant)?;
    }
    let options = options(volume, &tree);
    let progress = |progress| events(Event::Progress(progress));
    reconcile::reconcile(&target, &tree, &Nothing, &options, &progress)?;
    events(Event::Step(Step::Move));
    let moving = || {
        File::create(own.join("moving"))?.sync_all()?;
        sync(&own)
    };
    moving().map_err(FailoverError::Instant)?;
    move_up(volume, directory, Some(&tree), events)
}

/// So many names of so many are where they belong.
fn names(done: u64, total: u64) -> Event {
    Event::Progress(Progress { phase: Phase::Names, done, total })
}

/// All names of a file.
fn paths(tree: &Tree, id: FileId, target: &Path) -> Vec<PathBuf> {
    let path = |(dir, name): &(FileId, Name)| {
        let above = tree.path(*dir).unwrap_or_default();
        target.join(OsStr::from_bytes(&above)).join(OsStr::from_bytes(name.as_bytes()))
    };
    tree.names(id).map(path).collect()
}

fn options(volume: &VolumeName, tree: &Arc<Tree>) -> Options {
    let key = ChunkKey::of_tenant(volume.tenant());
    let known = Some(tree.clone());
    Options { overwrite: true, known, own: true, ..Options::new(key, label(volume)) }
}

/// Moves what is left of the whole tree to where it belongs, and removes all else. The tree is for the root's attributes; an earlier run that has removed the journal has set them.
pub(super) fn move_up(
    volume: &VolumeName,
    directory: &Path,
    tree: Option<&Arc<Tree>>,
    events: &(dyn Fn(Event) + Sync),
) -> Result<(), FailoverError> {
    let own = directory.join(INSTANT);
    let target = own.join("tree");
    let entries = match fs::read_dir(&target) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
        Err(error) => absent(error).map(|()| Vec::new()),
    };
    let up = |name: PathBuf| match fs::rename(target.join(&name), directory.join(&name)) {
        // A file system's own, and the volume's: as long as one of them is empty.
        Err(error) if name == Path::new("lost+found") => {
            fs::remove_dir(target.join(&name)).map_err(|_| error)
        }
        done => done,
    };
    let moved = entries.and_then(|entries| {
        let total = entries.len() as u64;
        for (done, entry) in (0..).zip(entries) {
            events(names(done, total));
            up(entry.file_name().into())?;
        }
        sync(directory)
    });
    moved.map_err(FailoverError::Instant)?;
    let end = |tree: &Arc<Tree>| reconcile::complete(directory, tree, &options(volume, tree));
    // With a journal: without one this was done.
    tree.map_or(Ok(()), end)?;
    events(Event::Step(Step::Clear));
    let remove = || {
        for name in ["tree", "files"] {
            fs::remove_dir_all(own.join(name)).or_else(absent)?;
        }
        // What says how far it is goes last.
        for name in ["journal.new", "journal", "lock", "moving"] {
            fs::remove_file(own.join(name)).or_else(absent)?;
            sync(&own)?;
            events(names(0, 0));
        }
        fs::remove_dir(&own)?;
        sync(directory)
    };
    remove().map_err(FailoverError::Instant)?;
    // The time of the directory has changed once more.
    Ok(tree.map_or(Ok(()), end)?)
}

/// Makes a file as long as it is to be, with holes where there is no data.
fn trim(path: &Path, extents: &ExtentMap) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    if file.metadata()?.len() != extents.size() {
        file.set_len(extents.size())?;
    }
    let mut at = 0;
    for (offset, extent) in extents.iter() {
        punch(&file, at, offset)?;
        at = offset + u64::from(extent.len);
    }
    punch(&file, at, extents.size())
}

fn punch(file: &File, start: u64, end: u64) -> io::Result<()> {
    if start >= end {
        return Ok(());
    }
    match seek(file, SeekFrom::Data(start)) {
        Ok(data) if data >= end => return Ok(()),
        Err(Errno::NXIO) => return Ok(()),
        _ => {}
    }
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, hole, start, end - start) {
        Err(Errno::OPNOTSUPP) => zero(file, start, end),
        done => Ok(done?),
    }
}

/// For file systems without holes: zeros read the same.
fn zero(file: &File, start: u64, end: u64) -> io::Result<()> {
    let zeros = [0; 64 * 1024];
    let mut at = start;
    while at < end {
        let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeros.len());
        std::os::unix::fs::FileExt::write_all_at(file, &zeros[..len], at)?;
        at += len as u64;
    }
    Ok(())
}
