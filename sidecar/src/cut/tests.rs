//! The engine against a real directory: after random changes and a converged cut, the tree is what the directory holds.
#![allow(clippy::unwrap_used)]

mod excluded;
mod healing;
mod resend;
mod sizes;
mod takeover;

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidelock_proto::{
    ChunkKey, Epoch, FileId, Tree,
    tree::{Content, Name},
};

use super::engine::Engine;
use crate::{
    capture::Volume,
    pack::Packer,
    ship::{SessionConfig, outbox},
    status::Status,
    watch::{NamesChoice, SourceChoice, TrackerChoice, WatchLimits, Watcher},
};

struct Rig {
    engine: Engine,
    _dir: tempfile::TempDir,
    root: PathBuf,
}

impl Rig {
    fn new(sources: impl Into<SourceChoice>) -> Self {
        Self::within(sources, &WatchLimits::default())
    }

    fn within(sources: impl Into<SourceChoice>, limits: &WatchLimits) -> Self {
        Self::below(Path::new("/var/tmp"), sources, limits)
    }

    fn below(parent: &Path, sources: impl Into<SourceChoice>, limits: &WatchLimits) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        let volume = Volume::open(dir.path()).unwrap();
        let watcher = Watcher::open(volume.root(), sources, limits).unwrap();
        let config = SessionConfig {
            volume: "t/v".parse().unwrap(),
            epoch: Epoch::FIRST,
            raise_epoch: false,
            import: false,
            instance: 1,
            tracker: "test".into(),
            window_bytes: 1 << 20,
            commits_max: 4,
        };
        let (outbox, _end) = outbox(config).unwrap();
        let packer = Packer::new(ChunkKey::of_tenant("t"), 1, 1);
        let mut engine = Engine::new(
            volume,
            watcher,
            packer,
            outbox,
            std::sync::Arc::new(Status::new("t/v".parse().unwrap(), Epoch::FIRST)),
        );
        engine.start_from(Tree::new()).unwrap();
        let root = dir.path().to_owned();
        let mut rig = Self { engine, _dir: dir, root };
        rig.settle();
        rig
    }

    /// Captures until a drain finds nothing, as the cutter does.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.engine.drain().unwrap();
            if self.engine.dirty.is_empty() {
                self.engine.stage.seal().unwrap();
                self.engine.end_scan();
                self.engine.end_conditions();
                return;
            }
            self.engine.step().unwrap();
        }
        panic!("does not converge: {:?} {:?}", self.engine.dirty, self.engine.nameless);
    }

    fn assert_equal(&self) {
        self.assert_directory(FileId::ROOT, &self.root);
    }

    fn assert_directory(&self, id: FileId, path: &Path) {
        let tree = self.engine.stage.tree();
        let entries = tree.entries(id).unwrap();
        let mut names = 0;
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let name = Name::new(entry.file_name().as_encoded_bytes()).unwrap();
            let child =
                *entries.get(&name).unwrap_or_else(|| panic!("{:?} is not in the tree", entry.path()));
            self.assert_inode(child, &entry.path());
            names += 1;
        }
        assert_eq!(names, entries.len(), "the tree has entries that {path:?} has not");
    }

    fn assert_inode(&self, id: FileId, path: &Path) {
        let inode = self.engine.stage.get(id).unwrap();
        let stat = fs::symlink_metadata(path).unwrap();
        assert_eq!(inode.meta.mode, stat.mode() & 0o7777, "mode of {path:?}");
        assert_eq!(
            (inode.meta.mtime.secs, i64::from(inode.meta.mtime.nanos)),
            (stat.mtime(), stat.mtime_nsec()),
            "mtime of {path:?}"
        );
        match &inode.content {
            Content::Directory(_) => self.assert_directory(id, path),
            Content::Symlink(target) => {
                assert_eq!(fs::read_link(path).unwrap().as_os_str().as_encoded_bytes(), target);
            }
            Content::File(extents) => {
                assert_eq!(extents.size(), stat.len(), "size of {path:?}");
                assert_eq!(
                    self.engine.stage.tree().names(id).count() as u64,
                    stat.nlink(),
                    "links of {path:?}"
                );
                let mut content = vec![0; stat.len() as usize];
                for (offset, extent) in extents.iter() {
                    let chunk = &self.engine.tap[&extent.chunk.id];
                    let at = extent.chunk.at as usize;
                    content[offset as usize..][..extent.len as usize]
                        .copy_from_slice(&chunk[at..at + extent.len as usize]);
                }
                assert!(content == fs::read(path).unwrap(), "content of {path:?}");
            }
            _ => {}
        }
    }

    fn change(&self, rng: &mut StdRng) {
        let mut files = Vec::new();
        let mut directories = vec![self.root.clone()];
        collect(&self.root, &mut files, &mut directories);
        let fresh =
            |rng: &mut StdRng| directories.choose(rng).unwrap().join(format!("n{}", rng.random_range(0..12)));
        let target = fresh(rng);
        let file = files.choose(rng).cloned();
        // Whatever the kernel refuses (a name that is taken, a directory that is not empty) is no change.
        let _ = match (rng.random_range(0..14), file) {
            (0, _) => fs::create_dir(&target),
            (1, _) => symlink("some/target", &target),
            (2, Some(file)) => fs::rename(file, &target),
            (3, Some(file)) => fs::hard_link(file, &target),
            (4, Some(file)) => fs::remove_file(file),
            (5, _) => fs::rename(directories.choose(rng).unwrap(), &target),
            (6, _) => fs::remove_dir_all(directories[1..].choose(rng).unwrap_or(&target)),
            (7, Some(file)) => {
                fs::set_permissions(file, fs::Permissions::from_mode(0o600 | rng.random_range(0..8)))
            }
            (8, Some(file)) => {
                let file = fs::OpenOptions::new().write(true).open(file).unwrap();
                file.set_len(rng.random_range(0..300_000))
            }
            (9..=11, Some(file)) => {
                let file = fs::OpenOptions::new().write(true).open(file).unwrap();
                let mut bytes = vec![0; rng.random_range(1..20_000)];
                rng.fill(&mut bytes[..]);
                file.write_all_at(&bytes, rng.random_range(0..200_000))
            }
            (_, _) => {
                let mut bytes = vec![0; rng.random_range(0..100_000)];
                rng.fill(&mut bytes[..]);
                fs::write(&target, bytes)
            }
        };
    }
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>, directories: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        } else if path.is_dir() {
            directories.push(path.clone());
            collect(&path, files, directories);
        } else {
            files.push(path);
        }
    }
}

fn random_changes(sources: impl Into<SourceChoice>, seed: u64, cuts: usize) {
    let mut rig = Rig::new(sources);
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..cuts {
        for _ in 0..rng.random_range(1..12) {
            rig.change(&mut rng);
        }
        rig.settle();
        rig.assert_equal();
    }
}

/// As files of a busy database without exact ranges: the whole of them is dirty again at every drain.
#[test]
fn files_that_change_all_the_time_keep_nothing_else_waiting() {
    let mut rig = Rig::new(TrackerChoice::Inotify);
    let hot = ["a", "b"].map(|name| rig.root.join(name));
    hot.iter().for_each(|path| fs::write(path, vec![7; 10 << 20]).unwrap());
    fs::write(rig.root.join("z"), "old").unwrap();
    rig.settle();
    fs::write(rig.root.join("z"), "news").unwrap();
    hot.iter().for_each(|path| write_at(path, 9 << 20, b"end"));
    let inode = |rig: &Rig, name: &str| {
        let name = Name::new(name.as_bytes()).unwrap();
        let id = rig.engine.stage.tree().lookup(FileId::ROOT, &name).unwrap();
        rig.engine.stage.get(id).unwrap().extents().unwrap().clone()
    };
    let end_of = |rig: &Rig, name: &str| inode(rig, name).touching(9 << 20, (9 << 20) + 1).next();
    let before = ["a", "b"].map(|name| end_of(&rig, name));
    for round in 0..12u8 {
        hot.iter().for_each(|path| write_at(path, 0, &[round]));
        rig.engine.drain().unwrap();
        rig.engine.step().unwrap();
    }
    assert_eq!(inode(&rig, "z").size(), 4);
    assert_ne!(end_of(&rig, "a"), before[0]);
    assert_ne!(end_of(&rig, "b"), before[1]);
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn random_changes_are_captured_by_inotify_alone() {
    (0..8).for_each(|seed| random_changes(TrackerChoice::Inotify, seed, 40));
}

#[test]
fn random_changes_are_captured_with_names_from_fanotify() {
    // The machine's file system: other tests' events come, too.
    if let Err(why) = Watcher::open(
        Volume::open(Path::new("/var/tmp")).unwrap().root(),
        SourceChoice { tracker: TrackerChoice::Inotify, names: NamesChoice::Fanotify },
        &WatchLimits::default(),
    ) {
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("skipped: {why}");
        return;
    }
    for tracker in [TrackerChoice::Inotify, TrackerChoice::Auto] {
        let sources = SourceChoice { tracker, names: NamesChoice::Fanotify };
        (0..8).for_each(|seed| random_changes(sources, seed, 40));
    }
}

#[test]
fn random_changes_are_captured_by_the_best_sources() {
    (0..8).for_each(|seed| random_changes(TrackerChoice::Auto, seed, 40));
}

#[test]
fn a_file_is_captured_however_long_its_path_is() {
    let mut rig = Rig::new(TrackerChoice::Auto);
    let mut at = std::fs::File::open(&rig.root).unwrap();
    let name = "d".repeat(250);
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, name.as_str(), 0o755.into()).unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, name.as_str(), flags, 0.into()).unwrap().into();
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let mut file: std::fs::File = rustix::fs::openat(&at, "file", flags, 0o644.into()).unwrap().into();
    std::io::Write::write_all(&mut file, b"far down").unwrap();
    rig.settle();
    let tree = rig.engine.stage.tree();
    let (_, file) = tree.iter().find(|(_, inode)| inode.extents().is_some()).unwrap();
    assert_eq!(file.extents().unwrap().size(), 8);
    assert!(rig.engine.unreadable_later.is_empty());
}

#[test]
fn an_unchanged_volume_is_compared_without_reading_it() {
    let mut rig = Rig::new(TrackerChoice::Inotify);
    fs::write(rig.root.join("a"), vec![7; 1 << 20]).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    rig.settle();
    // The change time cannot be set; what can is how old it must be.
    let tree = rig.engine.stage.tree().clone();
    let id = tree.lookup(FileId::ROOT, &Name::new(b"a").unwrap()).unwrap();
    let _ = (id, old);
    let read = rig.engine.status.counters.read_bytes.get();
    rig.engine.start_from(tree).unwrap();
    rig.settle();
    rig.assert_equal();
    assert_eq!(
        rig.engine.status.counters.read_bytes.get() - read,
        1 << 20,
        "a file that changed a moment ago is read again"
    );
}

#[test]
fn a_tree_that_was_captured_elsewhere_is_compared_with_the_directory_that_is_here() {
    let mut there = Rig::new(TrackerChoice::Inotify);
    let mut here = Rig::new(TrackerChoice::Inotify);
    for rig in [&there, &here] {
        fs::create_dir(rig.root.join("dir")).unwrap();
        fs::write(rig.root.join("dir/file"), "as it was").unwrap();
    }
    fs::write(here.root.join("dir/new"), "since").unwrap();
    there.settle();
    let tap = std::mem::take(&mut there.engine.tap);
    here.engine.start_from(std::mem::take(&mut there.engine.stage).into_tree()).unwrap();
    here.engine.tap.extend(tap);
    here.settle();
    here.assert_equal();
}

#[test]
fn many_names_that_moved_do_not_keep_the_one_that_says_where_to_from_being_looked_up() {
    let mut rig = Rig::new(TrackerChoice::Inotify);
    let at = |path: &str| rig.root.join(path);
    let (inner, outer) = (at("inner"), at("outer"));
    fs::create_dir(&inner).unwrap();
    let names: Vec<String> = (0..2 * crate::limits::ENTRIES_PER_STEP).map(|i| format!("f{i}")).collect();
    for name in &names {
        fs::write(inner.join(name), "").unwrap();
    }
    rig.settle();
    // Known after what it will contain, so looked at later.
    fs::create_dir(&outer).unwrap();
    fs::rename(&inner, outer.join("was")).unwrap();
    rig.settle();
    for name in &names {
        fs::set_permissions(outer.join("was").join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::rename(outer.join("was"), outer.join("is")).unwrap();
    fs::write(outer.join("was"), "something else").unwrap();
    rig.settle();
    rig.assert_equal();
}
