//! The files beside a segment that is not whole.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;

use super::super::{
    disk::{DirDisk, Disk},
    outline::{HASH_BYTES, Outline},
};
use crate::limits;

/// The `.part` file.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PartBody {
    #[prost(uint64, tag = "1")]
    pub(super) len: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) source: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) hashes: Bytes,
    /// BLAKE3 of the `.outline` file.
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) outline: Bytes,
}

/// Makes a segment of which nothing but its outline is here. The directory is not in use yet and is synced by the caller.
pub(crate) fn create(
    dir: &Path,
    segment: u32,
    outline: &Outline,
    bytes: &Bytes,
    source: Bytes,
) -> io::Result<()> {
    let file = DirDisk::new(dir).create(segment)?;
    file.write_at(outline.page(), 0)?;
    file.truncate(outline.len())?;
    file.sync()?;
    let hash = blake3::hash(bytes);
    let body = PartBody {
        len: outline.len(),
        source,
        hashes: outline.hashes(),
        outline: Bytes::copy_from_slice(hash.as_bytes()),
    };
    let body = body.encode_to_vec();
    let checked = [&blake3::hash(&body).as_bytes()[..], &body].concat();
    write_synced(&outline_path(dir, segment), bytes)?;
    write_synced(&part_path(dir, segment), &checked)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

pub(super) fn part_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:010}.part"))
}

pub(super) fn outline_path(dir: &Path, segment: u32) -> PathBuf {
    dir.join(format!("{segment:010}.outline"))
}

pub(super) fn read_part(dir: &Path, segment: u32) -> io::Result<PartBody> {
    let bytes = Bytes::from(std::fs::read(part_path(dir, segment))?);
    let body = bytes.get(32..).filter(|body| blake3::hash(body).as_bytes()[..] == bytes[..32]);
    let body = body.and_then(|body| PartBody::decode(body).ok());
    let fits = |body: &PartBody| {
        body.hashes.len() as u64 == body.len.div_ceil(limits::OUTLINE_BLOCK_BYTES) * HASH_BYTES as u64
    };
    let damaged = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} is damaged: what is missing of the segment is in the archive; start with an empty --store",
                part_path(dir, segment).display()
            ),
        )
    };
    body.filter(fits).ok_or_else(damaged)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
