//! Names, attributes, and "this file changed", from inotify: one watch per directory.
//!
//! A watch is added through `/proc/self/fd/N` of a directory the caller has opened, so it is on that very inode whatever
//! its path is by then. All events of one source are in one queue, in the order in which they were raised.
//!
//! The mask asks for every change of an entry, and for changes of the directory itself. `IN_EXCL_UNLINK` is deliberately
//! left out: it would silence a file that was unlinked from this directory while still open, and such a file may well
//! live on under another hard link, or under a name given to an `O_TMPFILE` afterwards. The price is events for
//! temporary files that nobody can reach any more.
//!
//! inotify does not see stores through a mapping, nor writes through a descriptor that was opened by a name in a
//! directory outside the volume.
//!
//! A watch descriptor is not reused while the queue can still hold events of its earlier life (the kernel allocates them
//! cyclically), so an event whose descriptor is not in the table belongs to a forgotten directory and is dropped.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tidelock_proto::FileId;

use super::{Event, LostReason, Source, WatchError, WatchLimits, without::left_out};

/// The inotify queue of one volume.
pub struct InotifySource {
    queue: Inotify,
    directories: HashMap<WatchDescriptor, FileId>,
    watches: HashMap<FileId, WatchDescriptor>,
    watches_max: usize,
    buffer: Vec<u8>,
}

impl InotifySource {
    /// An empty queue.
    pub fn open(limits: &WatchLimits) -> Result<Self, WatchError> {
        let queue = Inotify::init().map_err(|error| match error.raw_os_error() {
            Some(libc::EMFILE) => WatchError::InstanceLimit { limit: sysctl("max_user_instances") },
            _ => WatchError::Io { operation: "inotify_init1", source: error },
        })?;
        Ok(Self {
            queue,
            directories: HashMap::new(),
            watches: HashMap::new(),
            watches_max: limits.inotify_watches,
            buffer: vec![0; limits.names_buffer_bytes],
        })
    }

    /// Watches the directory `fd`, whose events are reported as those of `dir`. From when this returns every change of
    /// an entry raises an event. Watching an inode again, under whatever id, moves its watch to the newer id.
    pub fn watch_directory(&mut self, dir: FileId, fd: BorrowedFd<'_>) -> Result<(), WatchError> {
        let mut mask = WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ATTRIB
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        if left_out("inotify/modify") {
            mask.remove(WatchMask::MODIFY | WatchMask::CLOSE_WRITE);
        }
        if left_out("inotify/names") {
            mask.remove(WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE | WatchMask::MOVE_SELF);
        }
        if self.directories.len() >= self.watches_max && !self.watches(dir) {
            return Err(WatchError::WatchLimit { limit: self.watches_max as u64 });
        }
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let watch = self.queue.watches().add(path, mask).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOSPC) => WatchError::WatchLimit { limit: sysctl("max_user_watches") },
            _ => WatchError::Io { operation: "inotify_add_watch", source: error },
        })?;
        if let Some(earlier) = self.directories.insert(watch.clone(), dir)
            && earlier != dir
        {
            self.watches.remove(&earlier);
        }
        if let Some(earlier) = self.watches.insert(dir, watch.clone())
            && earlier != watch
        {
            self.remove(earlier);
        }
        Ok(())
    }

    /// Stops watching a directory; events of it that are still queued will be dropped.
    pub fn forget_directory(&mut self, dir: FileId) {
        if let Some(watch) = self.watches.remove(&dir) {
            self.remove(watch);
        }
    }

    /// Whether this directory has a watch.
    pub fn watches(&self, dir: FileId) -> bool {
        self.watches.contains_key(&dir)
    }

    /// Whether no event is queued.
    pub fn is_empty(&self) -> Result<bool, WatchError> {
        Ok(queued_bytes(self.queue.as_fd())? == 0)
    }

    /// How many directories are watched.
    pub fn directories(&self) -> usize {
        self.directories.len()
    }

    fn remove(&mut self, watch: WatchDescriptor) {
        self.directories.remove(&watch);
        // Fails only if the kernel has already removed the watch, with its directory.
        let _ = self.queue.watches().remove(watch);
    }

    fn translate(
        directories: &mut HashMap<WatchDescriptor, FileId>,
        watches: &mut HashMap<FileId, WatchDescriptor>,
        event: &inotify::Event<&std::ffi::OsStr>,
        events: &mut Vec<Event>,
    ) {
        let mask = event.mask;
        if mask.contains(EventMask::Q_OVERFLOW) {
            events.push(Event::Lost(LostReason::QueueOverflow));
            return;
        }
        let Some(&dir) = directories.get(&event.wd) else {
            return;
        };
        if mask.contains(EventMask::IGNORED) {
            directories.remove(&event.wd);
            watches.remove(&dir);
            events.push(Event::DirectoryGone { dir });
            return;
        }
        if mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT) {
            events.push(Event::DirectoryGone { dir });
            return;
        }
        let Some(name) = event.name else {
            if mask.contains(EventMask::ATTRIB) {
                events.push(Event::DirectoryAttributes { dir });
            }
            return;
        };
        let name: Box<[u8]> = name.as_bytes().into();
        let names = EventMask::CREATE | EventMask::DELETE | EventMask::MOVED_FROM | EventMask::MOVED_TO;
        if mask.intersects(names) {
            events.push(Event::Name { dir, name });
        } else if mask.contains(EventMask::ATTRIB) {
            events.push(Event::Attributes { dir, name });
        } else if mask.intersects(EventMask::MODIFY | EventMask::CLOSE_WRITE) {
            let closed_write = mask.contains(EventMask::CLOSE_WRITE);
            events.push(Event::Content { dir, name, closed_write });
        }
    }
}

impl Source for InotifySource {
    fn name(&self) -> &'static str {
        "inotify"
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        // Bounded by what the kernel lets the queue hold: a writer faster than this loop cannot keep it going for ever.
        let mut remaining = queued_bytes(self.queue.as_fd())?;
        while remaining > 0 {
            let batch = match self.queue.read_events(&mut self.buffer) {
                Ok(batch) => batch,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(WatchError::Io { operation: "reading inotify events", source: error });
                }
            };
            for event in batch {
                // What the kernel wrote: a header, and the name padded to a multiple of the header's size.
                let name = event.name.map_or(0, |name| (name.len() / 16 + 1) * 16);
                remaining = remaining.saturating_sub(16 + name);
                Self::translate(&mut self.directories, &mut self.watches, &event, events);
            }
        }
        Ok(())
    }

    fn pollable(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.queue.as_fd()]
    }
}

fn queued_bytes(queue: BorrowedFd<'_>) -> Result<usize, WatchError> {
    let bytes = rustix::io::ioctl_fionread(queue)
        .map_err(|error| WatchError::Io { operation: "FIONREAD on inotify", source: error.into() })?;
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// The limit that holds here: the node's, or that of a user namespace (a container's) if it is lower.
fn sysctl(name: &str) -> u64 {
    let read = |path: String| fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let namespace = name.replace("user", "inotify");
    let node = read(format!("/proc/sys/fs/inotify/{name}")).unwrap_or(0);
    read(format!("/proc/sys/user/{namespace}")).map_or(node, |limit: u64| limit.min(node))
}
