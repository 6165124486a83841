//! Files that change in size: what the events announce, and what it costs to read.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate};

use super::*;
use crate::{capture::barrier, watch::MountedVolume};

/// Runs a test on ext4 and on xfs with exact ranges, where they are to be had.
fn on_each(test: impl Fn(&mut Rig, &str)) {
    for kind in ["ext4", "xfs"] {
        let Some(volume) = MountedVolume::mount(kind) else { return };
        let mut rig = Rig::below(&volume.path("."), TrackerChoice::Exact, &WatchLimits::default());
        test(&mut rig, kind);
    }
}

fn create(path: &Path, flags: i32) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path).unwrap()
}

#[repr(align(4096))]
struct Page([u8; 4096]);

#[test]
fn a_file_that_grows_is_read_where_it_grew() {
    const FILE_BYTES: u64 = 64 << 20;
    on_each(|rig, kind| {
        let path = rig.root.join("file");
        let file = create(&path, 0);
        for mib in 0..FILE_BYTES >> 20 {
            file.write_all_at(&[mib as u8 + 1; 1 << 20], mib << 20).unwrap();
        }
        rig.settle();
        let mut size = FILE_BYTES;
        let mut grow = |what: &str, most: u64, step: &dyn Fn(u64)| {
            let before = rig.engine.status.counters.read_bytes.get();
            for _ in 0..1000 {
                step(size);
                size += 4096;
                rig.settle();
            }
            let read = rig.engine.status.counters.read_bytes.get() - before;
            assert!(read <= most, "{what} on {kind}: {read} bytes were read");
        };
        let whole = FallocateFlags::empty();
        grow("fallocate", 1 << 20, &|at| fallocate(file.as_fd(), whole, at, 4096).unwrap());
        let direct = create(&path, libc::O_DIRECT);
        grow("O_DIRECT", 8 << 20, &|at| direct.write_all_at(&Page([at as u8; 4096]).0, at).unwrap());
        grow("ftruncate", 1 << 20, &|at| file.set_len(at + 4096).unwrap());
        grow("pwrite", 8 << 20, &|at| file.write_all_at(&[1; 4096], at).unwrap());
        rig.assert_equal();
    });
}

#[test]
fn whatever_happens_to_its_size_a_file_is_captured_whole() {
    on_each(|rig, kind| {
        let path = rig.root.join("file");
        let (file, direct) = (create(&path, 0), create(&path, libc::O_DIRECT));
        for seed in 0..20 {
            let mut rng = StdRng::seed_from_u64(seed);
            for _ in 0..30 {
                for _ in 0..rng.random_range(1..6) {
                    resize(&mut rng, &file, &direct);
                }
                if rng.random_bool(0.5) {
                    rig.engine.drain().unwrap();
                    rig.engine.step().unwrap();
                } else {
                    rig.settle();
                    let what = std::panic::AssertUnwindSafe(|| rig.assert_equal());
                    assert!(std::panic::catch_unwind(what).is_ok(), "{kind}, seed {seed}");
                }
            }
            rig.settle();
            rig.assert_equal();
        }
    });
}

/// Changes a file within its first 200 kB in some way that may change its size. Nothing that is refused: xfs moves the
/// times for a refused `fallocate`, too, and tells nobody.
fn resize(rng: &mut StdRng, file: &File, direct: &File) {
    let (at, len) = (rng.random_range(0..120_000u64), rng.random_range(1..80_000));
    let (block, size) = (|bytes: u64| (bytes / 4096).max(1) * 4096, file.metadata().unwrap().len());
    let all = FallocateFlags::empty();
    let allocate = |flags, at, len| fallocate(file.as_fd(), flags, at, len).unwrap();
    match rng.random_range(0..10) {
        0 | 1 => file.set_len(at).unwrap(),
        2 => file.write_all_at(&vec![rng.random_range(1..=255); len as usize], at).unwrap(),
        3 => direct.write_all_at(&Page([rng.random_range(1..=255); 4096]).0, block(at)).unwrap(),
        4 => allocate(all, at, len),
        5 => allocate(FallocateFlags::KEEP_SIZE, at, len),
        6 => allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len),
        7 => allocate(FallocateFlags::ZERO_RANGE, at, len),
        8 if block(at) + block(len) < size => allocate(FallocateFlags::COLLAPSE_RANGE, block(at), block(len)),
        9 if block(at) < size => allocate(FallocateFlags::INSERT_RANGE, block(at), block(len)),
        _ => {}
    }
}

#[test]
fn the_barrier_waits_for_a_write_that_is_under_way() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let Some(volume) = MountedVolume::mount(kind) else { return };
        // On a busy machine a write may be over before anybody looks.
        assert!((0..20).any(|_| meets_a_write(&volume, kind)), "{kind}: no write was met");
    }
}

/// Whether a long write was under way when the barrier began, which must then have waited for it.
fn meets_a_write(volume: &MountedVolume, kind: &str) -> bool {
    let file = create(&volume.path("file"), 0);
    file.set_len(0).unwrap();
    let content = vec![7; 150 << 20];
    let written = AtomicBool::new(false);
    let mut waited = false;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            file.write_all_at(&content, 0).unwrap();
            written.store(true, Ordering::SeqCst);
        });
        let reader = File::open(volume.path("file")).unwrap();
        while !written.load(Ordering::SeqCst) {
            let under_way = reader.metadata().unwrap().len() > 0;
            barrier(reader.as_fd());
            if under_way && reader.metadata().unwrap().len() > 0 {
                waited = true;
                assert_eq!(reader.metadata().unwrap().len(), content.len() as u64, "{kind}");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    waited
}

#[test]
fn a_cut_has_every_store_to_a_mapped_page_that_came_before_it() {
    on_each(|rig, kind| {
        let file = create(&rig.root.join("file"), 0);
        file.write_all_at(&[0; 4096], 0).unwrap();
        // SAFETY: nobody cuts the file short.
        let page = unsafe { memmap2::MmapMut::map_mut(&file).unwrap() };
        // SAFETY: the mapping begins with eight aligned bytes.
        let word = unsafe { &*page.as_ptr().cast::<AtomicU64>() };
        rig.settle();
        let id = rig.engine.stage.at_inode(file.metadata().unwrap().ino()).unwrap();
        let (stop, stored) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut rng = StdRng::seed_from_u64(1);
                while !stop.load(Ordering::SeqCst) {
                    let next = stored.load(Ordering::SeqCst) + 1;
                    word.store(next, Ordering::SeqCst);
                    stored.store(next, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(rng.random_range(0..300)));
                }
            });
            let began = Instant::now();
            let mut behind = None;
            while behind.is_none() && began.elapsed() < Duration::from_secs(3) {
                let before = stored.load(Ordering::SeqCst);
                rig.settle();
                let extents = rig.engine.stage.get(id).unwrap().extents().unwrap();
                let captured = extents.iter().next().map_or(0, |(_, extent)| {
                    u64::from_le_bytes(rig.engine.tap[&extent.chunk.id][..8].try_into().unwrap())
                });
                behind = (captured < before).then_some((captured, before));
            }
            stop.store(true, Ordering::SeqCst);
            assert_eq!(behind, None, "{kind}: captured, and stored before");
        });
    });
}
