//! Direct I/O, synchronous.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::Result;
use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone};

use super::{BASE_BYTES, Cell, Step, base, fresh_pages, reopen};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("O_DIRECT overwrite", overwrite).phases(2),
    Cell::new("O_DIRECT append", append).phases(2),
    Cell::new("O_DIRECT into a hole", hole),
    Cell::new("O_DIRECT into allocated space", unwritten),
    Cell::new("O_DIRECT over cached pages", cached),
    Cell::new("O_DIRECT over shared extents", shared).reflink(),
];

/// A file and a direct descriptor of it.
fn open(dir: &Path) -> Result<(File, File)> {
    Ok((base(dir, "file")?, reopen(dir, "file", libc::O_DIRECT)?))
}

fn overwrite(dir: &Path) -> Result<Step> {
    let (_, file) = open(dir)?;
    Ok(Box::new(move |phase| Ok(file.write_all_at(&fresh_pages(8192)?, u64::from(phase) * 4096)?)))
}

fn append(dir: &Path) -> Result<Step> {
    let (_, file) = open(dir)?;
    Ok(Box::new(move |phase| {
        Ok(file.write_all_at(&fresh_pages(4096)?, BASE_BYTES + u64::from(phase) * 4096)?)
    }))
}

fn hole(dir: &Path) -> Result<Step> {
    let (plain, file) = open(dir)?;
    plain.set_len(1 << 20)?;
    Ok(Box::new(move |_| Ok(file.write_all_at(&fresh_pages(8192)?, 2 * BASE_BYTES)?)))
}

fn unwritten(dir: &Path) -> Result<Step> {
    let (plain, file) = open(dir)?;
    fallocate(&plain, FallocateFlags::empty(), 0, 1 << 20)?;
    Ok(Box::new(move |_| Ok(file.write_all_at(&fresh_pages(8192)?, 2 * BASE_BYTES)?)))
}

fn cached(dir: &Path) -> Result<Step> {
    let (plain, file) = open(dir)?;
    Ok(Box::new(move |_| {
        plain.write_all_at(&[1; 5000], 12_288)?;
        Ok(file.write_all_at(&fresh_pages(8192)?, 16_384)?)
    }))
}

fn shared(dir: &Path) -> Result<Step> {
    let (plain, file) = open(dir)?;
    let twin = File::create(dir.join("twin"))?;
    ioctl_ficlone(&twin, &plain)?;
    Ok(Box::new(move |_| Ok(file.write_all_at(&fresh_pages(8192)?, 16_384)?)))
}
