//! What `stat` shows of an inode of the tree.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use tidelock_proto::{
    FileId,
    tree::{Content, Inode, Timestamp},
};

/// What is told as the unit of reading.
pub(super) const BLOCK_BYTES: u32 = 4096;
/// What the blocks of `stat` are counted in.
const SECTOR_BYTES: u64 = 512;

pub(super) fn file_type(content: &Content) -> FileType {
    match content {
        Content::File(_) => FileType::RegularFile,
        Content::Directory(_) => FileType::Directory,
        Content::Symlink(_) => FileType::Symlink,
        Content::Fifo => FileType::NamedPipe,
        Content::CharDevice(..) => FileType::CharDevice,
        Content::BlockDevice(..) => FileType::BlockDevice,
    }
}

/// `data_bytes` is what of a file is no hole. A directory has one link, which says that its subdirectories are not counted.
pub(super) fn attributes(id: FileId, inode: &Inode, names: usize, data_bytes: u64) -> FileAttr {
    let kind = file_type(&inode.content);
    let size = match &inode.content {
        Content::File(extents) => extents.size(),
        Content::Symlink(target) => target.len() as u64,
        Content::Directory(_) => u64::from(BLOCK_BYTES),
        _ => 0,
    };
    let rdev = match inode.content {
        Content::CharDevice(major, minor) | Content::BlockDevice(major, minor) => device(major, minor),
        _ => 0,
    };
    let links = if kind == FileType::Directory { 1 } else { u32::try_from(names).unwrap_or(u32::MAX) };
    let mtime = system_time(inode.meta.mtime);
    let ctime = match inode.meta.origin.ctime {
        ctime if ctime == Timestamp::default() => mtime,
        ctime => system_time(ctime),
    };
    FileAttr {
        ino: INodeNo(id.0),
        size,
        blocks: data_bytes.div_ceil(SECTOR_BYTES),
        atime: mtime,
        mtime,
        ctime,
        crtime: mtime,
        kind,
        perm: (inode.meta.mode & 0o7777) as u16,
        nlink: links,
        uid: inode.meta.uid,
        gid: inode.meta.gid,
        rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let second = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.map_or(UNIX_EPOCH, |second| second + Duration::from_nanos(time.nanos.into()))
}

/// A device's numbers in the kernel's 32 bits.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The way back.
pub(super) fn device_numbers(rdev: u32) -> (u32, u32) {
    (rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_wide_device_numbers_are_kept() {
        let before = system_time(Timestamp { secs: -3, nanos: 250_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(before).ok(), Some(Duration::from_millis(2750)));
        assert_eq!(device(8, 1), 0x801);
        for numbers in [(8, 1), (259, 0x12345), (0xfff, 0xfffff)] {
            assert_eq!(device_numbers(device(numbers.0, numbers.1)), numbers);
        }
    }
}
