//! Reading the counters out of a point's tree, without restoring it.

use tidelock_proto::{
    ChunkId, FileId, Tree,
    tree::{Content, Name},
};

use super::Source;

/// A point: its tree, and where the content of its chunks is.
pub struct InTree<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// Reads a whole chunk.
    pub chunk: &'a dyn Fn(ChunkId) -> Result<Vec<u8>, String>,
}

impl InTree<'_> {
    fn child(&self, dir: FileId, name: &[u8]) -> Result<FileId, String> {
        let missing = || format!("no {}", String::from_utf8_lossy(name));
        let name = Name::new(name).map_err(|error| error.to_string())?;
        match self.tree.get(dir).map(|inode| &inode.content) {
            Some(Content::Directory(entries)) => entries.get(&name).copied().ok_or_else(missing),
            _ => Err(missing()),
        }
    }
}

impl Source for InTree<'_> {
    fn list(&self, dir: &str) -> Result<Vec<Vec<u8>>, String> {
        let dir = self.child(FileId::ROOT, dir.as_bytes())?;
        match self.tree.get(dir).map(|inode| &inode.content) {
            Some(Content::Directory(entries)) => {
                Ok(entries.keys().map(|name| name.as_bytes().to_vec()).collect())
            }
            _ => Err("not a directory".to_owned()),
        }
    }

    fn read(&self, dir: &str, name: &[u8]) -> Result<Vec<u8>, String> {
        let file = self.child(self.child(FileId::ROOT, dir.as_bytes())?, name)?;
        let extents = self.tree.get(file).and_then(|inode| inode.extents()).ok_or("not a file")?;
        let mut content = Vec::new();
        for piece in extents.pieces(0, extents.size()) {
            let len = usize::try_from(piece.len).expect("small files");
            match piece.chunk {
                None => content.resize(content.len() + len, 0),
                Some(chunk) => {
                    let (whole, at) = ((self.chunk)(chunk.id)?, chunk.at as usize);
                    content.extend(whole.get(at..at + len).ok_or("an extent goes beyond its chunk")?);
                }
            }
        }
        Ok(content)
    }
}
