//! The sidecar's tree and the operations staged for the next commit.

use std::collections::{BTreeSet, HashMap};

use tidelock_proto::{
    FileId, Op, Tree,
    tree::{Inode, TreeError},
};

use crate::capture::{Found, Identity};

/// The tree as captured so far, where its inodes are on the volume, and what the next commit will say.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    tree: Tree,
    by_inode: HashMap<u64, FileId>,
    /// Inodes that were seen with several names.
    hard_linked: BTreeSet<FileId>,
    ops: Vec<Op>,
    staged: u64,
}

impl Stage {
    /// Starts from a tree both sides agree on.
    pub(crate) fn new(tree: Tree) -> Self {
        let by_inode = tree.iter().map(|(id, inode)| (inode.meta.origin.inode, id)).collect();
        let hard_linked =
            tree.iter().map(|(id, _)| id).filter(|id| tree.names(*id).nth(1).is_some()).collect();
        Self { tree, by_inode, hard_linked, ops: Vec::new(), staged: 0 }
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The tree alone.
    #[cfg(test)]
    pub(crate) fn into_tree(self) -> Tree {
        self.tree
    }

    /// Applies an operation and stages it.
    pub(crate) fn apply(&mut self, op: Op) -> Result<(), TreeError> {
        self.tree.apply(&op)?;
        if let Op::Create { id, meta, .. } | Op::SetMeta { id, meta } = &op {
            self.by_inode.insert(meta.origin.inode, *id);
        }
        if let Op::Link { id, .. } = &op
            && self.tree.names(*id).nth(1).is_some()
        {
            self.hard_linked.insert(*id);
        }
        self.ops.push(op);
        self.staged += 1;
        Ok(())
    }

    /// Operations that were not handed over yet.
    pub(crate) fn take_ops(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.ops)
    }

    pub(crate) fn pending_ops(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is anything to commit.
    pub(crate) fn is_empty(&self) -> bool {
        self.staged == 0
    }

    /// Ends the commit; returns the inodes that are gone.
    pub(crate) fn seal(&mut self) -> Result<Vec<FileId>, TreeError> {
        let gone = self.tree.seal()?;
        self.staged = 0;
        for id in &gone {
            self.hard_linked.remove(id);
        }
        // Numbers of inodes that are gone stay until their number is used again or there are too many of them.
        if self.by_inode.len() as u64 > 2 * self.tree.totals().inodes + 1024 {
            self.by_inode.retain(|_, id| self.tree.get(*id).is_some());
        }
        Ok(gone)
    }

    /// Inodes that have, or had, several names.
    pub(crate) fn hard_linked(&self) -> Vec<FileId> {
        self.hard_linked.iter().copied().collect()
    }

    /// The inode of the tree that has this number on the volume. Numbers that it had in another directory stay behind, and mean other
    /// files of the file system by now: what is announced of those is not its own.
    pub(crate) fn at_inode(&self, inode: u64) -> Option<FileId> {
        let has_number =
            |id: &FileId| self.tree.get(*id).is_some_and(|known| known.meta.origin.inode == inode);
        self.by_inode.get(&inode).copied().filter(has_number)
    }

    pub(crate) fn get(&self, id: FileId) -> Option<&Inode> {
        self.tree.get(id)
    }

    /// Where an inode of the tree is on the volume.
    pub(crate) fn identity(&self, id: FileId) -> Option<Identity> {
        let origin = self.tree.get(id)?.meta.origin;
        Some(Identity { inode: origin.inode, generation: origin.generation })
    }

    /// The inode of the tree that was found on the volume, if it is one the tree knows.
    pub(crate) fn known(&self, found: &Found) -> Option<FileId> {
        let identity = found.identity();
        let id = self.at_inode(identity.inode)?;
        let inode = self.tree.get(id)?;
        // The number may also be one that the root had elsewhere, before a failover.
        let same = self.identity(id) == Some(identity) && found.is_kind(&inode.kind());
        same.then_some(id)
    }
}
