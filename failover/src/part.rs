//! A part of a volume: which names of a point are restored.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use tidelock_proto::{FileId, Op, Tree, tree::Name};
use tidelock_receiver::history::{Patterns, each_name};

use crate::error::FailoverError;

/// Which names of a point are meant: those that a pattern of `include` means (all, if there is none), and not those that one of `exclude`
/// does. A directory stands for everything below it.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// What is in.
    pub include: Patterns,
    /// What is not, though it is included.
    pub exclude: Patterns,
}

impl Part {
    /// Whether it is everything.
    pub fn is_whole(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// The tree with these names alone, and the directories that lead to them.
    pub(crate) fn of(&self, tree: Tree) -> Result<Tree, FailoverError> {
        if self.is_whole() {
            return Ok(tree);
        }
        let kept = self.names(&tree);
        if kept.is_empty() {
            return Err(FailoverError::NothingIncluded);
        }
        let inodes: BTreeSet<FileId> =
            kept.values().flatten().map(|(_, id)| *id).chain([FileId::ROOT]).collect();
        let mut part = Tree::new();
        for op in tree.snapshot() {
            let keep = match &op {
                Op::Create { id, .. }
                | Op::SetMeta { id, .. }
                | Op::SetXattrs { id, .. }
                | Op::Write { id, .. }
                | Op::Resize { id, .. } => inodes.contains(id),
                Op::Link { dir, name, id } => {
                    kept.get(dir).is_some_and(|names| names.contains(&(name.clone(), *id)))
                }
                Op::Unlink { .. } | Op::Reserve { .. } => true,
            };
            if keep {
                part.apply(&op)?;
            }
        }
        part.seal()?;
        Ok(part)
    }

    /// The entries that stay, by directory.
    fn names(&self, tree: &Tree) -> BTreeMap<FileId, BTreeSet<(Name, FileId)>> {
        let mut kept: BTreeMap<FileId, BTreeSet<(Name, FileId)>> = BTreeMap::new();
        // Directories that are meant, with all below them.
        let mut meant = BTreeSet::new();
        each_name(tree, FileId::ROOT, b"", &mut |named| {
            if self.exclude.matches(named.path) {
                return false;
            }
            let is_meant =
                self.include.is_empty() || meant.contains(&named.dir) || self.include.matches(named.path);
            if is_meant {
                if tree.entries(named.id).is_some() {
                    meant.insert(named.id);
                }
                // The way here: a directory has one name.
                let (mut dir, mut entry) = (named.dir, (named.name.clone(), named.id));
                while kept.entry(dir).or_default().insert(entry)
                    && let Some((above, name)) = tree.names(dir).next()
                {
                    (dir, entry) = (*above, (name.clone(), dir));
                }
            }
            true
        });
        kept
    }
}

impl fmt::Display for Part {
    /// For the marker of an unfinished copy: the same part has the same text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (word, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            for text in patterns.texts() {
                write!(f, " --{word} {text}")?;
            }
        }
        Ok(())
    }
}
