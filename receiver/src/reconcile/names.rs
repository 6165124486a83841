//! The first pass: every name is there, means something of the right kind, and is joined to the right others.
//!
//! All removals come before all creations, so that a file which is kept can be recognised: one whose every name is among
//! those the tree gives it (`reusable`). Anything else that has another name somewhere is replaced instead of
//! written through.

use std::collections::{HashMap, HashSet};

use rustix::fs::{self, FileType, OFlags, Stat};
use tidelock_proto::{
    FileId,
    tree::{Content, Inode, Name, Timestamp},
};

use super::{
    Phase, Progress, Report, Result, Run,
    beneath::{Dir, Place},
    error::ReconcileError,
};

/// A file whose content has to be looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileWork {
    pub(super) id: FileId,
    /// The bytes it had before this run, from the start; what is beyond is a hole now.
    pub(super) old_bytes: u64,
}

/// The names found of an inode that has several.
struct Links {
    id: FileId,
    count: u64,
    /// They belong to different inodes of the tree.
    mixed: bool,
}

struct Names<'a, 'r> {
    run: &'r Run<'a>,
    /// Directories of the tree that exist in the target.
    present: HashSet<FileId>,
    /// By inode number; one file system only.
    links: HashMap<u64, Links>,
    /// Inodes with several names that have got their first: its number and that name.
    placed: HashMap<FileId, (u64, FileId, Name)>,
    work: Vec<FileWork>,
    report: Report,
    /// The directory being built was at the same path in the tree that is known, so its entries can be compared.
    known_here: bool,
}

/// Makes all names right and tells which files' content is to be compared.
pub(super) fn run(run: &Run<'_>) -> Result<Vec<FileWork>> {
    let mut names = Names {
        run,
        present: HashSet::from([FileId::ROOT]),
        links: HashMap::new(),
        placed: HashMap::new(),
        work: Vec::new(),
        report: Report::default(),
        known_here: false,
    };
    let done = names.clear().and_then(|()| names.build());
    run.report.lock().add(&names.report);
    done.map(|()| names.work)
}

impl Names<'_, '_> {
    /// Removes what the tree does not have, or has as something else.
    fn clear(&mut self) -> Result<()> {
        let mut next = vec![FileId::ROOT];
        while let Some(id) = next.pop() {
            let dir = self.run.dir(id)?;
            for name in dir.list()? {
                let place = dir.place(&name);
                let (false, Some(stat)) = (self.run.is_foreign(id, &name), place.stat()?) else { continue };
                let wanted = Name::new(&name).ok().and_then(|name| self.run.tree.lookup(id, &name));
                match wanted.and_then(|child| Some((child, self.run.tree.get(child)?))) {
                    Some((child, inode)) if is_kind(&place, &stat, inode)? => {
                        if matches!(inode.content, Content::Directory(_)) {
                            self.present.insert(child);
                            next.push(child);
                        } else if link_count(&stat) > 1 {
                            let links = Links { id: child, count: 0, mixed: false };
                            let links = self.links.entry(stat.st_ino).or_insert(links);
                            links.count += 1;
                            links.mixed |= links.id != child;
                        }
                    }
                    _ => {
                        self.run.touch_in(&dir)?;
                        self.remove(&place, &stat)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes a name and all below it, without recursion: no depth is too deep.
    fn remove(&mut self, place: &Place<'_>, stat: &Stat) -> Result<()> {
        self.report.removed += 1;
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            return place.unlink();
        }
        let mut found = vec![place.path()];
        let mut next = 0;
        if !self.run.privileged {
            place.set_mode(0o700)?;
        }
        while let Some(path) = found.get(next).cloned() {
            let dir = self.run.root.dir(path)?;
            for name in dir.list()? {
                let below = dir.place(&name);
                let is_dir = below.stat()?.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
                if is_dir {
                    if !self.run.privileged {
                        below.set_mode(0o700)?;
                    }
                    found.push(below.path());
                } else {
                    below.unlink()?;
                }
            }
            next += 1;
        }
        for path in found[1..].iter().rev() {
            let slash = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            self.run.root.dir(path[..slash].to_vec())?.place(&path[slash + 1..]).remove_dir()?;
        }
        place.remove_dir()
    }

    /// Creates what is missing and joins what belongs together.
    fn build(&mut self) -> Result<()> {
        let total = self.run.tree.totals().inodes;
        let mut done = 0;
        for id in self.run.directories() {
            let dir = self.run.dir(id)?;
            self.known_here = self.is_known(id);
            for (name, child) in self.run.tree.entries(id).into_iter().flatten() {
                let place = dir.place(name.as_bytes());
                let Some(inode) = self.run.tree.get(*child) else { continue };
                if !matches!(inode.content, Content::Directory(_)) {
                    self.node(&dir, &place, (id, name), *child, inode)?;
                } else if !self.present.contains(child) {
                    self.run.touch_in(&dir)?;
                    place.make_dir()?;
                    self.report.created += 1;
                }
            }
            done += self.run.tree.entries(id).map_or(0, |entries| entries.len() as u64);
            (self.run.progress)(Progress { phase: Phase::Names, done: done.min(total), total });
        }
        Ok(())
    }

    fn node(
        &mut self,
        dir: &Dir<'_>,
        place: &Place<'_>,
        (dir_id, name): (FileId, &Name),
        id: FileId,
        inode: &Inode,
    ) -> Result<()> {
        let there = place.stat()?;
        if let Some((number, first_dir, first)) = self.placed.get(&id) {
            if there.as_ref().is_none_or(|stat| stat.st_ino != *number) {
                self.run.touch_in(dir)?;
                there.map_or(Ok(()), |_| place.unlink())?;
                place.make_link(&self.run.dir(*first_dir)?.place(first.as_bytes()))?;
                self.report.linked += 1;
            }
            return Ok(());
        }
        let kept = there.as_ref().is_some_and(|stat| self.reusable(stat, id));
        if !kept {
            self.run.touch_in(dir)?;
            there.map_or(Ok(()), |_| place.unlink())?;
            create(place, inode)?;
            self.report.created += 1;
        }
        if kept && inode.extents().is_none() && self.run.tree.names(id).nth(1).is_none() {
            return Ok(());
        }
        let Some(stat) = place.stat()? else {
            return Err(ReconcileError::io("find again", place.full(), rustix::io::Errno::NOENT));
        };
        if self.run.tree.names(id).nth(1).is_some() {
            self.placed.insert(id, (stat.st_ino, dir_id, name.clone()));
        }
        let known = kept && self.known_here && self.is_known_file(dir_id, name, id, inode);
        self.prepare(place, &stat, id, inode, (kept, known))
    }

    fn is_known(&self, dir: FileId) -> bool {
        let known = self.run.options.known.as_ref();
        known.and_then(|known| known.path(dir)).is_some_and(|path| Some(path) == self.run.tree.path(dir))
    }

    /// Whether the file at this name was written as this inode, with this content.
    fn is_known_file(&self, dir: FileId, name: &Name, id: FileId, inode: &Inode) -> bool {
        let options = self.run.options;
        let known = options.known.as_ref().filter(|known| known.lookup(dir, name) == Some(id));
        let known = known.filter(|_| !options.doubted.contains(&id));
        known.and_then(|known| known.get(id)).is_some_and(|known| known.extents() == inode.extents())
    }

    /// Whether every name of what is there belongs to this inode of the tree.
    fn reusable(&self, stat: &Stat, id: FileId) -> bool {
        let links = self.links.get(&stat.st_ino);
        let count = link_count(stat);
        count == 1 || links.is_some_and(|links| links.id == id && !links.mixed && links.count >= count)
    }

    /// Brings a regular file to its size and notes it down for comparison.
    fn prepare(
        &mut self,
        place: &Place<'_>,
        stat: &Stat,
        id: FileId,
        inode: &Inode,
        (kept, known): (bool, bool),
    ) -> Result<()> {
        let Some(extents) = inode.extents() else { return Ok(()) };
        let old_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if !kept {
            self.run.mark_changed(id);
        } else if old_bytes == extents.size()
            && (known || (self.run.options.trust_mtime && mtime(stat) == inode.meta.mtime))
        {
            self.report.files_trusted += 1;
            return Ok(());
        }
        if kept {
            self.narrow(place, stat, inode)?;
        }
        if old_bytes != extents.size() {
            self.run.touch()?;
            let fd = place.open(OFlags::WRONLY)?;
            fs::ftruncate(&fd, extents.size())
                .map_err(|errno| ReconcileError::io("set the size of", place.full(), errno))?;
            self.run.mark_changed(id);
        }
        if extents.size() > 0 {
            self.work.push(FileWork { id, old_bytes });
        }
        Ok(())
    }

    /// Others must not read new content through an old mode, and a user who is not root must be able to write it.
    fn narrow(&self, place: &Place<'_>, stat: &Stat, inode: &Inode) -> Result<()> {
        let meta = &inode.meta;
        let mode = stat.st_mode & 0o7777;
        let differs = (mode, stat.st_uid, stat.st_gid) != (meta.mode & 0o7777, meta.uid, meta.gid);
        let locked = !self.run.privileged && mode & 0o600 != 0o600;
        if (differs && mode & 0o077 != 0) || locked {
            self.run.touch()?;
            place.set_mode(0o600)?;
        }
        Ok(())
    }
}

/// Makes an inode of its kind, empty.
pub(super) fn create(place: &Place<'_>, inode: &Inode) -> Result<()> {
    match &inode.content {
        Content::File(_) => place.open(OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL).map(drop),
        Content::Directory(_) => place.make_dir(),
        Content::Symlink(target) => place.make_symlink(target),
        Content::Fifo => place.make_node(FileType::Fifo, 0, 0),
        Content::CharDevice(major, minor) => place.make_node(FileType::CharacterDevice, *major, *minor),
        Content::BlockDevice(major, minor) => place.make_node(FileType::BlockDevice, *major, *minor),
    }
}

/// Whether what is there could become the inode without being replaced.
fn is_kind(place: &Place<'_>, stat: &Stat, inode: &Inode) -> Result<bool> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let device = |major: &u32, minor: &u32| stat.st_rdev == fs::makedev(*major, *minor);
    Ok(match &inode.content {
        Content::File(_) => kind.is_file(),
        Content::Directory(_) => kind.is_dir(),
        Content::Symlink(target) => kind.is_symlink() && place.symlink_target()? == *target,
        Content::Fifo => kind.is_fifo(),
        Content::CharDevice(major, minor) => kind.is_char_device() && device(major, minor),
        Content::BlockDevice(major, minor) => kind.is_block_device() && device(major, minor),
    })
}

/// The modification time of what is there.
pub(super) fn mtime(stat: &Stat) -> Timestamp {
    Timestamp { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// The number of names; its type depends on the architecture.
#[allow(clippy::useless_conversion)]
fn link_count(stat: &Stat) -> u64 {
    u64::from(stat.st_nlink)
}
