//! Where images are, and what is durably known of each.
//!
//! ```text
//! DIR/.lock                      one user
//! DIR/.tidelock-images           says what this is, to whoever is about to overwrite it
//! DIR/TENANT/NAME/               the image, with the marker of an unfinished copy in it until somebody completes it
//! DIR/TENANT/.NAME/state         [`State`]: the point up to which everything in it is durable
//! DIR/TENANT/.NAME/staging/      names on their way from one directory to another
//! DIR/TENANT/.NAME/released/     the image, for a promotion to take
//! ```
//! A volume's name does not begin with a dot. What is not there yet is made for the receiver's user alone: the files of an image have the owners and modes of the
//! source from their first moment on, which mean other people here.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tidelock_proto::{PointId, VolumeName};

use super::ImageError;
use crate::{flock::FileLock, reconcile::IMAGES};

/// The paths of one volume.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) image: PathBuf,
    pub(super) staging: PathBuf,
    pub(super) released: PathBuf,
    /// Holds the last two, and the state.
    own: PathBuf,
}

/// Everything up to `point` is durable in the image; what came later may be there, in part or whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    volume: String,
    point: String,
    /// Epoch of the volume when this was written: within one, all later points say what may be there.
    pub(super) epoch: u64,
    /// The point's tree.
    pub(super) digest: String,
    /// The image's inode: another directory in its place is not the one that is meant.
    pub(super) inode: u64,
}

impl State {
    pub(super) fn new(volume: &VolumeName, point: PointId, epoch: u64, digest: String, inode: u64) -> Self {
        Self { volume: volume.to_string(), point: point.to_string(), epoch, digest, inode }
    }

    pub(super) fn point(&self) -> Option<PointId> {
        self.point.parse().ok()
    }
}

impl Places {
    pub(super) fn of(dir: &Path, volume: &VolumeName) -> Self {
        let tenant = dir.join(volume.tenant());
        let own = tenant.join(format!(".{}", volume.name()));
        Self {
            image: tenant.join(volume.name()),
            staging: own.join("staging"),
            released: own.join("released"),
            own,
        }
    }

    /// Makes what is missing, except the image itself, and empties `staging`: what a failure has left there is in no tree.
    pub(super) fn make(&self) -> Result<(), ImageError> {
        make_private(&self.own)?;
        match fs::remove_dir_all(&self.staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("empty", &self.staging)(error)),
            _ => make_private(&self.staging),
        }
    }

    /// Removes all of it; what is known of it first, so that nothing is taken for an image that is half gone.
    pub(super) fn remove(&self) -> Result<(), ImageError> {
        for dir in [&self.own, &self.image] {
            match fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(fail("remove", dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What is known of the image; nothing if it was never whole.
    pub(super) fn state(&self) -> Option<State> {
        serde_json::from_slice(&fs::read(self.own.join("state")).ok()?).ok()
    }

    /// Replaces the state, durably.
    pub(super) fn write_state(&self, state: &State) -> Result<(), ImageError> {
        let (path, new) = (self.own.join("state"), self.own.join("state.new"));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec(state)?)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            sync_dir(&self.own)
        };
        write().map_err(fail("write", &path))
    }

    /// Nothing is known any more, durably.
    pub(super) fn forget_state(&self) -> Result<(), ImageError> {
        let path = self.own.join("state");
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove", &path)(error)),
            _ => sync_dir(&self.own).map_err(fail("write to disk", &self.own)),
        }
    }

    /// Gives the image the other of its two names, durably.
    pub(super) fn swap(&self, from: &Path, to: &Path) -> Result<(), ImageError> {
        let rename = || {
            fs::rename(from, to)?;
            sync_dir(&self.own)?;
            self.image.parent().map_or(Ok(()), sync_dir)
        };
        rename().map_err(fail("rename", from))
    }

    /// The inode of the image, if it is there.
    pub(super) fn inode(&self) -> Option<u64> {
        fs::symlink_metadata(&self.image).ok().filter(fs::Metadata::is_dir).map(|meta| meta.ino())
    }
}

/// Makes the directory of all images and keeps other receivers out of it until the answer is dropped.
pub(super) fn lock(dir: &Path) -> Result<FileLock, ImageError> {
    make_private(dir)?;
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(fail("create", &path))?;
    let taken = FileLock::take(file).map_err(fail("lock", &path))?;
    let lock = taken.map_err(|_| ImageError::InUse(dir.to_owned()))?;
    let told = dir.join(IMAGES);
    fs::write(&told, "Hot images of a Tidelock receiver. Nothing else belongs here.\n")
        .map_err(fail("write", &told))?;
    Ok(lock)
}

fn make_private(dir: &Path) -> Result<(), ImageError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail("create", dir))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(super) fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { what, path, source }
}
