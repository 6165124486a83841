//! Random trees with their chunks, and what a directory should look like then, told independently of `reconcile`.

use std::{
    collections::{BTreeMap, HashMap},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidelock_proto::tree::{ChunkRef, Content, Kind, Meta, Name, Piece, Timestamp, Xattrs};

use super::super::*;
use tidelock_proto::Op;

const BLOCK: usize = 4096;

pub(super) fn key() -> ChunkKey {
    ChunkKey::of_tenant("t")
}

/// Chunks in memory; the n-th fetch can be made to fail half-way.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) chunks: HashMap<ChunkId, Bytes>,
    pub(super) fetches: AtomicUsize,
    pub(super) fail_at: Option<usize>,
}

impl Memory {
    pub(super) fn add(&mut self, content: Vec<u8>) -> ChunkId {
        let id = key().id(&content);
        self.chunks.insert(id, content.into());
        id
    }
}

impl Chunks for Memory {
    fn fetch(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(usize, Bytes) -> bool,
    ) -> std::result::Result<(), ChunksError> {
        let failing = self.fail_at == Some(self.fetches.fetch_add(1, Ordering::Relaxed));
        for (index, id) in ids.iter().enumerate() {
            if failing && index >= ids.len() / 2 {
                return Err("the line is dead".into());
            }
            if !each(index, self.chunks[id].clone()) {
                break;
            }
        }
        Ok(())
    }
}

pub(super) fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

/// Builds a tree by hand.
pub(super) struct Builder {
    pub(super) tree: Tree,
    pub(super) next: u64,
}

impl Builder {
    pub(super) fn new() -> Self {
        let mut builder = Self { tree: Tree::new(), next: 1 };
        builder.create(Kind::Directory, 0o755);
        builder
    }

    pub(super) fn apply(&mut self, op: Op) {
        self.tree.apply(&op).unwrap();
    }

    pub(super) fn create(&mut self, kind: Kind, mode: u32) -> FileId {
        let id = FileId(self.next);
        self.next += 1;
        let mtime = Timestamp { secs: 1_600_000_000 + self.next as i64, nanos: 123_456_789 };
        self.apply(Op::Create { id, kind, meta: Meta { mode, mtime, ..Meta::default() } });
        id
    }

    pub(super) fn add(&mut self, dir: FileId, entry: &[u8], kind: Kind, mode: u32) -> FileId {
        let id = self.create(kind, mode);
        self.apply(Op::Link { dir, name: name(entry), id });
        id
    }

    pub(super) fn data(&mut self, id: FileId, offset: u64, chunk: ChunkId, at: u32, len: u64) {
        let pieces = vec![Piece { len, chunk: Some(ChunkRef { id: chunk, at }) }];
        self.apply(Op::Write { id, offset, pieces });
    }

    pub(super) fn done(mut self) -> Tree {
        self.tree.seal().unwrap();
        self.tree
    }
}

/// A random tree; names are few, so that two trees disagree about what a name is.
pub(super) fn random_tree(seed: u64, memory: &mut Memory) -> Tree {
    let mut rng = StdRng::seed_from_u64(seed);
    let pool = chunk_pool(memory);
    let mut builder = Builder::new();
    let mut dirs = vec![FileId::ROOT];
    let mut others = Vec::new();
    for _ in 0..rng.random_range(0..40) {
        let dir = *dirs.choose(&mut rng).unwrap();
        let entry = [&b"a"[..], b"b", b"c", b"\xff\xfe", b"new\nline", &[b'x'; 255]]
            .choose(&mut rng)
            .unwrap()
            .to_vec();
        if builder.tree.lookup(dir, &name(&entry)).is_some() {
            continue;
        }
        if !others.is_empty() && rng.random_bool(0.2) {
            let id = *others.choose(&mut rng).unwrap();
            builder.apply(Op::Link { dir, name: name(&entry), id });
            continue;
        }
        let kind = match rng.random_range(0..12) {
            0..3 => Kind::Directory,
            3 => Kind::Symlink([&b"../../etc/passwd"[..], b"a", b"/"].choose(&mut rng).unwrap().to_vec()),
            4 => Kind::Fifo,
            5 => Kind::CharDevice(1, rng.random_range(3..5)),
            6 => Kind::BlockDevice(7, 250),
            _ => Kind::File,
        };
        let id = builder.add(dir, &entry, kind.clone(), 0);
        decorate(&mut builder, &mut rng, id, &kind);
        match kind {
            Kind::Directory => dirs.push(id),
            kind => {
                others.push(id);
                if kind == Kind::File {
                    fill(&mut builder, &mut rng, id, &pool);
                }
            }
        }
    }
    decorate(&mut builder, &mut rng, FileId::ROOT, &Kind::Directory);
    builder.done()
}

pub(super) fn chunk_pool(memory: &mut Memory) -> Vec<(ChunkId, u32)> {
    let mut rng = StdRng::seed_from_u64(7);
    let mut pool = vec![(memory.add(vec![0; 8192]), 8192)];
    for len in [1, 100, 4096, 4096, 5000, 40_000, 262_144] {
        let content: Vec<u8> = (0..len).map(|_| rng.random()).collect();
        pool.push((memory.add(content), len));
    }
    pool
}

fn fill(builder: &mut Builder, rng: &mut StdRng, id: FileId, pool: &[(ChunkId, u32)]) {
    for _ in 0..rng.random_range(0..5) {
        let (chunk, len) = *pool.choose(rng).unwrap();
        let at = if rng.random_bool(0.7) { 0 } else { rng.random_range(0..len) };
        let len = if rng.random_bool(0.7) { len - at } else { rng.random_range(1..=len - at) };
        let block = if rng.random_bool(0.5) { 4096 } else { 1000 };
        builder.data(id, rng.random_range(0..100) * block, chunk, at, u64::from(len));
    }
    if rng.random_bool(0.3) {
        builder.apply(Op::Resize { id, size: rng.random_range(0..600_000) });
    }
}

fn decorate(builder: &mut Builder, rng: &mut StdRng, id: FileId, kind: &Kind) {
    let link = matches!(kind, Kind::Symlink(_));
    let mode = *[0o644, 0o4755, 0o2711, 0o1777, 0, 0o400, 0o6777].choose(rng).unwrap();
    let mut xattrs = Xattrs::new();
    if rng.random_bool(0.3) {
        xattrs.insert(b"trusted.note".to_vec(), vec![rng.random(); rng.random_range(0..300)]);
    }
    if rng.random_bool(0.3) && matches!(kind, Kind::File | Kind::Directory) {
        xattrs.insert(b"user.note".to_vec(), vec![rng.random()]);
    }
    if rng.random_bool(0.3) && !link {
        xattrs.insert(b"system.posix_acl_access".to_vec(), acl(mode));
    }
    if rng.random_bool(0.3) && *kind == Kind::Directory {
        xattrs.insert(b"system.posix_acl_default".to_vec(), acl(0o750));
    }
    let owners = [0, 1000, 65534];
    let meta = Meta {
        mode: if link { 0o777 } else { mode },
        uid: *owners.choose(rng).unwrap(),
        gid: *owners.choose(rng).unwrap(),
        mtime: Timestamp {
            secs: rng.random_range(-9..2_000_000_000),
            nanos: rng.random_range(0..1_000_000_000),
        },
        ..Meta::default()
    };
    builder.apply(Op::SetMeta { id, meta });
    builder.apply(Op::SetXattrs { id, xattrs });
}

/// The kernel's form of an access list whose mask is the mode's group bits.
fn acl(mode: u32) -> Vec<u8> {
    let none = u32::MAX;
    let entries =
        [(1, mode >> 6, none), (2, 6, 1000), (4, 5, none), (0x10, mode >> 3, none), (0x20, mode, none)];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, who) in entries {
        bytes.extend_from_slice(&u16::to_le_bytes(tag));
        bytes.extend_from_slice(&((permissions & 7) as u16).to_le_bytes());
        bytes.extend_from_slice(&u32::to_le_bytes(who));
    }
    bytes
}

/// All that must be equal of one name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    kind: String,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    xattrs: Xattrs,
    content: Option<ChunkId>,
    /// For every block whether it is data.
    data: Vec<bool>,
    /// The first path of the same inode.
    first: Vec<u8>,
}

pub(super) type Looks = BTreeMap<Vec<u8>, Look>;

/// What a directory that equals the tree looks like.
pub(super) fn expected(tree: &Tree, memory: &Memory) -> Looks {
    let mut looks = Looks::new();
    let mut next = vec![(Vec::new(), FileId::ROOT)];
    while let Some((path, id)) = next.pop() {
        let inode = tree.get(id).unwrap();
        for (name, child) in tree.entries(id).into_iter().flatten() {
            next.push((joined(&path, name.as_bytes()), *child));
        }
        let (mut content, mut data) = (None, Vec::new());
        if let Content::File(extents) = &inode.content {
            let mut bytes = vec![0; extents.size() as usize];
            data = vec![false; bytes.len().div_ceil(BLOCK)];
            for (offset, extent) in extents.iter() {
                let (offset, len, at) = (offset as usize, extent.len as usize, extent.chunk.at as usize);
                bytes[offset..offset + len].copy_from_slice(&memory.chunks[&extent.chunk.id][at..at + len]);
                data[offset / BLOCK..(offset + len).div_ceil(BLOCK)].fill(true);
            }
            content = Some(key().id(&bytes));
        }
        let look = Look {
            kind: format!("{:?}", inode.kind()),
            mode: inode.meta.mode,
            owner: (inode.meta.uid, inode.meta.gid),
            mtime: (inode.meta.mtime.secs, i64::from(inode.meta.mtime.nanos)),
            xattrs: inode.xattrs.clone(),
            content,
            data,
            first: Vec::new(),
        };
        looks.insert(path, look);
    }
    let paths: Vec<(Vec<u8>, FileId)> =
        looks.keys().map(|path| (path.clone(), resolve(tree, path))).collect();
    set_first(&mut looks, paths)
}

fn resolve(tree: &Tree, path: &[u8]) -> FileId {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    parts.fold(FileId::ROOT, |dir, part| tree.lookup(dir, &name(part)).unwrap())
}

fn set_first<I: std::hash::Hash + Eq>(looks: &mut Looks, paths: Vec<(Vec<u8>, I)>) -> Looks {
    let mut first = HashMap::new();
    for (path, id) in paths {
        let first = first.entry(id).or_insert_with(|| path.clone()).clone();
        looks.get_mut(&path).unwrap().first = first;
    }
    std::mem::take(looks)
}

/// What the directory looks like.
pub(super) fn found(root: &Path) -> Looks {
    let mut looks = Looks::new();
    let mut numbers = Vec::new();
    let mut next = vec![Vec::new()];
    while let Some(path) = next.pop() {
        let full = root.join(std::ffi::OsStr::from_bytes(&path));
        let meta = std::fs::symlink_metadata(&full).unwrap();
        let (kind, rdev) = (meta.file_type(), meta.rdev());
        let (mut content, mut data) = (None, Vec::new());
        let device = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let kind = if kind.is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                next.push(joined(&path, entry.unwrap().file_name().as_bytes()));
            }
            Kind::Directory
        } else if kind.is_symlink() {
            Kind::Symlink(std::fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec())
        } else if kind.is_fifo() {
            Kind::Fifo
        } else if kind.is_char_device() {
            Kind::CharDevice(device.0, device.1)
        } else if kind.is_block_device() {
            Kind::BlockDevice(device.0, device.1)
        } else {
            content = Some(key().id(&std::fs::read(&full).unwrap()));
            data = data_blocks(&full, meta.len());
            Kind::File
        };
        numbers.push((path.clone(), meta.ino()));
        let look = Look {
            kind: format!("{kind:?}"),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs(&full),
            content,
            data,
            first: Vec::new(),
        };
        looks.insert(path, look);
    }
    numbers.sort();
    set_first(&mut looks, numbers)
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn data_blocks(path: &Path, size: u64) -> Vec<bool> {
    let file = std::fs::File::open(path).unwrap();
    let is_data = |block: usize| {
        let at = (block * BLOCK) as u64;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)).is_ok_and(|data| data < at + BLOCK as u64)
    };
    (0..(size as usize).div_ceil(BLOCK)).map(is_data).collect()
}

fn xattrs(path: &Path) -> Xattrs {
    let mut names = Vec::with_capacity(64 << 10);
    rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)).unwrap();
    let get = |name: &[u8]| {
        let mut value = Vec::with_capacity(64 << 10);
        rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).unwrap();
        (name.to_vec(), value)
    };
    let own = |name: &&[u8]| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL_");
    names.split(|byte| *byte == 0).filter(own).map(get).collect()
}
