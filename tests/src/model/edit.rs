//! The operations, one function each.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt, lchown, symlink},
    },
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use rand::Rng;
use rustix::fs::{FallocateFlags, XattrFlags, fallocate};

use super::Mutator;

impl Mutator {
    pub(super) fn create(&mut self) -> io::Result<()> {
        let (path, content) = (self.place(), self.content());
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(&content)
    }

    pub(super) fn overwrite(&mut self) -> io::Result<()> {
        let (path, content) = (self.file()?, self.content());
        let file = OpenOptions::new().write(true).open(path)?;
        let at = self.offset(&file, 65536)?;
        file.write_all_at(&content, at)
    }

    pub(super) fn append(&mut self) -> io::Result<()> {
        let (path, content) = (self.file()?, self.content());
        OpenOptions::new().append(true).open(path)?.write_all(&content)
    }

    pub(super) fn truncate(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.file()?)?;
        let size = self.offset(&file, 200_000)?;
        file.set_len(size)
    }

    pub(super) fn punch(&mut self) -> io::Result<()> {
        let flags = if !self.powers.reserve || self.rng.random_bool(0.7) {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        self.allocate(flags)
    }

    pub(super) fn reserve(&mut self) -> io::Result<()> {
        if !self.powers.reserve {
            return Ok(());
        }
        let keep = self.rng.random_bool(0.5);
        self.allocate(if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() })
    }

    fn allocate(&mut self, flags: FallocateFlags) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.file()?)?;
        let at = self.offset(&file, 65536)?;
        let len = self.rng.random_range(1..100_000);
        Ok(fallocate(&file, flags, at, len)?)
    }

    pub(super) fn rename_file(&mut self) -> io::Result<()> {
        let from = self.file()?;
        let to = if self.rng.random_bool(0.5) { self.file()? } else { self.place() };
        self.may_go(&to)?;
        fs::rename(from, to)
    }

    pub(super) fn rename_dir(&mut self) -> io::Result<()> {
        let from = self.inner_dir()?;
        let to = if self.rng.random_bool(0.3) { self.dir() } else { self.place() };
        fs::rename(from, to)
    }

    /// Writes beside the file and renames into place, as careful programs do.
    pub(super) fn replace(&mut self) -> io::Result<()> {
        let (path, content) = (self.file()?, self.content());
        self.may_go(&path)?;
        let aside = path.with_file_name("aside");
        fs::write(&aside, content)?;
        fs::rename(aside, path)
    }

    pub(super) fn link(&mut self) -> io::Result<()> {
        fs::hard_link(self.file()?, self.place())
    }

    pub(super) fn unlink(&mut self) -> io::Result<()> {
        let path = self.file()?;
        self.may_go(&path)?;
        fs::remove_file(path)
    }

    pub(super) fn make_dir(&mut self) -> io::Result<()> {
        fs::create_dir(self.place())
    }

    pub(super) fn remove_dir(&mut self) -> io::Result<()> {
        fs::remove_dir(self.inner_dir()?)
    }

    pub(super) fn remove_tree(&mut self) -> io::Result<()> {
        if self.rng.random_bool(0.9) {
            return self.unlink();
        }
        let dir = self.inner_dir()?;
        self.files.iter().filter(|file| file.starts_with(&dir)).try_for_each(|file| self.may_go(file))?;
        // A link that is newer than the list was not used yet.
        fs::remove_dir_all(dir)
    }

    pub(super) fn symlink(&mut self) -> io::Result<()> {
        let target = super::names::random(&mut self.rng);
        symlink(target, self.place())
    }

    pub(super) fn special(&mut self) -> io::Result<()> {
        let path = CString::new(self.place().as_os_str().as_bytes())?;
        let device = self.powers.root && self.rng.random_bool(0.5);
        let mode = if device { libc::S_IFCHR } else { libc::S_IFIFO } | 0o640;
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        let made = unsafe { libc::mknod(path.as_ptr(), mode, libc::makedev(1, 3)) };
        if made == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn chmod(&mut self) -> io::Result<()> {
        let path = if self.rng.random_bool(0.7) { self.file()? } else { self.inner_dir()? };
        let mode = 0o700 | self.rng.random_range(0..0o7777);
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }

    pub(super) fn chown(&mut self) -> io::Result<()> {
        if !self.powers.root {
            return Ok(());
        }
        let path = self.file()?;
        lchown(path, Some(self.rng.random_range(0..5000)), Some(self.rng.random_range(0..5000)))
    }

    pub(super) fn xattr(&mut self) -> io::Result<()> {
        let path = if self.rng.random_bool(0.8) { self.file()? } else { self.inner_dir()? };
        let name = format!("user.x{}", self.rng.random_range(0..4));
        if self.rng.random_bool(0.3) {
            return Ok(rustix::fs::removexattr(&path, name.as_str())?);
        }
        let value = vec![self.rng.random(); self.rng.random_range(0..200)];
        Ok(rustix::fs::setxattr(&path, name.as_str(), &value, XattrFlags::empty())?)
    }

    pub(super) fn touch(&mut self) -> io::Result<()> {
        let file = File::open(self.file()?)?;
        file.set_modified(
            UNIX_EPOCH
                + Duration::new(self.rng.random_range(0..1 << 31), self.rng.random_range(0..1_000_000_000)),
        )
    }

    pub(super) fn copy_range(&mut self) -> io::Result<()> {
        let (from, to) = (File::open(self.file()?)?, OpenOptions::new().write(true).open(self.file()?)?);
        let (mut at, mut into) = (self.offset(&from, 0)?, self.offset(&to, 65536)?);
        rustix::fs::copy_file_range(&from, Some(&mut at), &to, Some(&mut into), 100_000)?;
        Ok(())
    }

    /// Stores through a shared mapping, without msync: the kernel writes the page back when it likes.
    pub(super) fn store(&mut self) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(self.file()?)?;
        let len = usize::try_from(file.metadata()?.len()).expect("small files");
        if len == 0 {
            return Ok(());
        }
        // SAFETY: nobody else truncates the file meanwhile; the only other party reads it.
        let mut map = unsafe { memmap2::MmapMut::map_mut(&file)? };
        for _ in 0..self.rng.random_range(1..4) {
            let at = self.rng.random_range(0..len);
            let end = (at + self.rng.random_range(1..3000)).min(len);
            let byte = self.rng.random();
            map[at..end].fill(byte);
        }
        Ok(())
    }

    /// Mostly small, sometimes large, sometimes repetitive, sometimes not.
    fn content(&mut self) -> Vec<u8> {
        let len = match self.rng.random_range(0..10) {
            0 => 0,
            1..6 => self.rng.random_range(1..5000),
            6..9 => self.rng.random_range(4096..40_000),
            _ => self.rng.random_range(40_000..400_000),
        };
        let mut content = vec![self.rng.random(); len];
        if self.rng.random_bool(0.7) {
            self.rng.fill(&mut content[..]);
        }
        content
    }

    /// An offset in the file or up to `beyond` past its end, often on a page boundary.
    fn offset(&mut self, file: &File, beyond: u64) -> io::Result<u64> {
        let at = self.rng.random_range(0..=file.metadata()?.len() + beyond);
        Ok(if self.rng.random_bool(0.4) { at & !4095 } else { at })
    }

    fn inner_dir(&mut self) -> io::Result<std::path::PathBuf> {
        let dir = self.dir();
        if dir == Path::new(&self.root) { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(dir) }
    }
}
