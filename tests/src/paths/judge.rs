//! What a directory holds, on disk and in a point: names, which of them are one inode, and every byte.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use anyhow::{Context, Result, anyhow};
use tidelock_proto::{
    ChunkId, FileId, Tree,
    tree::{Content, Name},
};

/// What is at a path: the first path that means the same inode, and its bytes if it is a file.
pub type State = BTreeMap<Vec<u8>, (Vec<u8>, Option<Vec<u8>>)>;

/// What is below a directory now.
pub fn state(dir: &Path) -> Result<State> {
    let (mut found, mut next) = (State::new(), vec![Vec::new()]);
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    while let Some(at) = next.pop() {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir.join(std::ffi::OsStr::from_bytes(&at)))? {
            entries.push(entry?);
        }
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = join(&at, entry.file_name().as_bytes());
            let meta = entry.metadata()?;
            let same = first.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
            let bytes = meta.is_file().then(|| fs::read(entry.path())).transpose()?;
            if meta.is_dir() {
                next.push(path.clone());
            }
            found.insert(path, (same, bytes));
        }
    }
    Ok(found)
}

/// How a point's directory differs from what it should hold; empty if it does not.
pub fn differences(
    wanted: &State,
    tree: &Tree,
    dir: &[&str],
    chunk: &dyn Fn(ChunkId) -> Result<Vec<u8>>,
) -> Result<Vec<String>> {
    let mut root = FileId::ROOT;
    for name in dir {
        let name = Name::new(name.as_bytes())?;
        root = tree.lookup(root, &name).ok_or_else(|| anyhow!("no directory {name} in the point"))?;
    }
    let found = in_tree(tree, root, chunk)?;
    let paths: std::collections::BTreeSet<&Vec<u8>> = wanted.keys().chain(found.keys()).collect();
    let lines = paths.into_iter().filter_map(|path| {
        let shown = String::from_utf8_lossy(path);
        match (wanted.get(path), found.get(path)) {
            (Some(_), None) => Some(format!("{shown}: missing")),
            (None, Some(_)) => Some(format!("{shown}: not expected")),
            (Some(wanted), Some(found)) if wanted.0 != found.0 => Some(format!("{shown}: linked otherwise")),
            (Some((_, Some(wanted))), Some((_, Some(found)))) if wanted != found => {
                let at = wanted.iter().zip(found).position(|(a, b)| a != b);
                Some(format!(
                    "{shown}: {} bytes, not {}; first different at {at:?}",
                    found.len(),
                    wanted.len()
                ))
            }
            (Some(wanted), Some(found)) => {
                (wanted.1.is_some() != found.1.is_some()).then(|| format!("{shown}: of another kind"))
            }
            (None, None) => None,
        }
    });
    Ok(lines.collect())
}

fn in_tree(tree: &Tree, root: FileId, chunk: &dyn Fn(ChunkId) -> Result<Vec<u8>>) -> Result<State> {
    let (mut found, mut next) = (State::new(), vec![(Vec::new(), root)]);
    let mut first: HashMap<FileId, Vec<u8>> = HashMap::new();
    while let Some((at, dir)) = next.pop() {
        for (name, id) in tree.entries(dir).context("not a directory")? {
            let path = join(&at, name.as_bytes());
            let same = first.entry(*id).or_insert_with(|| path.clone()).clone();
            let inode = tree.get(*id).context("an entry without its inode")?;
            let bytes = match &inode.content {
                Content::File(_) => Some(read(tree, *id, chunk)?),
                Content::Directory(_) => {
                    next.push((path.clone(), *id));
                    None
                }
                _ => None,
            };
            found.insert(path, (same, bytes));
        }
    }
    Ok(found)
}

fn read(tree: &Tree, file: FileId, chunk: &dyn Fn(ChunkId) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let extents = tree.get(file).and_then(|inode| inode.extents()).context("not a file")?;
    let mut content = Vec::new();
    for piece in extents.pieces(0, extents.size()) {
        let len = usize::try_from(piece.len)?;
        match piece.chunk {
            None => content.resize(content.len() + len, 0),
            Some(chunk_ref) => {
                let (whole, at) = (chunk(chunk_ref.id)?, chunk_ref.at as usize);
                content.extend(whole.get(at..at + len).context("an extent goes beyond its chunk")?);
            }
        }
    }
    Ok(content)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}
