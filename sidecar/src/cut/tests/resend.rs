//! Chunks that are wanted again are found while the volume has them, and nothing else is ever given for them.

use std::collections::BTreeMap;

use tidelock_proto::{ChunkId, chunk};

use super::*;

/// The chunks of the tree, with the lengths that a receiver may know.
fn chunks(rig: &Rig) -> BTreeMap<ChunkId, u32> {
    let mut chunks = BTreeMap::new();
    for (_, inode) in rig.engine.stage.tree().iter() {
        for (_, extent) in inode.extents().into_iter().flat_map(|extents| extents.iter()) {
            let len: &mut u32 = chunks.entry(extent.chunk.id).or_default();
            *len = (*len).max(extent.chunk.at + extent.len);
        }
    }
    chunks
}

fn find(rig: &mut Rig, wanted: &BTreeMap<ChunkId, u32>) -> usize {
    let wanted: Vec<_> = wanted.iter().map(|(id, len)| (*id, *len)).collect();
    let found = rig.engine.find_again(&wanted);
    for packed in &found {
        let key = ChunkKey::of_tenant("t");
        let opened = chunk::open_checked(&key, packed.id, packed.codec, packed.len as usize, &packed.payload);
        assert!(opened.is_ok() && wanted.iter().any(|(id, _)| *id == packed.id));
    }
    found.len()
}

#[test]
fn lost_chunks_are_found_as_long_as_the_volume_has_them() {
    let mut rig = Rig::new(TrackerChoice::Inotify);
    let mut content = vec![0; 600_000];
    StdRng::seed_from_u64(4).fill(&mut content[..]);
    fs::write(rig.root.join("large"), &content).unwrap();
    fs::write(rig.root.join("small"), b"a few bytes").unwrap();
    rig.settle();
    let all = chunks(&rig);
    assert!(all.len() > 4, "{} chunks", all.len());
    assert_eq!(find(&mut rig, &all), all.len());
    let unknown: BTreeMap<ChunkId, u32> = all.keys().map(|id| (*id, 0)).collect();
    assert_eq!(find(&mut rig, &unknown), all.len(), "the tree knows how long they are");
    assert_eq!(find(&mut rig, &[(ChunkId([1; 32]), 4096)].into()), 0);

    // Nobody has told of it yet, and yet it is not taken for what was there.
    let file = fs::OpenOptions::new().write(true).open(rig.root.join("large")).unwrap();
    file.write_all_at(b"other", 300_000).unwrap();
    assert_eq!(find(&mut rig, &all), all.len() - 1);
    fs::remove_file(rig.root.join("large")).unwrap();
    assert_eq!(find(&mut rig, &all), 1);
    rig.settle();
    assert_eq!(find(&mut rig, &all), 1);
}
