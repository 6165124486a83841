//! One process for each store: an advisory lock that ends with the process, however it ends.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    path::Path,
};

use super::StoreError;
use crate::flock::FileLock;

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct StoreLock(#[allow(dead_code, reason = "dropping it is what releases the lock")] FileLock);

impl StoreLock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(StoreError::dir(dir, "cannot open its lock file"))?;
        let lock = match FileLock::take(file).map_err(StoreError::dir(dir, "cannot lock it"))? {
            Ok(lock) => lock,
            Err(mut held) => {
                let mut pid = String::new();
                // Only for the message: the holder may be writing it right now.
                let _ = held.read_to_string(&mut pid);
                let pid = if pid.is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
                return Err(StoreError::Locked { dir: dir.to_owned(), pid });
            }
        };
        let mut file = lock.file();
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(StoreError::dir(dir, "cannot write its lock file"))?;
        Ok(Self(lock))
    }
}
