//! The writing side. Every bump is timed outside the volume, so that a point can be held to the time it claims.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{FILE, LENGTH, LOG_PREFIX, LOG_RECORDS, NEXT_FILE, Way, directory, way};
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

/// The nine counters, open for writing.
pub struct Writer {
    counters: Vec<Counter>,
    log: File,
    value: u64,
}

impl Writer {
    /// Makes the counters beneath `roots`, which take turns along the chain, all 0, and the log of what was done at `log`,
    /// outside of them.
    pub fn create(roots: &[&Path], log: &Path) -> io::Result<Self> {
        let root = |place: usize| roots[place % roots.len()];
        let counters =
            (0..LENGTH).map(|place| Counter::create(&root(place).join(directory(place)), way(place)));
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
    way: Way,
    file: File,
}

impl Counter {
    fn create(dir: &Path, way: Way) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let name = if way == Way::Append { log_name(0) } else { FILE.to_owned() };
        let mut file = File::create(dir.join(name))?;
        file.write_all(&0u64.to_le_bytes())?;
        Ok(Self { dir: dir.to_owned(), way, file })
    }

    fn write(&mut self, value: u64) -> io::Result<()> {
        match self.way {
            Way::Overwrite => self.file.write_all_at(&value.to_le_bytes(), 0),
            Way::Append if value.is_multiple_of(LOG_RECORDS) => self.roll(value),
            Way::Append => self.file.write_all(&value.to_le_bytes()),
            Way::Replace => {
                let next = self.dir.join(NEXT_FILE);
                fs::write(&next, value.to_le_bytes())?;
                fs::rename(&next, self.dir.join(FILE))
            }
        }
    }

    fn roll(&mut self, value: u64) -> io::Result<()> {
        let number = value / LOG_RECORDS;
        self.file = OpenOptions::new().append(true).create_new(true).open(self.dir.join(log_name(number)))?;
        self.file.write_all(&value.to_le_bytes())?;
        fs::remove_file(self.dir.join(log_name(number - 1)))
    }
}

fn log_name(number: u64) -> String {
    format!("{LOG_PREFIX}{number:010}")
}
