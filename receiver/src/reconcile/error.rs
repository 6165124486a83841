//! Why a directory could not be made equal to a tree, and for which path.

use std::{io, path::PathBuf};

use rustix::io::Errno;
use thiserror::Error;
use tidelock_proto::ChunkId;

use super::apart::Keeps;

/// The reason a source of chunks gave.
pub type ChunksError = Box<dyn std::error::Error + Send + Sync>;

/// A reconcile ended early. What was done stays; running it again goes on from there.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// The target holds something, and overwriting was not asked for.
    #[error("{} is not empty; nothing was changed: choose another directory, or, if nobody needs what is there, say --overwrite: it makes it equal to the point and DELETES what is not in it", .0.display())]
    NotEmpty(PathBuf),
    /// The target was begun with another volume and is not finished.
    #[error("{} holds an unfinished copy of {holds}; nothing was changed: finish that one with --at, or say --overwrite", path.display())]
    Unfinished {
        /// The target.
        path: PathBuf,
        /// What its marker says it is a copy of.
        holds: String,
    },
    /// The target holds what an application wrote since an instant promotion, and nobody else has it.
    #[error("{} holds an instant promotion that is not complete, with what was written to it; nothing was changed: run `tidelock promote --instant` again", .0.display())]
    Instant(PathBuf),
    /// The root of the file system.
    #[error("/ cannot be a target; choose a directory")]
    FileSystemRoot,
    /// The target is what a receiver keeps.
    #[error("{} is {keeps}, and would be deleted; nothing was changed: choose a directory apart from it", path.display())]
    Kept {
        /// The target.
        path: PathBuf,
        /// What it is.
        keeps: Keeps,
    },
    /// The target lies inside what a receiver keeps.
    #[error("{} lies inside {}, which is {keeps}; nothing was changed: choose a directory apart from it", path.display(), above.display())]
    Inside {
        /// The target.
        path: PathBuf,
        /// What it lies in.
        keeps: Keeps,
        /// Where that is.
        above: PathBuf,
    },
    /// What a receiver keeps lies inside the target.
    #[error("{} holds {}, which is {keeps} and would be deleted; nothing was changed: choose a directory apart from it", path.display(), below.display())]
    Holds {
        /// The target.
        path: PathBuf,
        /// What is in it.
        keeps: Keeps,
        /// Where that is.
        below: PathBuf,
    },
    /// The target exists and is something else.
    #[error("{} is not a directory; choose another target", .0.display())]
    NotDirectory(PathBuf),
    /// Another file system is mounted inside the target.
    #[error("{} is on another file system than the target; unmount it, or choose another target", .0.display())]
    Mount(PathBuf),
    /// Devices can be made with CAP_MKNOD only.
    #[error("cannot create the device {}: this needs CAP_MKNOD", .0.display())]
    Device(PathBuf),
    /// A system call failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The chunks could not be had.
    #[error("cannot get the content")]
    Chunks(#[source] ChunksError),
    /// The source of chunks left some out, or a chunk ends before an extent that refers to it.
    #[error("chunk {0} is missing or too short for the file that refers to it")]
    Chunk(ChunkId),
    /// Another worker failed first, and its error is the one to show.
    #[error("stopped")]
    Stopped,
}

impl ReconcileError {
    /// Whether nothing was done on purpose, because something could be lost.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotEmpty(_)
                | Self::Instant(_)
                | Self::Unfinished { .. }
                | Self::FileSystemRoot
                | Self::Kept { .. }
                | Self::Inside { .. }
                | Self::Holds { .. }
        )
    }

    pub(super) fn io(what: &'static str, path: PathBuf, errno: Errno) -> Self {
        match errno {
            Errno::XDEV => Self::Mount(path),
            _ => Self::Io { what, path, source: errno.into() },
        }
    }
}
