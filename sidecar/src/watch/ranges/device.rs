//! Which filesystem a volume is on, and what its device is called in tracepoints.

use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

use super::super::Unavailable;

/// The filesystem types whose tracepoints are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filesystem {
    Ext4,
    Xfs,
    /// Names no byte ranges.
    Btrfs,
}

/// A mounted filesystem, as the kernel names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) filesystem: Filesystem,
    /// The device number of the superblock, as tracepoints hold it: `major << 20 | minor`.
    pub(super) number: u64,
    /// The name of the backing device: `major:minor` of the whole disk, even if the filesystem is on a partition; a name
    /// of its own for btrfs, which may span disks.
    pub(super) backing: String,
    /// The number under which the filesystem's own metadata is dirtied: the block device's, or that of btrfs' tree inode.
    pub(super) metadata_inode: u64,
    /// Bytes of a filesystem block.
    pub(super) block_bytes: u64,
}

impl Device {
    /// The filesystem that holds `root`.
    pub(super) fn of(root: BorrowedFd<'_>) -> Result<Self, Unavailable> {
        let stat = rustix::fs::statx(root, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .map_err(|error| Unavailable::io("statx")(error.into()))?;
        let block =
            rustix::fs::fstatfs(root).map_err(|error| Unavailable::io("fstatfs")(error.into()))?.f_bsize;
        let mountinfo =
            fs::read("/proc/self/mountinfo").map_err(Unavailable::io("reading /proc/self/mountinfo"))?;
        let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        let place = match known {
            true => Place::Mount(stat.stx_mnt_id),
            false => Place::Device(stat.stx_dev_major, stat.stx_dev_minor),
        };
        let mount =
            find_mount(&String::from_utf8_lossy(&mountinfo), place).ok_or(Unavailable::UnknownDevice)?;
        let filesystem = match mount.filesystem.as_str() {
            "ext4" => Filesystem::Ext4,
            "xfs" => Filesystem::Xfs,
            "btrfs" => Filesystem::Btrfs,
            _ => return Err(Unavailable::Filesystem { filesystem: mount.filesystem }),
        };
        let (major, minor) = mount.device;
        let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        if mount.may_use_dax(&sysfs) {
            return Err(Unavailable::Dax);
        }
        if mount.options.iter().any(|option| option == "data=journal") {
            return Err(Unavailable::DataJournal);
        }
        let number = u64::from(major) << 20 | u64::from(minor);
        let (backing, metadata_inode) = match filesystem {
            Filesystem::Btrfs => (btrfs_backing(root), BTRFS_TREE_INODE),
            _ => (backing_device(&sysfs), number),
        };
        Ok(Self {
            filesystem,
            number,
            backing: backing.ok_or(Unavailable::UnknownDevice)?,
            metadata_inode,
            block_bytes: u64::try_from(block).map_err(|_| Unavailable::UnknownDevice)?,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: (u32, u32),
    filesystem: String,
    options: Vec<String>,
}

/// How a mount is found. Its number is the better way: a btrfs subvolume's `st_dev` is not its filesystem's device.
/// Kernels before 5.8 do not tell it.
#[derive(Debug, Clone, Copy)]
enum Place {
    Mount(u64),
    Device(u32, u32),
}

/// Finds a mount in the text of `/proc/self/mountinfo`:
/// `36 35 98:0 /root /mountpoint rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`.
fn find_mount(mountinfo: &str, place: Place) -> Option<Mount> {
    let (field, text) = match place {
        Place::Mount(id) => (0, id.to_string()),
        Place::Device(major, minor) => (2, format!("{major}:{minor}")),
    };
    let line = mountinfo.lines().find(|line| line.split(' ').nth(field) == Some(&text))?;
    let (before, after) = line.split_once(" - ")?;
    let (major, minor) = before.split(' ').nth(2)?.split_once(':')?;
    let mut after = after.split(' ');
    let filesystem = after.next()?.to_owned();
    let options = before.split(' ').nth(5).into_iter().chain(after.nth(1));
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        filesystem,
        options: options.flat_map(|list| list.split(',')).map(str::to_owned).collect(),
    })
}

impl Mount {
    fn may_use_dax(&self, sysfs: &Path) -> bool {
        let mut options = self.options.iter().filter(|option| option.starts_with("dax"));
        match options.next() {
            Some(option) => option != "dax=never",
            None => [sysfs.join("queue/dax"), sysfs.join("../queue/dax")]
                .iter()
                .any(|path| fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")),
        }
    }
}

/// The backing device of a disk, or of the disk that a partition is on.
fn backing_device(sysfs: &Path) -> Option<String> {
    let sysfs = fs::canonicalize(sysfs).ok()?;
    name_behind(&[sysfs.join("bdi"), sysfs.parent()?.join("bdi")])
}

/// The inode number of btrfs' own trees.
const BTRFS_TREE_INODE: u64 = 1;

/// The backing device of a btrfs, which the kernel lists under the filesystem's id.
fn btrfs_backing(root: BorrowedFd<'_>) -> Option<String> {
    const BTRFS_IOC_FS_INFO: u32 = 0x8400_941f;
    let mut info = [0u8; 1024];
    // SAFETY: the request fills a structure of 1024 bytes.
    let result = unsafe { libc::ioctl(root.as_raw_fd(), BTRFS_IOC_FS_INFO as _, info.as_mut_ptr()) };
    let id = info.get(16..32).filter(|_| result == 0)?;
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    name_behind(&[PathBuf::from(format!("/sys/fs/btrfs/{id}/bdi"))])
}

/// The last name of the first link there is, if a filter can hold it.
fn name_behind(links: &[PathBuf]) -> Option<String> {
    let link = links.iter().find_map(|path| fs::read_link(path).ok())?;
    let name = String::from_utf8(link.file_name()?.as_bytes().to_vec()).ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-');
    name.bytes().all(plain).then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn finds_a_mount_by_its_device() {
        let text = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
                    36 35 98:0 /mnt1 /mnt2 ro,noatime master:1 shared:2 - xfs /dev/sdb rw,dax=inode\n";
        let mount = find_mount(text, Place::Device(98, 0)).unwrap();
        assert_eq!(find_mount(text, Place::Mount(36)).as_ref(), Some(&mount));
        assert_eq!(mount.filesystem, "xfs");
        assert_eq!(mount.options, ["ro", "noatime", "rw", "dax=inode"]);
        assert!(mount.may_use_dax(Path::new("/nonexistent")));
        assert!(!find_mount(text, Place::Mount(22)).unwrap().may_use_dax(Path::new("/nonexistent")));
        assert_eq!((mount.device, find_mount(text, Place::Device(254, 1))), ((98, 0), None));
    }
}
