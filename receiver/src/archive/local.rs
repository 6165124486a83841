//! `STORE/archive`: what a store remembers of its archive. It names the store's directory as a writer of archives, so that after a
//! restart it goes on at once, while another one has to wait and to begin with what is archived.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::error::ArchiveError;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Local {
    /// A random name.
    pub(super) holder: [u8; 16],
    /// The archive was this store's once, so that a start does not need it.
    pub(super) attached: bool,
}

fn path(store: &Path) -> PathBuf {
    store.join("archive")
}

impl Local {
    /// What is remembered; a new name if this store had no archive yet.
    pub(super) fn read(store: &Path) -> Result<Option<Self>, ArchiveError> {
        let path = path(store);
        match fs::read(&path) {
            Ok(bytes) => {
                let read = serde_json::from_slice(&bytes).map_err(io::Error::other);
                Ok(Some(read.map_err(ArchiveError::local(&path))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ArchiveError::local(&path)(error)),
        }
    }

    pub(super) fn new() -> Self {
        Self { holder: rand::random(), attached: false }
    }

    /// Remembers it, durably and as a whole.
    pub(super) fn write(&self, store: &Path) -> Result<(), ArchiveError> {
        let (path, new) = (path(store), store.join("archive.new"));
        let write = || {
            let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(store)?.sync_all()
        };
        write().map_err(ArchiveError::local(&path))
    }
}
