//! What makes the files of an upper layer durable. Tests put one in its place that loses what was not synced.

use std::{fs::File, io, os::fd::AsFd, sync::Arc};

/// A disk as far as order matters to it: nothing is durable before one of these has returned.
pub(crate) trait Disk: Send + Sync {
    /// Makes the content of a file durable, and its length.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_names(&self, dir: &dyn AsFd) -> io::Result<()>;
}

/// The one there is.
pub(crate) struct Real;

impl Disk for Real {
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_names(&self, dir: &dyn AsFd) -> io::Result<()> {
        Ok(rustix::fs::fsync(dir.as_fd())?)
    }
}

/// The one there is.
pub(crate) fn real() -> Arc<dyn Disk> {
    Arc::new(Real)
}
