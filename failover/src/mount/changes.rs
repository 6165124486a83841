//! What programs change in a writable mount: names, attributes, and how they go together.

use std::time::SystemTime;

use fuser::{Errno, RenameFlags};
use tidelock_proto::{
    FileId, Op,
    limits::{SYMLINK_MAX_BYTES, XATTRS_MAX_BYTES},
    tree::{Content, Kind, Meta, Name, Timestamp, Xattrs},
};

use super::{
    acl,
    layer::{Answer, Layer},
};

const SET_GID: u32 = 0o2000;
/// `setxattr`: fail if it is there.
const XATTR_CREATE: i32 = 1;
/// `setxattr`: fail if it is not.
const XATTR_REPLACE: i32 = 2;
/// `fallocate`: the size stays.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;

/// Who makes something, and how it may be used.
pub(super) struct New {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Attributes that change.
#[derive(Default)]
pub(super) struct Changed {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) mtime: Option<SystemTime>,
}

impl Layer {
    fn child(&self, dir: FileId, name: &Name) -> Answer<FileId> {
        self.tree().entries(dir).ok_or(Errno::ENOTDIR)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    fn is_free(&self, dir: FileId, name: &Name) -> Answer<()> {
        match self.child(dir, name) {
            Err(Errno::ENOENT) => Ok(()),
            Ok(_) => Err(Errno::EEXIST),
            Err(error) => Err(error),
        }
    }

    fn is_directory(&self, id: FileId) -> bool {
        self.tree().entries(id).is_some()
    }

    /// Sets the change time, and with it perhaps more.
    fn set_meta(&mut self, id: FileId, change: impl FnOnce(&mut Meta)) -> Answer<()> {
        let mut meta = self.inode(id)?.meta;
        meta.origin.ctime = SystemTime::now().into();
        change(&mut meta);
        self.apply(&Op::SetMeta { id, meta })
    }

    /// What it contains has changed.
    pub(super) fn modified(&mut self, id: FileId) -> Answer<()> {
        self.set_meta(id, |meta| meta.mtime = meta.origin.ctime)
    }

    pub(super) fn create(&mut self, dir: FileId, name: Name, kind: Kind, new: &New) -> Answer<FileId> {
        self.is_free(dir, &name)?;
        if matches!(&kind, Kind::Symlink(target) if target.len() > SYMLINK_MAX_BYTES) {
            return Err(Errno::ENAMETOOLONG);
        }
        let now = Timestamp::from(SystemTime::now());
        let parent = self.inode(dir)?.meta;
        let (mut mode, mut gid) = (new.mode & 0o7777, new.gid);
        if parent.mode & SET_GID != 0 {
            gid = parent.gid;
            mode |= if kind == Kind::Directory { SET_GID } else { 0 };
        }
        let mut meta = Meta { mode, uid: new.uid, gid, mtime: now, ..Meta::default() };
        meta.origin.ctime = now;
        let id = self.tree().next_id();
        self.apply(&Op::Create { id, kind, meta })?;
        self.apply(&Op::Link { dir, name, id })?;
        self.modified(dir)?;
        Ok(id)
    }

    pub(super) fn link(&mut self, id: FileId, dir: FileId, name: Name) -> Answer<()> {
        self.is_free(dir, &name)?;
        if self.is_directory(id) || self.tree().names(id).next().is_none() {
            return Err(Errno::EPERM);
        }
        self.apply(&Op::Link { dir, name, id })?;
        self.set_meta(id, |_| ())?;
        self.modified(dir)
    }

    pub(super) fn unlink(&mut self, dir: FileId, name: Name) -> Answer<()> {
        let id = self.child(dir, &name)?;
        if self.is_directory(id) {
            return Err(Errno::EISDIR);
        }
        self.remove(dir, name, id)
    }

    pub(super) fn remove_directory(&mut self, dir: FileId, name: Name) -> Answer<()> {
        let id = self.child(dir, &name)?;
        if !self.tree().entries(id).ok_or(Errno::ENOTDIR)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.remove(dir, name, id)
    }

    fn remove(&mut self, dir: FileId, name: Name, id: FileId) -> Answer<()> {
        self.set_meta(id, |_| ())?;
        self.apply(&Op::Unlink { dir, name })?;
        self.modified(dir)?;
        self.unnamed(id)
    }

    /// That no directory is moved into itself the kernel has seen to.
    pub(super) fn rename(
        &mut self,
        (dir, name): (FileId, Name),
        (new_dir, new_name): (FileId, Name),
        flags: RenameFlags,
    ) -> Answer<()> {
        let id = self.child(dir, &name)?;
        let there = match self.child(new_dir, &new_name) {
            Ok(there) => Some(there),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        if there == Some(id) {
            return Ok(());
        }
        let exchange = match flags {
            RenameFlags::RENAME_EXCHANGE => Some(there.ok_or(Errno::ENOENT)?),
            RenameFlags::RENAME_NOREPLACE if there.is_some() => return Err(Errno::EEXIST),
            flags if flags.is_empty() || flags == RenameFlags::RENAME_NOREPLACE => None,
            _ => return Err(Errno::EINVAL),
        };
        if let (Some(there), None) = (there, exchange) {
            self.may_replace(id, there)?;
        }
        self.apply(&Op::Unlink { dir, name: name.clone() })?;
        self.apply(&Op::Link { dir: new_dir, name: new_name, id })?;
        self.set_meta(id, |_| ())?;
        if let Some(other) = exchange {
            self.apply(&Op::Link { dir, name, id: other })?;
            self.set_meta(other, |_| ())?;
        }
        self.modified(dir)?;
        self.modified(new_dir)?;
        match there {
            Some(there) => self.unnamed(there),
            None => Ok(()),
        }
    }

    fn may_replace(&self, id: FileId, there: FileId) -> Answer<()> {
        match (self.is_directory(id), self.tree().entries(there)) {
            (true, None) => Err(Errno::ENOTDIR),
            (false, Some(_)) => Err(Errno::EISDIR),
            (true, Some(entries)) if !entries.is_empty() => Err(Errno::ENOTEMPTY),
            _ => Ok(()),
        }
    }

    pub(super) fn set(&mut self, id: FileId, changed: &Changed) -> Answer<()> {
        if let Some(size) = changed.size {
            self.resize(id, size)?;
        }
        if let Some(mode) = changed.mode {
            let mut xattrs = self.inode(id)?.xattrs.clone();
            if let Some(list) = xattrs.get_mut(acl::ACCESS) {
                *list = acl::with_mode(list, mode);
                self.apply(&Op::SetXattrs { id, xattrs })?;
            }
        }
        self.set_meta(id, |meta| {
            meta.mode = changed.mode.map_or(meta.mode, |mode| mode & 0o7777);
            meta.uid = changed.uid.unwrap_or(meta.uid);
            meta.gid = changed.gid.unwrap_or(meta.gid);
            match (changed.mtime, changed.size) {
                (Some(time), _) => meta.mtime = time.into(),
                (None, Some(_)) => meta.mtime = meta.origin.ctime,
                (None, None) => {}
            }
        })
    }

    pub(super) fn set_xattr(&mut self, id: FileId, name: &[u8], value: &[u8], flags: i32) -> Answer<()> {
        let mut xattrs = self.inode(id)?.xattrs.clone();
        match (flags, xattrs.contains_key(name)) {
            (XATTR_CREATE, true) => return Err(Errno::EEXIST),
            (XATTR_REPLACE, false) => return Err(Errno::ENODATA),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        if name == acl::ACCESS {
            if acl::is_minimal(value) {
                xattrs.remove(name);
            }
            self.set_meta(id, |meta| meta.mode = acl::mode_of(value, meta.mode))?;
        }
        self.set_xattrs(id, xattrs)
    }

    pub(super) fn remove_xattr(&mut self, id: FileId, name: &[u8]) -> Answer<()> {
        let mut xattrs = self.inode(id)?.xattrs.clone();
        xattrs.remove(name).ok_or(Errno::ENODATA)?;
        self.set_xattrs(id, xattrs)
    }

    fn set_xattrs(&mut self, id: FileId, xattrs: Xattrs) -> Answer<()> {
        let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if bytes > XATTRS_MAX_BYTES {
            return Err(Errno::ENOSPC);
        }
        self.apply(&Op::SetXattrs { id, xattrs })?;
        self.set_meta(id, |_| ())
    }

    /// Space is not reserved: what is promised here can fail when it is written.
    pub(super) fn allocate(&mut self, id: FileId, offset: u64, len: u64, mode: i32) -> Answer<()> {
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        match mode & !KEEP_SIZE {
            0 => {}
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => self.punch(id, offset, end)?,
            ZERO_RANGE => self.punch(id, offset, end)?,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        let size = match &self.inode(id)?.content {
            Content::File(extents) => extents.size(),
            _ => return Err(Errno::EINVAL),
        };
        if mode & KEEP_SIZE == 0 && end > size {
            self.resize(id, end)?;
        }
        self.modified(id)
    }
}
