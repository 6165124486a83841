//! `write` and its kin, through the page cache.

use std::{
    io::{IoSlice, Seek, SeekFrom, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::Path,
};

use anyhow::{Result, ensure};

use super::{BASE_BYTES, Cell, Step, base, fresh, reopen};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("write", write).phases(3),
    Cell::new("pwrite", pwrite).phases(3),
    Cell::new("writev", writev),
    Cell::new("pwritev2 with RWF_DSYNC", pwritev2),
    Cell::new("append", append).phases(3),
    Cell::new("write beyond the end", sparse).phases(2),
    Cell::new("write into a new file", new_file).phases(2),
    Cell::new("write with O_SYNC", synchronous),
];

fn write(dir: &Path) -> Result<Step> {
    let mut file = base(dir, "file")?;
    Ok(Box::new(move |phase| {
        file.seek(SeekFrom::Start(3000 + 7000 * u64::from(phase)))?;
        Ok(file.write_all(&fresh(5001))?)
    }))
}

fn pwrite(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    // The same page again and again: dirty from the second time on.
    Ok(Box::new(move |_| Ok(file.write_all_at(&fresh(100), 20_001)?)))
}

fn writev(dir: &Path) -> Result<Step> {
    let mut file = base(dir, "file")?;
    Ok(Box::new(move |_| {
        let parts = [fresh(100), fresh(9000), fresh(1)];
        file.seek(SeekFrom::Start(50_000))?;
        let written = file.write_vectored(&parts.each_ref().map(|part| IoSlice::new(part)))?;
        ensure!(written == 9101);
        Ok(())
    }))
}

fn pwritev2(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    Ok(Box::new(move |_| {
        let bytes = fresh(6000);
        let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: the one part lies in `bytes`.
        let written =
            unsafe { libc::pwritev2(file.as_raw_fd(), &raw const part, 1, 70_001, libc::RWF_DSYNC) };
        ensure!(written == 6000, "{}", std::io::Error::last_os_error());
        Ok(())
    }))
}

fn append(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let mut file = reopen(dir, "file", libc::O_APPEND)?;
    Ok(Box::new(move |_| Ok(file.write_all(&fresh(3001))?)))
}

fn sparse(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    Ok(Box::new(move |phase| Ok(file.write_all_at(&fresh(777), (3 + u64::from(phase)) * BASE_BYTES + 5)?)))
}

fn new_file(dir: &Path) -> Result<Step> {
    let path = dir.join("file");
    Ok(Box::new(move |_| Ok(std::fs::write(&path, fresh(30_000))?)))
}

fn synchronous(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let file = reopen(dir, "file", libc::O_SYNC)?;
    Ok(Box::new(move |_| Ok(file.write_all_at(&fresh(9000), 33_000)?)))
}
