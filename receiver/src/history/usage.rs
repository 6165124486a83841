//! How much a point, or all of a volume's points, take in the store. Only the index is asked, no content is read.

use std::collections::HashSet;

use serde::Serialize;
use tidelock_proto::{ChunkId, Epoch, PointId, Seq, Tree, VolumeName, tree::Content};

use super::walk::{Touched, Visit, walk};
use crate::{
    limits,
    store::{Store, StoreError},
};

/// What a point or a history takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Points looked at.
    pub points: u64,
    /// Regular files of the last of them.
    pub files: u64,
    /// Directories of it, the root among them.
    pub directories: u64,
    /// Everything else in it.
    pub others: u64,
    /// The sizes of its files, holes included, in bytes.
    pub size_bytes: u64,
    /// What of that is no hole, in bytes.
    pub data_bytes: u64,
    /// Distinct chunks of all points looked at.
    pub chunks: u64,
    /// Their content, in bytes.
    pub chunk_bytes: u64,
    /// What they take in the log, compressed and with their headers, in bytes.
    pub stored_bytes: u64,
    /// Those of them that are nowhere.
    pub missing_chunks: u64,
}

/// What one point takes.
pub fn usage(store: &Store, volume: &VolumeName, point: PointId) -> Result<Usage, StoreError> {
    let _pin = store.pin(volume, point)?;
    let tree = store.tree_at(volume, point)?;
    let mut sum = Usage { points: 1, ..of_tree(&tree) };
    let mut seen = HashSet::new();
    add(store, volume, &mut seen, &mut sum, chunks_of(&tree))?;
    Ok(sum)
}

/// What all points of a volume take together, old lines among them.
pub fn usage_of_all(store: &Store, volume: &VolumeName) -> Result<Usage, StoreError> {
    let info = store.volume(volume).ok_or_else(|| store.no_volume(volume))?;
    let (mut sum, mut seen, mut failed) = (Usage::default(), HashSet::new(), None);
    let mut points = 0;
    for last in ends(store, volume, info.epoch)? {
        let first = PointId::new(last.epoch, Seq(1));
        walk(store, volume, first, last, &mut |Visit { point, tree, touched }| {
            points += 1;
            let chunks: Vec<ChunkId> = match touched {
                Some(Touched { chunks, .. }) => chunks.clone(),
                None => chunks_of(tree).collect(),
            };
            if let Err(error) = add(store, volume, &mut seen, &mut sum, chunks.into_iter()) {
                failed = Some(error);
            }
            if point.id == info.last.id {
                let newest = of_tree(tree);
                sum = Usage {
                    chunks: sum.chunks,
                    chunk_bytes: sum.chunk_bytes,
                    stored_bytes: sum.stored_bytes,
                    missing_chunks: sum.missing_chunks,
                    ..newest
                };
            }
            failed.is_none()
        })?;
        if let Some(error) = failed.take() {
            return Err(error);
        }
    }
    Ok(Usage { points, ..sum })
}

/// The newest point of every epoch.
fn ends(store: &Store, volume: &VolumeName, newest: Epoch) -> Result<Vec<PointId>, StoreError> {
    let mut ends = Vec::new();
    let mut before = PointId::new(newest.next(), Seq(0));
    while let Some(last) = store.points_before(volume, before, 1)?.pop() {
        ends.push(last.id);
        before = PointId::new(last.id.epoch, Seq(0));
    }
    ends.reverse();
    Ok(ends)
}

fn of_tree(tree: &Tree) -> Usage {
    let mut sum = Usage { data_bytes: tree.totals().data_bytes, ..Usage::default() };
    for (_, inode) in tree.iter() {
        match &inode.content {
            Content::File(extents) => {
                sum.files += 1;
                sum.size_bytes += extents.size();
            }
            Content::Directory(_) => sum.directories += 1,
            _ => sum.others += 1,
        }
    }
    sum
}

fn chunks_of(tree: &Tree) -> impl Iterator<Item = ChunkId> {
    let extents = tree.iter().filter_map(|(_, inode)| inode.extents());
    extents.flat_map(|extents| extents.iter().map(|(_, extent)| extent.chunk.id))
}

fn add(
    store: &Store,
    volume: &VolumeName,
    seen: &mut HashSet<ChunkId>,
    sum: &mut Usage,
    chunks: impl Iterator<Item = ChunkId>,
) -> Result<(), StoreError> {
    for id in chunks {
        if !seen.insert(id) {
            continue;
        }
        if seen.len() > limits::USAGE_CHUNKS_MAX {
            return Err(StoreError::Limit("chunks of these points are"));
        }
        sum.chunks += 1;
        match store.chunk_size(volume.tenant(), &id)? {
            Some((content, stored)) => {
                sum.chunk_bytes += content;
                sum.stored_bytes += stored;
            }
            None => sum.missing_chunks += 1,
        }
    }
    Ok(())
}
