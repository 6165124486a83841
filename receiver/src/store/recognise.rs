//! Whether a directory is a store, without opening it: for those who are about to write where they have no business.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use crate::log::frame::{RECORDS_START, SegmentHeader};

/// Segments of which the header is read; one that is damaged, or not fetched yet, must not hide the store.
const HEADERS: usize = 16;

/// Whether `dir` holds the log of a store. An application may have directories named `log`, and files in them named like segments: one has to say of itself that it is
/// a segment, or a lock and an index have to lie beside the log.
pub(crate) fn is_store(dir: &Path) -> bool {
    let Ok(log) = fs::read_dir(dir.join("log")) else { return false };
    let named = log.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_segment));
    let beside = dir.join("lock").is_file() && dir.join("index").is_dir();
    named.take(HEADERS).any(|entry| beside || has_header(&entry.path()))
}

fn is_segment(name: &str) -> bool {
    let number = name.strip_suffix(".seg");
    number.is_some_and(|number| number.len() == 10 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn has_header(path: &Path) -> bool {
    let mut page = Vec::new();
    // What is a pipe or a device is no segment, and may never answer.
    let is_file = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    let mut read = || File::open(path)?.take(RECORDS_START).read_to_end(&mut page);
    is_file && read().is_ok() && SegmentHeader::decode(&page).is_some()
}
