//! Whether a copy can be written where it is to be, as far as that can be known before.
//!
//! It is looked at before anything is written, so that a disk is not filled in vain, and nobody who asked for a dry run learns it in the real one. What a file system
//! compresses or shares is not known before; who knows better says `--force`.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Access as Mode, AtFlags, CWD, accessat, statvfs};
use tidelock_proto::Tree;

use crate::{access::Access, error::FailoverError, promote::is_here, report::Choice};

/// What is free on the file systems of the targets of one command, less what earlier targets are promised.
#[derive(Debug, Default)]
pub(crate) struct Room {
    promised: BTreeMap<u64, u64>,
}

impl Room {
    /// Whether the tree can be written to the directory. Tells how many bytes are free for it, where the file system tells.
    pub(crate) fn check(
        &mut self,
        directory: &Path,
        tree: &Tree,
        (access, choice): (&Access, &Choice),
    ) -> Result<Option<u64>, FailoverError> {
        let place = nearest(directory);
        writable(&place, directory)?;
        let Ok(found) = statvfs(&place) else { return Ok(None) };
        let device = fs::metadata(&place).map(|meta| meta.dev()).unwrap_or_default();
        // Some file systems know of no size.
        if found.f_blocks == 0 {
            return Ok(None);
        }
        let promised = self.promised.entry(device).or_default();
        // What is kept back for root is not for an application.
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize) + held_bytes(directory);
        let free_bytes = free_bytes.saturating_sub(*promised);
        let needed_bytes = tree.totals().data_bytes;
        if needed_bytes > free_bytes && !is_shared(access, choice, device) {
            return Err(FailoverError::NoRoom { directory: directory.to_owned(), needed_bytes, free_bytes });
        }
        *promised = promised.saturating_add(needed_bytes);
        Ok(Some(free_bytes))
    }
}

/// The directory, or what of its path is there.
fn nearest(directory: &Path) -> PathBuf {
    let whole = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    whole.ancestors().find(|path| path.exists()).map_or(whole.clone(), Path::to_owned)
}

fn writable(place: &Path, directory: &Path) -> Result<(), FailoverError> {
    let Err(errno) = accessat(CWD, place, Mode::WRITE_OK | Mode::EXEC_OK, AtFlags::EACCESS) else {
        return Ok(());
    };
    let own = || {
        let owner = fs::metadata(place).map(|meta| meta.uid());
        place == directory && owner.is_ok_and(|owner| owner == rustix::process::geteuid().as_raw())
    };
    let source = std::io::Error::from(errno);
    match source.kind() {
        // Whose it is can change its mode, and does.
        ErrorKind::PermissionDenied if !own() => {}
        ErrorKind::ReadOnlyFilesystem => {}
        // Not every kernel can be asked.
        _ => return Ok(()),
    }
    Err(FailoverError::NotWritable { place: place.to_owned(), source })
}

/// What a directory takes on its file system: it is kept, or gives way.
fn held_bytes(directory: &Path) -> u64 {
    let Ok(root) = fs::metadata(directory) else { return 0 };
    let (mut seen, mut open, mut bytes) = (HashSet::new(), vec![directory.to_owned()], 0);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != root.dev() || !seen.insert(meta.ino()) {
                continue;
            }
            bytes += meta.blocks() * 512;
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    bytes
}

/// Whether a hot image on this file system lends its blocks, or its place.
fn is_shared(access: &Access, choice: &Choice, device: u64) -> bool {
    let kept = choice.volume.live.as_ref().is_none_or(|live| live.image.is_some());
    let given = kept.then(|| access.image(&choice.volume.name, false).ok()).flatten();
    given.is_some_and(|given| given.device == device && is_here(&given))
}
