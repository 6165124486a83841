//! A durable upper layer held to a model: random changes, hydration beside them, cut off at random moments, with what was not synced there or lost.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use fuser::RenameFlags;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidelock_proto::{
    ChunkKey, Epoch, FileId, Op, PointId, Seq, Tree, VolumeName,
    chunk::Codec,
    point::{Consistency, Cut, How, Point},
    tree::{ChunkRef, Kind, Meta, Name, Piece},
};
use tidelock_receiver::store::{Batch, Commit, Record, Store, StoreOptions, encode_model_ops};

use super::{
    PointFs,
    changes::{Changed, New},
    durable::Files,
    journal::{Header, Journal},
    over,
};
use crate::{access::Access, promote::complete_instant};

const FILES: u64 = 6;
const CHUNK_BYTES: usize = 20_000;

/// What there should be: names, and the bytes of each file.
#[derive(Clone, Default)]
struct Model {
    names: BTreeMap<Vec<u8>, FileId>,
    bytes: HashMap<FileId, Vec<u8>>,
}

struct World {
    dir: tempfile::TempDir,
    access: Arc<Access>,
    tree: Tree,
    model: Model,
}

fn volume() -> VolumeName {
    "t/v".parse().unwrap()
}

fn name(bytes: &[u8]) -> Name {
    Name::new(bytes).unwrap()
}

impl World {
    /// Files of random chunks, parts of chunks and holes, in a real store.
    fn new(rng: &mut StdRng) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), StoreOptions::default()).unwrap();
        let (mut batch, mut tree, mut model) = (Batch::new(), Tree::new(), Model::default());
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let mut ops = vec![Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta }];
        for number in 0..FILES {
            let (id, mut bytes) = (FileId(number + 2), Vec::new());
            let named = format!("f{number}").into_bytes();
            ops.push(Op::Create { id, kind: Kind::File, meta });
            ops.push(Op::Link { dir: FileId::ROOT, name: name(&named), id });
            for _ in 0..rng.random_range(0..40) {
                if rng.random_bool(0.2) {
                    bytes.resize(bytes.len() + rng.random_range(1..50_000), 0);
                    continue;
                }
                let content: Vec<u8> = (0..CHUNK_BYTES).map(|_| rng.random_range(1..=255)).collect();
                let chunk = ChunkKey::of_tenant("t").id(&content);
                let from = if rng.random_bool(0.5) { 0 } else { rng.random_range(0..CHUNK_BYTES - 1) };
                let pieces = vec![Piece {
                    len: (CHUNK_BYTES - from) as u64,
                    chunk: Some(ChunkRef { id: chunk, at: from as u32 }),
                }];
                ops.push(Op::Write { id, offset: bytes.len() as u64, pieces });
                bytes.extend_from_slice(&content[from..]);
                batch.push_chunk("t", chunk, Codec::Raw, CHUNK_BYTES as u32, content.into());
            }
            ops.push(Op::Resize { id, size: bytes.len() as u64 });
            model.names.insert(named, id);
            model.bytes.insert(id, bytes);
        }
        ops.iter().for_each(|op| tree.apply(op).unwrap());
        tree.seal().unwrap();
        let cut = Cut {
            time_ns: 1,
            consistency: Consistency::Crash,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: How::Optimistic,
            group: Vec::new(),
            digest: tree.digest(),
        };
        let id = PointId::new(Epoch::FIRST, Seq(1));
        let point = Point { id, parent: None, cut, received_ns: 0, tags: Vec::new() };
        batch.push(Record::Commit(Commit { volume: volume(), point, ops: encode_model_ops(ops) }));
        store.append_and_wait(batch).unwrap();
        drop(store);
        let access = Arc::new(Access::direct(&dir.path().join("store")).unwrap());
        Self { dir, access, tree, model }
    }

    fn own(&self) -> PathBuf {
        self.dir.path().join("target/.tidelock-instant")
    }

    fn files(&self) -> Arc<Files> {
        Arc::new(Files::new(File::open(self.own().join("files")).unwrap().into()))
    }

    fn begin(&self) -> PointFs {
        fs::create_dir_all(self.own().join("files")).unwrap();
        let header = Header {
            volume: "t/v".to_owned(),
            point: "1.1".to_owned(),
            digest: String::new(),
            old_epoch: 1,
            epoch: 2,
            total_bytes: 0,
        };
        let lock = Journal::lock(&self.own()).unwrap();
        let journal = Journal::create(self.own(), lock, header, &self.tree).unwrap();
        over(&volume(), (Some(self.access.clone()), None), self.files(), (journal, self.tree.clone()))
    }

    fn again(&self) -> PointFs {
        let (journal, tree) = Journal::open(self.own(), Journal::lock(&self.own()).unwrap()).unwrap();
        let files = self.files();
        files.sweep(&tree).unwrap();
        over(&volume(), (Some(self.access.clone()), None), files, (journal, tree))
    }
}

/// One life of the layer, between two cuts.
struct Life {
    point: PointFs,
    now: Model,
    /// What is acknowledged.
    durable: Model,
    /// What was written since, and where.
    later: Vec<(FileId, usize, Vec<u8>)>,
    /// A copy of what is on the disk for sure.
    saved: PathBuf,
    own: PathBuf,
}

impl Life {
    fn new(point: PointFs, model: Model, world: &World) -> Self {
        let saved = world.dir.path().join("saved");
        let life =
            Self { point, now: model.clone(), durable: model, later: Vec::new(), saved, own: world.own() };
        life.save();
        life
    }

    fn save(&self) {
        let _ = fs::remove_dir_all(&self.saved);
        copy(&self.own, &self.saved);
    }

    fn commits(&self) -> u64 {
        self.point.commits()
    }

    /// What was made durable in passing is what there was before.
    fn doing(&mut self, work: impl FnOnce(&PointFs)) {
        let before = self.commits();
        work(&self.point);
        if self.commits() != before {
            self.durable = self.now.clone();
            self.later.clear();
            self.save();
        }
    }

    fn step(&mut self, rng: &mut StdRng) {
        let names: Vec<Vec<u8>> = self.now.names.keys().cloned().collect();
        let picked = names.choose(rng).cloned();
        match (rng.random_range(0..20), picked) {
            (0..=8, Some(named)) => {
                let id = self.now.names[&named];
                let len = self.now.bytes[&id].len();
                let at = rng.random_range(0..len + 5_000);
                let bytes = vec![rng.random_range(1..=255); rng.random_range(1..60_000)];
                self.doing(|point| point.write_bytes(id, at as u64, &bytes).unwrap());
                let content = self.now.bytes.get_mut(&id).unwrap();
                content.resize(content.len().max(at + bytes.len()), 0);
                content[at..at + bytes.len()].copy_from_slice(&bytes);
                self.later.push((id, at, bytes));
            }
            (9..=11, Some(named)) => {
                let id = self.now.names[&named];
                let size = rng.random_range(0..self.now.bytes[&id].len() + 20_000);
                let changed = Changed { size: Some(size as u64), ..Changed::default() };
                self.doing(|point| point.layer.write().set(id, &changed).unwrap());
                self.now.bytes.get_mut(&id).unwrap().resize(size, 0);
            }
            (12, Some(named)) => {
                let id = self.now.names[&named];
                let content = self.now.bytes.get_mut(&id).unwrap();
                let start = rng.random_range(0..content.len() + 1);
                let end = rng.random_range(start..content.len() + 1);
                content[start..end].fill(0);
                self.doing(|point| point.layer.write().punch(id, start as u64, end as u64).unwrap());
            }
            (13, Some(named)) => {
                self.doing(|point| point.layer.write().unlink(FileId::ROOT, name(&named)).unwrap());
                let id = self.now.names.remove(&named).unwrap();
                self.now.bytes.remove(&id);
            }
            (14, Some(from)) => {
                let to = format!("f{}", rng.random_range(0..FILES + 3)).into_bytes();
                self.doing(|point| {
                    let (from, to) = ((FileId::ROOT, name(&from)), (FileId::ROOT, name(&to)));
                    point.layer.write().rename(from, to, RenameFlags::empty()).unwrap();
                });
                let id = self.now.names.remove(&from).unwrap();
                if let Some(gone) = self.now.names.insert(to, id).filter(|gone| *gone != id) {
                    self.now.bytes.remove(&gone);
                }
            }
            (15, _) => {
                let named = format!("n{}", rng.random_range(0..4)).into_bytes();
                if self.now.names.contains_key(&named) {
                    return;
                }
                let new = New { mode: 0o600, uid: 0, gid: 0 };
                let made = self.point.layer.write().create(FileId::ROOT, name(&named), Kind::File, &new);
                let id = made.unwrap();
                self.now.names.insert(named, id);
                self.now.bytes.insert(id, Vec::new());
            }
            (16, Some(named)) => {
                let id = self.now.names[&named];
                self.point.commit(Some(id), false).unwrap();
                // All names and sizes, and this file; what was written in place of others may be there or not.
                self.later.retain(|(other, ..)| *other != id);
                let before = std::mem::replace(&mut self.durable, self.now.clone());
                for (other, bytes) in before.bytes {
                    if other != id && self.durable.bytes.contains_key(&other) {
                        self.later.push((other, 0, bytes));
                    }
                }
                self.save();
            }
            (17, _) => {
                self.point.commit_all().unwrap();
                self.durable = self.now.clone();
                self.later.clear();
                self.save();
            }
            _ => self.check_now(rng),
        }
    }

    /// Some file is what it should be, at once.
    fn check_now(&self, rng: &mut StdRng) {
        let ids: Vec<FileId> = self.now.names.values().copied().collect();
        if let Some(id) = ids.choose(rng) {
            assert!(read(&self.point, *id) == self.now.bytes[id], "{id:?}");
        }
    }

    /// Cuts it off. What was not synced is there, or lost, or in part.
    fn cut(self, rng: &mut StdRng) -> (Model, Vec<(FileId, usize, Vec<u8>)>) {
        let how = rng.random_range(0..4);
        match how {
            // The process is killed.
            0 => {}
            // All is lost; or the journal, and some files.
            how => {
                fs::copy(self.saved.join("journal"), self.own.join("journal")).unwrap();
                for entry in fs::read_dir(self.saved.join("files")).unwrap() {
                    let file = entry.unwrap().file_name();
                    let lost = how == 1 || (how == 2 && rng.random_bool(0.5));
                    if lost {
                        fs::copy(self.saved.join("files").join(&file), self.own.join("files").join(&file))
                            .unwrap();
                    }
                }
            }
        }
        (self.durable, self.later)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("files")).unwrap();
    fs::copy(from.join("journal"), to.join("journal")).unwrap();
    for entry in fs::read_dir(from.join("files")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join("files").join(entry.file_name())).unwrap();
    }
}

fn read(point: &PointFs, id: FileId) -> Vec<u8> {
    let size = point.layer.read().inode(id).unwrap().extents().unwrap().size();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let part = point.bytes(id, bytes.len() as u64, 300_000).unwrap();
        assert!(!part.is_empty());
        bytes.extend_from_slice(&part);
    }
    bytes
}

/// Every byte is what was acknowledged, or what was written there since and never acknowledged.
fn check(point: &PointFs, durable: &Model, later: &[(FileId, usize, Vec<u8>)]) -> Model {
    let tree = point.tree();
    let names: BTreeMap<Vec<u8>, FileId> = tree
        .entries(FileId::ROOT)
        .unwrap()
        .iter()
        .map(|(name, id)| (name.as_bytes().to_vec(), *id))
        .collect();
    assert_eq!(names, durable.names);
    let mut found = Model { names, bytes: HashMap::new() };
    for (id, wanted) in &durable.bytes {
        let bytes = read(point, *id);
        assert_eq!(bytes.len(), wanted.len(), "{id:?}");
        for (at, (byte, wanted)) in bytes.iter().zip(wanted).enumerate() {
            let since = || {
                later.iter().any(|(other, from, written)| {
                    other == id && at >= *from && written.get(at - from) == Some(byte)
                })
            };
            assert!(byte == wanted || since(), "{id:?} at {at}: {byte} instead of {wanted}");
        }
        found.bytes.insert(*id, bytes);
    }
    found
}

fn story(seed: u64) {
    let rng = &mut StdRng::seed_from_u64(seed);
    let world = World::new(rng);
    let mut model = world.model.clone();
    let mut point = world.begin();
    for _ in 0..rng.random_range(1..6) {
        let mut life = Life::new(point.clone(), model, &world);
        let hydrating = rng.random_bool(0.7).then(|| {
            let point = point.clone();
            thread::spawn(move || point.hydrate())
        });
        for _ in 0..rng.random_range(0..60) {
            life.step(rng);
        }
        point.stop();
        hydrating.map(|thread| thread.join().unwrap());
        let (durable, later) = life.cut(rng);
        // Nobody else has the journal.
        drop(point);
        point = world.again();
        model = check(&point, &durable, &later);
    }
    // It goes on to the end: all is local, and a plain directory.
    let mut life = Life::new(point.clone(), model, &world);
    for _ in 0..20 {
        life.step(rng);
    }
    let wanted = life.now.clone();
    drop(life);
    assert!(point.hydrate() && point.absent_bytes() == 0);
    let journal = point.close().unwrap();
    let directory = world.dir.path().join("target");
    complete_instant(&volume(), &directory, &world.files(), point.tree()).unwrap();
    drop(journal);
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        found.insert(entry.file_name().into_encoded_bytes(), fs::read(entry.path()).unwrap());
    }
    let expected: BTreeMap<Vec<u8>, Vec<u8>> =
        wanted.names.iter().map(|(name, id)| (name.clone(), wanted.bytes[id].clone())).collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected, "seed {seed}");
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_of_the_point_becomes_zeros() {
    let seeds = std::env::var("TIDELOCK_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    for seed in 0..seeds {
        println!("seed {seed}");
        story(seed);
    }
}
