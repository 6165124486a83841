//! Capturing names: what directories contain.
//!
//! A rename shows itself at two names that cannot be looked up at one instant. What makes it safe: the kernel holds the
//! locks of both directories from before the change until both events are queued. So after looking up names of a
//! directory, and before the drain that may find nothing, the capture passes through that directory's lock
//! ([`pass_lock`]): a rename, unlink or creation of which half was seen has queued its events by then, the drain is not empty,
//! and there is another round. All events of one directory-changing call are queued together, so the next round sees
//! every name it touched.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, RawDir, openat},
    io::Errno,
};
use tidelock_proto::{
    FileId, Op,
    tree::{Content, Kind, Name, Timestamp},
};

use super::{CutError, dirty::EntryHint, engine::Engine};
use crate::capture::{CaptureError, Found, read_xattrs};

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
const OPEN_NODE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);

/// Waits until no call that changes the directory is between its change and its events.
fn pass_lock(dir: BorrowedFd<'_>) {
    let mut buffer = [MaybeUninit::uninit(); 512];
    // One entry is enough: the kernel takes the directory's lock for every getdents, whatever it returns.
    let _ = RawDir::new(dir, &mut buffer).next();
}

impl Engine {
    /// Watches a directory and queues every entry that it has or should have.
    pub(super) fn list_directory(&mut self, dir: FileId, hint: EntryHint) -> Result<(), CutError> {
        let fd = match self.open_directory(dir) {
            Ok(Some(fd)) => fd,
            Ok(None) => return Ok(()),
            Err(CutError::Capture(CaptureError::Moved)) => {
                self.list_where_found(dir, hint);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.listed.insert(dir);
        // Watched first, listed second: what comes in between is found by one of the two.
        self.watch(dir, fd.as_fd())?;
        let mut buffer = vec![MaybeUninit::uninit(); 64 * 1024];
        let mut entries = RawDir::new(&fd, &mut buffer);
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Ok(entry) => self.dirty.entry(dir, entry.file_name().to_bytes().into(), hint),
                // Removed since it was opened.
                Err(Errno::NOENT) => {
                    self.list_where_found(dir, hint);
                    return Ok(());
                }
                Err(errno) => {
                    self.unreadable(dir, errno);
                    return Ok(());
                }
            }
        }
        let known: Vec<Box<[u8]>> = self
            .stage
            .tree()
            .entries(dir)
            .into_iter()
            .flatten()
            .map(|(name, _)| name.as_bytes().into())
            .collect();
        for name in known {
            self.dirty.entry(dir, name, EntryHint::default());
        }
        self.dirty.file(dir).attributes = true;
        Ok(())
    }

    /// The directory is not where the tree has it: lists it once its name is known again, or not at all.
    fn list_where_found(&mut self, dir: FileId, hint: EntryHint) {
        self.look_up_again(dir);
        self.nameless.entry(dir).or_default().list = Some(hint);
    }

    /// Looks up entries of one directory.
    pub(super) fn capture_entries(
        &mut self,
        dir: FileId,
        entries: Vec<(Box<[u8]>, EntryHint)>,
    ) -> Result<(), CutError> {
        let fd = match self.open_directory(dir) {
            Ok(Some(fd)) => fd,
            Ok(None) => return Ok(()),
            Err(CutError::Capture(CaptureError::Moved)) => {
                self.look_up_again(dir);
                entries.iter().for_each(|(_, hint)| self.unresolved(*hint));
                self.nameless.entry(dir).or_default().entries.extend(entries);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for (name, hint) in entries {
            let Ok(name) = Name::new(&name) else { continue };
            match self.capture_entry(dir, fd.as_fd(), &name, hint) {
                Ok(()) => {}
                Err(CutError::Capture(CaptureError::Moved)) => {
                    let entry = (name.as_bytes().into(), hint);
                    self.nameless.entry(dir).or_default().entries.push(entry);
                }
                Err(CutError::Capture(CaptureError::Io(errno))) => self.unreadable(dir, errno),
                Err(error) => return Err(error),
            }
        }
        // The directory's own times and link count changed with its entries.
        self.dirty.file(dir).attributes = true;
        pass_lock(fd.as_fd());
        Ok(())
    }

    fn capture_entry(
        &mut self,
        dir: FileId,
        fd: BorrowedFd<'_>,
        name: &Name,
        hint: EntryHint,
    ) -> Result<(), CutError> {
        let hint = EntryHint { scan: hint.scan || self.scanning, ..hint };
        let before = self.stage.tree().lookup(dir, name);
        let found = Found::at(fd, name.as_bytes()).map_err(CaptureError::from)?;
        self.links_seen |=
            found.is_some_and(|found| found.file_type() == FileType::RegularFile && found.links() > 1);
        if self.is_excluded(dir, name.as_bytes()) {
            return self.capture_excluded(dir, name, found.as_ref(), hint);
        }
        if found.as_ref().is_none_or(|found| self.volume.holds(found)) {
            self.forget_mount(dir, name);
        }
        let Some(found) = found.filter(|found| self.replicated(found, dir, name)) else {
            if before.is_some() {
                self.stage.apply(Op::Unlink { dir, name: name.clone() })?;
            }
            self.unresolved(hint);
            return Ok(());
        };
        let (id, created) = match self.stage.known(&found) {
            Some(id) => {
                self.elsewhere.remove(&id);
                (id, false)
            }
            None => match self.take_over(before, &found)? {
                Some(id) => (id, false),
                None => self.adopt(fd, name)?,
            },
        };
        if before != Some(id) {
            self.unresolved(hint);
            self.stage.apply(Op::Link { dir, name: name.clone(), id })?;
            if found.file_type() == FileType::Directory {
                self.drop_former_names(id, dir, name)?;
                if self.excludes.depend_on_path() && !created {
                    // What is left out below may be other names now.
                    self.listed.clear();
                    self.dirty.directory(id, true);
                }
            }
        }
        self.after_lookup(id, &found, created, before != Some(id), hint);
        Ok(())
    }

    /// A directory has one name. Seen under a new one it has lost the former, whatever is there now: without this, what is
    /// below a moved directory would be looked for where it was until that name's turn comes.
    fn drop_former_names(&mut self, id: FileId, dir: FileId, name: &Name) -> Result<(), CutError> {
        let former: Vec<(FileId, Name)> =
            self.stage.tree().names(id).filter(|entry| (entry.0, &entry.1) != (dir, name)).cloned().collect();
        for (dir, name) in former {
            self.dirty.entry(dir, name.as_bytes().into(), EntryHint::default());
            self.stage.apply(Op::Unlink { dir, name })?;
        }
        Ok(())
    }

    /// The content of something changed that may no longer be found by the name it was announced with: the name is gone, or
    /// has come to mean something else. If it was one of several names of an inode, only its change time tells.
    fn unresolved(&mut self, hint: EntryHint) {
        if hint.content {
            for id in self.stage.hard_linked() {
                self.dirty.file(id).compare = true;
            }
        }
    }

    /// What else must be captured now that an entry is known to mean `id`.
    fn after_lookup(&mut self, id: FileId, found: &Found, created: bool, renamed: bool, hint: EntryHint) {
        match found.file_type() {
            FileType::Directory if created || (hint.scan && !self.listed.contains(&id)) => {
                self.dirty.directory(id, hint.scan);
            }
            FileType::RegularFile if created => {
                self.dirty.file(id).suspect_all();
                self.dirty.file(id).write_back |= hint.scan;
            }
            // Without exact ranges a content event may have named the inode by its former name.
            FileType::RegularFile if hint.content || (renamed && !self.exact()) => self.suspect(id),
            FileType::RegularFile if hint.scan && self.differs(id, found) => {
                self.suspect(id);
                self.dirty.file(id).write_back = true;
            }
            _ => {}
        }
        if !created || found.file_type() == FileType::Directory {
            self.dirty.file(id).attributes = true;
        }
    }

    /// Whether a file may have changed since the tree captured it, by its times and size alone.
    pub(super) fn differs(&self, id: FileId, found: &Found) -> bool {
        self.stage.get(id).is_none_or(|inode| {
            inode.meta.origin.ctime != found.ctime()
                || inode.extents().is_none_or(|extents| extents.size() != found.size())
        })
    }

    /// Brings an inode into the tree that it does not know yet; its name is given by the caller.
    fn adopt(&mut self, dir: BorrowedFd<'_>, name: &Name) -> Result<(FileId, bool), CutError> {
        let flags = OPEN_NODE | OFlags::CLOEXEC;
        let node = match openat(dir, name.as_bytes(), flags, Mode::empty()) {
            Ok(node) => node,
            Err(Errno::NOENT) => return Err(CaptureError::Moved.into()),
            Err(errno) => return Err(CaptureError::from(errno).into()),
        };
        // Identity and number from one descriptor: the lookup by name took two calls.
        let found = Found::of(node.as_fd()).map_err(CaptureError::from)?;
        if let Some(id) = self.stage.known(&found) {
            return Ok((id, false));
        }
        let kind = match (found.kind(), found.file_type()) {
            (Some(kind), _) => kind,
            (None, FileType::Symlink) => Kind::Symlink(read_link(&node)?),
            (None, _) => return Err(CaptureError::Moved.into()),
        };
        let id = self.stage.tree().next_id();
        let xattrs = read_xattrs(node.as_fd()).map_err(CaptureError::from)?;
        // A file's is recorded with its bytes.
        let settled_before = match kind {
            Kind::File => Timestamp::default(),
            _ => self.settled_before(),
        };
        self.stage.apply(Op::Create { id, kind, meta: found.meta(settled_before) })?;
        self.note_unsettled(id, found.ctime(), settled_before);
        if !xattrs.is_empty() {
            self.stage.apply(Op::SetXattrs { id, xattrs })?;
        }
        Ok((id, true))
    }

    /// Whether an entry is replicated at all. Sockets are not, nor are file systems mounted within the volume.
    fn replicated(&mut self, found: &Found, dir: FileId, name: &Name) -> bool {
        if found.file_type() == FileType::Socket {
            self.note_socket(dir, name);
            return false;
        }
        if !self.volume.holds(found) {
            self.note_mount(dir, name);
            return false;
        }
        true
    }

    /// Opens a directory of the tree. `None` if the tree has no such directory any more (nothing to do), or it cannot be
    /// read (noted, and tried again later). It has moved if it is not where the tree has it, or has no name just now.
    fn open_directory(&mut self, dir: FileId) -> Result<Option<OwnedFd>, CutError> {
        let is_directory =
            self.stage.get(dir).is_some_and(|inode| matches!(inode.content, Content::Directory(_)));
        let (Some(identity), true) = (self.stage.identity(dir), is_directory) else { return Ok(None) };
        let Some(path) = self.stage.tree().path(dir) else { return Err(CaptureError::Moved.into()) };
        match self.volume.open_identified(&path, identity, OPEN_DIRECTORY) {
            Ok((fd, _)) => Ok(Some(fd)),
            Err(CaptureError::Io(errno)) => {
                self.unreadable(dir, errno);
                Ok(None)
            }
            Err(moved) => Err(moved.into()),
        }
    }

    /// The tree's path of an inode no longer leads to it: queues the entry where it goes astray.
    ///
    /// Only that one: an entry for every name on the way would keep a deep tree from ever getting done.
    pub(super) fn look_up_again(&mut self, id: FileId) {
        let Some(ancestry) = self.stage.tree().ancestry(id) else { return };
        if ancestry.iter().any(|(dir, name)| self.dirty.has_entry(*dir, name.as_bytes())) {
            return;
        }
        let mut at: Option<OwnedFd> = None;
        let mut astray = None;
        for (dir, name) in ancestry {
            astray = Some((*dir, name.as_bytes()));
            let from = at.as_ref().map_or(self.volume.root(), AsFd::as_fd);
            let child = self.stage.tree().lookup(*dir, name).and_then(|child| self.stage.identity(child));
            let flags = OPEN_NODE | OFlags::CLOEXEC;
            let Ok(node) = openat(from, name.as_bytes(), flags, Mode::empty()) else { break };
            if Found::of(node.as_fd()).ok().map(|found| found.identity()) != child {
                break;
            }
            at = Some(node);
        }
        if let Some((dir, name)) = astray {
            self.dirty.entry(dir, name.into(), EntryHint::default());
        }
    }
}

fn read_link(node: &OwnedFd) -> Result<Vec<u8>, CutError> {
    let target = rustix::fs::readlinkat(node, c"", Vec::new()).map_err(CaptureError::from)?;
    Ok(target.into_bytes())
}
