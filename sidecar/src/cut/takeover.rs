//! A tree that was captured from another directory: after a promotion, a move, or the way home.
//!
//! Inodes tell who is who only within one directory. In another one every file would be a new file, and all of its content would be cut
//! anew, at other boundaries than the receiver has. So where the root shows that the tree comes from elsewhere, what has the same name and
//! is of the same kind takes the place of what the tree has there, and is compared with it: only what differs is sent, and the
//! history of a file goes on.
//!
//! Nothing is believed of it but the name. No change time is taken over, so every byte is read and compared, as after a loss. An
//! inode of the tree is given away once; a second file that would be the same (one name of several) is a new file. What
//! no name leads to when the comparison ends was never here, and is removed as any other name that is gone.

use tidelock_proto::{
    FileId, Op,
    tree::{Content, Timestamp},
};

use super::{CutError, engine::Engine};
use crate::capture::Found;

impl Engine {
    /// Whether the volume's root is another directory than the tree's: then the rest of the tree is from there, too.
    pub(super) fn is_from_elsewhere(&self) -> bool {
        let found = Found::of(self.volume.root()).ok();
        found.is_some_and(|found| self.stage.identity(FileId::ROOT) != Some(found.identity()))
    }

    /// The files and directories that may be found under their names. Links and devices are as short as a question about them.
    pub(super) fn expect_by_name(&mut self) {
        let named = |content: &Content| matches!(content, Content::File(_) | Content::Directory(_));
        let inodes = self.stage.tree().iter().filter(|(_, inode)| named(&inode.content));
        self.elsewhere = inodes.map(|(id, _)| id).filter(|id| *id != FileId::ROOT).collect();
    }

    /// What was found under the name of `before`, and is none of the tree's inodes, becomes that inode if it may.
    pub(super) fn take_over(
        &mut self,
        before: Option<FileId>,
        found: &Found,
    ) -> Result<Option<FileId>, CutError> {
        let Some(id) = before.filter(|id| self.elsewhere.contains(id)) else { return Ok(None) };
        if !self.stage.get(id).is_some_and(|inode| found.is_kind(&inode.kind())) {
            return Ok(None);
        }
        self.elsewhere.remove(&id);
        self.stage.apply(Op::SetMeta { id, meta: found.meta(Timestamp::default()) })?;
        self.suspect(id);
        Ok(Some(id))
    }
}
