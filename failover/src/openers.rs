//! Who has files of a directory open.
//!
//! Files are compared by device and inode and not by path, because a process in a container sees its volume elsewhere: its open
//! files, its mappings, its working directory, its root and its program. Processes of another PID namespace that this one
//! does not hold are not seen, and those of other users only by root; how many could not be looked at is told.
//!
//! A sidecar holds the root of its volume open, so it is found as any other process is, and also where the directory lies within its volume.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{major, makedev, minor};
use serde::Serialize;
use tidelock_receiver::reconcile::{self, ReconcileError, Vacancy};

use crate::{error::FailoverError, limits};

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
    /// Processes other than this one.
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
        return Err(FailoverError::InUse { directory: directory.to_owned(), by: list(&openers.processes) });
    }
    Ok(openers)
}

/// That nobody works in a directory that is to be overwritten, or gone on with. Tells how many processes could not be looked at.
pub(crate) fn not_in_use(directory: &Path) -> Result<u64, FailoverError> {
    match reconcile::vacancy(directory)? {
        // Nothing that could be lost; a shell that stands there does no harm.
        Vacancy::Vacant => Ok(0),
        Vacancy::Unfinished(_) | Vacancy::Occupied => at_rest(directory, false).map(|found| found.unseen),
    }
}

/// A directory that is to become a volume of its own must be none of a volume that a sidecar of this machine replicates, whether or not it is there yet.
pub(crate) fn outside_of_volumes(directory: &Path) -> Result<(), FailoverError> {
    let above = inodes_above(directory).map_err(FailoverError::Openers)?;
    let keeps = |path: &Path| {
        let files = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        is_sidecar(path) && files.into_iter().any(|file| is_one_of(&file.path(), &above))
    };
    let by: Vec<Opener> = each_process()
        .map_err(FailoverError::Openers)?
        .filter(|(_, path)| keeps(path))
        .map(|(pid, path)| Opener::new(pid, &path))
        .collect();
    match by.is_empty() {
        true => Ok(()),
        false => Err(FailoverError::WithinVolume { directory: directory.to_owned(), by: list(&by) }),
    }
}

fn list(processes: &[Opener]) -> String {
    let one = |process: &Opener| format!("{} ({})", process.name, process.pid);
    processes.iter().take(limits::OPENERS_TOLD).map(one).collect::<Vec<_>>().join(", ")
}

/// Looks at all processes but this one. The directory is walked within its file system.
pub fn openers(directory: &Path) -> io::Result<Openers> {
    let inodes = inodes(directory)?;
    let mut found = Openers::default();
    for (pid, path) in each_process()? {
        if !has_files(&path) || is_being_started(&path) {
            continue;
        }
        match holds(&path, &inodes) {
            Some(true) => found.processes.push(Opener::new(pid, &path)),
            Some(false) => {}
            // It ended meanwhile, or it is another user's.
            None => found.unseen += u64::from(has_files(&path)),
        }
    }
    found.processes.sort_by_key(|process| process.pid);
    Ok(found)
}

impl Opener {
    fn new(pid: u32, path: &Path) -> Self {
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        Self { pid, name: name.trim_end().to_owned() }
    }
}

/// The other processes, each with its directory beneath `/proc`.
fn each_process() -> io::Result<impl Iterator<Item = (u32, PathBuf)>> {
    let own = std::process::id();
    Ok(fs::read_dir("/proc")?.flatten().filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (pid != own).then(|| (pid, entry.path()))
    }))
}

/// Whether it can have files open: it has not ended, though nobody may have asked how, and it is no thread of the kernel.
fn has_files(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    // `pid (comm) state ppid pgrp session tty tpgid flags …`; the name may hold anything.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_ascii_whitespace();
    let ended = fields.next().is_none_or(|state| matches!(state, "Z" | "X"));
    let flags: u32 = fields.nth(5).and_then(|flags| flags.parse().ok()).unwrap_or_default();
    !ended && flags & KERNEL_THREAD == 0
}

/// `PF_KTHREAD` of the kernel's `sched.h`.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// A child of this process that has not become another program yet: what it holds is this one's.
fn is_being_started(process: &Path) -> bool {
    let exe = |path: &Path| fs::metadata(path.join("exe")).map(|exe| (exe.dev(), exe.ino())).ok();
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1));
    parent == Some(std::process::id().to_string().as_str()) && exe(process) == exe(Path::new("/proc/self"))
}

/// Whether it runs `tidelock sidecar`.
fn is_sidecar(process: &Path) -> bool {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0);
    let program = words.next().and_then(|word| word.rsplit(|byte| *byte == b'/').next()).unwrap_or_default();
    program.starts_with(b"tidelock") && words.next() == Some(b"sidecar")
}

type Inodes = HashSet<(u64, u64)>;

/// The directory and all below it, on its file system, as far as this user may look.
fn inodes(directory: &Path) -> io::Result<Inodes> {
    let root = fs::metadata(directory)?;
    let mut found = Inodes::from([(root.dev(), root.ino())]);
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
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

/// The directories above a place, itself among them if it is there; the root is left out, which everybody has.
fn inodes_above(directory: &Path) -> io::Result<Inodes> {
    let whole = std::path::absolute(directory)?;
    let there = whole.ancestors().find_map(|path| fs::canonicalize(path).ok());
    let above = there.iter().flat_map(|path| path.ancestors()).filter(|path| path.parent().is_some());
    above.map(|path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))).collect()
}

fn is_one_of(path: &Path, inodes: &Inodes) -> bool {
    fs::metadata(path).is_ok_and(|meta| inodes.contains(&(meta.dev(), meta.ino())))
}

/// Whether a process holds one of them; `None` if it cannot be looked at.
fn holds(process: &Path, inodes: &Inodes) -> Option<bool> {
    if ["cwd", "root", "exe"].into_iter().any(|name| is_one_of(&process.join(name), inodes)) {
        return Some(true);
    }
    let files = fs::read_dir(process.join("fd")).ok()?;
    if files.flatten().any(|file| is_one_of(&file.path(), inodes)) {
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
    #[test]
    fn who_has_ended_and_was_not_waited_for_has_nothing_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("true").current_dir(dir.path()).spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        assert!(!has_files(Path::new(&format!("/proc/{}", child.id()))));
        assert_eq!(openers(dir.path()).unwrap().processes, []);
        child.wait().unwrap();
    }
}
