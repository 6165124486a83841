//! All names of a tree, in order, with their paths.

use std::collections::btree_map;

use tidelock_proto::{FileId, Tree, tree::Name};

/// One name on the way through a tree.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its path from the root, without a leading slash.
    pub path: &'a [u8],
    /// The directory it is in.
    pub dir: FileId,
    /// The name there.
    pub name: &'a Name,
    /// What it names.
    pub id: FileId,
}

/// Shows every name below `from`, which is at `path`, a directory before what it holds, names in the order of their
/// bytes. What is below a directory is shown only if `each` answers `true` to it. A stack of its own: directories can be
/// nested deeper than a thread's.
pub fn each_name(tree: &Tree, from: FileId, path: &[u8], each: &mut dyn FnMut(Named<'_>) -> bool) {
    let mut path = path.to_vec();
    let mut open: Vec<(FileId, usize, btree_map::Iter<'_, Name, FileId>)> = Vec::new();
    if let Some(entries) = tree.entries(from) {
        open.push((from, path.len(), entries.iter()));
    }
    while let Some((dir, len, entries)) = open.last_mut() {
        path.truncate(*len);
        let Some((name, id)) = entries.next() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let named = Named { path: &path, dir: *dir, name, id: *id };
        if each(named)
            && let Some(entries) = tree.entries(*id)
        {
            open.push((*id, path.len(), entries.iter()));
        }
    }
}
