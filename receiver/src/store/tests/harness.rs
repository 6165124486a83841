//! A source of commits that remembers the tree of every point it made.

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_proto::{
    ChunkId, ChunkKey, Epoch, FileId, Op, PointId, Seq, Tree, VolumeName,
    chunk::Codec,
    point::{Consistency, Cut, Point},
    tree::{ChunkRef, Kind, Meta, Name, Piece},
};

use crate::{
    store::{Batch, Commit, Record, Store, encode_model_ops},
    vault::TenantKeys,
};

thread_local! {
    static KEYS: RefCell<TenantKeys> = RefCell::default();
}

/// Keys of these tenants.
pub(crate) fn key_of(tenants: &[&str]) -> TenantKeys {
    let mut keys = TenantKeys::default();
    let variable = |tenant: &&str| (format!("TIDELOCK_KEY_{}", tenant.to_uppercase()), "07".repeat(32));
    keys.add_variables(tenants.iter().map(variable)).expect("keys");
    keys
}

/// Runs a test in which every store has the keys of these tenants.
pub(super) fn with_keys(tenants: &[&str], test: impl FnOnce()) {
    KEYS.set(key_of(tenants));
    test();
    KEYS.take();
}

/// The keys of the test that runs.
pub(super) fn keys() -> TenantKeys {
    KEYS.with_borrow(Clone::clone)
}

pub(crate) fn volume(name: &str) -> VolumeName {
    name.parse().expect("a valid name")
}

/// Makes commits of one volume.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) volume: VolumeName,
    /// The tree after the newest commit.
    pub(super) tree: Tree,
    pub(crate) points: BTreeMap<PointId, Tree>,
    last: Option<PointId>,
    epoch: Epoch,
    /// The next commit builds on nothing.
    anew: bool,
    /// Numbers that the next commit leaves out.
    left_out: u64,
    /// When the next points are received; their number if 0.
    pub(crate) now_ns: u64,
    /// It has three files and writes them over and over.
    pub(crate) small: bool,
    /// Names that the next commits are given.
    pub(super) tags: Vec<String>,
    rng: StdRng,
}

impl Source {
    pub(crate) fn new(volume: VolumeName, seed: u64) -> Self {
        Self {
            volume,
            tree: Tree::new(),
            points: BTreeMap::new(),
            last: None,
            epoch: Epoch::FIRST,
            anew: false,
            left_out: 0,
            now_ns: 0,
            small: false,
            tags: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Goes on in another epoch from an earlier point.
    pub(super) fn branch(&mut self, epoch: Epoch, base: PointId) {
        self.tree = self.points[&base].clone();
        self.last = Some(base);
        self.epoch = epoch;
    }

    /// Goes on in another epoch from the newest point.
    pub(crate) fn branch_to(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    pub(super) fn set_epoch(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// The next commit builds on nothing, as where the newest point cannot be opened.
    pub(super) fn begin_anew(&mut self) {
        self.tree = Tree::new();
        self.anew = true;
    }

    /// Forgets all but the first points.
    pub(super) fn rewind(&mut self, points: usize) {
        self.points = std::mem::take(&mut self.points).into_iter().take(points).collect();
        self.last = self.points.keys().next_back().copied();
        self.tree = self.last.map_or_else(Tree::new, |last| self.points[&last].clone());
    }

    /// The next commit leaves out so many numbers, as a volume of a group does.
    pub(super) fn leave_out(&mut self, numbers: u64) {
        self.left_out = numbers;
    }

    pub(super) fn next_id(&self) -> PointId {
        let last = self.last.filter(|last| last.epoch == self.epoch).map_or(0, |last| last.seq.0);
        PointId::new(self.epoch, Seq(last + 1 + self.left_out))
    }

    /// A commit with its chunks: a new file, or a write into one that is there.
    pub(crate) fn commit(&mut self) -> Batch {
        let writes = self.rng.random_range(1..4);
        self.commit_of(writes)
    }

    /// A commit of this many writes.
    pub(super) fn commit_of(&mut self, writes: usize) -> Batch {
        let mut batch = Batch::new();
        let mut ops = Vec::new();
        if self.last.is_none() || self.anew {
            ops.push(Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() });
        }
        let mut next = self.tree.next_id().max(FileId(2));
        for _ in 0..writes {
            let again =
                if self.small { next > FileId(4) } else { next > FileId(2) && self.rng.random_bool(0.6) };
            let file = if again {
                FileId(self.rng.random_range(2..next.0))
            } else {
                let name = Name::new(format!("file {}", next.0).as_bytes()).expect("a valid name");
                ops.push(Op::Create { id: next, kind: Kind::File, meta: Meta::default() });
                ops.push(Op::Link { dir: FileId::ROOT, name, id: next });
                next = FileId(next.0 + 1);
                FileId(next.0 - 1)
            };
            let mut content = vec![0; self.rng.random_range(1..6000)];
            self.rng.fill(&mut content[..]);
            let id = ChunkKey::of_tenant(self.volume.tenant()).id(&content);
            let len = content.len();
            batch.push_chunk(self.volume.tenant(), id, Codec::Raw, len as u32, Bytes::from(content));
            let pieces = vec![Piece { len: len as u64, chunk: Some(ChunkRef { id, at: 0 }) }];
            let pages = if self.small { 4 } else { 40 };
            ops.push(Op::Write { id: file, offset: self.rng.random_range(0..pages) * 4096, pieces });
        }
        self.commit_ops(batch, ops)
    }

    /// A commit of these operations behind what they need.
    pub(super) fn commit_ops(&mut self, mut batch: Batch, ops: Vec<Op>) -> Batch {
        for op in &ops {
            self.tree.apply(op).expect("the source makes valid operations");
        }
        self.tree.seal().expect("the source makes trees");
        let id = self.next_id();
        let cut = Cut {
            time_ns: id.seq.0 * 1_000_000,
            consistency: Consistency::Crash,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: tidelock_proto::point::How::Optimistic,
            group: Vec::new(),
            digest: self.tree.digest(),
        };
        let received_ns = if self.now_ns == 0 { id.seq.0 } else { self.now_ns };
        let parent = self.last.filter(|_| !std::mem::take(&mut self.anew));
        let point = Point { id, parent, cut, received_ns, tags: self.tags.clone() };
        batch.push(Record::Commit(Commit { volume: self.volume.clone(), point, ops: encode_model_ops(ops) }));
        self.last = Some(id);
        self.left_out = 0;
        self.points.insert(id, self.tree.clone());
        batch
    }

    /// A commit that refers so many times to a chunk which somebody else has sent.
    pub(super) fn refer(&mut self, chunk: ChunkId, len: u32, times: usize) -> Batch {
        let mut batch = self.commit_of(1);
        let id = *self.points.keys().next_back().expect("a point");
        let file = self.tree.iter().find(|(_, inode)| inode.extents().is_some()).expect("a file").0;
        let pieces = vec![Piece { len: u64::from(len), chunk: Some(ChunkRef { id: chunk, at: 0 }) }];
        let op = Op::Write { id: file, offset: 0, pieces };
        self.tree.apply(&op).expect("a valid operation");
        self.tree.seal().expect("a tree");
        self.points.insert(id, self.tree.clone());
        let digest = self.tree.digest();
        for record in &mut batch.records {
            if let Record::Commit(commit) = record {
                commit.ops.extend(encode_model_ops(vec![op.clone(); times]));
                commit.point.cut.digest = digest;
            }
        }
        batch
    }

    /// Every point that was made is there, in order, with its tree.
    pub(crate) fn check_all(&self, store: &Store) {
        let ids: Vec<_> =
            store.points(&self.volume, None).expect("points").iter().map(|point| point.id).collect();
        assert_eq!(ids, self.points.keys().copied().collect::<Vec<_>>());
        self.points.keys().for_each(|id| self.check(store, *id));
    }

    /// The point has the tree that was committed, and the content of every chunk in it.
    pub(crate) fn check(&self, store: &Store, id: PointId) {
        let tree = store.tree_at(&self.volume, id).expect("the point opens");
        assert!(tree == self.points[&id], "point {id} of {} has another tree", self.volume);
        for (_, inode) in tree.iter() {
            for (_, extent) in inode.extents().into_iter().flat_map(|extents| extents.iter()) {
                store.read_content(self.volume.tenant(), extent.chunk.id).expect("the chunk is there");
            }
        }
    }
}
