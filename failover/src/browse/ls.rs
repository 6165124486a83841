//! What is in a directory at a point.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use tidelock_proto::{
    FileId, Tree, VolumeName,
    tree::{Content, Timestamp},
};
use tidelock_receiver::history::each_name;

use super::{View, VolumePath};
use crate::{access::Access, at::At, error::FailoverError, report::PointReport};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// A name and what it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// From the volume's root.
    #[serde(flatten)]
    pub path: VolumePath,
    /// What it is.
    pub kind: EntryKind,
    /// The inode in the volume's history: two names with the same number are one file.
    pub inode: u64,
    /// Names it has.
    pub names: u64,
    /// Permission bits, set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of a file: its length, in bytes.
    pub size: Option<u64>,
    /// Of a file: what of it is no hole, in bytes.
    pub data_bytes: Option<u64>,
    /// Modification time: seconds since 1970.
    pub mtime_secs: i64,
    /// And nanoseconds.
    pub mtime_nanos: u32,
    /// Where a symbolic link leads.
    pub target: Option<VolumePath>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// Extended attributes, counted.
    pub xattrs: u64,
}

/// A listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LsReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point that was looked into.
    pub point: PointReport,
    /// In the order of their bytes.
    pub entries: Vec<Entry>,
}

/// Lists a directory, with all below it if `recursive`, or the one thing that `path` names.
pub fn ls(
    access: &Access,
    volume: &VolumeName,
    at: &At,
    path: &VolumePath,
    recursive: bool,
) -> Result<LsReport, FailoverError> {
    let view = View::open(access, volume, at)?;
    let id = view.lookup(path)?;
    let mut entries = Vec::new();
    if view.tree.entries(id).is_none() {
        entries.extend(Entry::new(&view.tree, path.clone(), id));
    }
    each_name(&view.tree, id, path.as_bytes(), &mut |named| {
        entries.extend(Entry::new(&view.tree, VolumePath::of(named.path), named.id));
        recursive
    });
    Ok(LsReport { volume: volume.to_string(), point: view.choice.report(), entries })
}

impl Entry {
    fn new(tree: &Tree, path: VolumePath, id: FileId) -> Option<Self> {
        let inode = tree.get(id)?;
        let extents = inode.extents();
        let (target, device) = match &inode.content {
            Content::Symlink(target) => (Some(VolumePath::of(target)), None),
            Content::CharDevice(major, minor) | Content::BlockDevice(major, minor) => {
                (None, Some((*major, *minor)))
            }
            _ => (None, None),
        };
        Some(Self {
            path,
            kind: EntryKind::of(&inode.content),
            inode: id.0,
            names: tree.names(id).count() as u64,
            mode: inode.meta.mode,
            uid: inode.meta.uid,
            gid: inode.meta.gid,
            size: extents.map(|extents| extents.size()),
            data_bytes: extents.map(|all| all.iter().map(|(_, extent)| u64::from(extent.len)).sum()),
            mtime_secs: inode.meta.mtime.secs,
            mtime_nanos: inode.meta.mtime.nanos,
            target,
            device,
            xattrs: inode.xattrs.len() as u64,
        })
    }

    /// The modification time for people: RFC 3339, or seconds where that has no year.
    pub fn mtime(&self) -> String {
        show(Timestamp { secs: self.mtime_secs, nanos: self.mtime_nanos })
    }
}

/// The end of the year 9999, which is as far as RFC 3339 goes.
const LAST_SECOND: u64 = 253_402_300_799;

fn show(time: Timestamp) -> String {
    match u64::try_from(time.secs) {
        Ok(secs) if secs <= LAST_SECOND => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(secs)).to_string()
        }
        _ => format!("{}s", time.secs),
    }
}

impl EntryKind {
    pub(super) fn of(content: &Content) -> Self {
        match content {
            Content::File(_) => Self::File,
            Content::Directory(_) => Self::Directory,
            Content::Symlink(_) => Self::Symlink,
            Content::Fifo => Self::Fifo,
            Content::CharDevice(..) => Self::Char,
            Content::BlockDevice(..) => Self::Block,
        }
    }

    /// As `ls -l` begins a line.
    pub fn letter(self) -> char {
        match self {
            Self::File => '-',
            Self::Directory => 'd',
            Self::Symlink => 'l',
            Self::Fifo => 'p',
            Self::Char => 'c',
            Self::Block => 'b',
        }
    }
}
