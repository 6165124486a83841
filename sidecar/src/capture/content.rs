//! Reading the bytes of a file so that an event which came before its effect is not read too early.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::{
    fs::{SeekFrom, seek},
    io::{Errno, pread},
};

/// A run of a file: data, or a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) data: bool,
}

/// Waits until every change whose event was queued while its writer held the inode's lock has had its effect.
///
/// xfs takes the lock for every buffered read, also for one beyond the end, which reads nothing; ext4 takes it for `SEEK_HOLE`: at the
/// largest offset the call costs a lock and an error instead of a walk over the extents. btrfs answers before it locks
/// there, and anywhere in an empty file, but takes the lock to tell the first extent. All are done whatever the file
/// system is: together they cost about a microsecond.
pub(crate) fn barrier(fd: BorrowedFd<'_>) {
    let mut byte = [0];
    let _ = pread(fd, &mut byte, i64::MAX.cast_unsigned() - 1);
    let _ = seek(fd, SeekFrom::Hole(i64::MAX.cast_unsigned()));
    first_extent(fd);
}

/// The `fiemap` of the first byte, with room for no extent.
fn first_extent(fd: BorrowedFd<'_>) {
    const FS_IOC_FIEMAP: u32 = 0xc020_660b;
    #[repr(C)]
    #[derive(Default)]
    struct Fiemap {
        start: u64,
        len: u64,
        flags: u32,
        mapped: u32,
        room: u32,
        reserved: u32,
    }
    let mut request = Fiemap { len: 1, ..Fiemap::default() };
    // SAFETY: the kernel reads and writes this structure, and no extents after it.
    unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut request) };
}

/// Writes dirty pages of `start..end` back and waits, which also makes them read-only in every mapping: the next store
/// through a mapping faults, and raises an event again. Errors are the file system's to report to the application.
pub(crate) fn write_back(fd: BorrowedFd<'_>, start: u64, end: u64) {
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let len = end.saturating_sub(start);
    // A length of 0 means "to the end of the file".
    let (start, len) = (start.cast_signed(), if end == u64::MAX { 0 } else { len.cast_signed() });
    // SAFETY: no memory is passed.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), start, len, flags) };
}

/// The data and holes of `start..end` (which must not reach beyond the file's size) as the file system keeps them.
pub(crate) fn data_segments(fd: BorrowedFd<'_>, start: u64, end: u64) -> Result<Vec<Segment>, Errno> {
    let mut segments = Vec::new();
    let mut at = start;
    while at < end {
        let data = match seek(fd, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, end),
            // No data from here on, or the file was cut short meanwhile, which raises an event.
            Err(Errno::NXIO) => end,
            // Without the call everything is data. ext4 says NOENT while it moves what was within the inode to a block.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOENT) => at,
            Err(errno) => return Err(errno),
        };
        if data > at {
            segments.push(Segment { start: at, end: data, data: false });
        }
        if data == end {
            break;
        }
        let hole = match seek(fd, SeekFrom::Hole(data)) {
            Ok(hole) => hole.clamp(data, end),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOENT) => end,
            Err(errno) => return Err(errno),
        };
        if hole == data {
            // Punched between the two calls; look again.
            continue;
        }
        segments.push(Segment { start: data, end: hole, data: true });
        at = hole;
    }
    Ok(segments)
}

/// Fills `buffer` from `offset` on; returns how much there was.
pub(crate) fn read_at(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match pread(fd, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}
