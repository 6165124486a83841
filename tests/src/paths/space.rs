//! Sizes, holes and allocated space.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::Result;
use rustix::fs::{FallocateFlags, fallocate};

use super::{BASE_BYTES, Cell, Step, base, fresh};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("truncate, shrinking", shrink).phases(2),
    Cell::new("truncate, growing", grow).phases(2),
    Cell::new("truncate, shrinking and growing back", shrink_and_grow).phases(2),
    Cell::new("truncate to nothing, then a write", empty_and_write),
    Cell::new("O_TRUNC", open_truncating),
    Cell::new("fallocate, extending", |dir| {
        allocating(dir, FallocateFlags::empty(), BASE_BYTES - 5000, 50_000)
    }),
    Cell::new("fallocate, keeping the size", |dir| {
        allocating(dir, FallocateFlags::KEEP_SIZE, BASE_BYTES, 50_000)
    }),
    Cell::new("fallocate in a hole", allocate_in_hole),
    Cell::new("punch, whole blocks", |dir| allocating(dir, PUNCH, 16_384, 32_768)),
    Cell::new("punch, ragged", |dir| allocating(dir, PUNCH, 20_001, 30_000)),
    Cell::new("punch within a block", |dir| allocating(dir, PUNCH, 20_500, 1000)),
    Cell::new("punch unwritten dirty pages", punch_dirty),
    Cell::new("zero, whole blocks", |dir| allocating(dir, FallocateFlags::ZERO_RANGE, 16_384, 32_768)),
    Cell::new("zero, ragged", |dir| allocating(dir, FallocateFlags::ZERO_RANGE, 20_001, 30_000)),
    Cell::new("zero beyond the end", |dir| {
        allocating(dir, FallocateFlags::ZERO_RANGE, BASE_BYTES - 5000, 30_000)
    }),
    Cell::new("zero beyond the end, keeping the size", |dir| {
        let flags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
        allocating(dir, flags, BASE_BYTES - 5000, 30_000)
    }),
    Cell::new("collapse", |dir| shifting(dir, FallocateFlags::COLLAPSE_RANGE)).phases(2),
    Cell::new("insert", |dir| shifting(dir, FallocateFlags::INSERT_RANGE)).phases(2),
];

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn shrink(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    Ok(Box::new(move |phase| Ok(file.set_len(50_001 - 30_000 * u64::from(phase))?)))
}

fn grow(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    file.set_len(50_001)?;
    Ok(Box::new(move |phase| Ok(file.set_len(60_001 + 30_000 * u64::from(phase))?)))
}

fn shrink_and_grow(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    Ok(Box::new(move |phase| {
        file.set_len(50_001 - 30_000 * u64::from(phase))?;
        Ok(file.set_len(BASE_BYTES)?)
    }))
}

fn empty_and_write(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    Ok(Box::new(move |_| {
        file.set_len(0)?;
        Ok(file.write_all_at(&fresh(100), BASE_BYTES - 100)?)
    }))
}

fn open_truncating(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let path = dir.join("file");
    Ok(Box::new(move |_| {
        let file = File::options().write(true).truncate(true).open(&path)?;
        Ok(file.set_len(BASE_BYTES)?)
    }))
}

fn allocating(dir: &Path, flags: FallocateFlags, offset: u64, len: u64) -> Result<Step> {
    let file = base(dir, "file")?;
    Ok(Box::new(move |_| Ok(fallocate(&file, flags, offset, len)?)))
}

fn allocate_in_hole(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    file.set_len(4 * BASE_BYTES)?;
    Ok(Box::new(move |_| Ok(fallocate(&file, FallocateFlags::empty(), 2 * BASE_BYTES, BASE_BYTES)?)))
}

fn punch_dirty(dir: &Path) -> Result<Step> {
    let file = base(dir, "file")?;
    file.write_all_at(&fresh(BASE_BYTES), BASE_BYTES)?;
    Ok(Box::new(move |_| Ok(fallocate(&file, PUNCH, BASE_BYTES + 4096, 32_768)?)))
}

fn shifting(dir: &Path, flags: FallocateFlags) -> Result<Step> {
    let file = base(dir, "file")?;
    Ok(Box::new(move |phase| Ok(fallocate(&file, flags, 32_768 * u64::from(phase), 16_384)?)))
}
