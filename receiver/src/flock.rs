//! An advisory lock on a file: it ends with whoever holds it, however that ends.
//!
//! It belongs to the open file and not to its descriptor. A child process has a copy of every descriptor from `fork` until it executes its program, so closing ours would leave the file locked for that moment,
//! and whoever opens it next would be told that it is in use. So it is unlocked, and not only closed.

use std::{fs::File, io};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

/// Held as long as it lives.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks a file; gives it back if somebody else holds it.
    pub fn take(file: File) -> io::Result<Result<Self, File>> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Ok(Self(file))),
            Err(Errno::WOULDBLOCK) => Ok(Err(file)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // If it fails, closing is what is left.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_a_child_still_has_keeps_nobody_out() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = || File::create(dir.path().join("lock")).expect("it can be made");
        let lock = FileLock::take(open()).expect("it can be locked").expect("nobody has it");
        assert!(FileLock::take(open()).expect("it can be looked at").is_err(), "one at a time");
        // As a child has it between `fork` and `exec`.
        let copy = lock.file().try_clone().expect("a descriptor");
        drop(lock);
        assert!(FileLock::take(open()).expect("it can be looked at").is_ok(), "nobody has it any more");
        drop(copy);
    }
}
