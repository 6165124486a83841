//! Access that cannot leave the target: every directory is opened from the root's descriptor with
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV)`, and all else is done to one name in an open
//! directory, never following a link. So a link that somebody left in the target leads nowhere.

use std::{
    ffi::OsStr,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{self, AtFlags, Dir as Listing, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps},
    io::Errno,
};
use tidelock_proto::tree::{Timestamp, Xattrs};

use super::error::ReconcileError;
use crate::limits;

const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);

/// The target directory, or another one that is as little trusted.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) fd: OwnedFd,
    path: PathBuf,
}

/// An open directory of the target.
pub(super) struct Dir<'a> {
    pub(super) fd: OwnedFd,
    root: &'a Root,
    path: Vec<u8>,
}

/// One name in an open directory, whatever is there now.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    dir: &'a Dir<'a>,
    name: &'a [u8],
}

type Result<T> = std::result::Result<T, ReconcileError>;

impl Root {
    /// Opens the target itself; here links are followed, for the operator named it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR => ReconcileError::NotDirectory(path.to_owned()),
            errno => ReconcileError::io("open", path.to_owned(), errno),
        })?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the directory at `path`, below the root and without a leading slash; empty is the root.
    pub(super) fn dir(&self, path: Vec<u8>) -> Result<Dir<'_>> {
        let fd = self.descend(&path).map_err(|errno| ReconcileError::io("open", self.full(&path), errno))?;
        Ok(Dir { fd, root: self, path })
    }

    /// Goes down in steps the kernel accepts, so that no depth is too deep.
    fn descend(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let mut at = open_dir(&self.fd, b".")?;
        let mut rest = path;
        while !rest.is_empty() {
            let step = if rest.len() <= limits::RECONCILE_PATH_STEP_BYTES {
                rest.len()
            } else {
                let window = &rest[..limits::RECONCILE_PATH_STEP_BYTES];
                window.iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?
            };
            at = open_dir(&at, &rest[..step])?;
            rest = rest.get(step + 1..).unwrap_or_default();
        }
        Ok(at)
    }

    pub(super) fn full(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.path.clone() } else { self.path.join(OsStr::from_bytes(path)) }
    }
}

fn open_dir(fd: impl AsFd, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(fd, path, flags, Mode::empty())
}

/// `openat2` may ask to be repeated when names change meanwhile.
fn openat2(fd: impl AsFd, path: &[u8], flags: OFlags, mode: Mode) -> std::result::Result<OwnedFd, Errno> {
    loop {
        match fs::openat2(&fd, path, flags, mode, RESOLVE) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
}

impl Dir<'_> {
    /// One name in this directory.
    pub(super) fn place<'a>(&'a self, name: &'a [u8]) -> Place<'a> {
        Place { dir: self, name }
    }

    /// The directory itself, for its attributes.
    pub(super) fn itself(&self) -> Place<'_> {
        Place { dir: self, name: b"." }
    }

    /// All names but `.` and `..`.
    pub(super) fn list(&self) -> Result<Vec<Vec<u8>>> {
        let fail = |errno| ReconcileError::io("list", self.root.full(&self.path), errno);
        let mut names = Vec::new();
        for entry in Listing::read_from(&self.fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }
}

impl Place<'_> {
    /// The path below the root.
    pub(super) fn path(&self) -> Vec<u8> {
        let mut path = self.dir.path.clone();
        if self.name != b"." {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(self.name);
        }
        path
    }

    /// The path for messages.
    pub(super) fn full(&self) -> PathBuf {
        self.dir.root.full(&self.path())
    }

    fn fail(&self, what: &'static str) -> impl FnOnce(Errno) -> ReconcileError {
        move |errno| ReconcileError::io(what, self.full(), errno)
    }

    /// What is there, if anything.
    pub(super) fn stat(&self) -> Result<Option<Stat>> {
        match fs::statat(&self.dir.fd, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.fail("look at")(errno)),
        }
    }

    /// Opens a file.
    pub(super) fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        // O_NONBLOCK: somebody may have put a pipe here since it was looked at.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
        openat2(&self.dir.fd, self.name, flags, mode).map_err(self.fail("open"))
    }

    pub(super) fn make_dir(&self) -> Result<()> {
        fs::mkdirat(&self.dir.fd, self.name, Mode::RWXU).map_err(self.fail("create"))
    }

    pub(super) fn make_symlink(&self, target: &[u8]) -> Result<()> {
        fs::symlinkat(target, &self.dir.fd, self.name).map_err(self.fail("create"))
    }

    /// Makes a pipe, or a device with these numbers.
    pub(super) fn make_node(&self, kind: FileType, major: u32, minor: u32) -> Result<()> {
        let (mode, dev) = (Mode::RUSR | Mode::WUSR, fs::makedev(major, minor));
        fs::mknodat(&self.dir.fd, self.name, kind, mode, dev).map_err(|errno| match errno {
            Errno::PERM if kind != FileType::Fifo => ReconcileError::Device(self.full()),
            errno => self.fail("create")(errno),
        })
    }

    /// Makes this another name of `other`.
    pub(super) fn make_link(&self, other: &Place<'_>) -> Result<()> {
        fs::linkat(&other.dir.fd, other.name, &self.dir.fd, self.name, AtFlags::empty())
            .map_err(self.fail("link"))
    }

    /// Gives what is here the other name instead, in a directory of the same file system.
    pub(super) fn rename_to(&self, other: &Place<'_>) -> Result<()> {
        fs::renameat(&self.dir.fd, self.name, &other.dir.fd, other.name).map_err(self.fail("rename"))
    }

    pub(super) fn unlink(&self) -> Result<()> {
        fs::unlinkat(&self.dir.fd, self.name, AtFlags::empty()).map_err(self.fail("remove"))
    }

    pub(super) fn remove_dir(&self) -> Result<()> {
        fs::unlinkat(&self.dir.fd, self.name, AtFlags::REMOVEDIR).map_err(self.fail("remove"))
    }

    pub(super) fn symlink_target(&self) -> Result<Vec<u8>> {
        let target = fs::readlinkat(&self.dir.fd, self.name, Vec::new()).map_err(self.fail("read"))?;
        Ok(target.into_bytes())
    }

    /// `EPERM` is `false`: the caller decides what it means.
    pub(super) fn set_owner(&self, uid: u32, gid: u32) -> Result<bool> {
        let (uid, gid) = (fs::Uid::from_raw(uid), fs::Gid::from_raw(gid));
        permitted(fs::chownat(&self.dir.fd, self.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))
            .map_err(self.fail("change the owner of"))
    }

    /// Sets the permission bits of what is not a link. `EPERM` is `false`.
    pub(super) fn set_mode(&self, mode: u32) -> Result<bool> {
        // fchmodat follows links, and its flag not to is young. A descriptor that was opened only as a path can be
        // named through /proc, and no link is followed then.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat2(&self.dir.fd, self.name, flags, Mode::empty()).map_err(self.fail("open"))?;
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        permitted(fs::chmod(path, Mode::from_raw_mode(mode))).map_err(self.fail("change the mode of"))
    }

    pub(super) fn set_mtime(&self, time: Timestamp) -> Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
            last_modification: Timespec { tv_sec: time.secs, tv_nsec: i64::from(time.nanos) },
        };
        fs::utimensat(&self.dir.fd, self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.fail("set the time of"))
    }

    /// All extended attributes; none where the file system has none.
    pub(super) fn xattrs(&self) -> Result<Xattrs> {
        let path = self.proc_path();
        let mut names = Vec::new();
        match fs::llistxattr_query(&path) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Xattrs::new()),
            Ok(len) => names.reserve(len),
            Err(errno) => return Err(self.fail("read the attributes of")(errno)),
        }
        fs::llistxattr(&path, rustix::buffer::spare_capacity(&mut names))
            .map_err(self.fail("read the attributes of"))?;
        let mut xattrs = Xattrs::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = Vec::with_capacity(limits::XATTR_VALUE_MAX_BYTES);
            match fs::lgetxattr(&path, name, rustix::buffer::spare_capacity(&mut value)) {
                Ok(_) => {
                    value.shrink_to_fit();
                    xattrs.insert(name.to_vec(), value);
                }
                // Listed, and not for this user to read; or gone since.
                Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(self.fail("read the attributes of")(errno)),
            }
        }
        Ok(xattrs)
    }

    /// `EPERM` is `false`.
    pub(super) fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<bool> {
        permitted(fs::lsetxattr(self.proc_path(), name, value, fs::XattrFlags::empty()))
            .map_err(self.fail("set an attribute of"))
    }

    /// `EPERM` is `false`.
    pub(super) fn remove_xattr(&self, name: &[u8]) -> Result<bool> {
        match fs::lremovexattr(self.proc_path(), name) {
            Err(Errno::NODATA) => Ok(true),
            done => permitted(done).map_err(self.fail("remove an attribute of")),
        }
    }

    /// Attributes have no `*at` calls that older kernels know; the directory's descriptor, named through /proc, is
    /// as good, and the last name is not followed by the `l` calls.
    fn proc_path(&self) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}/", self.dir.fd.as_raw_fd()).into_bytes();
        path.extend_from_slice(self.name);
        path
    }
}

fn permitted(done: std::result::Result<(), Errno>) -> std::result::Result<bool, Errno> {
    match done {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(errno),
    }
}
