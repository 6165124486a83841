//! What is different between two points.
//!
//! Names are compared by path, what they name by extents: the same range of the same chunk is the same content. So no content is
//! read, and a file that was written again with the same bytes in other pieces counts as changed. An inode's number is never
//! used again in a volume's history, so a name that went and one that came with the same number are a rename.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tidelock_proto::{
    FileId, Tree, VolumeName,
    tree::{ExtentMap, Inode, Piece},
};
use tidelock_receiver::history::each_name;

use super::{EntryKind, View, VolumePath};
use crate::{access::Access, at::At, error::FailoverError, report::PointReport};

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// Only the second point has it.
    Added,
    /// Only the first point has it.
    Removed,
    /// It had another path.
    Renamed,
    /// It is something else now: another kind, another target of a link.
    Replaced,
    /// Its content is another.
    Modified,
    /// Only its attributes are others.
    Attributes,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where it is; where it was, if it was removed.
    #[serde(flatten)]
    pub path: VolumePath,
    /// What happened.
    pub change: ChangeKind,
    /// What it is, or was.
    pub kind: EntryKind,
    /// Its path before a rename.
    pub from: Option<VolumePath>,
    /// Of a file: bytes that are others, at most; all of them if it was added.
    pub changed_bytes: u64,
    /// The length of a file before and after, in bytes.
    pub old_size: Option<u64>,
    /// See `old_size`.
    pub size: Option<u64>,
    /// Which attributes are others: `mode`, `owner`, `mtime`, `xattrs`. The time of a directory is left out: it
    /// tells of its entries.
    pub attributes: Vec<&'static str>,
}

/// The differences of two points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The first point.
    pub from: PointReport,
    /// The second.
    pub to: PointReport,
    /// In the order of their paths.
    pub changes: Vec<Change>,
    /// Names of the first point that are unchanged in the second, or moved with a directory.
    pub unchanged: u64,
    /// The sum over the changes.
    pub changed_bytes: u64,
}

/// Compares two points of a volume.
pub fn diff(access: &Access, volume: &VolumeName, from: &At, to: &At) -> Result<DiffReport, FailoverError> {
    let (old, new) = (View::open(access, volume, from)?, View::open(access, volume, to)?);
    let (changes, unchanged) = compare(&old.tree, &new.tree);
    Ok(DiffReport {
        volume: volume.to_string(),
        from: old.choice.report(),
        to: new.choice.report(),
        changed_bytes: changes.iter().map(|change| change.changed_bytes).sum(),
        changes,
        unchanged,
    })
}

type Paths = BTreeMap<Vec<u8>, FileId>;

fn paths(tree: &Tree) -> Paths {
    let mut paths = Paths::from([(Vec::new(), FileId::ROOT)]);
    each_name(tree, FileId::ROOT, b"", &mut |named| {
        paths.insert(named.path.to_vec(), named.id);
        true
    });
    paths.retain(|_, id| tree.get(*id).is_some());
    paths
}

/// The changes in the order of their paths, and how many names have none.
fn compare(old: &Tree, new: &Tree) -> (Vec<Change>, u64) {
    let (before, after) = (paths(old), paths(new));
    let mut added: BTreeMap<FileId, BTreeSet<&[u8]>> = BTreeMap::new();
    for (path, id) in after.iter().filter(|(path, _)| !before.contains_key(*path)) {
        added.entry(*id).or_default().insert(path);
    }
    let (mut changes, mut unchanged) = (BTreeMap::new(), 0);
    // Directories come before what they hold, so a moved one is known when its entries are looked at.
    let mut moved: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    for (path, id) in &before {
        let Some(was) = old.get(*id) else { continue };
        if let Some(now) = after.get(path).and_then(|id| new.get(*id)) {
            match judge(was, now) {
                Some(change) => drop(changes.insert(path.clone(), at(path, change))),
                None => unchanged += 1,
            }
            continue;
        }
        let follows = moved_with(&moved, path).filter(|there| after.get(there) == Some(id));
        let there = follows.clone().or_else(|| added.get(id)?.first().map(|path| path.to_vec()));
        let Some((there, now)) = there.and_then(|there| Some((there, new.get(*id)?))) else {
            changes.insert(path.clone(), at(path, gone(was)));
            continue;
        };
        if let Some(names) = added.get_mut(id) {
            names.remove(&there[..]);
        }
        let content = judge(was, now);
        if let (Some((key, _)), true) = (after.get_key_value(&there), new.entries(*id).is_some()) {
            moved.insert(path, key);
        }
        match (follows.is_some(), content) {
            (true, None) => unchanged += 1,
            (true, Some(change)) => drop(changes.insert(there.clone(), at(&there, change))),
            (false, change) => {
                let change = change.unwrap_or_else(|| nothing(was, now));
                let from = Some(VolumePath::of(path));
                let renamed = Change { change: ChangeKind::Renamed, from, ..at(&there, change) };
                changes.insert(there, renamed);
            }
        }
    }
    for (path, id) in added.iter().flat_map(|(id, paths)| paths.iter().map(|path| (path.to_vec(), *id))) {
        if let Some(now) = new.get(id) {
            changes.insert(path.clone(), at(&path, came(now)));
        }
    }
    (changes.into_values().collect(), unchanged)
}

/// Where a path would be if it moved with the directory that holds it.
fn moved_with(moved: &BTreeMap<&[u8], &[u8]>, path: &[u8]) -> Option<Vec<u8>> {
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    let dir = moved.get(&path[..slash])?;
    Some([dir, &path[slash..]].concat())
}

/// A change whose path is still to be set.
fn nothing(was: &Inode, now: &Inode) -> Change {
    Change {
        path: VolumePath::default(),
        change: ChangeKind::Attributes,
        kind: EntryKind::of(&now.content),
        from: None,
        changed_bytes: 0,
        old_size: was.extents().map(ExtentMap::size),
        size: now.extents().map(ExtentMap::size),
        attributes: Vec::new(),
    }
}

fn at(path: &[u8], change: Change) -> Change {
    Change { path: VolumePath::of(path), ..change }
}

fn came(now: &Inode) -> Change {
    let changed_bytes = now.extents().map_or(0, data_bytes);
    Change { change: ChangeKind::Added, old_size: None, changed_bytes, ..nothing(now, now) }
}

fn gone(was: &Inode) -> Change {
    Change { change: ChangeKind::Removed, size: None, ..nothing(was, was) }
}

/// What is different of two inodes that have, or had, one path.
fn judge(was: &Inode, now: &Inode) -> Option<Change> {
    let attributes = attributes(was, now);
    let change = Change { attributes, ..nothing(was, now) };
    match (was.extents(), now.extents()) {
        (Some(old), Some(new)) => {
            let changed_bytes = different_bytes(old, new);
            if changed_bytes > 0 || old.size() != new.size() {
                return Some(Change { change: ChangeKind::Modified, changed_bytes, ..change });
            }
        }
        _ if was.kind() != now.kind() => {
            let changed_bytes = now.extents().map_or(0, data_bytes);
            return Some(Change { change: ChangeKind::Replaced, changed_bytes, ..change });
        }
        _ => {}
    }
    (!change.attributes.is_empty()).then_some(change)
}

fn attributes(was: &Inode, now: &Inode) -> Vec<&'static str> {
    let directory = now.extents().is_none() && was.kind() == tidelock_proto::tree::Kind::Directory;
    let mut found = Vec::new();
    let mut compare = |what, differs: bool| {
        if differs {
            found.push(what);
        }
    };
    compare("mode", was.meta.mode != now.meta.mode);
    compare("owner", (was.meta.uid, was.meta.gid) != (now.meta.uid, now.meta.gid));
    compare("mtime", !directory && was.meta.mtime != now.meta.mtime);
    compare("xattrs", was.xattrs != now.xattrs);
    found
}

fn data_bytes(extents: &ExtentMap) -> u64 {
    extents.iter().map(|(_, extent)| u64::from(extent.len)).sum()
}

/// Bytes that are not the same part of the same chunk in both, or a hole in both; what only one has counts.
fn different_bytes(old: &ExtentMap, new: &ExtentMap) -> u64 {
    if old == new {
        return 0;
    }
    let (both, longest) = (old.size().min(new.size()), old.size().max(new.size()));
    let (mut left, mut right) = (old.pieces(0, both).into_iter(), new.pieces(0, both).into_iter());
    let (mut one, mut other) = (left.next(), right.next());
    let mut different = longest - both;
    while let (Some(a), Some(b)) = (one, other) {
        let step = a.len.min(b.len);
        if a.chunk != b.chunk {
            different += step;
        }
        one = rest(a, step).or_else(|| left.next());
        other = rest(b, step).or_else(|| right.next());
    }
    different
}

/// What is left of a piece behind its first `step` bytes.
fn rest(piece: Piece, step: u64) -> Option<Piece> {
    let len = piece.len - step;
    let skip = |mut chunk: tidelock_proto::tree::ChunkRef| {
        chunk.at += u32::try_from(step).expect("an extent is no longer than a chunk");
        chunk
    };
    (len > 0).then(|| Piece { len, chunk: piece.chunk.map(skip) })
}
