//! A seeded program that does everything to a directory tree that applications and administrators do.
//!
//! The same seed on an empty directory gives the same operations, whatever is watching and whenever it is killed: the
//! choice depends on the tree alone. Operations that cannot be done (a rename into itself, a directory that is not
//! empty) are tried all the same and fail, as they do in life.

mod edit;
mod names;

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    compare::{Leave, compare_leaving},
    process::run,
};

/// The trees stay small enough to be compared often.
const FILES_MAX: usize = 300;

/// What the mutator may do beyond the ordinary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Powers {
    /// Stores through shared mappings: no system call, so no inotify event.
    pub mmap: bool,
    /// Change owners, make device nodes.
    pub root: bool,
    /// Reserve space with fallocate. Without it, where the holes are depends on the operations alone; see [`Self::holes_stay`].
    pub reserve: bool,
}

impl Powers {
    /// Whether holes can be compared. Reserved space counts as a hole until the kernel has a page of it in memory, and ext4
    /// turns up to 32 KiB of it into data around a write: neither is a change of the file, and nobody is told.
    pub fn holes_stay(self) -> bool {
        !self.reserve
    }
}

/// The program.
pub struct Mutator {
    root: PathBuf,
    powers: Powers,
    rng: StdRng,
    files: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
    /// How many names each inode with several had when the tree was last at rest.
    links: BTreeMap<u64, u64>,
    tried: u64,
    done: u64,
}

impl Mutator {
    /// Works beneath `root`, which must exist.
    pub fn new(root: &Path, seed: u64, powers: Powers) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let mut mutator = Self {
            root: root.to_owned(),
            powers,
            rng,
            files: Vec::new(),
            dirs: Vec::new(),
            links: BTreeMap::new(),
            tried: 0,
            done: 0,
        };
        mutator.look();
        mutator
    }

    /// Operations tried so far.
    pub fn tried(&self) -> u64 {
        self.tried
    }

    /// Operations that succeeded so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Tries `count` operations.
    pub fn run(&mut self, count: u64) {
        for step in 0..count {
            if step % 16 == 0 {
                self.look();
            }
            self.tried += 1;
            if self.step().is_ok() {
                self.done += 1;
            }
        }
    }

    /// Everything done so far is replicated: names that were given by links may go from now on.
    pub fn rest(&mut self) {
        self.look();
        let metas = self.files.iter().filter_map(|file| std::fs::symlink_metadata(file).ok());
        self.links = metas.filter(|meta| meta.nlink() > 1).map(|meta| (meta.ino(), meta.nlink())).collect();
    }

    /// Whether a name may vanish. What is done through a name that was linked, used and removed again between two drains is
    /// announced by that name alone, so a sidecar cannot know whose it was: it is not claimed, and not done here.
    fn may_go(&self, path: &Path) -> std::io::Result<()> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() && meta.nlink() > 1 => {
                let known = self.links.get(&meta.ino()) == Some(&meta.nlink());
                if known { Ok(()) } else { Err(std::io::ErrorKind::ResourceBusy.into()) }
            }
            _ => Ok(()),
        }
    }

    fn step(&mut self) -> std::io::Result<()> {
        let crowded = self.files.len() > FILES_MAX;
        match self.rng.random_range(0..100) {
            0..14 if !crowded => self.create(),
            14..30 => self.overwrite(),
            30..42 => self.append(),
            42..47 => self.truncate(),
            47..51 => self.punch(),
            51..54 => self.reserve(),
            54..60 => self.rename_file(),
            60..63 => self.rename_dir(),
            63..67 if !crowded => self.link(),
            67..72 => self.unlink(),
            72..74 => self.remove_dir(),
            74..78 if !crowded => self.make_dir(),
            78..80 if !crowded => self.symlink(),
            80..83 => self.chmod(),
            83..86 => self.xattr(),
            86..88 => self.touch(),
            88..90 => self.chown(),
            90..91 if !crowded => self.special(),
            91..93 => self.replace(),
            93..95 => self.copy_range(),
            95..100 if self.powers.mmap => self.store(),
            _ => self.remove_tree(),
        }
    }

    /// Looks at what is there, in an order that does not depend on the file system.
    fn look(&mut self) {
        self.files.clear();
        self.dirs = vec![self.root.clone()];
        let mut next = 0;
        while let Some(dir) = self.dirs.get(next).cloned() {
            next += 1;
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            entries.sort();
            for path in entries {
                match std::fs::symlink_metadata(&path) {
                    Ok(meta) if meta.is_dir() => self.dirs.push(path),
                    Ok(meta) if meta.is_file() => self.files.push(path),
                    _ => {}
                }
            }
        }
    }

    fn file(&mut self) -> std::io::Result<PathBuf> {
        self.files.choose(&mut self.rng).cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn dir(&mut self) -> PathBuf {
        self.dirs.choose(&mut self.rng).cloned().unwrap_or_else(|| self.root.clone())
    }

    /// Any name in any directory: often new, sometimes taken.
    fn place(&mut self) -> PathBuf {
        let dir = self.dir();
        dir.join(names::random(&mut self.rng))
    }
}

/// All differences of two trees; those of their holes only if asked for, which [`Powers::holes_stay`] must allow.
pub fn differences(expected: &Path, found: &Path, holes: bool) -> Vec<String> {
    let leave = Leave { holes: !holes, ..Leave::default() };
    compare_leaving(&leave, expected, found).expect("both trees can be read")
}

/// Copies a tree at rest with all that is known of it: an oracle for later.
pub fn copy_tree(from: &Path, to: &Path) {
    run(Command::new("cp").args(["-a", "--sparse=auto"]).arg(from).arg(to));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::needs;

    fn listing(seed: u64) -> (u64, String) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().join("volume");
        std::fs::create_dir(&root).expect("new");
        let mut mutator =
            Mutator::new(&root, seed, Powers { mmap: true, root: needs::is_root(), reserve: true });
        mutator.run(2000);
        let mut find = std::process::Command::new("sh");
        find.current_dir(&root).args([
            "-c",
            "find . -type f -print0 | sort -z | xargs -0 cksum; find . -printf '%P %y %m %n\\n' | sort",
        ]);
        (mutator.done(), crate::process::run(&mut find))
    }

    #[test]
    fn the_same_seed_makes_the_same_tree() {
        let (done, tree) = listing(7);
        assert_eq!((done, &tree), (listing(7).0, &listing(7).1));
        assert_ne!(tree, listing(8).1);
        assert!(done > 1000, "only {done} of 2000 operations could be done");
        assert!(tree.lines().count() > 50, "a poor tree:\n{tree}");
    }
}
