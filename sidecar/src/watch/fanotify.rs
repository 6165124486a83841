//! Names, attributes, and "this file changed", from fanotify: one mark on the whole filesystem, no watch per directory.
//!
//! An event names its directory by file handle, and a table tells which directory of the volume that is. To watch a
//! directory is to put its handle into the table: no kernel memory, no limit of watches. A handle carries the inode's
//! generation, so it never comes to mean a later directory under the same inode number; one that was forgotten is not
//! in the table. One group has one mark, so all its handles are of one filesystem.
//!
//! # Why nothing is missing
//!
//! The mark is older than everything that was captured with this source. From then on the kernel queues the events of
//! every directory of the filesystem, also of those that nobody here knows yet, from the same places, under the same
//! locks and after the same effects as it does for inotify. An event whose directory is not in the table when it is
//! *read* is dropped. That is right:
//!
//! - The directory is none of the volume's. If it is moved in later, that is an event in its new parent, and it is watched
//!   and listed then, with all that is below it.
//! - The directory is the volume's and not yet watched: it is new, or its turn has not come. Whoever watches it puts it
//!   into the table first and lists it afterwards. The event was read before, its effect was there before the event, so
//!   the listing finds it. An event that is read after is delivered. As with inotify, what comes in between is found by
//!   one of the two; unlike there, an event may even be older than the watch.
//! - The directory was forgotten: its inode is in no tree any more.
//!
//! The kernel merges an event with one that is still queued if directory, name and process are the same, and then several
//! bits are set at once: each becomes an event of its own here. A merged event stands where the first one stood. No reader
//! minds, because a drain is taken as a whole: what is merged into an event was queued no later than it is read, and
//! nothing is looked up before the drain ends.
//!
//! # What differs from inotify
//!
//! - A change of a directory's own attributes is told once, as [`Event::DirectoryAttributes`], and not as an entry of its
//!   parent as well. One that is not watched yet has its attributes captured after it is.
//! - Everything that happens on the filesystem is queued, whoever it belongs to: each event of others costs a lookup here
//!   (see [`FanotifySource::look`] for what it does not cost: a cut), and fills the queue (`fs.fanotify.max_queued_events`).
//!   A queue that overflowed is [`Event::Lost`], as is an event that does not say where it happened.
//! - It needs `CAP_SYS_ADMIN` in the first user namespace, Linux 5.9, and a filesystem whose handles last: ext4, xfs, tmpfs, and btrfs
//!   except for subvolumes, which the kernel refuses to mark. Any other is refused here: overlay's handles, where it has
//!   any, depend on how it is mounted.
//!
//! Like inotify it does not see stores through a mapping, nor writes through a descriptor that was opened by a name in a
//! directory outside the volume: that is the directory the kernel names.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::FileType;
use tidelock_proto::FileId;

use super::{
    Event, LostReason, NoFanotify, Source, WatchError, WatchLimits, record::Record, without::left_out,
};

/// One event of the queue counts as this many bytes, whatever else it carries.
const QUEUED_EVENT_BYTES: usize = 24;

const ENTRIES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;
const GONE: u64 = libc::FAN_DELETE_SELF | libc::FAN_MOVE_SELF;

/// The fanotify queue of one volume.
pub struct FanotifySource {
    queue: OwnedFd,
    device: u64,
    directories: HashMap<Box<[u8]>, FileId>,
    handles: HashMap<FileId, Box<[u8]>>,
    /// What [`Self::look`] has read and nobody has drained.
    pending: Vec<Event>,
    buffer: Vec<u8>,
}

impl FanotifySource {
    /// Marks the filesystem that holds `root`. No directory is watched yet.
    pub fn open(root: BorrowedFd<'_>, limits: &WatchLimits) -> Result<Self, NoFanotify> {
        let io =
            |operation| move |source: rustix::io::Errno| NoFanotify::Io { operation, source: source.into() };
        let kind = rustix::fs::fstatfs(root).map_err(io("fstatfs"))?.f_type as u32;
        if !has_lasting_handles(kind) {
            return Err(NoFanotify::Filesystem);
        }
        let device = rustix::fs::fstat(root).map_err(io("fstat"))?.st_dev;
        let queue = init()?;
        let mut mask =
            ENTRIES | GONE | libc::FAN_ATTRIB | libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE | libc::FAN_ONDIR;
        if left_out("fanotify/modify") {
            mask &= !(libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE);
        }
        if left_out("fanotify/names") {
            mask &= !(ENTRIES | libc::FAN_MOVE_SELF);
        }
        mark(queue.as_fd(), root, mask)?;
        let source = Self {
            queue,
            device,
            directories: HashMap::new(),
            handles: HashMap::new(),
            pending: Vec::new(),
            buffer: vec![0; limits.names_buffer_bytes],
        };
        handle_of(root).map_err(|source| NoFanotify::Io { operation: "name_to_handle_at", source })?;
        Ok(source)
    }

    /// Watches the directory `fd`, whose events are reported as those of `dir`. Every change of an entry whose event has
    /// not been read when this returns is reported. Watching an inode again, under whatever id, moves it to the newer id.
    pub fn watch_directory(&mut self, dir: FileId, fd: BorrowedFd<'_>) -> Result<(), WatchError> {
        let failed = |source| WatchError::Io { operation: "watching a directory", source };
        let stat = rustix::fs::fstat(fd).map_err(|errno| failed(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(failed(rustix::io::Errno::NOTDIR.into()));
        }
        if stat.st_dev != self.device {
            return Err(failed(rustix::io::Errno::XDEV.into()));
        }
        let handle =
            handle_of(fd).map_err(|source| WatchError::Io { operation: "name_to_handle_at", source })?;
        if let Some(earlier) = self.directories.insert(handle.clone(), dir)
            && earlier != dir
        {
            self.handles.remove(&earlier);
        }
        if let Some(earlier) = self.handles.insert(dir, handle.clone())
            && earlier != handle
        {
            self.directories.remove(&earlier);
        }
        Ok(())
    }

    /// Stops watching a directory; events of it that are still queued will be dropped.
    pub fn forget_directory(&mut self, dir: FileId) {
        if let Some(handle) = self.handles.remove(&dir) {
            self.directories.remove(&handle);
        }
    }

    /// How many directories are watched.
    pub fn directories(&self) -> usize {
        self.directories.len()
    }

    /// Reads the queue if nothing is pending, and returns whether anything is of the volume. Whoever waits is woken by
    /// everything that happens on the filesystem, and goes on waiting unless this says so.
    pub fn look(&mut self) -> Result<bool, WatchError> {
        if self.pending.is_empty() {
            let mut pending = std::mem::take(&mut self.pending);
            let read = self.read(&mut pending);
            self.pending = pending;
            read?;
        }
        Ok(self.has_pending())
    }

    /// Whether something was read that nobody has drained.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    fn read(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        let failed =
            |operation| move |errno: rustix::io::Errno| WatchError::Io { operation, source: errno.into() };
        let queued = rustix::io::ioctl_fionread(&self.queue).map_err(failed("FIONREAD on fanotify"))?;
        // Bounded by what is queued now: a writer faster than this loop cannot keep it going for ever. An event that is merged
        // with a queued one counts with it.
        let mut remaining = usize::try_from(queued).unwrap_or(usize::MAX).div_ceil(QUEUED_EVENT_BYTES);
        while remaining > 0 {
            let mut bytes = match rustix::io::read(&self.queue, &mut self.buffer) {
                Ok(len) => &self.buffer[..len],
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(failed("reading fanotify events")(errno)),
            };
            while !bytes.is_empty() {
                remaining = remaining.saturating_sub(1);
                let Some((record, rest)) = Record::split(bytes) else {
                    events.push(Event::Lost(LostReason::QueueMalformed));
                    break;
                };
                bytes = rest;
                translate(&mut self.directories, &mut self.handles, &record, events);
            }
        }
        Ok(())
    }
}

fn translate(
    directories: &mut HashMap<Box<[u8]>, FileId>,
    handles: &mut HashMap<FileId, Box<[u8]>>,
    record: &Record<'_>,
    events: &mut Vec<Event>,
) {
    if record.mask & libc::FAN_Q_OVERFLOW != 0 {
        events.push(Event::Lost(LostReason::NamesOverflow));
        return;
    }
    let Some(place) = &record.place else {
        // The kernel had no memory for the handle.
        events.push(Event::Lost(LostReason::QueueMalformed));
        return;
    };
    let Some(&dir) = directories.get(place.directory) else {
        return;
    };
    let has = |bits| record.mask & bits != 0;
    let Some(name) = place.name else {
        if has(ENTRIES) {
            events.push(Event::Lost(LostReason::QueueMalformed));
        }
        if has(libc::FAN_ATTRIB) {
            events.push(Event::DirectoryAttributes { dir });
        }
        if has(GONE) {
            events.push(Event::DirectoryGone { dir });
        }
        if has(libc::FAN_DELETE_SELF)
            && let Some(handle) = handles.remove(&dir)
        {
            directories.remove(&handle);
        }
        return;
    };
    if has(ENTRIES) {
        events.push(Event::Name { dir, name: name.into() });
    }
    if has(libc::FAN_ATTRIB) {
        events.push(Event::Attributes { dir, name: name.into() });
    }
    if has(libc::FAN_MODIFY) {
        events.push(Event::Content { dir, name: name.into(), closed_write: false });
    }
    if has(libc::FAN_CLOSE_WRITE) {
        events.push(Event::Content { dir, name: name.into(), closed_write: true });
    }
}

impl Source for FanotifySource {
    fn name(&self) -> &'static str {
        "fanotify"
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        events.append(&mut self.pending);
        self.read(events)
    }

    fn pollable(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.queue.as_fd()]
    }
}

/// ext2 to ext4, xfs, btrfs, tmpfs: an inode has one handle as long as it lives, and no other inode ever has it.
fn has_lasting_handles(kind: u32) -> bool {
    matches!(kind, 0xef53 | 0x5846_5342 | 0x9123_683e | 0x0102_1994)
}

fn init() -> Result<OwnedFd, NoFanotify> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_DFID_NAME | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    // SAFETY: takes two numbers and returns a descriptor or an error.
    let fd = unsafe { libc::fanotify_init(flags, (libc::O_RDONLY | libc::O_CLOEXEC) as u32) };
    if fd < 0 {
        return Err(NoFanotify::of("fanotify_init", io::Error::last_os_error()));
    }
    // SAFETY: the call succeeded, so the descriptor is open, and it is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn mark(queue: BorrowedFd<'_>, root: BorrowedFd<'_>, mask: u64) -> Result<(), NoFanotify> {
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: both descriptors are open for as long as the call lasts, and the path is a string with an end.
    let marked =
        unsafe { libc::fanotify_mark(queue.as_raw_fd(), flags, mask, root.as_raw_fd(), c".".as_ptr()) };
    match marked {
        0 => Ok(()),
        _ => Err(NoFanotify::of("fanotify_mark", io::Error::last_os_error())),
    }
}

/// The kernel's `struct file_handle` with room for the largest handle there is.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; libc::MAX_HANDLE_SZ as usize],
}

/// The handle of what `fd` is, laid out as events have it: length, type, and that many bytes.
fn handle_of(fd: BorrowedFd<'_>) -> io::Result<Box<[u8]>> {
    let mut raw =
        RawHandle { bytes: libc::MAX_HANDLE_SZ as u32, kind: 0, data: [0; libc::MAX_HANDLE_SZ as usize] };
    let mut mount = 0;
    // SAFETY: the descriptor is open for as long as the call lasts, the path is a string with an end, and `raw` is laid out as
    // `file_handle` with as many bytes behind its header as it says.
    let result = unsafe {
        let handle = (&raw mut raw).cast::<libc::file_handle>();
        libc::name_to_handle_at(fd.as_raw_fd(), c"".as_ptr(), handle, &mut mount, libc::AT_EMPTY_PATH)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let data = &raw.data[..(raw.bytes as usize).min(raw.data.len())];
    Ok([&raw.bytes.to_ne_bytes(), &raw.kind.to_ne_bytes(), data].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_filesystems_whose_handles_last_are_marked() {
        // tmpfs and ext4, then overlay, NFS, FUSE and FAT.
        assert_eq!([0x0102_1994, 0xef53].map(has_lasting_handles), [true; 2]);
        assert_eq!([0x794c_7630, 0x6969, 0x6573_5546, 0x4d44].map(has_lasting_handles), [false; 4]);
    }
}
