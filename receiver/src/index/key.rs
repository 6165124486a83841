//! The keys of the index. Every key begins with its kind, so that one ordered space holds them all.
//!
//! ```text
//! volume      'v' volume
//! point       'p' volume 0 epoch u64 seq u64
//! tag         't' volume 0 epoch u64 seq u64 tag
//! checkpoint  'k' volume 0 epoch u64 seq u64
//! retired     'r'                    one entry: the segments that may be gone
//! encrypted   'e' tenant             a tenant with encrypted records: which key they need
//! behind      'b' tenant             some of its records were not taken in, because its key was missing
//! stale       's'                    the index lacks something that the log has: it is made anew when the store is opened
//! chunk       tenant 0 id            in a table of its own: random keys, point reads
//! ```
//! Numbers are big-endian here, so that the order of the bytes is that of the points. Volume names have no zero byte.

use tidelock_proto::{ChunkId, Epoch, PointId, Seq, VolumeName};

/// The space of points.
pub(crate) const POINT: u8 = b'p';
/// The space of tags.
pub(crate) const TAG: u8 = b't';
/// The space of checkpoints.
pub(crate) const CHECKPOINT: u8 = b'k';
/// The segments that may be gone: one entry.
pub(crate) const RETIRED: u8 = b'r';
/// The space of encrypted tenants.
pub(crate) const ENCRYPTED: u8 = b'e';
/// The space of tenants whose records are not all in the index.
pub(crate) const BEHIND: u8 = b'b';
/// What is here only in an index that is to be made anew.
pub(crate) const STALE: u8 = b's';
/// The space of volumes.
pub(crate) const VOLUME: u8 = b'v';

pub(crate) fn chunk(tenant: &str, id: &ChunkId) -> Vec<u8> {
    let mut key = Vec::with_capacity(tenant.len() + 33);
    key.extend_from_slice(tenant.as_bytes());
    key.push(0);
    key.extend_from_slice(&id.0);
    key
}

/// What keys of a tenant's chunks begin with.
pub(crate) fn chunks_of(tenant: &str) -> Vec<u8> {
    [tenant.as_bytes(), &[0]].concat()
}

/// The id in a key of a chunk.
pub(crate) fn chunk_id(key: &[u8]) -> Option<ChunkId> {
    ChunkId::from_slice(key.last_chunk::<32>()?)
}

/// A key of a tenant in one of the spaces [`ENCRYPTED`], [`BEHIND`].
pub(crate) fn of_tenant(space: u8, tenant: &str) -> Vec<u8> {
    format!("{}{tenant}", space as char).into_bytes()
}

/// The tenant that an entry of the catalogue belongs to; `None` of those that say nothing of a volume.
pub(crate) fn tenant(key: &[u8]) -> Option<&str> {
    let (space, rest) = key.split_first()?;
    if ![VOLUME, POINT, TAG, CHECKPOINT].contains(space) {
        return None;
    }
    std::str::from_utf8(rest.split(|byte| *byte == b'/').next()?).ok()
}

/// Whether the key holds a name behind its point.
pub(crate) fn is_named(key: &[u8]) -> bool {
    key.first() == Some(&TAG)
}

/// The name behind the point of a key.
pub(crate) fn name(key: &[u8]) -> &[u8] {
    read_point(key).map_or(&[], |(_, name)| name)
}

/// The key with another name.
pub(crate) fn renamed(key: &[u8], other: &[u8]) -> Vec<u8> {
    [&key[..key.len() - name(key).len()], other].concat()
}

pub(crate) fn volume(volume: &VolumeName) -> Vec<u8> {
    format!("{}{volume}", VOLUME as char).into_bytes()
}

/// A key of a point in one of the spaces [`POINT`], [`CHECKPOINT`], [`TAG`].
pub(crate) fn point(space: u8, volume: &VolumeName, id: PointId) -> Vec<u8> {
    let mut key = format!("{}{volume}\0", space as char).into_bytes();
    key.extend_from_slice(&id.epoch.0.to_be_bytes());
    key.extend_from_slice(&id.seq.0.to_be_bytes());
    key
}

pub(crate) fn tag(volume: &VolumeName, id: PointId, tag: &str) -> Vec<u8> {
    let mut key = point(TAG, volume, id);
    key.extend_from_slice(tag.as_bytes());
    key
}

/// The point in a key of one of the point spaces, and what follows it.
pub(crate) fn read_point(key: &[u8]) -> Option<(PointId, &[u8])> {
    let start = key.iter().position(|byte| *byte == 0)? + 1;
    let number = |at: usize| Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    let id = PointId::new(Epoch(number(start)?), Seq(number(start + 8)?));
    Some((id, &key[start + 16..]))
}
