//! Stores through shared mappings: the kernel sees a page fault, and then nothing.

use std::{fs::File, io::Read, os::unix::fs::FileExt, path::Path};

use anyhow::Result;
use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone};

use super::{BASE_BYTES, Cell, Step, base, fresh, fresh_pages, map, reopen};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("store to a clean page", clean).phases(4),
    Cell::new("store, then msync", synced).phases(2),
    Cell::new("store, then msync(MS_ASYNC)", synced_later).phases(2),
    Cell::new("store to a page that a write dirtied", written).phases(3),
    Cell::new("store, with writes to the same page", between).phases(3),
    Cell::new("store into a hole", hole).phases(2),
    Cell::new("store into allocated space", unwritten).phases(2),
    Cell::new("store to shared extents", shared).phases(2).reflink(),
    Cell::new("store after the descriptor is closed", closed).phases(2),
    Cell::new("store to many pages", many).phases(2),
    Cell::new("read into a mapping", read_into).phases(2),
    Cell::new("O_DIRECT read into a mapping", direct_read_into).phases(2),
];

fn store(mapping: &mut [u8], at: usize, len: u64) {
    let bytes = fresh(len);
    mapping[at..at + bytes.len()].copy_from_slice(&bytes);
}

fn clean(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let mut mapping = map(&file)?;
    // The same page again: after the first time it was dirty and writable when the point was taken.
    Ok(Box::new(move |phase| {
        let _open = &file;
        store(&mut mapping, 20_000 + phase as usize, 100);
        Ok(())
    }))
}

fn synced(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |_| {
        store(&mut mapping, 20_000, 100);
        Ok(mapping.flush()?)
    }))
}

fn synced_later(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |_| {
        store(&mut mapping, 20_000, 100);
        Ok(mapping.flush_async()?)
    }))
}

fn written(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let mut mapping = None;
    Ok(Box::new(move |phase| {
        if phase == 0 {
            file.write_all_at(&fresh(100), 20_000)?;
            mapping = Some(map(&file)?);
        }
        store(mapping.as_mut().expect("mapped at first"), 20_200, 100);
        Ok(())
    }))
}

fn between(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |phase| {
        store(&mut mapping, 20_200, 100);
        if phase != 1 {
            file.write_all_at(&fresh(100), 20_000)?;
        }
        store(&mut mapping, 20_300, 100);
        Ok(())
    }))
}

fn hole(dir: &Path) -> Result<Step> {
    let file = File::options().read(true).write(true).create_new(true).open(dir.join("file"))?;
    file.set_len(BASE_BYTES)?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |phase| {
        store(&mut mapping, 20_000 + 30_000 * phase as usize, 100);
        Ok(())
    }))
}

fn unwritten(dir: &Path) -> Result<Step> {
    let file = File::options().read(true).write(true).create_new(true).open(dir.join("file"))?;
    fallocate(&file, FallocateFlags::empty(), 0, BASE_BYTES)?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |_| {
        store(&mut mapping, 20_000, 100);
        Ok(())
    }))
}

fn shared(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    ioctl_ficlone(File::create(dir.join("twin"))?, &file)?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |_| {
        store(&mut mapping, 20_000, 100);
        Ok(())
    }))
}

fn closed(dir: &Path) -> Result<Step> {
    let mut mapping = map(&base(dir, "file")?)?;
    Ok(Box::new(move |_| {
        store(&mut mapping, 20_000, 100);
        Ok(())
    }))
}

fn many(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |_| {
        (0..BASE_BYTES as usize).step_by(12_288).for_each(|at| store(&mut mapping, at, 10));
        Ok(())
    }))
}

fn read_into(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let mut source = File::open("/dev/urandom")?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |_| Ok(source.read_exact(&mut mapping[20_000..30_000])?)))
}

fn direct_read_into(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    let source = base(dir, "source")?;
    source.write_all_at(&fresh_pages(8192)?, 0)?;
    source.sync_all()?;
    let source = reopen(dir, "source", libc::O_DIRECT)?;
    let mut mapping = map(&file)?;
    Ok(Box::new(move |phase| {
        let at = 16_384 + 4096 * phase as usize;
        Ok(source.read_exact_at(&mut mapping[at..at + 8192], u64::from(phase) * 4096)?)
    }))
}
