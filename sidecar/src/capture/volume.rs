//! The root of a volume and the way from it to an inode.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open, openat2},
    io::Errno,
};
use thiserror::Error;

use super::{Found, identity::Identity};

/// Why a directory cannot be protected.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// It is not there.
    #[error("volume directory {} does not exist: create or mount it, or correct --volume", .0.display())]
    Missing(PathBuf),
    /// It is something else.
    #[error("volume {} is not a directory: --volume takes NAME=DIRECTORY", .0.display())]
    NotDirectory(PathBuf),
    /// Any other error.
    #[error("cannot open volume directory {}: {source}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Why something could not be captured now.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The name leads nowhere, or to another inode: it moved, and the event of the move is on its way.
    #[error("it moved")]
    Moved,
    /// The kernel refused.
    #[error("{0}")]
    Io(#[from] Errno),
}

/// An open volume.
#[derive(Debug)]
pub(crate) struct Volume {
    path: PathBuf,
    root: OwnedFd,
    found: Found,
}

/// The kernel takes paths up to this length, its final zero included.
const PATH_MAX_BYTES: usize = 4096;
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

impl Volume {
    pub(crate) fn open(path: &Path) -> Result<Self, VolumeError> {
        let failed = |errno: Errno| match errno {
            Errno::NOENT => VolumeError::Missing(path.to_owned()),
            Errno::NOTDIR => VolumeError::NotDirectory(path.to_owned()),
            errno => VolumeError::Open { path: path.to_owned(), source: errno.into() },
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(path, flags, Mode::empty()).map_err(failed)?;
        let found = Found::of(root.as_fd()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), root, found })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to the directory that was opened: not unmounted, mounted over, or replaced.
    pub(crate) fn in_place(&self) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(&self.path, flags, Mode::empty())
            .and_then(|fd| Found::of(fd.as_fd()))
            .is_ok_and(|now| now.identity() == self.found.identity() && now.place() == self.found.place())
    }

    /// The volume as it is at its path now, if that is the same directory in another mount: unmounted and mounted again.
    /// Another file system may show the same number and generation at its root; its id and the root's time of birth tell.
    pub(crate) fn mounted_again(&self) -> Option<Self> {
        let now = Self::open(&self.path).ok()?;
        let file_system = |volume: &Self| rustix::fs::fstatvfs(&volume.root).map(|stat| stat.f_fsid).ok();
        let same = now.found.identity() == self.found.identity()
            && now.found.born() == self.found.born()
            && file_system(&now) == file_system(self);
        same.then_some(now)
    }

    /// Whether something found below the root lies in this volume, not on a file system mounted within it.
    pub(crate) fn holds(&self, found: &Found) -> bool {
        found.place() == self.found.place()
    }

    /// Opens `path`, which is relative to the root, without following any link or leaving the mount.
    pub(crate) fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, CaptureError> {
        let opened = if path.len() < PATH_MAX_BYTES {
            let path = if path.is_empty() { b"." } else { path };
            openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), BENEATH)
        } else {
            self.open_far_beneath(path, flags)
        };
        match opened {
            Ok(fd) => Ok(fd),
            // A component moved or became something else while the path was walked.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN | Errno::XDEV | Errno::NXIO) => {
                Err(CaptureError::Moved)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a path that is longer than the kernel takes at once, a piece after the other.
    fn open_far_beneath(&self, mut path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut at: Option<OwnedFd> = None;
        loop {
            let from = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            if path.len() < PATH_MAX_BYTES {
                return openat2(from, path, flags | OFlags::CLOEXEC, Mode::empty(), BENEATH);
            }
            let cut =
                path[..PATH_MAX_BYTES].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
            let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            at = Some(openat2(from, &path[..cut], step, Mode::empty(), BENEATH)?);
            path = &path[cut + 1..];
        }
    }

    /// Opens `path` and checks that it is the inode that was meant.
    pub(crate) fn open_identified(
        &self,
        path: &[u8],
        identity: Identity,
        flags: OFlags,
    ) -> Result<(OwnedFd, Found), CaptureError> {
        let fd = self.open_beneath(path, flags)?;
        let found = Found::of(fd.as_fd())?;
        if found.identity() == identity { Ok((fd, found)) } else { Err(CaptureError::Moved) }
    }
}
