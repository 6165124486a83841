//! What is written to a mounted point, held to a file of bytes; and who stays for how long.
#![allow(clippy::unwrap_used)]

use fuser::{Errno, RenameFlags};
use proptest::prelude::*;
use tidelock_proto::{
    ChunkId, FileId, Op, Tree,
    tree::{ChunkRef, Kind, Meta, Name, Piece},
};

use super::{
    changes::{Changed, New},
    layer::Layer,
    scratch::{SLOT_BYTES, Scratch, is_slot},
    upper::Upper,
};

const FILE: FileId = FileId(2);
const CHUNK_BYTES: u64 = 5000;
const CHUNKS: u64 = 160;

fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).unwrap()
}

/// A root with one file of chunks, each of which holds the number of its place.
fn layer() -> Layer {
    let mut tree = Tree::new();
    let meta = Meta { mode: 0o755, ..Meta::default() };
    tree.apply(&Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta }).unwrap();
    tree.apply(&Op::Create { id: FILE, kind: Kind::File, meta }).unwrap();
    tree.apply(&Op::Link { dir: FileId::ROOT, name: name("file"), id: FILE }).unwrap();
    for number in 0..CHUNKS {
        let chunk = ChunkRef { id: ChunkId([number as u8; 32]), at: 0 };
        let pieces = vec![Piece { len: CHUNK_BYTES, chunk: Some(chunk) }];
        tree.apply(&Op::Write { id: FILE, offset: number * CHUNK_BYTES, pieces }).unwrap();
    }
    tree.seal().unwrap();
    Layer::new(tree, Some(Upper::Scratch(Scratch::new(&std::env::temp_dir()).unwrap())))
}

fn content(layer: &Layer) -> Vec<u8> {
    let extents = layer.inode(FILE).unwrap().extents().unwrap();
    let mut bytes = Vec::new();
    for piece in extents.pieces(0, extents.size()) {
        let at = bytes.len();
        bytes.resize(at + piece.len as usize, 0);
        match piece.chunk {
            Some(chunk) if is_slot(chunk.id) => layer.written(chunk, &mut bytes[at..]).unwrap(),
            Some(chunk) => bytes[at..].fill(chunk.id.0[0]),
            None => {}
        }
    }
    bytes
}

#[derive(Debug, Clone)]
enum Edit {
    Write(usize, Vec<u8>),
    Resize(usize),
    Punch(usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let end = (SLOT_BYTES * 4) as usize;
    let edit = prop_oneof![
        4 => (0..end, 1..400_000usize, 1..255u8).prop_map(|(at, len, byte)| Edit::Write(at, vec![byte; len])),
        // In small steps, one after the other.
        4 => (0..40usize, 1..255u8).prop_map(|(at, byte)| Edit::Write(at * 1000, vec![byte; 1000])),
        1 => (0..end).prop_map(Edit::Resize),
        1 => (0..end, 0..300_000usize).prop_map(|(at, len)| Edit::Punch(at, len)),
    ];
    prop::collection::vec(edit, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(edits in edits()) {
        let mut layer = layer();
        let mut model = content(&layer);
        for edit in edits {
            match edit {
                Edit::Write(at, bytes) => {
                    layer.write(FILE, at as u64, &bytes).unwrap();
                    model.resize(model.len().max(at + bytes.len()), 0);
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                Edit::Resize(size) => {
                    layer.resize(FILE, size as u64).unwrap();
                    model.resize(size, 0);
                }
                Edit::Punch(at, len) => {
                    layer.punch(FILE, at as u64, (at + len) as u64).unwrap();
                    let end = (at + len).min(model.len());
                    if at < end {
                        model[at..end].fill(0);
                    }
                }
            }
            prop_assert!(content(&layer) == model);
            let extents = layer.inode(FILE).unwrap().extents().unwrap();
            let data: u64 = extents.iter().map(|(_, extent)| u64::from(extent.len)).sum();
            prop_assert_eq!(layer.data_bytes(FILE), data);
        }
    }
}

#[test]
fn what_is_written_in_a_row_is_one_extent() {
    let mut layer = layer();
    let new = New { mode: 0o644, uid: 0, gid: 0 };
    let id = layer.create(FileId::ROOT, name("log"), Kind::File, &new).unwrap();
    for line in 0..1000 {
        layer.write(id, line * 100, &[7; 100]).unwrap();
    }
    assert_eq!(layer.inode(id).unwrap().extents().unwrap().len(), 1);
    layer.write(id, 3 * 100, &[8; 100]).unwrap();
    assert_eq!(layer.inode(id).unwrap().extents().unwrap().len(), 1);
}

#[test]
fn a_file_without_a_name_stays_until_it_is_closed() {
    let mut layer = layer();
    let before = layer.tree().totals().inodes;
    layer.opened(FILE);
    layer.opened(FILE);
    layer.unlink(FileId::ROOT, name("file")).unwrap();
    // What goes meanwhile waits for it, but not with its content.
    let new = New { mode: 0o644, uid: 0, gid: 0 };
    let id = layer.create(FileId::ROOT, name("other"), Kind::File, &new).unwrap();
    layer.write(id, 0, &[1; 10]).unwrap();
    layer.unlink(FileId::ROOT, name("other")).unwrap();
    assert_eq!(layer.inode(id).unwrap().extents().unwrap().size(), 0);
    layer.released(FILE).unwrap();
    assert_eq!(content(&layer).len() as u64, CHUNKS * CHUNK_BYTES);
    layer.released(FILE).unwrap();
    assert_eq!(layer.tree().totals().inodes, before - 1);
    assert!(matches!(layer.inode(FILE), Err(Errno::ENOENT)));
}

#[test]
fn names_go_together_as_in_any_file_system() {
    let mut layer = layer();
    let new = New { mode: 0o755, uid: 1, gid: 1 };
    let (root, none) = (FileId::ROOT, RenameFlags::empty());
    let dir = layer.create(root, name("dir"), Kind::Directory, &new).unwrap();
    let file = layer.create(dir, name("in"), Kind::File, &new).unwrap();
    assert_eq!(layer.create(dir, name("in"), Kind::Fifo, &new), Err(Errno::EEXIST));
    assert_eq!(layer.remove_directory(root, name("dir")), Err(Errno::ENOTEMPTY));
    assert_eq!(layer.unlink(root, name("dir")), Err(Errno::EISDIR));
    assert_eq!(layer.rename((root, name("file")), (root, name("dir")), none), Err(Errno::EISDIR));
    let keep = RenameFlags::RENAME_NOREPLACE;
    assert_eq!(layer.rename((root, name("file")), (dir, name("in")), keep), Err(Errno::EEXIST));
    let exchange = RenameFlags::RENAME_EXCHANGE;
    layer.rename((root, name("file")), (dir, name("in")), exchange).unwrap();
    assert_eq!(layer.tree().lookup(root, &name("file")), Some(file));
    layer.rename((dir, name("in")), (root, name("file")), none).unwrap();
    assert_eq!(layer.tree().lookup(root, &name("file")), Some(FILE));
    assert!(matches!(layer.inode(file), Err(Errno::ENOENT)), "what was replaced is gone");
    layer.link(FILE, dir, name("again")).unwrap();
    assert_eq!(layer.tree().names(FILE).count(), 2);
    layer.set(dir, &Changed { mode: Some(0o2755), gid: Some(9), ..Changed::default() }).unwrap();
    let made = layer.create(dir, name("made"), Kind::Directory, &new).unwrap();
    let meta = layer.inode(made).unwrap().meta;
    assert_eq!((meta.mode, meta.gid), (0o2755, 9));
}

#[test]
fn without_a_scratch_file_nothing_changes() {
    let mut layer = Layer::new(layer().tree, None);
    let digest = layer.tree().digest();
    assert_eq!(layer.write(FILE, 0, b"x"), Err(Errno::EROFS));
    assert_eq!(layer.unlink(FileId::ROOT, name("file")), Err(Errno::EROFS));
    assert_eq!(layer.tree().digest(), digest);
}
