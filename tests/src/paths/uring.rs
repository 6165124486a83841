//! io_uring, with its workers where the kernel wants them.

use std::{
    ffi::CString,
    fs::File,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
};

use anyhow::{Result, ensure};
use io_uring::{IoUring, opcode, squeue, types::Fd};

use super::{BASE_BYTES, Cell, Step, base, fresh, fresh_pages, reopen};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("io_uring write", buffered).phases(2),
    Cell::new("io_uring write by a worker", worker),
    Cell::new("io_uring append", append),
    Cell::new("io_uring write, O_DIRECT", direct).phases(2),
    Cell::new("io_uring write, O_DIRECT append", direct_append),
    Cell::new("io_uring fallocate, punching", punch),
    Cell::new("io_uring ftruncate", truncate),
    Cell::new("io_uring rename and link", names),
];

/// Submits one request and waits for it.
fn run(ring: &mut IoUring, request: squeue::Entry) -> Result<()> {
    // SAFETY: the caller keeps what the request points to until this returns.
    unsafe { ring.submission().push(&request)? };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map(|done| done.result());
    ensure!(result.is_some_and(|result| result >= 0), "a request failed: {result:?}");
    Ok(())
}

fn write(ring: &mut IoUring, file: &File, bytes: &[u8], offset: u64, flags: squeue::Flags) -> Result<()> {
    let len = u32::try_from(bytes.len())?;
    let request = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), len).offset(offset).build();
    run(ring, request.flags(flags))
}

fn buffered(dir: &Path) -> Result<Step> {
    let (file, mut ring) = (base(dir, "file")?, IoUring::new(4)?);
    Ok(Box::new(move |_| write(&mut ring, &file, &fresh(5000), 12_345, squeue::Flags::empty())))
}

fn worker(dir: &Path) -> Result<Step> {
    let (file, mut ring) = (base(dir, "file")?, IoUring::new(4)?);
    Ok(Box::new(move |_| write(&mut ring, &file, &fresh(5000), 12_345, squeue::Flags::ASYNC)))
}

fn append(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let (file, mut ring) = (reopen(dir, "file", libc::O_APPEND)?, IoUring::new(4)?);
    Ok(Box::new(move |_| write(&mut ring, &file, &fresh(5000), u64::MAX, squeue::Flags::empty())))
}

fn direct(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let (file, mut ring) = (reopen(dir, "file", libc::O_DIRECT)?, IoUring::new(4)?);
    Ok(Box::new(move |phase| {
        write(&mut ring, &file, &fresh_pages(8192)?, u64::from(phase) * 4096, squeue::Flags::empty())
    }))
}

fn direct_append(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let (file, mut ring) = (reopen(dir, "file", libc::O_DIRECT)?, IoUring::new(4)?);
    Ok(Box::new(move |_| write(&mut ring, &file, &fresh_pages(8192)?, BASE_BYTES, squeue::Flags::empty())))
}

fn punch(dir: &Path) -> Result<Step> {
    let (file, mut ring) = (base(dir, "file")?, IoUring::new(4)?);
    Ok(Box::new(move |_| {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        run(&mut ring, opcode::Fallocate::new(Fd(file.as_raw_fd()), 20_000).offset(30_001).mode(mode).build())
    }))
}

fn truncate(dir: &Path) -> Result<Step> {
    let (file, mut ring) = (base(dir, "file")?, IoUring::new(4)?);
    Ok(Box::new(move |_| {
        run(&mut ring, opcode::Ftruncate::new(Fd(file.as_raw_fd()), 1001).build())?;
        run(&mut ring, opcode::Ftruncate::new(Fd(file.as_raw_fd()), BASE_BYTES).build())
    }))
}

fn names(dir: &Path) -> Result<Step> {
    let (file, mut ring) = (base(dir, "file")?, IoUring::new(4)?);
    let path = |name: &str| CString::new(dir.join(name).as_os_str().as_bytes());
    let (from, to, link) = (path("file")?, path("renamed")?, path("link")?);
    Ok(Box::new(move |_| {
        let here = Fd(libc::AT_FDCWD);
        run(&mut ring, opcode::RenameAt::new(here, from.as_ptr(), here, to.as_ptr()).build())?;
        run(&mut ring, opcode::LinkAt::new(here, to.as_ptr(), here, link.as_ptr()).build())?;
        write(&mut ring, &file, &fresh(5000), 12_345, squeue::Flags::empty())
    }))
}
