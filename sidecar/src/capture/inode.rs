//! One inode as the file system shows it now.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Statx, StatxFlags, makedev, statx},
    io::Errno,
};
use tidelock_proto::{
    limits,
    tree::{Kind, Meta, Origin, Timestamp, Xattrs},
};

use super::identity::{Identity, generation};

/// What an entry or a descriptor turned out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    stat: Statx,
    generation: u64,
}

const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

impl Found {
    /// Looks up `name` in `dir`; `None` if there is no such entry. Never follows a symbolic link.
    pub(crate) fn at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Self>, Errno> {
        match statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, WANTED) {
            Ok(stat) => {
                let generation = generation(dir, Some(name), born(&stat));
                // The name may have moved between the two calls; then the generation is of another inode. The event
                // of that move is on its way, and this entry is looked up again.
                Ok(Some(Self { stat, generation }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Looks at an open descriptor.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)?;
        Ok(Self { stat, generation: generation(fd, None, born(&stat)) })
    }

    /// Looks again at a descriptor that was identified before: an open inode keeps its identity.
    pub(crate) fn again(&self, fd: BorrowedFd<'_>) -> Result<Self, Errno> {
        let stat = statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)?;
        Ok(Self { stat, generation: self.generation })
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { inode: self.stat.stx_ino, generation: self.generation }
    }

    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.stx_mode.into())
    }

    pub(crate) fn size(&self) -> u64 {
        self.stat.stx_size
    }

    /// Device and mount, which must be those of the root.
    pub(crate) fn place(&self) -> (u64, u64) {
        (makedev(self.stat.stx_dev_major, self.stat.stx_dev_minor), self.stat.stx_mnt_id)
    }

    /// How many names it has, in the volume or not.
    pub(crate) fn links(&self) -> u32 {
        self.stat.stx_nlink
    }

    /// Time of birth, where the file system keeps it.
    pub(crate) fn born(&self) -> Option<(i64, u32)> {
        born(&self.stat)
    }

    pub(crate) fn ctime(&self) -> Timestamp {
        Timestamp { secs: self.stat.stx_ctime.tv_sec, nanos: self.stat.stx_ctime.tv_nsec }
    }

    /// Attributes for the tree. `settled_before` is the time before which a change time is old enough that no later
    /// change can carry the same one (see [`Origin::ctime`]).
    pub(crate) fn meta(&self, settled_before: Timestamp) -> Meta {
        let ctime = self.ctime();
        Meta {
            mode: u32::from(self.stat.stx_mode) & 0o7777,
            uid: self.stat.stx_uid,
            gid: self.stat.stx_gid,
            mtime: Timestamp { secs: self.stat.stx_mtime.tv_sec, nanos: self.stat.stx_mtime.tv_nsec },
            origin: Origin {
                inode: self.stat.stx_ino,
                generation: self.generation,
                ctime: if ctime < settled_before { ctime } else { Timestamp::default() },
            },
        }
    }

    /// The kind for the tree; `None` for a symbolic link, whose target is not in the attributes, and for a socket,
    /// which is not replicated.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let (major, minor) = (self.stat.stx_rdev_major, self.stat.stx_rdev_minor);
        match self.file_type() {
            FileType::RegularFile => Some(Kind::File),
            FileType::Directory => Some(Kind::Directory),
            FileType::Fifo => Some(Kind::Fifo),
            FileType::CharacterDevice => Some(Kind::CharDevice(major, minor)),
            FileType::BlockDevice => Some(Kind::BlockDevice(major, minor)),
            _ => None,
        }
    }

    /// Whether an inode of the tree can be this one: a number that is used again may come back as another kind.
    pub(crate) fn is_kind(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Symlink(_) => self.file_type() == FileType::Symlink,
            other => self.kind().as_ref() == Some(other),
        }
    }
}

fn born(stat: &Statx) -> Option<(i64, u32)> {
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    known.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

/// All extended attributes of the inode behind a descriptor, which may be opened with `O_PATH`.
///
/// What vanished between listing and reading is left out. xfs shows its access lists a second time, in its own form and
/// only to root; they are the POSIX ACLs, and no other file system takes them.
pub(crate) fn read_xattrs(fd: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    // A descriptor opened with O_PATH refuses fgetxattr; its name in /proc leads to the very inode, even a symbolic link.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let mut names = vec![0; limits::XATTRS_MAX_BYTES];
    let len = match rustix::fs::listxattr(&path, &mut names) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        Ok(len) => len,
        Err(errno) => return Err(errno),
    };
    let mut xattrs = BTreeMap::new();
    let mut value = vec![0; limits::XATTRS_MAX_BYTES];
    for name in names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL_"))
    {
        match rustix::fs::getxattr(&path, name, &mut value) {
            Ok(len) => drop(xattrs.insert(name.to_vec(), value[..len].to_vec())),
            Err(Errno::NODATA) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(xattrs)
}
