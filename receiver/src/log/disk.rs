//! The seam between the log and the disk.
//!
//! Everything the log asks of a file system goes through these two traits, so that a test can put a disk below it which
//! loses what was not synced, tears writes, or fails at the n-th call. They promise what POSIX does and no more: a write
//! may be durable at any time, in any order of its sectors, and is durable for certain only after [`SegmentFile::sync`].

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{outline::Outline, part::PartDisk};

/// A directory of segments.
#[allow(private_interfaces, reason = "only this crate's disks have parts")]
pub trait Disk: Send + Sync {
    /// The numbers of all segments, in any order.
    fn list(&self) -> io::Result<Vec<u32>>;
    /// Creates an empty segment that does not exist yet.
    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>>;
    /// Opens a segment.
    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>>;
    /// Removes a segment.
    fn remove(&self, segment: u32) -> io::Result<()>;
    /// Makes created and removed segments durable as names.
    fn sync_names(&self) -> io::Result<()>;
    /// What is known of the records of a segment that is not whole.
    fn outline(&self, _segment: u32) -> io::Result<Option<Outline>> {
        Ok(None)
    }
    /// The segments that are not whole, if there may be any.
    fn parts(&self) -> Option<&PartDisk> {
        None
    }
    /// Bytes that new segments may still take.
    fn available(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

/// One segment's file. Offsets and lengths are in bytes.
pub trait SegmentFile: Send + Sync {
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads exactly `buffer.len()` bytes; an end of file before that is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reserves space and sets the length, so that writes change neither; new bytes read as zero.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Writes zeros over reserved space that was never written, and makes them durable, so that a write there changes no metadata
    /// later. Whether this file gains by it; nobody loses who does nothing.
    fn write_zeros(&self, _range: Range<u64>) -> io::Result<bool> {
        Ok(false)
    }
    /// Cuts the file.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Makes everything written durable, and the length too (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
}

/// File systems that write a byte where it was written before: ext4 and xfs.
const OVERWRITING: [rustix::fs::FsWord; 2] = [0xef53, 0x5846_5342];

/// A directory of the file system, with segments named `0000000001.seg`.
#[derive(Debug)]
pub struct DirDisk {
    dir: PathBuf,
}

impl DirDisk {
    /// The segments of a directory that exists.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    fn path(&self, segment: u32) -> PathBuf {
        self.dir.join(format!("{segment:010}.seg"))
    }
}

impl Disk for DirDisk {
    fn list(&self) -> io::Result<Vec<u32>> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            segments.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
        Ok(segments)
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.path(segment))?;
        Ok(Arc::new(file))
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.path(segment))?))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        std::fs::remove_file(self.path(segment))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn available(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.dir)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

impl SegmentFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, rustix::fs::FallocateFlags::empty(), 0, len) {
            // Space that cannot be reserved is only slower.
            Err(rustix::io::Errno::OPNOTSUPP) => self.set_len(len),
            other => Ok(other?),
        }
    }

    fn write_zeros(&self, range: Range<u64>) -> io::Result<bool> {
        // Others write in another place each time, so what was written before is of no use to them.
        if !OVERWRITING.contains(&rustix::fs::fstatfs(self)?.f_type) {
            return Ok(false);
        }
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let mut at = range.start;
        while at < range.end {
            let part = &ZEROS[..(range.end - at).min(ZEROS.len() as u64) as usize];
            self.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        self.sync_data()?;
        Ok(true)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
