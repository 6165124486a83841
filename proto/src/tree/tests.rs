//! The tree against a naive copy of itself, and its refusals.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::{
    ids::ChunkId,
    wire::{decode_ops, split_ops},
};

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

fn root() -> Tree {
    let mut tree = Tree::new();
    tree.apply(&create(1, Kind::Directory)).unwrap();
    tree.seal().unwrap();
    tree
}

fn create(id: u64, kind: Kind) -> Op {
    Op::Create { id: FileId(id), kind, meta: Meta::default() }
}

fn link(dir: u64, entry: &str, id: u64) -> Op {
    Op::Link { dir: FileId(dir), name: name(entry), id: FileId(id) }
}

fn unlink(dir: u64, entry: &str) -> Op {
    Op::Unlink { dir: FileId(dir), name: name(entry) }
}

fn chunk(byte: u8, at: u32) -> Option<ChunkRef> {
    Some(ChunkRef { id: ChunkId([byte; 32]), at })
}

/// The same tree built from nothing has the same digest: no trace of how it came to be.
fn rebuilt(tree: &Tree) -> Tree {
    let groups: Vec<_> = split_ops(tree.snapshot()).collect();
    let mut copy = Tree::new();
    for op in groups.into_iter().flat_map(|group| decode_ops(group).unwrap()) {
        copy.apply(&op).unwrap();
    }
    copy.seal().unwrap();
    copy
}

#[test]
fn a_directory_moves_with_everything_in_it() {
    let mut tree = root();
    for op in [create(2, Kind::Directory), create(3, Kind::File), link(1, "a", 2), link(2, "f", 3)] {
        tree.apply(&op).unwrap();
    }
    tree.seal().unwrap();
    for op in [unlink(1, "a"), link(1, "b", 2)] {
        tree.apply(&op).unwrap();
    }
    tree.seal().unwrap();
    assert_eq!(tree.path(FileId(3)).unwrap(), b"b/f");
}

#[test]
fn an_inode_without_a_name_is_gone_at_the_commit_with_what_only_it_named() {
    let mut tree = root();
    let empty = tree.totals();
    for op in [create(2, Kind::Directory), create(3, Kind::File), create(4, Kind::File)] {
        tree.apply(&op).unwrap();
    }
    for op in [link(1, "d", 2), link(2, "only", 3), link(2, "other", 4), link(1, "kept", 4)] {
        tree.apply(&op).unwrap();
    }
    tree.seal().unwrap();
    tree.apply(&unlink(1, "d")).unwrap();
    tree.seal().unwrap();
    assert!(tree.get(FileId(2)).is_none() && tree.get(FileId(3)).is_none());
    assert_eq!(tree.names(FileId(4)).count(), 1);
    assert_eq!(tree.totals().inodes, empty.inodes + 1);
    assert_eq!(rebuilt(&tree).digest(), tree.digest());
}

#[test]
fn a_path_is_found_by_whichever_name_leads_to_the_root() {
    let mut tree = root();
    for op in
        [create(2, Kind::Directory), create(3, Kind::File), link(1, "d", 2), link(2, "a", 3), link(1, "z", 3)]
    {
        tree.apply(&op).unwrap();
    }
    tree.seal().unwrap();
    tree.apply(&unlink(1, "d")).unwrap();
    assert_eq!(tree.path(FileId(3)).unwrap(), b"z");
    assert_eq!(tree.path(FileId(2)), None);
}

#[test]
fn what_could_not_be_a_tree_is_refused() {
    let mut tree = root();
    for op in [create(2, Kind::Directory), create(3, Kind::Directory), link(1, "a", 2), link(2, "b", 3)] {
        tree.apply(&op).unwrap();
    }
    tree.seal().unwrap();
    let refused = |ops: &[Op], error: TreeError| {
        let mut copy = tree.clone();
        let result = ops.iter().try_for_each(|op| copy.apply(op)).and_then(|()| copy.seal().map(drop));
        assert_eq!(result, Err(error), "{ops:?}");
    };
    refused(&[link(1, "twice", 2)], TreeError::NotTree(FileId(2)));
    refused(&[unlink(1, "a"), link(3, "ring", 2)], TreeError::NotTree(FileId(2)));
    refused(&[create(3, Kind::File)], TreeError::Reused(FileId(3)));
    refused(&[link(1, "root", 1)], TreeError::Root);
    refused(&[unlink(1, "none")], TreeError::NoEntry(FileId(1), name("none")));
    refused(&[Op::Resize { id: FileId(2), size: 1 }], TreeError::NotFile(FileId(2)));
    refused(&[Op::Resize { id: FileId(9), size: 1 }], TreeError::Unknown(FileId(9)));
    let far = Op::Write { id: FileId(2), offset: u64::MAX, pieces: vec![Piece { len: 1, chunk: None }] };
    refused(&[far], TreeError::Range(FileId(2)));
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for bad in [&b""[..], b".", b"..", b"/etc", b"a/b", b"a\0b", &[b'x'; 256]] {
        assert!(Name::new(bad).is_err(), "{bad:?}");
    }
    assert!(Name::new(&[0xff; 255]).is_ok());
}

/// Every byte of a small file as (chunk, byte within it), or nothing for a hole.
type Bytes = Vec<Option<(u8, u32)>>;

fn bytes_of(extents: &ExtentMap) -> Bytes {
    let pieces = extents.pieces(0, extents.size());
    let expand = |piece: &Piece| {
        let chunk = piece.chunk;
        (0..piece.len as u32)
            .map(move |i| chunk.map(|chunk| (chunk.id.0[0], chunk.at + i)))
            .collect::<Vec<_>>()
    };
    pieces.iter().flat_map(expand).collect()
}

#[derive(Debug, Clone)]
enum Edit {
    Write(u64, Vec<(u64, Option<(u8, u32)>)>),
    Resize(u64),
}

fn edit() -> impl Strategy<Value = Edit> {
    let piece = (1u64..40, proptest::option::of((0u8..8, 0u32..100)));
    prop_oneof![
        4 => (0u64..300, proptest::collection::vec(piece, 1..5)).prop_map(|(at, pieces)| Edit::Write(at, pieces)),
        1 => (0u64..400).prop_map(Edit::Resize),
    ]
}

proptest! {
    #[test]
    fn extents_equal_a_plain_array_of_bytes(edits in proptest::collection::vec(edit(), 1..40)) {
        let mut tree = root();
        tree.apply(&create(2, Kind::File)).unwrap();
        tree.apply(&link(1, "f", 2)).unwrap();
        let mut model = Bytes::new();
        for edit in edits {
            match edit {
                Edit::Write(offset, pieces) => {
                    let mut at = offset as usize;
                    let end = at + pieces.iter().map(|(len, _)| *len as usize).sum::<usize>();
                    model.resize(model.len().max(end), None);
                    let to_piece = |(len, data): &(u64, Option<(u8, u32)>)| Piece {
                        len: *len,
                        chunk: data.and_then(|(byte, start)| chunk(byte, start)),
                    };
                    for (len, data) in &pieces {
                        for i in 0..*len as u32 {
                            model[at] = data.map(|(byte, start)| (byte, start + i));
                            at += 1;
                        }
                    }
                    let pieces = pieces.iter().map(to_piece).collect();
                    tree.apply(&Op::Write { id: FileId(2), offset, pieces }).unwrap();
                }
                Edit::Resize(size) => {
                    model.resize(size as usize, None);
                    tree.apply(&Op::Resize { id: FileId(2), size }).unwrap();
                }
            }
            let extents = tree.get(FileId(2)).unwrap().extents().unwrap();
            prop_assert_eq!(bytes_of(extents), model.clone());
            for (start, end) in [(0, 0), (3, 50), (100, 170), (0, extents.size())] {
                let touched: u64 = extents.pieces(start, end).iter().map(|piece| piece.len).sum();
                prop_assert_eq!(touched, end.saturating_sub(start));
            }
        }
        tree.seal().unwrap();
        let copy = rebuilt(&tree);
        prop_assert_eq!(copy.digest(), tree.digest());
        prop_assert_eq!(copy.totals(), tree.totals());
        prop_assert!(copy == tree);
    }

    #[test]
    fn the_digest_forgets_how_a_tree_came_to_be(
        steps in proptest::collection::vec((0u8..6, 0u64..8, 0u64..8, 0u64..8), 1..80)
    ) {
        let mut tree = root();
        for (what, dir, entry, id) in steps {
            let (dir, entry) = (FileId(1 + dir), name(&format!("n{entry}")));
            let id = FileId(1 + id);
            let op = match what {
                0 => create(tree.next_id().0, Kind::Directory),
                1 => create(tree.next_id().0, Kind::File),
                2 | 3 => Op::Link { dir, name: entry, id },
                4 => Op::Unlink { dir, name: entry },
                _ => Op::SetXattrs { id, xattrs: [(b"user.a".to_vec(), vec![id.0 as u8])].into() },
            };
            let mut next = tree.clone();
            let mut done = next.apply(&op);
            if let Op::Create { id, .. } = op {
                let name = name(&format!("c{}", id.0));
                done = done.and_then(|()| next.apply(&Op::Link { dir: FileId::ROOT, name, id }));
            }
            if done.and_then(|()| next.seal()).is_ok() {
                tree = next;
                prop_assert_eq!(rebuilt(&tree).digest(), tree.digest());
            }
        }
    }
}
