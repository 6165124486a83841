//! A tree that was captured from another directory.

use std::process::Command;

use tidelock_proto::chunk::page_sums;

use super::*;
use crate::{cut::pages::sums_from, watch::Event};

/// A copy of a directory, with times and links, and a tree of the former.
fn pair(change: impl Fn(&Rig)) -> (Rig, Tree, std::collections::HashMap<tidelock_proto::ChunkId, Vec<u8>>) {
    let mut there = Rig::new(TrackerChoice::Inotify);
    change(&there);
    there.settle();
    let here = Rig::new(TrackerChoice::Inotify);
    let copied = Command::new("cp").arg("-a").arg(there.root.join(".")).arg(&here.root).status().unwrap();
    assert!(copied.success());
    let tap = std::mem::take(&mut there.engine.tap);
    (here, std::mem::take(&mut there.engine.stage).into_tree(), tap)
}

fn packed_bytes(rig: &Rig) -> usize {
    rig.engine.tap.values().map(Vec::len).sum()
}

#[test]
fn a_copy_sends_nothing_and_keeps_every_file() {
    let (mut here, tree, tap) = pair(|rig| {
        let mut rng = StdRng::seed_from_u64(5);
        (0..200).for_each(|_| rig.change(&mut rng));
        fs::hard_link(rig.root.join("one"), rig.root.join("two")).unwrap_or_default();
    });
    here.engine.tap.clear();
    let files: Vec<FileId> =
        tree.iter().filter(|(_, inode)| inode.extents().is_some()).map(|(id, _)| id).collect();
    assert!(files.len() > 5);
    here.engine.start_from(tree).unwrap();
    here.settle();
    assert_eq!(packed_bytes(&here), 0);
    assert!(files.iter().all(|id| here.engine.stage.get(*id).is_some()), "a file became another one");
    here.engine.tap.extend(tap);
    here.assert_equal();
}

#[test]
fn a_change_costs_the_extent_it_is_in() {
    let mut content = vec![0; 8 << 20];
    StdRng::seed_from_u64(1).fill(&mut content[..]);
    let (mut here, tree, tap) = pair(|rig| fs::write(rig.root.join("file"), &content).unwrap());
    write_at(&here.root.join("file"), 3 << 20, b"changed");
    here.settle();
    here.engine.tap.clear();
    here.engine.start_from(tree).unwrap();
    here.settle();
    let sent = packed_bytes(&here);
    assert!((1..=tidelock_proto::limits::CHUNK_MAX_BYTES).contains(&sent), "{sent} bytes");
    here.engine.tap.extend(tap);
    here.assert_equal();
}

#[test]
fn what_is_written_in_the_other_directory_is_not_taken_for_a_change() {
    let (mut here, tree, _) = pair(|rig| fs::write(rig.root.join("file"), "the same in both").unwrap());
    let id = tree.lookup(FileId::ROOT, &Name::new(b"file").unwrap()).unwrap();
    let there = tree.get(id).unwrap().meta.origin.inode;
    here.engine.start_from(tree).unwrap();
    here.settle();
    let written = |inode| Event::Range { inode, offset: 0, len: 4096 };
    here.engine.absorb(written(there));
    assert!(here.engine.dirty.is_empty(), "the file has another number by now");
    here.engine.absorb(written(fs::metadata(here.root.join("file")).unwrap().ino()));
    assert!(here.engine.dirty.concerns(id));
}

#[test]
fn whatever_else_the_directory_is_it_is_captured() {
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut here, tree, tap) = pair(|rig| {
            let mut rng = StdRng::seed_from_u64(seed + 100);
            (0..60).for_each(|_| rig.change(&mut rng));
        });
        (0..rng.random_range(1..80)).for_each(|_| here.change(&mut rng));
        here.engine.start_from(tree).unwrap();
        // Changes go on while it is compared.
        for _ in 0..rng.random_range(0..6) {
            here.engine.drain().unwrap();
            here.engine.step().unwrap();
            here.change(&mut rng);
        }
        here.settle();
        here.engine.tap.extend(tap);
        here.assert_equal();
        // And it is followed by its own inodes from then on.
        (0..20).for_each(|_| here.change(&mut rng));
        here.settle();
        here.assert_equal();
    }
}

/// Compares a file with its extents as if the receiver had answered; returns the bytes that were packed.
fn by_pages(rig: &mut Rig, path: &str) -> usize {
    let content = fs::read(rig.root.join(path)).unwrap();
    let id = rig.engine.stage.tree().lookup(FileId::ROOT, &Name::new(path.as_bytes()).unwrap()).unwrap();
    let extents: Vec<_> = rig.engine.stage.get(id).unwrap().extents().unwrap().iter().collect();
    let before = std::mem::take(&mut rig.engine.tap);
    for (offset, extent) in extents {
        let run = offset as usize..(offset as usize + extent.len as usize).min(content.len());
        let sums = page_sums(&ChunkKey::of_tenant("t"), &before[&extent.chunk.id]).into();
        let sums = sums_from(&sums, extent.chunk.at.into()).unwrap();
        rig.engine.stage_pages(id, offset, &content[run], sums).unwrap();
    }
    let packed = packed_bytes(rig);
    rig.engine.tap.extend(before);
    packed
}

/// What the tree says that is in a file.
fn content_of(rig: &Rig, path: &str) -> Vec<u8> {
    let id = rig.engine.stage.tree().lookup(FileId::ROOT, &Name::new(path.as_bytes()).unwrap()).unwrap();
    let extents = rig.engine.stage.get(id).unwrap().extents().unwrap();
    let piece = |extent: tidelock_proto::tree::Extent| {
        let at = extent.chunk.at as usize;
        rig.engine.tap[&extent.chunk.id][at..at + extent.len as usize].to_vec()
    };
    extents.iter().flat_map(|(_, extent)| piece(extent)).collect()
}

#[test]
fn only_pages_that_differ_are_packed() {
    let mut content = vec![0; (1 << 20) + 100];
    StdRng::seed_from_u64(2).fill(&mut content[..]);
    let mut rig = Rig::new(TrackerChoice::Inotify);
    let path = rig.root.join("file");
    fs::write(&path, &content).unwrap();
    rig.settle();
    assert_eq!(by_pages(&mut rig, "file"), 0);
    // Extents do not begin where pages of the file do: one write is in two pages at most.
    for (offset, most) in [(300_000, 2), (300_001, 2), (0, 1), (content.len() - 1, 1), (700_000, 2)] {
        write_at(&path, offset as u64, b"!");
        let packed = by_pages(&mut rig, "file");
        assert!((1..=most * 4096).contains(&packed), "{packed} bytes for a byte at {offset}");
        assert!(content_of(&rig, "file") == fs::read(&path).unwrap(), "after a byte at {offset}");
    }
}

#[test]
fn sums_are_of_the_pages_from_an_offset_on() {
    let key = ChunkKey::of_tenant("t");
    let sums = page_sums(&key, &[3; 10_000]).into();
    assert_eq!(sums_from(&sums, 0).unwrap().len(), 48);
    assert_eq!(sums_from(&sums, 8192).unwrap(), &key.id(&[3; 10_000 - 8192]).0[..16]);
    for at in [1, 4095, 12_288, 1 << 40] {
        assert_eq!(sums_from(&sums, at), None);
    }
    assert_eq!(sums_from(&Default::default(), 0), None);
}
