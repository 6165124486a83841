//! The plain directory takes the mount's place: killed between any two steps, the same command ends it.

use std::{
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;
use crate::{
    promote::{InstantEnd, PromoteOptions, instant},
    restore::Event,
};

/// A panic in the place of a kill: nothing after it is done, and what was held is given up.
struct Killed;

/// Everything is local: names in two directories, a file with two names, an empty one, one with a hole.
fn local(rng: &mut StdRng) -> (World, Model) {
    let world = World::new(rng);
    let point = world.begin();
    let mut life = Life::new(point.clone(), world.model.clone(), &world);
    for _ in 0..15 {
        if !life.is_over() {
            life.step(rng);
        }
    }
    world.disk.cut_after(None);
    let mut now = life.now.clone();
    if life.is_over() {
        return local(rng);
    }
    drop(life);
    let new = New { mode: 0o750, uid: 0, gid: 0 };
    let mut layer = point.layer.write();
    let dir = layer.create(FileId::ROOT, name(b"dir"), Kind::Directory, &new).unwrap();
    let file = layer.create(dir, name(b"within"), Kind::File, &new).unwrap();
    layer.link(file, FileId::ROOT, name(b"without")).unwrap();
    layer.create(dir, name(b"empty"), Kind::File, &new).unwrap();
    drop(layer);
    point.write_bytes(file, 100_000, b"behind a hole").unwrap();
    now.names.insert(b"without".to_vec(), file);
    now.bytes.insert(file, [vec![0; 100_000], b"behind a hole".to_vec()].concat());
    assert!(point.hydrate() && point.absent_bytes() == 0);
    point.commit_all().unwrap();
    drop(point.close().unwrap());
    (world, now)
}

/// Runs the command, and kills it at this event, counted from 0; tells how many there were.
fn run(world: &World, kill: u64) -> Result<u64, Killed> {
    let count = AtomicU64::new(0);
    let events = |_: Event| {
        // Other threads are killed, too.
        if count.fetch_add(1, Ordering::Relaxed) >= kill {
            std::panic::panic_any(Killed);
        }
    };
    let directory = world.dir.path().join("target");
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let done = instant((None, None), &volume(), &directory, &PromoteOptions::default(), &events).unwrap();
        assert!(!done.report().mounted && done.report().resumed);
        assert_eq!(done.end(&events).unwrap(), InstantEnd::Complete);
    }));
    match ended {
        Ok(()) => Ok(count.into_inner()),
        // A thread's panic is told as another one.
        Err(_) if count.into_inner() > kill => Err(Killed),
        Err(panic) => resume_unwind(panic),
    }
}

fn expect(world: &World, wanted: &Model, case: &str) {
    let directory = world.dir.path().join("target");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            found.insert(entry.file_name().into_encoded_bytes(), fs::read(entry.path()).unwrap());
        } else {
            assert_eq!(entry.file_name(), "dir", "{case}");
        }
    }
    let files = wanted.names.iter().map(|(name, id)| (name.clone(), wanted.bytes[id].clone()));
    assert!(found == files.collect(), "{case}: {:?}", found.keys().collect::<Vec<_>>());
    let inode = |path: &str| fs::metadata(directory.join(path)).unwrap();
    assert_eq!(inode("dir/within").ino(), inode("without").ino(), "{case}");
    assert_eq!((inode("without").nlink(), inode("dir/empty").len()), (2, 0), "{case}");
    assert_eq!((inode("dir").mode(), inode("").mode()), (0o40750, 0o40755), "{case}");
    assert!(inode("without").blocks() * 512 < 100_000, "{case}: the hole is none");
}

#[test]
fn a_completion_that_is_killed_anywhere_is_ended_by_the_same_command() {
    // Panics are what is tested.
    for seed in 0..2 {
        let mut events = u64::MAX;
        for kill in 0.. {
            let (world, wanted) = local(&mut StdRng::seed_from_u64(seed));
            match run(&world, kill) {
                Ok(all) => events = all,
                Err(Killed) => {
                    // Once more in the middle of going on.
                    let again = run(&world, kill / 2);
                    if again.is_err() {
                        run(&world, u64::MAX).unwrap_or_else(|Killed| unreachable!());
                    }
                }
            }
            expect(&world, &wanted, &format!("seed {seed}, killed at {kill}"));
            if events != u64::MAX {
                break;
            }
        }
        assert!(events > 15, "there were only {events} steps");
    }
}
