//! Names that are left out (see [`crate::excludes`]).
//!
//! To the tree they are as if they were not there. What happens to the bytes behind them must not keep a cut from
//! converging, so their content events are dropped as they come; events that concern names are not, because the inode may
//! have, or get, another name that is not left out. Where there are hard links in the volume all are looked up, which costs
//! rounds. With inotify alone one way remains to change such an inode unseen: through a name in a directory that is left
//! out, which is not watched.

use tidelock_proto::{FileId, Op, tree::Name};

use super::{CutError, dirty::EntryHint, engine::Engine};
use crate::capture::Found;

impl Engine {
    pub(super) fn is_excluded(&self, dir: FileId, name: &[u8]) -> bool {
        self.excludes.contain(dir == FileId::ROOT, name, || self.stage.tree().path(dir))
    }

    /// Whether a change of bytes that was announced by this name is nobody's: the name is left out, and cannot be one of
    /// several that its inode has.
    pub(super) fn is_excluded_content(&self, dir: FileId, name: &[u8]) -> bool {
        !self.links_seen && self.is_excluded(dir, name)
    }

    /// An excluded entry was looked up: it has no place in the tree, its inode may have one under another name.
    pub(super) fn capture_excluded(
        &mut self,
        dir: FileId,
        name: &Name,
        found: Option<&Found>,
        hint: EntryHint,
    ) -> Result<(), CutError> {
        if self.stage.tree().lookup(dir, name).is_some() {
            self.stage.apply(Op::Unlink { dir, name: name.clone() })?;
        }
        match found.and_then(|found| self.stage.known(found)) {
            Some(id) if hint.content => self.suspect(id),
            Some(id) => self.dirty.file(id).attributes = true,
            None => {}
        }
        Ok(())
    }
}
