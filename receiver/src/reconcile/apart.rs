//! What is never a target: the store of a receiver, its archive in a directory, its directory of hot images, what lies inside one, and what holds one.
//!
//! A mistyped `--to` beside `--overwrite` would delete every copy there is, under a receiver that runs. So whoever names a target is held to it
//! before anything is made or removed: upwards in all cases, downwards where content may be deleted.
//!
//! The limit: downwards [`limits::RECONCILE_APART_DIRECTORIES`] directories are looked into, the highest first, without following a link. What lies behind
//! them is not seen, nor what this user may not list (and so not delete either, unless it is their own).
//!
//! The price: a volume that itself holds a store (somebody replicates a receiver) can be restored into an empty directory alone, not over what is there.

use std::{collections::VecDeque, ffi::OsStr, fmt, fs, path::Path};

use super::error::ReconcileError;
use crate::{archive::is_archive, limits, store::is_store};

/// The file by which a directory of hot images is known.
pub(crate) const IMAGES: &str = ".tidelock-images";

/// What a receiver keeps in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Its store.
    Store,
    /// Its hot images.
    Images,
    /// The archive of its store.
    Archive,
}

impl fmt::Display for Keeps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Store => "the store of a receiver",
            Self::Images => "the directory of a receiver's hot images",
            Self::Archive => "the archive of a receiver",
        })
    }
}

fn keeps(dir: &Path) -> Option<Keeps> {
    match () {
        () if dir.join(IMAGES).is_file() => Some(Keeps::Images),
        () if is_store(dir) => Some(Keeps::Store),
        () if is_archive(dir) => Some(Keeps::Archive),
        () => None,
    }
}

/// The directory, which need not be there, is not inside what a receiver keeps.
pub(super) fn check_above(directory: &Path) -> Result<(), ReconcileError> {
    let fail = |source| ReconcileError::Io { what: "look at", path: directory.to_owned(), source };
    let mut full = std::path::absolute(directory).map_err(fail)?;
    let mut is_there = true;
    // What is not there is made inside of what is.
    while !full.try_exists().unwrap_or(true) && full.pop() {
        is_there = false;
    }
    let full = fs::canonicalize(&full).map_err(fail)?;
    if is_there && full == Path::new("/") {
        return Err(ReconcileError::FileSystemRoot);
    }
    // Itself is looked at from within, where that matters.
    let inside = full.ancestors().skip(usize::from(is_there)).find_map(|above| Some((above, keeps(above)?)));
    match inside {
        Some((above, keeps)) => {
            Err(ReconcileError::Inside { path: directory.to_owned(), keeps, above: above.to_owned() })
        }
        None => Ok(()),
    }
}

/// The directory neither is what a receiver keeps nor holds it.
pub(super) fn check_within(directory: &Path) -> Result<(), ReconcileError> {
    let mut next = VecDeque::from([directory.to_owned()]);
    let mut looked = 0;
    while let Some(dir) = next.pop_front().filter(|_| looked < limits::RECONCILE_APART_DIRECTORIES) {
        looked += 1;
        // Whoever deletes says what cannot be listed.
        let (mut below, mut suspect) = (Vec::new(), false);
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name();
            suspect |= [IMAGES, "log", "chain"].iter().any(|suspicious| name == OsStr::new(suspicious));
            if is_dir {
                below.push(entry.path());
            }
        }
        if let Some(keeps) = suspect.then(|| keeps(&dir)).flatten() {
            let path = directory.to_owned();
            return Err(match dir == directory {
                true => ReconcileError::Kept { path, keeps },
                false => ReconcileError::Holds { path, keeps, below: dir },
            });
        }
        // Of a directory with more than that nothing further would be looked at.
        let room = limits::RECONCILE_APART_DIRECTORIES.saturating_sub(looked + next.len());
        next.extend(below.into_iter().take(room));
    }
    Ok(())
}
