//! A volume out of a point of another one: its first point has the same tree and refers to the same chunks.
//!
//! Nothing is copied but the operations that build the tree. The chunks are there already, because a point of the same tenant
//! refers to them; whatever gives space back counts the references of all volumes. The commit is one record, so the new volume
//! is there whole or not at all.

use std::collections::BTreeSet;

use tidelock_proto::{
    ChunkId, Epoch, PointId, Seq, Tree, VolumeName,
    point::{Cut, Point},
};

use super::{Batch, Commit, Record, Store, StoreError, encode_model_ops};

impl Store {
    /// Makes the volume `to` of a point, as its first point, cut when that one was; it keeps its consistency and its
    /// conditions, and carries a tag that says where it comes from. Fails if there is a volume `to`. `received_ns` is
    /// now, in nanoseconds since 1970. Waits until it is durable.
    pub fn clone_volume(
        &self,
        volume: &VolumeName,
        point: PointId,
        to: &VolumeName,
        received_ns: u64,
    ) -> Result<Point, StoreError> {
        if volume.tenant() != to.tenant() {
            return Err(StoreError::OtherTenant(volume.clone(), to.clone()));
        }
        if self.volume(to).is_some() {
            return Err(StoreError::VolumeExists(to.clone()));
        }
        // Until the clone refers to them, its chunks are there because this point is.
        let _pin = self.pin(volume, point)?;
        let origin = self.point(volume, point)?;
        let tree = self.tree_at(volume, point)?;
        // A compaction under way may have looked for what is needed before there is the clone, and look at the volume after that was deleted.
        let lease = self.lease(to.tenant());
        for id in chunks_of(&tree) {
            lease.count_on(&id);
            if !self.has_chunk_or_pending(to.tenant(), id)? {
                return Err(StoreError::NoSuchChunk(id));
            }
        }
        let cut = Cut { group: Vec::new(), digest: tree.digest(), ..origin.cut };
        let id = PointId::new(self.deleted(to).unwrap_or(Epoch::FIRST), Seq(1));
        let tags = vec![format!("clone of {} {point}", volume.name())];
        let first = Point { id, parent: None, cut, received_ns, tags };
        let ops = encode_model_ops(tree.snapshot());
        let commit = Commit { volume: to.clone(), point: first.clone(), ops };
        match self.append_and_wait(Batch::of(Record::Commit(commit))) {
            // Somebody else made it meanwhile.
            Err(StoreError::OutOfOrder { .. }) => Err(StoreError::VolumeExists(to.clone())),
            done => done.map(|()| first),
        }
    }
}

fn chunks_of(tree: &Tree) -> BTreeSet<ChunkId> {
    let extents = tree.iter().filter_map(|(_, inode)| inode.extents());
    extents.flat_map(|extents| extents.iter().map(|(_, extent)| extent.chunk.id)).collect()
}
