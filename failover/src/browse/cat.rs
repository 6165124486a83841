//! The content of one file at a point, in order, and no more of it than is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    ops::Range,
};

use bytes::Bytes;
use serde::Serialize;
use tidelock_proto::{ChunkId, VolumeName, tree::Piece};
use tidelock_receiver::reconcile::Chunks;

use super::{View, VolumePath, ls::EntryKind};
use crate::{access::Access, at::At, error::FailoverError, limits, report::PointReport};

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point that was looked into.
    pub point: PointReport,
    /// The file.
    #[serde(flatten)]
    pub path: VolumePath,
    /// Its length, in bytes.
    pub size: u64,
    /// The first byte that was read.
    pub offset: u64,
    /// How many were.
    pub bytes: u64,
    /// Chunks that were fetched for them.
    pub chunks_fetched: u64,
}

/// Writes the bytes `range` of a file to `out`, as far as it has them.
pub fn cat(
    access: &Access,
    volume: &VolumeName,
    at: &At,
    path: &VolumePath,
    range: Range<u64>,
    out: &mut dyn Write,
) -> Result<CatReport, FailoverError> {
    let view = View::open(access, volume, at)?;
    let id = view.lookup(path)?;
    let inode = view.tree.get(id);
    let Some(extents) = inode.and_then(|inode| inode.extents()) else {
        let kind = inode.map_or(EntryKind::Directory, |inode| EntryKind::of(&inode.content));
        return Err(FailoverError::NotAFile { path: path.clone(), kind });
    };
    let end = range.end.min(extents.size());
    let start = range.start.min(end);
    let chunks = access.chunks(volume);
    let mut fetched = 0;
    let pieces = extents.pieces(start, end);
    for batch in pieces.chunk_by(same_batch(limits::CAT_BATCH_BYTES)) {
        fetched += write(&*chunks, batch, out)?;
    }
    out.flush().map_err(FailoverError::Output)?;
    Ok(CatReport {
        volume: volume.to_string(),
        point: view.choice.report(),
        path: path.clone(),
        size: extents.size(),
        offset: start,
        bytes: end - start,
        chunks_fetched: fetched,
    })
}

/// Cuts pieces into batches that keep about this many bytes of content in memory.
fn same_batch(batch_bytes: u64) -> impl FnMut(&Piece, &Piece) -> bool {
    let mut bytes = 0;
    move |before, _| {
        bytes += before.chunk.map_or(0, |_| tidelock_proto::limits::CHUNK_MAX_BYTES as u64);
        let more = bytes < batch_bytes;
        if !more {
            bytes = 0;
        }
        more
    }
}

/// Fetches what the pieces refer to, then writes them. Tells how many chunks were fetched.
fn write(chunks: &dyn Chunks, pieces: &[Piece], out: &mut dyn Write) -> Result<u64, FailoverError> {
    let wanted: BTreeSet<ChunkId> =
        pieces.iter().filter_map(|piece| piece.chunk).map(|chunk| chunk.id).collect();
    let ids: Vec<ChunkId> = wanted.into_iter().collect();
    let mut content: BTreeMap<ChunkId, Bytes> = BTreeMap::new();
    if !ids.is_empty() {
        let fetched = chunks.fetch(&ids, &mut |index, bytes| {
            content.insert(ids[index], bytes);
            true
        });
        fetched.map_err(FailoverError::Content)?;
    }
    let zeros = [0; 64 * 1024];
    for piece in pieces {
        let Some(chunk) = piece.chunk else {
            let mut rest = piece.len;
            while rest > 0 {
                let step = rest.min(zeros.len() as u64);
                out.write_all(&zeros[..step as usize]).map_err(FailoverError::Output)?;
                rest -= step;
            }
            continue;
        };
        let from = chunk.at as usize;
        let part = content.get(&chunk.id).and_then(|bytes| bytes.get(from..from + piece.len as usize));
        let part = part.ok_or(FailoverError::LostChunk(chunk.id))?;
        out.write_all(part).map_err(FailoverError::Output)?;
    }
    Ok(ids.len() as u64)
}
