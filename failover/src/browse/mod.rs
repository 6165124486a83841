//! Looking into recovery points without restoring them: `ls`, `cat`, `diff`, `find`, `stats`.
//!
//! What is asked for is what is fetched: names and attributes come with the tree of a point, content only in [`cat()`], and only the
//! chunks of the range that is read. [`find()`] and [`stats()`] are answered where the store is. Looking takes fuzzy points, too:
//! nobody starts an application on a list.

mod cat;
mod diff;
mod find;
mod ls;
mod path;
mod stats;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use tidelock_proto::{FileId, Tree, VolumeName, tree::Name};

pub use cat::{CatReport, cat};
pub use diff::{Change, ChangeKind, DiffReport, diff};
pub use find::{FindOptions, FindReport, FoundReport, Span, find};
pub use ls::{Entry, EntryKind, LsReport, ls};
pub use path::{PathError, VolumePath};
pub use stats::{StatsReport, stats};

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    report::{Choice, choose},
};

/// A point that is looked into.
struct View {
    choice: Choice,
    tree: Tree,
}

impl View {
    fn open(access: &Access, volume: &VolumeName, at: &At) -> Result<Self, FailoverError> {
        let choice = choose(access, volume, at, true, SystemTime::now())?;
        let tree = access.tree(volume, &choice.point)?;
        Ok(Self { choice, tree })
    }

    /// What a path names. Links are not followed: where they lead may be outside of the volume.
    fn lookup(&self, path: &VolumePath) -> Result<FileId, FailoverError> {
        let missing = || FailoverError::NoPath { point: self.choice.point.id, path: path.clone() };
        let mut id = FileId::ROOT;
        self.tree.get(id).ok_or_else(missing)?;
        for name in path.names() {
            let name = Name::new(name).map_err(|_| missing())?;
            id = self.tree.lookup(id, &name).ok_or_else(missing)?;
        }
        Ok(id)
    }
}
