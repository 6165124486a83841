//! Taking the receiver's hot image instead of writing a copy.
//!
//! ```text
//! find: the image follows, is on this machine, and can be renamed to the target   │ before the fence; nothing is changed
//! take: the receiver brings it to the base and lets go ─▶ rename ─▶ complete       │ after it
//! ```
//! The receiver keeps the image until the fence, so a promotion that fails before has cost nothing. It does the renaming with its own rights on this machine, not the receiver: nobody
//! gets a directory anywhere by asking a receiver for it. What makes it the same machine is the image's device and inode, and a directory that was really renamed from there to the target and
//! removed again: that also tells whether both are on one file system, and whether this user may.
//!
//! The image carries the marker of an unfinished copy with a promotion's label, so after an interruption the renamed image is what a promotion that was interrupted while it copied
//! leaves, and is gone on with in the same way: compared as a whole.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tidelock_proto::{PointId, Tree, VolumeName};
use tidelock_receiver::{image::Given, reconcile};

use crate::{access::Access, error::FailoverError};

/// Why an image is not taken; a copy is written instead.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missed {
    #[error(transparent)]
    Access(#[from] FailoverError),
    #[error("it is on another machine than this command, or on this one out of its sight")]
    Elsewhere,
    #[error("{} holds something", .0.display())]
    NotVacant(PathBuf),
    #[error("it cannot be renamed to {}: {cause}", to.display())]
    Rename { to: PathBuf, cause: io::Error },
    #[error("it is at point {0}, not at the one that is promoted")]
    Point(PointId),
}

/// Looks whether an image of the newest point can be taken, once it is time.
pub(super) fn find(access: &Access, volume: &VolumeName, directory: &Path) -> Result<Given, Missed> {
    if fs::read_dir(directory).is_ok_and(|mut there| there.next().is_some()) {
        return Err(Missed::NotVacant(directory.to_owned()));
    }
    let given = access.image(volume, false)?;
    check_here(&given)?;
    try_rename(&given.path, directory).map_err(|cause| Missed::Rename { to: directory.to_owned(), cause })?;
    Ok(given)
}

/// Renames the image, which must be at `point` by now, to the directory. The tree that comes back has the root alone.
pub(super) fn take(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    point: PointId,
    released: &dyn Fn(),
) -> Result<(Given, Tree), Missed> {
    let given = access.image(volume, true)?;
    check_here(&given)?;
    if given.point != point {
        return Err(Missed::Point(given.point));
    }
    let mut root = Tree::new();
    given.root.iter().try_for_each(|op| root.apply(op)).map_err(FailoverError::from)?;
    root.seal().map_err(FailoverError::from)?;
    released();
    let rename = || {
        fs::rename(&given.path, directory)?;
        sync_above(directory)?;
        sync_above(&given.path)
    };
    rename().map_err(|cause| Missed::Rename { to: directory.to_owned(), cause })?;
    Ok((given, root))
}

fn check_here(given: &Given) -> Result<(), Missed> {
    if is_here(given) { Ok(()) } else { Err(Missed::Elsewhere) }
}

/// Whether the image is on this machine, and seen from here.
pub(crate) fn is_here(given: &Given) -> bool {
    let found = fs::symlink_metadata(&given.path)
        .is_ok_and(|meta| meta.is_dir() && (meta.dev(), meta.ino()) == (given.device, given.inode));
    found && reconcile::marker_path(&given.path).exists()
}

/// Renames an empty directory as the image will be, and leaves the target as it was: absent or empty.
fn try_rename(image: &Path, directory: &Path) -> io::Result<()> {
    let absent = !directory.exists();
    if let Some(above) = directory.parent().filter(|above| !above.as_os_str().is_empty()) {
        fs::create_dir_all(above)?;
    }
    let trial = image.with_file_name(format!(".trial-{}", std::process::id()));
    fs::create_dir(&trial)?;
    let renamed = fs::rename(&trial, directory);
    match renamed {
        Ok(()) if absent => fs::remove_dir(directory),
        Ok(()) => Ok(()),
        Err(error) => fs::remove_dir(&trial).and(Err(error)),
    }
}

fn sync_above(path: &Path) -> io::Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above)?.sync_all()
}
