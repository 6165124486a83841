//! A durable upper layer held to a model: random changes, hydration beside them, cut off at random moments, with what was not synced there or lost.
#![allow(clippy::unwrap_used)]

mod complete;
mod losing;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    path::PathBuf,
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

use self::losing::Losing;
use super::{
    PointFs,
    changes::{Changed, New},
    disk::Disk,
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
    disk: Arc<Losing>,
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
        Self { dir, disk: Arc::default(), access, tree, model }
    }

    fn own(&self) -> PathBuf {
        self.dir.path().join("target/.tidelock-instant")
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn files(&self) -> Arc<Files> {
        Arc::new(Files::new(File::open(self.own().join("files")).unwrap().into(), self.disk()))
    }

    /// Lost power, or only the process.
    fn cut(&self, rng: &mut StdRng) {
        self.disk.cut(&[&self.own(), &self.own().join("files")], rng);
    }

    fn begin(&self) -> PointFs {
        fs::create_dir_all(self.own().join("files")).unwrap();
        self.disk.keep(&[&self.own(), &self.own().join("files")]);
        let header = Header {
            volume: "t/v".to_owned(),
            point: "1.1".to_owned(),
            digest: String::new(),
            old_epoch: 1,
            epoch: 2,
            total_bytes: 0,
        };
        let lock = Journal::lock(&self.own()).unwrap();
        let journal = Journal::create((self.own(), self.disk()), lock, header, &self.tree).unwrap();
        over(&volume(), (Some(self.access.clone()), None), self.files(), (journal, self.tree.clone()))
    }

    fn again(&self) -> PointFs {
        let lock = Journal::lock(&self.own()).unwrap();
        let (journal, tree) = Journal::open((self.own(), self.disk()), lock).unwrap();
        let files = self.files();
        files.sweep(&tree).unwrap();
        over(&volume(), (Some(self.access.clone()), None), files, (journal, tree))
    }
}

/// Writes that may be there or not.
type Later = Vec<(FileId, usize, Vec<u8>)>;

/// One life of the layer, between two cuts.
struct Life {
    point: PointFs,
    disk: Arc<Losing>,
    now: Model,
    /// What is acknowledged.
    durable: Model,
    /// What was written since, and where.
    later: Later,
    /// It was cut off in the middle of a commit of all there was.
    torn: bool,
}

impl Life {
    fn new(point: PointFs, model: Model, world: &World) -> Self {
        let disk = world.disk.clone();
        Self { point, disk, now: model.clone(), durable: model, later: Vec::new(), torn: false }
    }

    fn commits(&self) -> u64 {
        self.point.commits()
    }

    /// What was made durable in passing is what there was before.
    fn doing(&mut self, work: impl FnOnce(&PointFs)) {
        let before = self.commits();
        work(&self.point);
        if self.commits() != before {
            self.committed_but(None);
        }
    }

    /// All names and sizes are durable, and this file; what was written in place of others may be there or not.
    fn committed_but(&mut self, file: Option<FileId>) {
        self.later.retain(|(other, ..)| Some(*other) != file);
        let before = std::mem::replace(&mut self.durable, self.now.clone());
        for (other, bytes) in before.bytes {
            if Some(other) != file && self.durable.bytes.contains_key(&other) {
                self.later.push((other, 0, bytes));
            }
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
                self.committed_but(Some(id));
            }
            (17, _) => {
                self.point.commit_all().unwrap();
                self.durable = self.now.clone();
                self.later.clear();
            }
            (18, _) => self.commit_into_a_cut(rng.random_range(0..6)),
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

    /// Commits all there is, while only so many syncs more succeed.
    fn commit_into_a_cut(&mut self, syncs: u64) {
        let before = self.commits();
        self.disk.cut_after(Some(syncs));
        let done = self.point.commit_all();
        if done.is_ok() || self.commits() != before {
            self.durable = self.now.clone();
            self.later.clear();
        } else {
            self.torn = true;
        }
        match done {
            Ok(()) => self.disk.cut_after(None),
            // Nothing is taken any more.
            Err(_) => assert!(self.point.commit_all().is_err() && self.point.check_whole().is_err()),
        }
    }

    fn is_over(&self) -> bool {
        self.point.check_whole().is_err()
    }

    /// What may be found afterwards.
    fn outcomes(self) -> Vec<(Model, Later)> {
        let whole = self.torn.then_some((self.now, Vec::new()));
        whole.into_iter().chain([(self.durable, self.later)]).collect()
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

/// What there is, which is one of the outcomes.
fn check(point: &PointFs, outcomes: &[(Model, Later)]) -> Model {
    let found: Vec<_> = outcomes.iter().map(|(durable, later)| compare(point, durable, later)).collect();
    let wrong: Vec<_> = found.iter().filter_map(|found| found.as_ref().err()).collect();
    assert!(wrong.len() < outcomes.len(), "{wrong:?}");
    found.into_iter().find_map(Result::ok).unwrap()
}

/// Every byte is what was acknowledged, or what was written there since and never acknowledged.
fn compare(point: &PointFs, durable: &Model, later: &Later) -> Result<Model, String> {
    let tree = point.tree();
    let names: BTreeMap<Vec<u8>, FileId> = tree
        .entries(FileId::ROOT)
        .unwrap()
        .iter()
        .map(|(name, id)| (name.as_bytes().to_vec(), *id))
        .collect();
    if names != durable.names {
        return Err(format!("{names:?} instead of {:?}", durable.names));
    }
    let mut found = Model { names, bytes: HashMap::new() };
    for (id, wanted) in &durable.bytes {
        let bytes = read(point, *id);
        if bytes.len() != wanted.len() {
            return Err(format!("{id:?} has {} bytes instead of {}", bytes.len(), wanted.len()));
        }
        for (at, (byte, wanted)) in bytes.iter().zip(wanted).enumerate() {
            let since = || {
                later.iter().any(|(other, from, written)| {
                    other == id && at >= *from && written.get(at - from) == Some(byte)
                })
            };
            if byte != wanted && !since() {
                return Err(format!("{id:?} at {at}: {byte} instead of {wanted}"));
            }
        }
        found.bytes.insert(*id, bytes);
    }
    Ok(found)
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
            if !life.is_over() {
                life.step(rng);
            }
        }
        point.stop();
        hydrating.map(|thread| thread.join().unwrap());
        let outcomes = life.outcomes();
        // Nobody else has the journal.
        drop(point);
        world.cut(rng);
        point = world.again();
        model = check(&point, &outcomes);
    }
    // It goes on to the end: all is local, and a plain directory.
    let mut life = Life::new(point.clone(), model, &world);
    for _ in 0..20 {
        if !life.is_over() {
            life.step(rng);
        }
    }
    if life.is_over() {
        return;
    }
    let wanted = life.now.clone();
    drop(life);
    assert!(point.hydrate() && point.absent_bytes() == 0);
    let journal = point.close().unwrap();
    let directory = world.dir.path().join("target");
    complete_instant(&volume(), &directory, &world.files(), point.tree(), &|_| {}).unwrap();
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
