//! Linux's own asynchronous I/O (what `libaio` wraps). It raises no inotify event.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
};

use anyhow::{Result, ensure};

use super::{BASE_BYTES, Cell, Step, base, fresh_pages, reopen};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("libaio, buffered", buffered).phases(2),
    Cell::new("libaio, O_DIRECT", direct).phases(2),
    Cell::new("libaio, O_DIRECT append", direct_append),
    Cell::new("libaio, O_DIRECT, eight at once", many),
];

const PWRITE: u16 = 1;

/// A request as the kernel takes it (little-endian layout).
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// A context of the kernel.
struct Queue(libc::c_ulong);

impl Queue {
    fn new() -> Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number.
        check(unsafe { libc::syscall(libc::SYS_io_setup, 16, &raw mut context) })?;
        Ok(Self(context))
    }

    /// Writes each buffer at its offset, all at once, and waits for all.
    fn write(&self, file: &File, writes: &[(u64, &[u8])]) -> Result<()> {
        let fd = u32::try_from(file.as_raw_fd())?;
        let request = |&(offset, bytes): &(u64, &[u8])| Request {
            opcode: PWRITE,
            fd,
            buffer: bytes.as_ptr() as u64,
            bytes: bytes.len() as u64,
            offset: offset.cast_signed(),
            ..Request::default()
        };
        let mut requests: Vec<Request> = writes.iter().map(request).collect();
        let mut pointers: Vec<*mut Request> = requests.iter_mut().map(|request| &raw mut *request).collect();
        let count = i64::try_from(writes.len())?;
        // SAFETY: requests and buffers live until every completion was taken, below.
        let submitted = unsafe { libc::syscall(libc::SYS_io_submit, self.0, count, pointers.as_mut_ptr()) };
        check(submitted)?;
        ensure!(submitted == count, "{submitted} of {count} submitted");
        let mut done = vec![Completion::default(); writes.len()];
        let none: *const libc::timespec = std::ptr::null();
        // SAFETY: there is room for as many completions as are asked for.
        check(unsafe {
            libc::syscall(libc::SYS_io_getevents, self.0, count, count, done.as_mut_ptr(), none)
        })?;
        ensure!(done.iter().all(|done| done.result > 0), "a request failed");
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: nothing is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn buffered(dir: &Path) -> Result<Step> {
    let (file, queue) = (base(dir, "file")?, Queue::new()?);
    Ok(Box::new(move |phase| queue.write(&file, &[(10_001 + u64::from(phase), &fresh_pages(8192)?[..5000])])))
}

fn direct(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let (file, queue) = (reopen(dir, "file", libc::O_DIRECT)?, Queue::new()?);
    Ok(Box::new(move |phase| queue.write(&file, &[(u64::from(phase) * 4096, &fresh_pages(8192)?)])))
}

fn direct_append(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let (file, queue) = (reopen(dir, "file", libc::O_DIRECT)?, Queue::new()?);
    Ok(Box::new(move |_| queue.write(&file, &[(BASE_BYTES, &fresh_pages(8192)?)])))
}

fn many(dir: &Path) -> Result<Step> {
    let plain = base(dir, "file")?;
    let (file, queue) = (reopen(dir, "file", libc::O_DIRECT)?, Queue::new()?);
    plain.write_all_at(&[9; 4096], 1 << 20)?;
    Ok(Box::new(move |_| {
        let pages = fresh_pages(8 * 4096)?;
        let writes: Vec<(u64, &[u8])> =
            pages.chunks(4096).enumerate().map(|(i, page)| (i as u64 * 65_536, page)).collect();
        queue.write(&file, &writes)
    }))
}
