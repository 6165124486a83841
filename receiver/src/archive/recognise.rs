//! Whether a directory is an archive, for those who are about to write where they have no business.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use super::{
    entry::MAGIC,
    manifest::{CHAIN, entry_number},
};

/// Entries that are looked into: an application may have a directory `chain` with numbers in it, and one entry may be damaged.
const ENTRIES: usize = 16;

/// Whether `dir` holds the chain of an archive.
pub(crate) fn is_archive(dir: &Path) -> bool {
    let Ok(chain) = fs::read_dir(dir.join(CHAIN)) else { return false };
    let numbered = chain.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| entry_number(&format!("{CHAIN}/{name}")).is_some())
    });
    numbered.take(ENTRIES).any(|entry| is_entry(&entry.path()))
}

fn is_entry(path: &Path) -> bool {
    // What is a pipe or a device may never answer.
    let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    let mut magic = [0; MAGIC.len()];
    is_file && File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *MAGIC
}
