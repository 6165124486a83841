//! Where an instant promotion keeps what is local: in a directory of its own in the one that is promoted to, hidden by the mount and reached through descriptors.
//!
//! ```text
//! DIR/.tidelock-incomplete            the marker, from the beginning until all is done
//! DIR/.tidelock-instant/lock          one process
//! DIR/.tidelock-instant/journal       made after the fence: from then on the command needs nobody to go on
//! DIR/.tidelock-instant/files/ID      local content
//! DIR/.tidelock-instant/tree/         the plain directory, being put together
//! DIR/.tidelock-instant/moving        it is whole: its entries are on their way up
//! ```
//! It is on the file system of DIR even if that is a mount point itself, so that putting the plain directory in the mount's place is renaming.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use tidelock_proto::VolumeName;
use tidelock_receiver::reconcile::{self, INSTANT, Vacancy};

use crate::{
    error::FailoverError,
    mount::{disk::real, durable::Files},
};

/// How far an earlier run has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There was none that matters.
    Nothing,
    /// It has a journal.
    Journal,
    /// The tree is whole.
    Moving,
}

/// The directory of its own, open.
pub(super) struct Place {
    /// What is promoted to, without links in its path.
    pub(super) directory: PathBuf,
    own: OwnedFd,
}

/// What the marker says: no other command takes it for its own unfinished copy.
pub(super) fn label(volume: &VolumeName) -> String {
    format!("{volume} (an instant promotion)")
}

/// Looks what there is. A mount that is alive hides it.
pub(super) fn look(directory: &Path) -> Found {
    let own = directory.join(INSTANT);
    match () {
        () if own.join("moving").exists() => Found::Moving,
        () if own.join("journal").exists() => Found::Journal,
        () if is_cleared(directory, &own) => Found::Moving,
        () => Found::Nothing,
    }
}

/// Whether nothing is left of a run but the directory of its own. One that has just begun has made that in an empty directory.
fn is_cleared(directory: &Path, own: &Path) -> bool {
    let is_empty = fs::read_dir(own).is_ok_and(|mut entries| entries.next().is_none());
    let others = |name: &OsStr| name != INSTANT && name != "lost+found";
    let mut entries = fs::read_dir(directory).into_iter().flatten().flatten();
    is_empty && !reconcile::marker_path(directory).exists() && entries.any(|entry| others(&entry.file_name()))
}

/// Removes what a run has left that came to no journal: nobody can have written to it.
pub(super) fn clear(volume: &VolumeName, directory: &Path) -> Result<(), FailoverError> {
    let (own, marker) = (directory.join(INSTANT), reconcile::marker_path(directory));
    let remove = || {
        if own.is_dir() || fs::read(&marker).is_ok_and(|there| there == label(volume).into_bytes()) {
            fs::remove_file(&marker).or_else(absent)?;
            fs::remove_dir_all(&own).or_else(absent)?;
        }
        Ok(())
    };
    remove().map_err(FailoverError::Instant)
}

/// That the directory can be taken: it is empty, or holds what [`clear`] removes.
pub(super) fn check(volume: &VolumeName, directory: &Path) -> Result<(), FailoverError> {
    match reconcile::vacancy(directory)? {
        Vacancy::Vacant => Ok(()),
        Vacancy::Unfinished(holds) if holds == label(volume) => Ok(()),
        _ => Err(reconcile::ReconcileError::NotEmpty(directory.to_owned()).into()),
    }
}

impl Place {
    /// Takes an empty directory.
    pub(super) fn make(volume: &VolumeName, directory: &Path) -> Result<Self, FailoverError> {
        let own = directory.join(INSTANT);
        if reconcile::vacancy(directory)? != Vacancy::Vacant {
            return Err(reconcile::ReconcileError::NotEmpty(directory.to_owned()).into());
        }
        let make = || {
            DirBuilder::new().recursive(true).mode(0o700).create(own.join("files"))?;
            sync(&own)?;
            let mut marker = File::create(reconcile::marker_path(directory))?;
            marker.write_all(label(volume).as_bytes())?;
            marker.sync_all()?;
            sync(directory)
        };
        make().map_err(FailoverError::Instant)?;
        Self::open(directory)
    }

    /// Opens what is there.
    pub(super) fn open(directory: &Path) -> Result<Self, FailoverError> {
        let open = || {
            let directory = fs::canonicalize(directory)?;
            let own = File::open(directory.join(INSTANT))?.into();
            Ok(Self { directory, own })
        };
        open().map_err(FailoverError::Instant)
    }

    /// A path that a mount does not hide.
    pub(super) fn own(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.own.as_fd().as_raw_fd()).into()
    }

    pub(super) fn files(&self) -> Result<Arc<Files>, FailoverError> {
        let files = File::open(self.own().join("files")).map_err(FailoverError::Instant)?;
        Ok(Arc::new(Files::new(files.into(), real())))
    }
}

pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

pub(super) fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
