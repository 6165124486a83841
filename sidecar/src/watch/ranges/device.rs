//! Which filesystem a volume is on, and what its device is called in tracepoints.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::Unavailable;

/// The filesystem types whose tracepoints are known to be complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filesystem {
    Ext4,
    Xfs,
}

/// A mounted filesystem, as the kernel names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) filesystem: Filesystem,
    /// The device number of the superblock, as tracepoints hold it: `major << 20 | minor`.
    pub(super) number: u64,
    /// The name of the backing device: `major:minor` of the whole disk, even if the filesystem is on a partition.
    pub(super) backing: String,
    /// Bytes of a filesystem block.
    pub(super) block_bytes: u64,
}

impl Device {
    /// The filesystem that holds `root`.
    pub(super) fn of(root: BorrowedFd<'_>) -> Result<Self, Unavailable> {
        let stat = rustix::fs::fstat(root).map_err(|error| Unavailable::io("fstat")(error.into()))?;
        let block =
            rustix::fs::fstatfs(root).map_err(|error| Unavailable::io("fstatfs")(error.into()))?.f_bsize;
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        let mountinfo =
            fs::read("/proc/self/mountinfo").map_err(Unavailable::io("reading /proc/self/mountinfo"))?;
        let mount = find_mount(&String::from_utf8_lossy(&mountinfo), major, minor)
            .ok_or(Unavailable::UnknownDevice)?;
        let filesystem = match mount.filesystem.as_str() {
            "ext4" => Filesystem::Ext4,
            "xfs" => Filesystem::Xfs,
            _ => return Err(Unavailable::Filesystem { filesystem: mount.filesystem }),
        };
        let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        if mount.may_use_dax(&sysfs) {
            return Err(Unavailable::Dax);
        }
        if mount.options.iter().any(|option| option == "data=journal") {
            return Err(Unavailable::DataJournal);
        }
        Ok(Self {
            filesystem,
            number: u64::from(major) << 20 | u64::from(minor),
            backing: backing_device(&sysfs).ok_or(Unavailable::UnknownDevice)?,
            block_bytes: u64::try_from(block).map_err(|_| Unavailable::UnknownDevice)?,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    filesystem: String,
    options: Vec<String>,
}

/// Finds a device in the text of `/proc/self/mountinfo`:
/// `36 35 98:0 /root /mountpoint rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`.
fn find_mount(mountinfo: &str, major: u32, minor: u32) -> Option<Mount> {
    let device = format!("{major}:{minor}");
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(&device))?;
    let (before, after) = line.split_once(" - ")?;
    let mut after = after.split(' ');
    let filesystem = after.next()?.to_owned();
    let options = before.split(' ').nth(5).into_iter().chain(after.nth(1));
    Some(Mount { filesystem, options: options.flat_map(|list| list.split(',')).map(str::to_owned).collect() })
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
    let link = [sysfs.join("bdi"), sysfs.parent()?.join("bdi")]
        .into_iter()
        .find_map(|path| fs::read_link(path).ok())?;
    let name = String::from_utf8(link.file_name()?.as_bytes().to_vec()).ok()?;
    let plain = |byte: u8| byte.is_ascii_digit() || byte == b':';
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
        let mount = find_mount(text, 98, 0).unwrap();
        assert_eq!(mount.filesystem, "xfs");
        assert_eq!(mount.options, ["ro", "noatime", "rw", "dax=inode"]);
        assert!(mount.may_use_dax(Path::new("/nonexistent")));
        assert!(!find_mount(text, 254, 0).unwrap().may_use_dax(Path::new("/nonexistent")));
        assert_eq!(find_mount(text, 254, 1), None);
    }
}
