//! The model of a volume: an inode table plus directory entries, not a list of paths, so that hard links and directory
//! renames are natural.
//!
//! A [`Tree`] has one way to change: [`Tree::apply`]. Sender and receiver run this same code and compare the incremental
//! [digest](digest) after every commit, so a divergence is found at the first commit that shows it. The price is that the
//! tree of every live volume is in memory on both sides: about 300 bytes for a file and 60 for an extent.
//!
//! Between commits a tree may be in a state no file system could show (a directory with two names, a file with
//! none). [`Tree::seal`] ends a commit: inodes without a name are gone, and what is left must be a tree.

mod apply;
pub mod digest;
mod extents;
mod inode;
mod op;
mod seal;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use thiserror::Error;

pub use extents::{ChunkRef, Extent, ExtentMap, Piece};
pub use inode::{Content, Inode, Kind, Meta, Name, NameError, Origin, Timestamp, Xattrs};
pub use op::Op;

use crate::ids::{FileId, TreeDigest};

/// Why an operation cannot be applied. The tree may hold part of the commit then and must be thrown away.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum TreeError {
    /// No inode has this id.
    #[error("inode {} does not exist", .0.0)]
    Unknown(FileId),
    /// An id was given twice, or is below one that was.
    #[error("inode id {} was used before", .0.0)]
    Reused(FileId),
    /// Entries were given to something that is not a directory.
    #[error("inode {} is not a directory", .0.0)]
    NotDirectory(FileId),
    /// Content was given to something that is not a regular file.
    #[error("inode {} is not a regular file", .0.0)]
    NotFile(FileId),
    /// The directory has no such entry.
    #[error("directory {} has no entry {}", .0.0, .1)]
    NoEntry(FileId, Name),
    /// A write or size beyond what the kernel allows, or an empty or overlong piece.
    #[error("inode {}: a range is empty, too long or beyond the largest file size", .0.0)]
    Range(FileId),
    /// After the commit a directory has several names, or its parents form a ring.
    #[error("directory {} would have several parents or contain itself", .0.0)]
    NotTree(FileId),
    /// The root was given a name, or was removed.
    #[error("the root directory cannot be linked")]
    Root,
    /// Extended attributes beyond their limit.
    #[error("inode {}: extended attributes beyond {max} bytes", .0.0, max = crate::limits::XATTRS_MAX_BYTES)]
    Xattrs(FileId),
}

/// A whole volume at one instant.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    inodes: BTreeMap<FileId, Inode>,
    /// For every inode the names it has; derived from the directories' entries.
    names: HashMap<FileId, BTreeSet<(FileId, Name)>>,
    /// Inodes whose names changed since the last [`Tree::seal`].
    relinked: BTreeSet<FileId>,
    /// The lowest id that was never used.
    next_id: FileId,
    digest: digest::Accumulator,
    totals: Totals,
}

/// Sums over a tree, kept as it changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Inodes of any kind.
    pub inodes: u64,
    /// Extents of all files.
    pub extents: u64,
    /// Bytes backed by chunks; holes do not count.
    pub data_bytes: u64,
}

impl Tree {
    /// A tree without even a root; its first operation creates [`FileId::ROOT`].
    pub fn new() -> Self {
        Self { next_id: FileId::ROOT, ..Self::default() }
    }

    /// The inode with this id.
    pub fn get(&self, id: FileId) -> Option<&Inode> {
        self.inodes.get(&id)
    }

    /// All inodes, in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (FileId, &Inode)> {
        self.inodes.iter().map(|(id, inode)| (*id, inode))
    }

    /// The lowest id that was never used in this volume.
    pub fn next_id(&self) -> FileId {
        self.next_id
    }

    /// What `name` is in directory `dir`.
    pub fn lookup(&self, dir: FileId, name: &Name) -> Option<FileId> {
        self.entries(dir)?.get(name).copied()
    }

    /// The entries of a directory; `None` if it is not one.
    pub fn entries(&self, dir: FileId) -> Option<&BTreeMap<Name, FileId>> {
        match &self.get(dir)?.content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// The names of an inode, as (directory, name); empty for the root and for an inode that lost its last name.
    pub fn names(&self, id: FileId) -> impl Iterator<Item = &(FileId, Name)> {
        self.names.get(&id).into_iter().flatten()
    }

    /// A path of an inode below the root, without a leading slash: by the first of its names that leads to the root;
    /// `None` if none does, which only happens between commits.
    pub fn path(&self, id: FileId) -> Option<Vec<u8>> {
        let names: Vec<&[u8]> = self.ancestry(id)?.into_iter().map(|(_, name)| name.as_bytes()).collect();
        Some(names.join(&b'/'))
    }

    /// The entries that lead from the root to an inode, in that order: see [`Tree::path`].
    pub fn ancestry(&self, id: FileId) -> Option<Vec<&(FileId, Name)>> {
        if id == FileId::ROOT {
            return Some(Vec::new());
        }
        // A walk with a stack of its own: directories can be nested deeper than a thread's stack.
        let mut entries: Vec<&(FileId, Name)> = Vec::new();
        let mut untried = vec![self.names.get(&id)?.iter()];
        while let Some(names) = untried.last_mut() {
            match names.next() {
                Some(entry) if entry.0 == FileId::ROOT => {
                    entries.push(entry);
                    entries.reverse();
                    return Some(entries);
                }
                // A ring can exist before `seal`; no path is deeper than there are inodes.
                Some(entry) if untried.len() <= self.inodes.len() => {
                    if let Some(names) = self.names.get(&entry.0) {
                        entries.push(entry);
                        untried.push(names.iter());
                    }
                }
                _ => {
                    untried.pop();
                    entries.pop();
                }
            }
        }
        None
    }

    /// The digest of everything in the tree.
    pub fn digest(&self) -> TreeDigest {
        self.digest.finish(self.next_id)
    }

    /// Sums over the tree.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

impl PartialEq for Tree {
    fn eq(&self, other: &Self) -> bool {
        self.inodes == other.inodes && self.next_id == other.next_id
    }
}

#[cfg(test)]
mod tests;
