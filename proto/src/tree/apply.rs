//! `Tree::apply`: how each operation changes the tree, its digest and its totals.

use super::{
    Content, Extent, ExtentMap, Inode, Kind, Meta, Name, Op, Piece, Timestamp, Tree, TreeError, Xattrs,
    digest::Fact,
};
use crate::{ids::FileId, limits};

impl Tree {
    /// Applies one operation. After an error the tree may hold part of it and must not be used any more.
    pub fn apply(&mut self, op: &Op) -> Result<(), TreeError> {
        match op {
            Op::Create { id, kind, meta } => self.create(*id, kind.clone(), *meta),
            Op::SetMeta { id, meta } => self.set_meta(*id, *meta),
            Op::SetXattrs { id, xattrs } => self.set_xattrs(*id, xattrs),
            Op::Link { dir, name, id } => self.link(*dir, name, *id),
            Op::Unlink { dir, name } => self.unlink(*dir, name),
            Op::Write { id, offset, pieces } => self.write(*id, *offset, pieces),
            Op::Resize { id, size } => self.resize(*id, *size),
            Op::Reserve { next_id } => {
                self.next_id = self.next_id.max(*next_id);
                Ok(())
            }
        }
    }

    fn create(&mut self, id: FileId, kind: Kind, meta: Meta) -> Result<(), TreeError> {
        if id < self.next_id {
            return Err(TreeError::Reused(id));
        }
        if self.inodes.is_empty() && (id != FileId::ROOT || kind != Kind::Directory) {
            return Err(TreeError::Root);
        }
        let inode = Inode::new(kind, meta);
        self.digest.add(&inode_fact(id, &inode));
        self.inodes.insert(id, inode);
        self.next_id = FileId(id.0.checked_add(1).ok_or(TreeError::Reused(id))?);
        self.relinked.insert(id);
        self.totals.inodes += 1;
        Ok(())
    }

    fn set_meta(&mut self, id: FileId, meta: Meta) -> Result<(), TreeError> {
        self.change_inode(id, |inode| {
            inode.meta = meta;
            Ok(())
        })
    }

    fn set_xattrs(&mut self, id: FileId, xattrs: &Xattrs) -> Result<(), TreeError> {
        let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > limits::XATTRS_MAX_BYTES {
            return Err(TreeError::Xattrs(id));
        }
        let inode = self.inodes.get_mut(&id).ok_or(TreeError::Unknown(id))?;
        for (name, value) in &inode.xattrs {
            self.digest.subtract(&xattr_fact(id, name, value));
        }
        inode.xattrs = xattrs.clone();
        for (name, value) in &inode.xattrs {
            self.digest.add(&xattr_fact(id, name, value));
        }
        Ok(())
    }

    fn link(&mut self, dir: FileId, name: &Name, id: FileId) -> Result<(), TreeError> {
        if id == FileId::ROOT {
            return Err(TreeError::Root);
        }
        if !self.inodes.contains_key(&id) {
            return Err(TreeError::Unknown(id));
        }
        let before = self.directory(dir)?.insert(name.clone(), id);
        if let Some(before) = before {
            self.drop_name(dir, name, before);
        }
        self.names.entry(id).or_default().insert((dir, name.clone()));
        self.digest.add(&entry_fact(dir, name, id));
        self.relinked.insert(id);
        Ok(())
    }

    fn unlink(&mut self, dir: FileId, name: &Name) -> Result<(), TreeError> {
        let id = self.directory(dir)?.remove(name).ok_or_else(|| TreeError::NoEntry(dir, name.clone()))?;
        self.drop_name(dir, name, id);
        Ok(())
    }

    /// Forgets that (`dir`, `name`) means `id`; the entry itself is already gone.
    fn drop_name(&mut self, dir: FileId, name: &Name, id: FileId) {
        if let Some(names) = self.names.get_mut(&id) {
            names.remove(&(dir, name.clone()));
            if names.is_empty() {
                self.names.remove(&id);
            }
        }
        self.digest.subtract(&entry_fact(dir, name, id));
        self.relinked.insert(id);
    }

    fn write(&mut self, id: FileId, offset: u64, pieces: &[Piece]) -> Result<(), TreeError> {
        let mut end = offset;
        for piece in pieces {
            end = end.checked_add(piece.len).ok_or(TreeError::Range(id))?;
            let data_max = limits::CHUNK_MAX_BYTES as u64;
            let in_chunk = |at: u32| u64::from(at) + piece.len <= data_max;
            if piece.len == 0 || piece.chunk.is_some_and(|chunk| !in_chunk(chunk.at)) {
                return Err(TreeError::Range(id));
            }
        }
        if end > limits::FILE_MAX_BYTES {
            return Err(TreeError::Range(id));
        }
        self.change_extents(id, |extents, changed| {
            extents.clear(offset, end, changed);
            let mut at = offset;
            for piece in pieces {
                if let Some(chunk) = piece.chunk {
                    let len = u32::try_from(piece.len).expect("checked above");
                    extents.insert(at, Extent { len, chunk }, changed);
                }
                at += piece.len;
            }
        })?;
        if self.size(id)? < end { self.set_size(id, end) } else { Ok(()) }
    }

    fn resize(&mut self, id: FileId, size: u64) -> Result<(), TreeError> {
        if size > limits::FILE_MAX_BYTES {
            return Err(TreeError::Range(id));
        }
        self.change_extents(id, |extents, changed| extents.clear(size, u64::MAX, changed))?;
        self.set_size(id, size)
    }

    fn size(&self, id: FileId) -> Result<u64, TreeError> {
        let inode = self.get(id).ok_or(TreeError::Unknown(id))?;
        inode.extents().map(ExtentMap::size).ok_or(TreeError::NotFile(id))
    }

    fn set_size(&mut self, id: FileId, size: u64) -> Result<(), TreeError> {
        self.change_inode(id, |inode| match &mut inode.content {
            Content::File(extents) => {
                extents.set_size(size);
                Ok(())
            }
            _ => Err(TreeError::NotFile(id)),
        })
    }

    /// Changes what the inode's own fact covers.
    fn change_inode(
        &mut self,
        id: FileId,
        change: impl FnOnce(&mut Inode) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let inode = self.inodes.get_mut(&id).ok_or(TreeError::Unknown(id))?;
        self.digest.subtract(&inode_fact(id, inode));
        let done = change(inode);
        self.digest.add(&inode_fact(id, inode));
        done
    }

    fn change_extents(
        &mut self,
        id: FileId,
        change: impl FnOnce(&mut ExtentMap, &mut dyn FnMut(u64, Extent, bool)),
    ) -> Result<(), TreeError> {
        let inode = self.inodes.get_mut(&id).ok_or(TreeError::Unknown(id))?;
        let Content::File(extents) = &mut inode.content else { return Err(TreeError::NotFile(id)) };
        let (digest, totals) = (&mut self.digest, &mut self.totals);
        change(extents, &mut |offset, extent, came| {
            let fact = extent_fact(id, offset, extent);
            if came {
                digest.add(&fact);
                totals.extents += 1;
                totals.data_bytes += u64::from(extent.len);
            } else {
                digest.subtract(&fact);
                totals.extents -= 1;
                totals.data_bytes -= u64::from(extent.len);
            }
        });
        Ok(())
    }

    fn directory(&mut self, dir: FileId) -> Result<&mut std::collections::BTreeMap<Name, FileId>, TreeError> {
        match &mut self.inodes.get_mut(&dir).ok_or(TreeError::Unknown(dir))?.content {
            Content::Directory(entries) => Ok(entries),
            _ => Err(TreeError::NotDirectory(dir)),
        }
    }

    /// Removes an inode that has no name, with everything in it, and shows it; the names its entries gave are dropped.
    pub(super) fn forget(&mut self, id: FileId, gone: &mut dyn FnMut(FileId, &Inode)) {
        let Some(inode) = self.inodes.remove(&id) else { return };
        gone(id, &inode);
        self.digest.subtract(&inode_fact(id, &inode));
        self.totals.inodes -= 1;
        for (name, value) in &inode.xattrs {
            self.digest.subtract(&xattr_fact(id, name, value));
        }
        match inode.content {
            Content::File(extents) => {
                for (offset, extent) in extents.iter() {
                    self.digest.subtract(&extent_fact(id, offset, extent));
                    self.totals.extents -= 1;
                    self.totals.data_bytes -= u64::from(extent.len);
                }
            }
            Content::Directory(entries) => {
                for (name, child) in entries {
                    self.drop_name(id, &name, child);
                }
            }
            Content::Symlink(_) | Content::Fifo | Content::CharDevice(..) | Content::BlockDevice(..) => {}
        }
    }
}

fn inode_fact(id: FileId, inode: &Inode) -> Fact {
    let meta = &inode.meta;
    let mut fact = Fact::new(b'i', id);
    fact.number(u64::from(meta.mode)).number(u64::from(meta.uid)).number(u64::from(meta.gid));
    time(&mut fact, meta.mtime);
    fact.number(meta.origin.inode).number(meta.origin.generation);
    time(&mut fact, meta.origin.ctime);
    match &inode.content {
        Content::File(extents) => fact.bytes(b"file").number(extents.size()),
        Content::Directory(_) => fact.bytes(b"directory"),
        Content::Symlink(target) => fact.bytes(b"symlink").bytes(target),
        Content::Fifo => fact.bytes(b"fifo"),
        Content::CharDevice(major, minor) => device(&mut fact, b"char", *major, *minor),
        Content::BlockDevice(major, minor) => device(&mut fact, b"block", *major, *minor),
    };
    fact
}

fn time(fact: &mut Fact, time: Timestamp) {
    fact.number(time.secs.cast_unsigned()).number(u64::from(time.nanos));
}

fn device<'a>(fact: &'a mut Fact, kind: &[u8], major: u32, minor: u32) -> &'a mut Fact {
    fact.bytes(kind).number(u64::from(major)).number(u64::from(minor))
}

fn xattr_fact(id: FileId, name: &[u8], value: &[u8]) -> Fact {
    let mut fact = Fact::new(b'x', id);
    fact.bytes(name).bytes(value);
    fact
}

fn entry_fact(dir: FileId, name: &Name, id: FileId) -> Fact {
    let mut fact = Fact::new(b'n', dir);
    fact.bytes(name.as_bytes()).number(id.0);
    fact
}

fn extent_fact(id: FileId, offset: u64, extent: Extent) -> Fact {
    let mut fact = Fact::new(b'e', id);
    fact.number(offset).number(u64::from(extent.len));
    fact.bytes(&extent.chunk.id.0).number(u64::from(extent.chunk.at));
    fact
}
