//! Every way an application can change a file, each as one small program run against a directory of its own.
//!
//! A [`Path`](Cell) says nothing about how it is watched: the same cells run on every file system. A cell keeps what it
//! opened until its [`Step`] is dropped, so that no close or unmap announces for it what the change itself must announce.

mod direct;
mod judge;
mod mapped;
mod names;
mod queued;
mod space;
mod uring;
mod within;
mod writes;

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use memmap2::MmapMut;
use rand::{RngCore, SeedableRng, rngs::SmallRng};

pub use judge::{State, differences, state};

/// One phase of a change; called with 0, 1, … up to the cell's phases.
pub type Step = Box<dyn FnMut(u32) -> Result<()>>;

/// A write path.
#[derive(Clone, Copy)]
pub struct Cell {
    /// What it does.
    pub name: &'static str,
    /// How often its step is called, with a point after each.
    pub phases: u32,
    /// Whether the file system must be able to share extents.
    pub reflink: bool,
    /// Prepares files in the empty directory and returns the change, which is yet to be made.
    pub prepare: fn(&Path) -> Result<Step>,
}

impl Cell {
    const fn new(name: &'static str, prepare: fn(&Path) -> Result<Step>) -> Self {
        Self { name, phases: 1, reflink: false, prepare }
    }

    const fn phases(self, phases: u32) -> Self {
        Self { phases, ..self }
    }

    const fn reflink(self) -> Self {
        Self { reflink: true, ..self }
    }
}

/// All of them.
pub fn cells() -> Vec<Cell> {
    [
        writes::CELLS,
        direct::CELLS,
        queued::CELLS,
        uring::CELLS,
        mapped::CELLS,
        within::CELLS,
        space::CELLS,
        names::CELLS,
    ]
    .concat()
}

/// Bytes of a prepared file.
const BASE_BYTES: u64 = 128 << 10;

/// Bytes that no other call returned, and that neither compress nor repeat.
fn fresh(len: u64) -> Vec<u8> {
    static SEED: AtomicU64 = AtomicU64::new(1);
    let mut bytes = vec![0; usize::try_from(len).expect("small")];
    SmallRng::seed_from_u64(SEED.fetch_add(1, Ordering::Relaxed)).fill_bytes(&mut bytes);
    bytes
}

/// The same, aligned as direct I/O wants it.
fn fresh_pages(len: u64) -> Result<MmapMut> {
    let mut pages = MmapMut::map_anon(usize::try_from(len)?)?;
    pages.copy_from_slice(&fresh(len));
    Ok(pages)
}

/// A new file of [`BASE_BYTES`], written back.
fn base(dir: &Path, name: &str) -> Result<File> {
    let mut file = File::options().read(true).write(true).create_new(true).open(dir.join(name))?;
    file.write_all(&fresh(BASE_BYTES))?;
    file.sync_all()?;
    Ok(file)
}

/// Opens a file anew, with flags.
fn reopen(dir: &Path, name: &str, flags: i32) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    Ok(File::options().read(true).write(true).custom_flags(flags).open(dir.join(name))?)
}

/// Maps a whole file, shared.
fn map(file: &File) -> Result<MmapMut> {
    // SAFETY: a cell that maps a file does not cut it short below what it touches.
    Ok(unsafe { MmapMut::map_mut(file)? })
}
