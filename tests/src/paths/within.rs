//! Bytes moved within the kernel, and extents shared.

use std::{fs::File, os::fd::AsRawFd, path::Path};

use anyhow::{Result, ensure};
use rustix::{
    fs::{copy_file_range, ioctl_ficlone, sendfile},
    pipe::{SpliceFlags, pipe, splice},
};

use super::{BASE_BYTES, Cell, Step, base, fresh};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("splice from a pipe", spliced).phases(2),
    Cell::new("sendfile", sent).phases(2),
    Cell::new("copy_file_range, ragged", copied),
    Cell::new("copy_file_range, whole blocks", copied_blocks),
    Cell::new("FICLONE", cloned).reflink(),
    Cell::new("FICLONE over a longer file", cloned_over).reflink(),
    Cell::new("FICLONERANGE", cloned_range).phases(2).reflink(),
    Cell::new("FIDEDUPERANGE, then a write", deduplicated).phases(2).reflink(),
];

/// A file to change, and one to take bytes from.
fn pair(dir: &Path) -> Result<(File, File)> {
    Ok((base(dir, "file")?, base(dir, "source")?))
}

fn spliced(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let (reader, writer) = pipe()?;
    Ok(Box::new(move |phase| {
        ensure!(rustix::io::write(&writer, &fresh(6000))? == 6000);
        let mut offset = 40_001 + u64::from(phase);
        let mut left = 6000;
        while left > 0 {
            left -= splice(&reader, None, &file, Some(&mut offset), left, SpliceFlags::empty())?;
        }
        Ok(())
    }))
}

fn sent(dir: &Path) -> Result<Step> {
    let (file, source) = pair(dir)?;
    Ok(Box::new(move |phase| {
        let mut from = 1000 + 20_000 * u64::from(phase);
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(50_001))?;
        ensure!(sendfile(&file, &source, Some(&mut from), 20_000)? == 20_000);
        Ok(())
    }))
}

fn copied(dir: &Path) -> Result<Step> {
    let (file, source) = pair(dir)?;
    Ok(Box::new(move |_| copy(&source, 1, &file, 30_001, 20_000)))
}

fn copied_blocks(dir: &Path) -> Result<Step> {
    let (file, source) = pair(dir)?;
    Ok(Box::new(move |_| copy(&source, 8192, &file, 16_384, 32_768)))
}

fn copy(source: &File, mut from: u64, file: &File, mut to: u64, mut left: usize) -> Result<()> {
    while left > 0 {
        left -= copy_file_range(source, Some(&mut from), file, Some(&mut to), left)?;
    }
    Ok(())
}

fn cloned(dir: &Path) -> Result<Step> {
    let (file, source) = pair(dir)?;
    Ok(Box::new(move |_| Ok(ioctl_ficlone(&file, &source)?)))
}

fn cloned_over(dir: &Path) -> Result<Step> {
    let (file, source) = pair(dir)?;
    source.set_len(49_152)?;
    Ok(Box::new(move |_| Ok(ioctl_ficlone(&file, &source)?)))
}

#[repr(C)]
struct CloneRange {
    source: i64,
    from: u64,
    len: u64,
    to: u64,
}

fn cloned_range(dir: &Path) -> Result<Step> {
    const FICLONERANGE: libc::c_ulong = 0x4020_940d;
    let (file, source) = pair(dir)?;
    Ok(Box::new(move |phase| {
        let from = 8192 * u64::from(phase);
        let range = CloneRange { source: source.as_raw_fd().into(), from, len: 16_384, to: 32_768 };
        // SAFETY: the request reads one such structure.
        ensure!(unsafe { libc::ioctl(file.as_raw_fd(), FICLONERANGE as _, &raw const range) } == 0);
        Ok(())
    }))
}

#[repr(C)]
struct DedupeRange {
    from: u64,
    len: u64,
    count: u16,
    reserved: [u16; 3],
    file: i64,
    to: u64,
    deduped: u64,
    status: i32,
    reserved2: u32,
}

fn deduplicated(dir: &Path) -> Result<Step> {
    const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;
    let (file, source) = pair(dir)?;
    copy(&source, 0, &file, 0, usize::try_from(BASE_BYTES)?)?;
    // Extents must be on the disk to be shared, and copying may have shared them already.
    std::os::unix::fs::FileExt::write_all_at(&source, &fresh(16_384), 16_384)?;
    let bytes = &mut [0; 16_384];
    std::os::unix::fs::FileExt::read_exact_at(&source, bytes, 16_384)?;
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 16_384)?;
    file.sync_all()?;
    source.sync_all()?;
    Ok(Box::new(move |phase| {
        if phase == 1 {
            return Ok(std::os::unix::fs::FileExt::write_all_at(&source, &fresh(100), 20_000)?);
        }
        let mut range = DedupeRange {
            from: 16_384,
            len: 16_384,
            count: 1,
            reserved: [0; 3],
            file: file.as_raw_fd().into(),
            to: 16_384,
            deduped: 0,
            status: 0,
            reserved2: 0,
        };
        // SAFETY: the request reads and writes one such structure, with room for one target.
        ensure!(unsafe { libc::ioctl(source.as_raw_fd(), FIDEDUPERANGE as _, &raw mut range) } == 0);
        ensure!(range.status == 0 && range.deduped == 16_384, "status {}", range.status);
        Ok(())
    }))
}
