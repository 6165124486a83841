//! Small real file systems on loop devices.
//!
//! They are mounted in a mount namespace of the test's own thread, which its child processes inherit: when the test
//! ends in any way, the kernel unmounts them and frees their loop devices.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::{self, run};

/// What to format with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// ext4 as Debian makes it.
    Ext4,
    /// xfs with reflinks.
    Xfs,
    /// btrfs on one device.
    Btrfs,
}

/// A mounted file system.
pub struct Mount {
    path: PathBuf,
}

impl Mount {
    /// Formats a sparse image beside `path` and mounts it there. Needs root.
    pub fn new(path: &Path, format: Format, size_mib: u64) -> Self {
        Self::with_options(path, format, size_mib, "loop")
    }

    /// The same, with mount options; `loop` must be among them.
    pub fn with_options(path: &Path, format: Format, size_mib: u64, options: &str) -> Self {
        private_namespace();
        fs::create_dir_all(path).expect("the mount point can be made");
        let image = path.with_extension("image");
        File::create(&image).and_then(|file| file.set_len(size_mib << 20)).expect("the image can be made");
        let (program, arguments): (_, &[&str]) = match format {
            Format::Ext4 => ("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1"]),
            Format::Xfs => ("mkfs.xfs", &["-q", "-f"]),
            Format::Btrfs => ("mkfs.btrfs", &["-q", "-f"]),
        };
        run(Command::new(program).args(arguments).arg(&image));
        run(Command::new("mount").args(["-o", options]).arg(&image).arg(path));
        fs::remove_file(&image).expect("the image is ours");
        Self { path: path.to_owned() }
    }

    /// Loses the power of the disk: what was not synced is gone. Nobody may have a file open there; it is mounted again on return. ext4 and xfs.
    pub fn lose_power(&self) {
        let device =
            run(Command::new("findmnt").args(["--noheadings", "--output", "SOURCE"]).arg(&self.path));
        // Held, so that the loop device outlives its mount.
        let _held = File::open(device.trim()).expect("the loop device is there");
        run(Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.path));
        run(Command::new("umount").arg(&self.path));
        run(Command::new("mount").arg(device.trim()).arg(&self.path));
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazy: a process that is still leaving may hold a file. The loop device goes with the last user.
        process::output(Command::new("umount").arg("--lazy").arg(&self.path));
    }
}

/// Gives this thread mounts of its own, once; they do not travel back to the rest of the machine.
pub fn private_namespace() {
    thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if DONE.replace(true) {
        return;
    }
    // SAFETY: only this thread's view of the mounts changes; no memory is involved.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(unshared, 0, "cannot unshare the mounts: {}", std::io::Error::last_os_error());
    run(Command::new("mount").args(["--make-rprivate", "/"]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs::{self, Need};

    #[test]
    fn a_loop_mount_is_its_own_file_system_and_leaves_nothing() {
        if !needs::met(&[
            Need::Root,
            Need::Program("mkfs.ext4"),
            Need::Program("mkfs.xfs"),
            Need::Program("mkfs.btrfs"),
        ]) {
            return;
        }
        for format in [Format::Ext4, Format::Xfs, Format::Btrfs] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let mount = Mount::new(&dir.path().join("m"), format, 512);
            fs::write(mount.path().join("file"), "content").expect("writable");
            let inside = rustix::fs::stat(mount.path()).expect("stat").st_dev;
            assert_ne!(inside, rustix::fs::stat(dir.path()).expect("stat").st_dev);
            drop(mount);
            assert!(!dir.path().join("m/file").exists());
        }
        let outside = fs::read_to_string(format!("/proc/{}/mounts", std::process::id())).expect("mounts");
        assert!(!outside.contains("/m ext4"), "a mount leaked out of its test");
    }
}
