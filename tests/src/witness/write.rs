//! The writing side. Every bump is timed outside the volume, so that a point can be held to the time it claims.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use io_uring::{IoUring, opcode, types::Fd};
use memmap2::MmapMut;

use super::{Chain, FILE, LOG_PREFIX, LOG_RECORDS, NEXT_FILE, Way, directory};
use crate::wait::now_ns;

/// A value that is in all counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// The value.
    pub value: u64,
    /// When its first write had not begun yet, in nanoseconds since 1970.
    pub begun_ns: u64,
    /// When its last write was complete.
    pub done_ns: u64,
}

/// The counters of a chain, open for writing.
pub struct Writer {
    counters: Vec<Counter>,
    log: File,
    value: u64,
}

impl Writer {
    /// Makes the counters beneath `roots`, which take turns along the chain, all 0, and the log of what was done at `log`,
    /// outside of them.
    pub fn create(chain: Chain, roots: &[&Path], log: &Path) -> io::Result<Self> {
        let root = |place: usize| roots[place % roots.len()];
        let counters = chain
            .iter()
            .enumerate()
            .map(|(place, way)| Counter::create(&root(place).join(directory(place)), *way));
        let counters = counters.collect::<io::Result<_>>()?;
        Ok(Self { counters, log: File::create(log)?, value: 0 })
    }

    /// Writes the next value to all counters in order, with `pause` after each.
    pub fn bump(&mut self, pause: Duration) -> io::Result<()> {
        self.value += 1;
        let begun_ns = now_ns();
        for counter in &mut self.counters {
            counter.write(self.value)?;
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        let record = [self.value, begun_ns, now_ns()].map(u64::to_le_bytes).concat();
        self.log.write_all(&record)
    }
}

/// What a writer's log says was done, in order.
pub fn read_log(log: &Path) -> io::Result<Vec<Done>> {
    let bytes = fs::read(log)?;
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let done = |record: &[u8]| Done {
        value: word(&record[..8]),
        begun_ns: word(&record[8..16]),
        done_ns: word(&record[16..]),
    };
    Ok(bytes.chunks_exact(24).map(done).collect())
}

struct Counter {
    dir: PathBuf,
    hand: Hand,
}

/// What a counter is written with.
enum Hand {
    Overwrite(File),
    Append(File),
    Replace,
    Direct(File, MmapMut),
    Uring(File, Box<IoUring>),
    Mapped(MmapMut),
}

impl Counter {
    fn create(dir: &Path, way: Way) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let name = if way == Way::Append { log_name(0) } else { FILE.to_owned() };
        let path = dir.join(name);
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.write_all(&vec![0; way.file_bytes()])?;
        let hand = match way {
            Way::Overwrite => Hand::Overwrite(file),
            Way::Append => Hand::Append(file),
            Way::Replace => Hand::Replace,
            Way::Direct => {
                file.sync_all()?;
                let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(&path)?;
                Hand::Direct(direct, MmapMut::map_anon(way.file_bytes())?)
            }
            Way::Uring => Hand::Uring(file, Box::new(IoUring::new(2)?)),
            // SAFETY: nobody cuts the file short.
            Way::Mapped => Hand::Mapped(unsafe { MmapMut::map_mut(&file)? }),
        };
        Ok(Self { dir: dir.to_owned(), hand })
    }

    fn write(&mut self, value: u64) -> io::Result<()> {
        let bytes = value.to_le_bytes();
        match &mut self.hand {
            Hand::Overwrite(file) => file.write_all_at(&bytes, 0),
            Hand::Append(_) if value.is_multiple_of(LOG_RECORDS) => self.roll(value),
            Hand::Append(file) => file.write_all(&bytes),
            Hand::Replace => {
                let next = self.dir.join(NEXT_FILE);
                fs::write(&next, bytes)?;
                fs::rename(&next, self.dir.join(FILE))
            }
            Hand::Direct(file, page) => {
                page[..8].copy_from_slice(&bytes);
                file.write_all_at(page, 0)
            }
            Hand::Uring(file, ring) => write_by_ring(ring, file, &bytes),
            Hand::Mapped(page) => {
                // SAFETY: the mapping begins with eight aligned bytes, and nobody else has a reference to them.
                let word = unsafe { &*page.as_ptr().cast::<AtomicU64>() };
                word.store(value.to_le(), Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn roll(&mut self, value: u64) -> io::Result<()> {
        let number = value / LOG_RECORDS;
        let mut log =
            OpenOptions::new().append(true).create_new(true).open(self.dir.join(log_name(number)))?;
        log.write_all(&value.to_le_bytes())?;
        self.hand = Hand::Append(log);
        fs::remove_file(self.dir.join(log_name(number - 1)))
    }
}

/// Submits one write at the start of the file, and waits for it.
fn write_by_ring(ring: &mut IoUring, file: &File, bytes: &[u8; 8]) -> io::Result<()> {
    let request = opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), 8).build();
    // SAFETY: the bytes and the file stay until the request is complete.
    unsafe { ring.submission().push(&request) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|done| done.result()) {
        Some(8) => Ok(()),
        other => Err(io::Error::other(format!("a request failed: {other:?}"))),
    }
}

fn log_name(number: u64) -> String {
    format!("{LOG_PREFIX}{number:010}")
}
