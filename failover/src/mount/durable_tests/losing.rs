//! A disk that has what was synced for sure; of the rest, a cut loses nothing, all, some files, or some pages.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsString,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
};

use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};

use crate::mount::disk::Disk;

const PAGE_BYTES: usize = 4096;

/// By inode: what is durable.
#[derive(Default)]
struct Durable {
    contents: HashMap<u64, Vec<u8>>,
    names: HashMap<u64, Names>,
}

type Names = BTreeMap<OsString, u64>;

#[derive(Default)]
pub(super) struct Losing {
    durable: Mutex<Durable>,
    /// How many more syncs there are before it is cut off; without a number, any.
    left: Mutex<Option<u64>>,
}

impl Losing {
    /// After so many syncs more each is an error.
    pub(super) fn cut_after(&self, left: Option<u64>) {
        *self.left.lock() = left;
    }

    fn spend(&self) -> io::Result<()> {
        match &mut *self.left.lock() {
            Some(0) => Err(io::Error::other("cut off")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What is there now is there for sure.
    pub(super) fn keep(&self, dirs: &[&Path]) {
        let mut durable = Durable::default();
        for dir in dirs {
            let names = list(dir);
            for (name, inode) in &names {
                durable.contents.insert(*inode, fs::read(dir.join(name)).unwrap());
            }
            durable.names.insert(fs::metadata(dir).unwrap().ino(), names);
        }
        *self.durable.lock() = durable;
    }

    /// Cuts it off: what was not synced is there or lost.
    pub(super) fn cut(&self, dirs: &[&Path], rng: &mut StdRng) {
        self.cut_after(None);
        let how = rng.random_range(0..4);
        for dir in dirs.iter().filter(|_| how > 0) {
            self.lose(dir, how, rng);
        }
        self.keep(dirs);
    }

    fn lose(&self, dir: &Path, how: u32, rng: &mut StdRng) {
        let durable = self.durable.lock();
        let (now, before) = (list(dir), durable.names.get(&fs::metadata(dir).unwrap().ino()));
        let before = before.cloned().unwrap_or_default();
        let all: BTreeSet<OsString> = now.keys().chain(before.keys()).cloned().collect();
        let mut left = Vec::new();
        for name in all.into_iter().filter(|name| name != "lock") {
            let lost = how == 1 || rng.random_bool(0.5);
            let Some(inode) = (if lost { &before } else { &now }).get(&name).copied() else { continue };
            let synced = durable.contents.get(&inode).cloned().unwrap_or_default();
            let written = match now.get(&name) == Some(&inode) {
                true => fs::read(dir.join(&name)).unwrap(),
                false => synced.clone(),
            };
            let content = match how {
                1 => synced,
                2 if rng.random_bool(0.5) => synced,
                2 => written,
                _ => torn(&synced, &written, rng),
            };
            left.push((name, content));
        }
        now.keys().filter(|name| *name != "lock").for_each(|name| fs::remove_file(dir.join(name)).unwrap());
        left.iter().for_each(|(name, content)| fs::write(dir.join(name), content).unwrap());
    }
}

impl Disk for Losing {
    fn sync(&self, file: &File) -> io::Result<()> {
        self.spend()?;
        // From here on: of two that sync the same file the later one must not be undone by the earlier.
        let mut durable = self.durable.lock();
        let mut content = vec![0; usize::try_from(file.metadata()?.len()).unwrap()];
        // It may become shorter meanwhile.
        let mut at = 0;
        while at < content.len() {
            match file.read_at(&mut content[at..], at as u64)? {
                0 => break,
                read => at += read,
            }
        }
        durable.contents.insert(file.metadata()?.ino(), content);
        Ok(())
    }

    fn sync_names(&self, dir: &dyn AsFd) -> io::Result<()> {
        self.spend()?;
        let mut durable = self.durable.lock();
        let path = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        let names = list(Path::new(&path));
        durable.names.insert(fs::metadata(path)?.ino(), names);
        Ok(())
    }
}

/// Each page is the one or the other.
fn torn(synced: &[u8], written: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let len = if rng.random_bool(0.5) { synced.len() } else { written.len() };
    let mut content = vec![0; len];
    for (number, page) in content.chunks_mut(PAGE_BYTES).enumerate() {
        let from = if rng.random_bool(0.5) { synced } else { written };
        let at = (number * PAGE_BYTES).min(from.len());
        let part = &from[at..(at + page.len()).min(from.len())];
        page[..part.len()].copy_from_slice(part);
    }
    content
}

/// The files in a directory, without directories.
fn list(dir: &Path) -> Names {
    let entries = fs::read_dir(dir).unwrap().filter_map(Result::ok);
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    // One that goes away meanwhile is gone.
    files.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.ino()))).collect()
}
