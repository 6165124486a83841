//! What is answered out of a mounted point: attributes, names, content, holes.

use std::{
    collections::HashMap,
    ffi::OsStr,
    ops::Deref,
    os::unix::ffi::OsStrExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo};
use parking_lot::{Mutex, RwLock};
use tidelock_proto::{
    FileId,
    tree::{Name, Piece},
};

use super::{
    attributes::{attributes, file_type},
    commit::Keeper,
    content::{Content, part},
    layer::{Answer, Layer},
    scratch::is_slot,
};
use crate::error::FailoverError;

/// `lseek`, as the kernel says it: where data begins.
const SEEK_DATA: i32 = 3;
/// Where a hole begins.
const SEEK_HOLE: i32 = 4;

/// A point as a file system, for the kernel and for whoever works at it besides.
#[derive(Clone)]
pub(crate) struct PointFs(Arc<Inner>);

pub(crate) struct Inner {
    pub(super) layer: RwLock<Layer>,
    pub(super) content: Content,
    listings: Mutex<HashMap<u64, Arc<Listing>>>,
    next_handle: AtomicU64,
    /// Of an upper layer that outlives the process.
    pub(super) keeper: Option<Keeper>,
}

impl Deref for PointFs {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// A directory as it was when its reader began: positions in it stay what they are.
pub(super) struct Listing(pub(super) Vec<(Vec<u8>, FileId, FileType)>);

impl PointFs {
    pub(super) fn new(layer: Layer, content: Content, keeper: Option<Keeper>) -> Self {
        Self(Arc::new(Inner {
            layer: RwLock::new(layer),
            content,
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            keeper,
        }))
    }
}

impl Inner {
    pub(super) fn stat(&self, id: FileId) -> Answer<FileAttr> {
        stat(&self.layer.read(), id)
    }

    pub(super) fn find(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let name = checked(name)?;
        let layer = self.layer.read();
        let id = layer.tree().lookup(FileId(parent.0), &name).ok_or(Errno::ENOENT)?;
        stat(&layer, id)
    }

    /// The bytes of a file; fewer at its end. What was written is read at once, content is fetched while nobody is kept from the tree.
    pub(super) fn bytes(&self, id: FileId, offset: u64, len: u32) -> Answer<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len as usize);
        let mut missing: Vec<(usize, Piece)> = Vec::new();
        {
            let layer = self.layer.read();
            let extents = layer.inode(id)?.extents().ok_or(Errno::EINVAL)?;
            let end = offset.saturating_add(len.into()).min(extents.size());
            for piece in extents.pieces(offset.min(end), end) {
                let at = bytes.len();
                bytes.resize(at + usize::try_from(piece.len).map_err(|_| Errno::EINVAL)?, 0);
                match piece.chunk {
                    Some(chunk) if is_slot(chunk.id) => layer.written(chunk, &mut bytes[at..])?,
                    Some(_) => missing.push((at, piece)),
                    None => {}
                }
            }
        }
        if missing.is_empty() {
            return Ok(bytes);
        }
        let ids = || missing.iter().filter_map(|(_, piece)| piece.chunk).map(|chunk| chunk.id);
        let chunks = match &self.keeper {
            Some(keeper) => keeper.patiently(|| self.content.chunks(ids())),
            None => self.content.chunks(ids()),
        };
        let read = chunks.and_then(|chunks| {
            for (at, piece) in &missing {
                let part = part(&chunks, piece)?;
                bytes[*at..*at + part.len()].copy_from_slice(part);
            }
            Ok(bytes)
        });
        read.map_err(|error| told(id, &error))
    }

    /// Whether a read has to wait for somebody else's content.
    pub(super) fn must_fetch(&self, id: FileId, offset: u64, len: u32) -> bool {
        let layer = self.layer.read();
        let extents = layer.inode(id).ok().and_then(|inode| inode.extents());
        extents.is_some_and(|extents| {
            let touched = extents.touching(offset, offset.saturating_add(len.into()));
            touched.map(|(_, extent)| extent.chunk.id).any(|id| !is_slot(id) && !self.content.has(id))
        })
    }

    /// A directory is listed anew for a reader that is at its beginning.
    pub(super) fn listing(&self, id: FileId, handle: FileHandle, offset: u64) -> Answer<Arc<Listing>> {
        if offset > 0
            && let Some(listing) = self.listings.lock().get(&handle.0)
        {
            return Ok(listing.clone());
        }
        let listing = Arc::new(list(&self.layer.read(), id)?);
        self.listings.lock().insert(handle.0, listing.clone());
        Ok(listing)
    }

    pub(super) fn new_listing(&self) -> FileHandle {
        FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn drop_listing(&self, handle: FileHandle) {
        self.listings.lock().remove(&handle.0);
    }

    pub(super) fn xattr(&self, id: FileId, name: &OsStr) -> Answer<Vec<u8>> {
        let layer = self.layer.read();
        layer.inode(id)?.xattrs.get(name.as_bytes()).cloned().ok_or(Errno::ENODATA)
    }

    /// Each name ends with a zero.
    pub(super) fn xattr_names(&self, id: FileId) -> Answer<Vec<u8>> {
        let layer = self.layer.read();
        Ok(layer.inode(id)?.xattrs.keys().flat_map(|name| name.iter().chain(b"\0")).copied().collect())
    }

    /// Where data or a hole begins, from `offset` on.
    pub(super) fn seek(&self, id: FileId, offset: i64, whence: i32) -> Answer<i64> {
        let layer = self.layer.read();
        let extents = layer.inode(id)?.extents().ok_or(Errno::ENXIO)?;
        let (size, from) = (extents.size(), u64::try_from(offset).map_err(|_| Errno::ENXIO)?);
        if from >= size {
            return Err(Errno::ENXIO);
        }
        let found = match whence {
            SEEK_DATA => {
                let (at, _) = extents.touching(from, size).next().ok_or(Errno::ENXIO)?;
                at.max(from)
            }
            SEEK_HOLE => {
                let run = extents.touching(from, size).try_fold(from, |at, (offset, extent)| {
                    if offset <= at { Ok(offset + u64::from(extent.len)) } else { Err(at) }
                });
                run.unwrap_or_else(|hole| hole).min(size)
            }
            _ => return Err(Errno::EINVAL),
        };
        i64::try_from(found).map_err(|_| Errno::EINVAL)
    }
}

pub(super) fn checked(name: &OsStr) -> Answer<Name> {
    Name::new(name.as_bytes()).map_err(|_| Errno::ENAMETOOLONG)
}

pub(super) fn stat(layer: &Layer, id: FileId) -> Answer<FileAttr> {
    let names = layer.tree().names(id).count();
    let mut found = attributes(id, layer.inode(id)?, names, layer.data_bytes(id));
    if layer.is_socket(id) {
        found.kind = FileType::Socket;
    }
    Ok(found)
}

fn list(layer: &Layer, id: FileId) -> Answer<Listing> {
    let entries = layer.tree().entries(id).ok_or(Errno::ENOTDIR)?;
    let parent = layer.tree().names(id).next().map_or(FileId::ROOT, |(dir, _)| *dir);
    let mut listing = Vec::with_capacity(entries.len() + 2);
    listing.push((b".".to_vec(), id, FileType::Directory));
    listing.push((b"..".to_vec(), parent, FileType::Directory));
    for (name, child) in entries {
        let kind = match layer.is_socket(*child) {
            true => FileType::Socket,
            false => file_type(&layer.inode(*child)?.content),
        };
        listing.push((name.as_bytes().to_vec(), *child, kind));
    }
    Ok(Listing(listing))
}

/// The reader gets an I/O error; who looks after the mount gets the reason.
fn told(id: FileId, error: &FailoverError) -> Errno {
    tracing::warn!(inode = id.0, error = error as &dyn std::error::Error, "cannot read");
    Errno::EIO
}
