//! A filesystem of its own for a test: made in a sparse file, loop-mounted, and gone afterwards.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A mounted filesystem.
pub(crate) struct Volume {
    pub(crate) kind: &'static str,
    mount: PathBuf,
    _directory: TempDir,
}

impl Volume {
    /// Makes and mounts one; `None`, with the reason printed, where that is not possible. Under CI it must be.
    pub(crate) fn mount(kind: &'static str) -> Option<Self> {
        match Self::try_mount(kind) {
            Ok(volume) => Some(volume),
            Err(why) if std::env::var_os("CI").is_some() => panic!("{kind} cannot be mounted: {why}"),
            Err(why) => {
                eprintln!("skipped: {kind} cannot be mounted: {why}");
                None
            }
        }
    }

    fn try_mount(kind: &'static str) -> Result<Self, String> {
        let directory = TempDir::new().map_err(|error| error.to_string())?;
        let (image, mount) = (directory.path().join("image"), directory.path().join("mount"));
        File::create(&image).and_then(|file| file.set_len(400 << 20)).map_err(|error| error.to_string())?;
        fs::create_dir(&mount).map_err(|error| error.to_string())?;
        run(&format!("mkfs.{kind}"), [OsStr::new("-q"), image.as_os_str()])?;
        run("mount", [OsStr::new("-o"), OsStr::new("loop"), image.as_os_str(), mount.as_os_str()])?;
        Ok(Self { kind, mount, _directory: directory })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    pub(crate) fn open_directory(&self, name: &str) -> OwnedFd {
        File::open(self.path(name)).expect("the directory exists").into()
    }

    /// Writes everything back, so that every page is clean.
    pub(crate) fn sync(&self) {
        rustix::fs::syncfs(self.open_directory(".").as_fd()).expect("the filesystem is sound");
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a test that panicked may still hold a file open.
        let _ = run("umount", [OsStr::new("-l"), self.mount.as_os_str()]);
    }
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(())
}

/// A temporary directory on whatever filesystem this machine has.
pub(crate) fn directory() -> (TempDir, OwnedFd) {
    let directory = TempDir::new().expect("there is room");
    let fd = open(directory.path());
    (directory, fd)
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("it exists").into()
}
