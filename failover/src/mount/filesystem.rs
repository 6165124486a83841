//! What the kernel asks of a mounted point, handed to what answers it.
//!
//! Nothing changes but through the mount itself, so the kernel may keep what it was told as long as it likes. Inode numbers are the volume's own ids, which
//! are never used twice. Permissions and locks are the kernel's to check. Where nothing of a mount outlives it there is nothing to sync; where it does, `fsync` and what is written
//! with `O_SYNC` or `O_DSYNC` is answered when it is durable ([`super::commit`]). The kernel does not hand on `sync` and `syncfs`.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tidelock_proto::{
    FileId,
    tree::{Content, Kind},
};

use super::{
    attributes::{BLOCK_BYTES, device_numbers},
    changes::{Changed, New},
    commit::{HYDRATION, Keeper},
    layer::{Answer, Layer},
    reading::{Inner, PointFs, checked, stat},
};
use crate::limits;

/// For how long the kernel may believe what it was told.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// An inode has one life.
const GENERATION: Generation = Generation(0);
/// The kind among the bits of a mode.
const S_IFMT: u32 = 0o170_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFSOCK: u32 = 0o140_000;

impl PointFs {
    fn change<T>(&self, change: impl FnOnce(&mut Layer) -> Answer<T>) -> Answer<T> {
        self.check_whole()?;
        change(&mut self.layer.write())
    }

    fn make(
        &self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        kind: Kind,
        mode: u32,
        open: bool,
    ) -> Answer<FileAttr> {
        let new = New { mode, uid: request.uid(), gid: request.gid() };
        self.change(|layer| {
            let id = layer.create(FileId(parent.0), checked(name)?, kind, &new)?;
            if open {
                layer.opened(id);
            }
            if mode & S_IFMT == S_IFSOCK {
                layer.set_socket(id);
            }
            stat(layer, id)
        })
    }
}

fn empty(answer: Answer<()>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn entry(answer: Answer<FileAttr>, reply: ReplyEntry) {
    match answer {
        Ok(found) => reply.entry(&TTL, &found, GENERATION),
        Err(error) => reply.error(error),
    }
}

fn attr(answer: Answer<FileAttr>, reply: ReplyAttr) {
    match answer {
        Ok(found) => reply.attr(&TTL, &found),
        Err(error) => reply.error(error),
    }
}

fn xattr(answer: Answer<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match answer.map(|value| (u32::try_from(value.len()), value)) {
        Ok((Ok(len), _)) if size == 0 => reply.size(len),
        Ok((Ok(len), value)) if len <= size => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(error) => reply.error(error),
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Filesystem for PointFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            // What the kernel cannot do it does without.
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(limits::MOUNT_REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.find(parent, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(self.stat(FileId(ino.0)), reply);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let layer = self.layer.read();
        match layer.inode(FileId(ino.0)).map(|inode| &inode.content) {
            Ok(Content::Symlink(target)) => reply.data(target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let known = {
            let mut layer = self.layer.write();
            let known = layer.inode(FileId(ino.0)).map(drop);
            if known.is_ok() {
                layer.opened(FileId(ino.0));
            }
            known
        };
        match known {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let id = FileId(ino.0);
        let answer = move |point: &Inner, reply: ReplyData| match point.bytes(id, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        };
        match self.keeper.as_ref().filter(|_| self.must_fetch(id, offset, size)).and_then(Keeper::waiter) {
            // Nobody whose data is local waits behind a receiver that is away.
            Some(waiter) => {
                let point = self.clone();
                std::thread::spawn(move || {
                    answer(&point, reply);
                    drop(waiter);
                });
            }
            None => answer(self, reply),
        }
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        match self.seek(FileId(ino.0), offset, whence) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        empty(self.change(|layer| layer.released(FileId(ino.0))), reply);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, datasync: bool, reply: ReplyEmpty) {
        empty(self.commit(Some(FileId(ino.0)), datasync), reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.commit(None, false), reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.new_listing(), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listing = match self.listing(FileId(ino.0), handle, offset) {
            Ok(listing) => listing,
            Err(error) => return reply.error(error),
        };
        for (at, (name, id, kind)) in listing.0.iter().enumerate().skip(position(offset)) {
            if reply.add(INodeNo(id.0), at as u64 + 1, *kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listing = match self.listing(FileId(ino.0), handle, offset) {
            Ok(listing) => listing,
            Err(error) => return reply.error(error),
        };
        let layer = self.layer.read();
        for (at, (name, id, _)) in listing.0.iter().enumerate().skip(position(offset)) {
            // What has gone since it was listed is passed over.
            let Ok(found) = stat(&layer, *id) else { continue };
            if reply.add(INodeNo(id.0), at as u64 + 1, OsStr::from_bytes(name), &TTL, &found, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.drop_listing(handle);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let layer = self.layer.read();
        let (totals, free) = (layer.tree().totals(), layer.free_bytes() / u64::from(BLOCK_BYTES));
        let used = totals.data_bytes.div_ceil(BLOCK_BYTES.into());
        reply.statfs(used + free, free, free, totals.inodes + free, free, BLOCK_BYTES, 255, BLOCK_BYTES);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if let (FileId::ROOT, HYDRATION, Some(told)) = (FileId(ino.0), name.as_bytes(), self.told_progress())
        {
            return xattr(Ok(told), size, reply);
        }
        xattr(self.xattr(FileId(ino.0), name), size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(self.xattr_names(FileId(ino.0)), size, reply);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mtime = mtime.map(|time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => SystemTime::now(),
        });
        let (id, changed) = (FileId(ino.0), Changed { mode, uid, gid, size, mtime });
        attr(self.change(|layer| layer.set(id, &changed).and_then(|()| stat(layer, id))), reply);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (major, minor) = device_numbers(rdev);
        let kind = match mode & S_IFMT {
            S_IFCHR => Kind::CharDevice(major, minor),
            S_IFBLK => Kind::BlockDevice(major, minor),
            S_IFIFO | S_IFSOCK => Kind::Fifo,
            _ => Kind::File,
        };
        entry(self.make(request, (parent, name), kind, mode, false), reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        entry(self.make(request, (parent, name), Kind::Directory, mode, false), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = Kind::Symlink(target.as_os_str().as_bytes().to_vec());
        entry(self.make(request, (parent, name), kind, 0o777, false), reply);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.make(request, (parent, name), Kind::File, mode, true) {
            Ok(found) => {
                reply.created(&TTL, &found, GENERATION, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(error),
        }
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let id = FileId(ino.0);
        let made = self.change(|layer| {
            layer.link(id, FileId(parent.0), checked(name)?)?;
            stat(layer, id)
        });
        entry(made, reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.change(|layer| layer.unlink(FileId(parent.0), checked(name)?)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.change(|layer| layer.remove_directory(FileId(parent.0), checked(name)?)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.change(|layer| {
            let from = (FileId(parent.0), checked(name)?);
            layer.rename(from, (FileId(new_parent.0), checked(new_name)?), flags)
        });
        empty(renamed, reply);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let id = FileId(ino.0);
        let mut done = self.write_bytes(id, offset, data);
        if done.is_ok() && flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0 {
            done = self.commit(Some(id), flags.0 & libc::O_SYNC != libc::O_SYNC);
        }
        match done {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(error),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(self.change(|layer| layer.allocate(FileId(ino.0), offset, len, mode)), reply);
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let set = |layer: &mut Layer| layer.set_xattr(FileId(ino.0), name.as_bytes(), value, flags);
        empty(self.change(set), reply);
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.change(|layer| layer.remove_xattr(FileId(ino.0), name.as_bytes())), reply);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// The kernel copies by reading and writing instead.
    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
