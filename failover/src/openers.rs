//! Who has files of a directory open.
//!
//! Files are compared by device and inode and not by path, because a process in a container sees its volume elsewhere: its open
//! files, its mappings, its working directory, its root and its program. Processes of another PID namespace that this one
//! does not hold are not seen, and those of other users only by root; how many could not be looked at is told.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{major, makedev, minor};
use serde::Serialize;
use tidelock_receiver::reconcile::ReconcileError;

use crate::error::FailoverError;

/// A process that has something open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Opener {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// Who has something of a directory open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Openers {
    /// Processes, this one's own program left out: a sidecar opens files to read them.
    pub processes: Vec<Opener>,
    /// Processes that could not be looked at.
    pub unseen: u64,
}

/// Looks who works in a directory; somebody there is an error unless it is to be done by `force`.
pub(crate) fn at_rest(directory: &Path, force: bool) -> Result<Openers, FailoverError> {
    if !directory.is_dir() {
        return Err(ReconcileError::NotDirectory(directory.to_owned()).into());
    }
    let openers = openers(directory).map_err(FailoverError::Openers)?;
    if !openers.processes.is_empty() && !force {
        let list = |process: &Opener| format!("{} ({})", process.name, process.pid);
        let by = openers.processes.iter().take(5).map(list).collect::<Vec<_>>().join(", ");
        return Err(FailoverError::InUse { directory: directory.to_owned(), by });
    }
    Ok(openers)
}

/// Looks at all processes. The directory is walked within its file system.
pub fn openers(directory: &Path) -> io::Result<Openers> {
    let inodes = inodes(directory)?;
    let own = fs::metadata("/proc/self/exe").map(|exe| (exe.dev(), exe.ino())).ok();
    let mut found = Openers::default();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != std::process::id()) else { continue };
        let exe = fs::metadata(path.join("exe")).map(|exe| (exe.dev(), exe.ino())).ok();
        if exe.is_some() && exe == own {
            continue;
        }
        match holds(&path, &inodes) {
            Some(true) => {
                let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
                found.processes.push(Opener { pid, name: name.trim_end().to_owned() });
            }
            Some(false) => {}
            // It ended meanwhile, or it is another user's.
            None => found.unseen += u64::from(path.exists()),
        }
    }
    found.processes.sort_by_key(|process| process.pid);
    Ok(found)
}

type Inodes = HashSet<(u64, u64)>;

/// The directory and all below it, on its file system.
fn inodes(directory: &Path) -> io::Result<Inodes> {
    let root = fs::metadata(directory)?;
    let mut found = Inodes::from([(root.dev(), root.ino())]);
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() == root.dev() {
                found.insert((meta.dev(), meta.ino()));
                if meta.is_dir() {
                    open.push(entry.path());
                }
            }
        }
    }
    Ok(found)
}

/// Whether a process holds one of them; `None` if it cannot be looked at.
fn holds(process: &Path, inodes: &Inodes) -> Option<bool> {
    let is_ours =
        |path: PathBuf| fs::metadata(path).is_ok_and(|meta| inodes.contains(&(meta.dev(), meta.ino())));
    if ["cwd", "root", "exe"].into_iter().any(|name| is_ours(process.join(name))) {
        return Some(true);
    }
    let files = fs::read_dir(process.join("fd")).ok()?;
    if files.flatten().any(|file| is_ours(file.path())) {
        return Some(true);
    }
    let maps = fs::read_to_string(process.join("maps")).ok()?;
    Some(maps.lines().filter_map(mapped).any(|file| inodes.contains(&file)))
}

/// Device and inode of a line of `/proc/PID/maps`: `from-to rwxp offset major:minor inode path`.
fn mapped(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let (dev, inode) = (words.next()?, words.next()?);
    let (high, low) = dev.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let dev = makedev(number(high)?, number(low)?);
    // As `stat` tells it.
    debug_assert_eq!((major(dev), minor(dev)), (number(high)?, number(low)?));
    Some((dev, inode.parse().ok().filter(|inode| *inode != 0)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_in_a_directory_or_with_a_file_open_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let seen = || openers(dir.path()).unwrap().processes;
        assert_eq!(seen(), []);
        let held = |mut command: Command| {
            let mut child = command.stdout(Stdio::null()).spawn().unwrap();
            // The program runs, and has what it was given, when spawn returns.
            let found = seen().iter().any(|process| process.pid == child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            found
        };
        let mut inside = Command::new("sleep");
        inside.arg("60").current_dir(dir.path());
        let mut reader = Command::new("sleep");
        reader.arg("60").stdin(fs::File::open(dir.path().join("file")).unwrap());
        let mut elsewhere = Command::new("sleep");
        elsewhere.arg("60");
        assert_eq!([held(inside), held(reader), held(elsewhere)], [true, true, false]);
        assert_eq!(seen(), []);
    }
}
