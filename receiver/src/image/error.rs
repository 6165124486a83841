//! Why an image is not what it should be. Replication goes on all the same.

use std::{io, path::PathBuf};

use thiserror::Error;
use tidelock_proto::{PointId, VolumeName};

use crate::{reconcile::ReconcileError, store::StoreError};

/// An image cannot be made, kept or given away.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Another receiver, or a promotion, works there.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// What the image says it is unfinished with would be in the way.
    #[error("volume {0} has a file named .tidelock-incomplete in its root: no image is kept of it")]
    Marked(VolumeName),
    /// Somebody took it away.
    #[error("{} was removed, or something else is in its place", .0.display())]
    Gone(PathBuf),
    /// There is none now.
    #[error("there is no image of {volume} that follows: {state}")]
    Absent {
        /// The volume.
        volume: VolumeName,
        /// What there is instead.
        state: String,
    },
    /// The operations of a point do not lead to its tree.
    #[error("the operations of point {0} lead to another tree")]
    Digest(PointId),
    /// The directory could not be made right.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
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
}

impl ImageError {
    /// All there is to say, on one line.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        line
    }
}
