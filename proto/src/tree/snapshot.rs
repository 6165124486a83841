//! A whole tree as operations: the form of manifests and checkpoints.
//!
//! Applying them to an empty tree gives an equal tree with an equal digest, so there is no second format and no second
//! way to build a tree. The order is that of ids, so that trees which differ little have snapshots which differ little,
//! and checkpoints share the chunks of what did not change.

use super::{Op, Tree};
use crate::limits;

impl Tree {
    /// The operations that build this tree from [`Tree::new`]: first every inode with its content, then every name.
    pub fn snapshot(&self) -> impl Iterator<Item = Op> {
        self.iter()
            .flat_map(|(id, _)| self.snapshot_inode(id))
            .chain(self.snapshot_names())
            .chain(std::iter::once(Op::Reserve { next_id: self.next_id }))
    }

    fn snapshot_inode(&self, id: crate::ids::FileId) -> Vec<Op> {
        let Some(inode) = self.get(id) else { return Vec::new() };
        let mut ops = vec![Op::Create { id, kind: inode.kind(), meta: inode.meta }];
        if !inode.xattrs.is_empty() {
            ops.push(Op::SetXattrs { id, xattrs: inode.xattrs.clone() });
        }
        let Some(extents) = inode.extents() else { return ops };
        ops.push(Op::Resize { id, size: extents.size() });
        let all: Vec<_> = extents.iter().collect();
        for group in all.chunks(limits::PIECES_PER_OP_MAX / 2) {
            let (Some((first, _)), Some((last, tail))) = (group.first(), group.last()) else { continue };
            let pieces = extents.pieces(*first, *last + u64::from(tail.len));
            ops.push(Op::Write { id, offset: *first, pieces });
        }
        ops
    }

    fn snapshot_names(&self) -> impl Iterator<Item = Op> {
        self.iter().flat_map(move |(dir, _)| {
            self.entries(dir).into_iter().flatten().map(move |(name, id)| Op::Link {
                dir,
                name: name.clone(),
                id: *id,
            })
        })
    }
}
