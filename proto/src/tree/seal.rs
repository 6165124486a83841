//! `Tree::seal`: the end of a commit, where the table must be a tree again.

use super::{Content, Inode, Tree, TreeError};
use crate::ids::FileId;

impl Tree {
    /// Ends a commit: removes inodes that have no name any more (and, with a directory, what only it named), then
    /// checks that every directory has exactly one parent and reaches the root.
    ///
    /// Only inodes whose names changed since the last call are looked at, so the cost follows the commit, not the tree.
    /// Returns the inodes that are gone.
    pub fn seal(&mut self) -> Result<Vec<FileId>, TreeError> {
        let mut gone = Vec::new();
        self.seal_with(&mut |id, _| gone.push(id))?;
        Ok(gone)
    }

    /// [`Tree::seal`], which shows every inode that goes as it was at the end; of a directory this tells the entries that go with it.
    pub fn seal_with(&mut self, gone: &mut dyn FnMut(FileId, &Inode)) -> Result<(), TreeError> {
        if !self.inodes.contains_key(&FileId::ROOT) {
            return Err(TreeError::Root);
        }
        let mut renamed = Vec::new();
        // Forgetting a directory adds what it named, which may have a lower or a higher id.
        while let Some(id) = self.relinked.pop_first() {
            if id != FileId::ROOT && !self.names.contains_key(&id) {
                self.forget(id, gone);
            } else {
                renamed.push(id);
            }
        }
        renamed.into_iter().try_for_each(|id| self.check_parents(id))
    }

    fn check_parents(&self, id: FileId) -> Result<(), TreeError> {
        let Some(inode) = self.get(id) else { return Ok(()) };
        if !matches!(inode.content, Content::Directory(_)) {
            return Ok(());
        }
        let mut at = id;
        let mut steps = 0;
        while at != FileId::ROOT {
            let mut names = self.names(at);
            let parent = names.next().map(|(dir, _)| *dir);
            // Two steps per inode would mean that the walk goes round.
            let (Some(parent), None, true) = (parent, names.next(), steps <= self.inodes.len()) else {
                return Err(TreeError::NotTree(id));
            };
            at = parent;
            steps += 1;
        }
        Ok(())
    }
}
