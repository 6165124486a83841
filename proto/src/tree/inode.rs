//! One inode: what it is, what it contains, and who may touch it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use thiserror::Error;

use super::extents::ExtentMap;
use crate::{ids::FileId, limits};

/// Extended attributes by name, POSIX ACLs (`system.posix_acl_*`) among them.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// The name of one directory entry: bytes, not UTF-8. Never empty, `.`, `..`, and without `/` or NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

/// Bytes that cannot name a directory entry.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{:?} cannot name a directory entry", String::from_utf8_lossy(.0))]
pub struct NameError(Vec<u8>);

impl Name {
    /// Checks a name. This is where `..`, absolute and NUL names from a peer end.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        let valid = !bytes.is_empty()
            && bytes.len() <= limits::NAME_MAX_BYTES
            && bytes != b"."
            && bytes != b".."
            && !bytes.iter().any(|byte| matches!(byte, b'/' | 0));
        if valid { Ok(Self(bytes.into())) } else { Err(NameError(bytes.to_owned())) }
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A time of the source's clock, as the kernel keeps it: seconds since 1970 and nanoseconds below a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                Self { secs: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() }
            }
            Err(_) => Self::default(),
        }
    }
}

/// Where the source found the inode. A hint for the sidecar, which re-reads after a restart only what changed
/// since; it means nothing on another file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Origin {
    /// The inode number.
    pub inode: u64,
    /// Tells apart two inodes that had the same number one after the other; 0 if the file system does not say.
    pub generation: u64,
    /// The change time when the content was read; zero if it was so recent that a later change could carry the same
    /// time, so that the file must be read again.
    pub ctime: Timestamp,
}

/// Attributes that every kind of inode has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Meta {
    /// Permission bits with set-id and sticky bits (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Where the source found it.
    pub origin: Origin,
}

/// What an inode is; fixed at its creation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file, empty at first.
    File,
    /// A directory, empty at first.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
}

/// What an inode is and contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A regular file's size and data.
    File(ExtentMap),
    /// A directory's entries, in byte order.
    Directory(BTreeMap<Name, FileId>),
    /// A symbolic link's target.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
}

/// One entry of the inode table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Attributes.
    pub meta: Meta,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// Kind and content.
    pub content: Content,
}

impl Inode {
    /// A new inode of this kind, with nothing in it.
    pub(super) fn new(kind: Kind, meta: Meta) -> Self {
        let content = match kind {
            Kind::File => Content::File(ExtentMap::default()),
            Kind::Directory => Content::Directory(BTreeMap::new()),
            Kind::Symlink(target) => Content::Symlink(target),
            Kind::Fifo => Content::Fifo,
            Kind::CharDevice(major, minor) => Content::CharDevice(major, minor),
            Kind::BlockDevice(major, minor) => Content::BlockDevice(major, minor),
        };
        Self { meta, xattrs: Xattrs::new(), content }
    }

    /// What the inode is.
    pub fn kind(&self) -> Kind {
        match &self.content {
            Content::File(_) => Kind::File,
            Content::Directory(_) => Kind::Directory,
            Content::Symlink(target) => Kind::Symlink(target.clone()),
            Content::Fifo => Kind::Fifo,
            Content::CharDevice(major, minor) => Kind::CharDevice(*major, *minor),
            Content::BlockDevice(major, minor) => Kind::BlockDevice(*major, *minor),
        }
    }

    /// The extents of a regular file.
    pub fn extents(&self) -> Option<&ExtentMap> {
        match &self.content {
            Content::File(extents) => Some(extents),
            _ => None,
        }
    }
}
