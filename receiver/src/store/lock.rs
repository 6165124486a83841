//! One process for each store: an advisory lock that ends with the process, however it ends.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use super::StoreError;

/// Held as long as it lives.
#[derive(Debug)]
pub(super) struct StoreLock(#[allow(dead_code, reason = "closing the file is what releases the lock")] File);

impl StoreLock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(StoreError::dir(dir, "cannot open its lock file"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only for the message: the holder may be writing it right now.
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
                return Err(StoreError::Locked { dir: dir.to_owned(), pid });
            }
            Err(error) => return Err(StoreError::dir(dir, "cannot lock it")(error.into())),
        }
        file.set_len(0)
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(StoreError::dir(dir, "cannot write its lock file"))?;
        Ok(Self(file))
    }
}
