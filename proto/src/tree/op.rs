//! The operations: the only way a tree changes, on the wire, in the log and in memory alike.

use super::{Kind, Meta, Name, Piece, Xattrs};
use crate::ids::FileId;

/// One change of a tree. A rename is an `Unlink` and a `Link` in one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A new inode, without a name yet. `id` is at least the tree's `next_id`.
    Create {
        /// Its id.
        id: FileId,
        /// What it is.
        kind: Kind,
        /// Its attributes.
        meta: Meta,
    },
    /// Replaces all attributes.
    SetMeta {
        /// The inode.
        id: FileId,
        /// Its attributes from now on.
        meta: Meta,
    },
    /// Replaces all extended attributes.
    SetXattrs {
        /// The inode.
        id: FileId,
        /// Its extended attributes from now on.
        xattrs: Xattrs,
    },
    /// Makes `name` in `dir` mean `id`, whatever it meant before.
    Link {
        /// The directory.
        dir: FileId,
        /// The entry.
        name: Name,
        /// The inode it names.
        id: FileId,
    },
    /// Removes the entry `name` from `dir`.
    Unlink {
        /// The directory.
        dir: FileId,
        /// The entry.
        name: Name,
    },
    /// Replaces the bytes from `offset` on by the pieces, one after the other; the file grows if they end beyond it.
    Write {
        /// The file.
        id: FileId,
        /// Where the first piece begins, in bytes.
        offset: u64,
        /// Data and holes, in order.
        pieces: Vec<Piece>,
    },
    /// Sets the size: what is beyond it is dropped, what is new is a hole.
    Resize {
        /// The file.
        id: FileId,
        /// Its size from now on, in bytes.
        size: u64,
    },
    /// Ids below this one were used, though their inodes are gone. Only snapshots need it.
    Reserve {
        /// The lowest id that was never used.
        next_id: FileId,
    },
}
