//! Random lives of a store against what was done to it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidelock_proto::{Epoch, PointId};

use super::{
    crash::{open, scratch},
    harness::{Source, volume},
    sim::SimDisk,
};
use crate::{
    retention::{Candidate, choose},
    store::{Store, StoreError, block_on},
};

#[derive(Debug, Clone)]
enum Act {
    Commit { volume: usize, writes: usize },
    Promote { volume: usize, base: prop::sample::Index },
    Tag { volume: usize, point: prop::sample::Index, tag: u8 },
    Checkpoint { volume: usize, point: prop::sample::Index },
    Thin { volume: usize, later: u64 },
    Reopen { rebuild: bool },
}

fn act() -> impl Strategy<Value = Act> {
    let volume = || 0..3usize;
    let index = any::<prop::sample::Index>;
    prop_oneof![
        12 => (volume(), 1..5usize).prop_map(|(volume, writes)| Act::Commit { volume, writes }),
        1 => (volume(), 3000..6000usize).prop_map(|(volume, writes)| Act::Commit { volume, writes: writes / 1000 }),
        2 => (volume(), index()).prop_map(|(volume, base)| Act::Promote { volume, base }),
        3 => (volume(), index(), 0..4u8).prop_map(|(volume, point, tag)| Act::Tag { volume, point, tag }),
        3 => (volume(), index()).prop_map(|(volume, point)| Act::Checkpoint { volume, point }),
        3 => (volume(), 0..12u64).prop_map(|(volume, later)| Act::Thin { volume, later }),
        1 => any::<bool>().prop_map(|rebuild| Act::Reopen { rebuild }),
    ]
}

struct World {
    disk: SimDisk,
    dir: tempfile::TempDir,
    store: Option<Store>,
    sources: Vec<Source>,
    epochs: Vec<Epoch>,
    tags: BTreeMap<(usize, PointId), std::collections::BTreeSet<String>>,
}

impl World {
    fn new() -> Self {
        let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
        let store = Some(open(&disk, dir.path()).expect("a new store"));
        let sources = ["t/a", "t/b", "u/a"].map(|name| Source::new(volume(name), 5)).to_vec();
        Self { disk, dir, store, sources, epochs: vec![Epoch(1); 3], tags: BTreeMap::new() }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    fn pick(&self, volume: usize, index: &prop::sample::Index) -> Option<PointId> {
        let points: Vec<_> = self.sources[volume].points.keys().copied().collect();
        (!points.is_empty()).then(|| *index.get(&points))
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Commit { volume, writes } => {
                let batch = self.sources[volume].commit_of(writes);
                self.store().append_and_wait(batch).expect("written");
            }
            Act::Promote { volume, base } => {
                let Some(base) = self.pick(volume, &base) else { return };
                let (old, new) = (self.epochs[volume], self.epochs[volume].next());
                let name = self.sources[volume].volume.clone();
                let raise =
                    || block_on(async { self.store().raise_epoch(&name, old, new, base).await.await });
                raise().expect("the epoch rises");
                assert!(matches!(raise(), Err(StoreError::EpochMoved { .. })));
                self.epochs[volume] = new;
                self.sources[volume].branch(new, base);
            }
            Act::Tag { volume, point, tag } => {
                let Some(point) = self.pick(volume, &point) else { return };
                let tag = format!("tag {tag}");
                let name = &self.sources[volume].volume;
                block_on(async { self.store().tag(name, point, &tag).await.await }).expect("tagged");
                self.tags.entry((volume, point)).or_default().insert(tag);
            }
            Act::Checkpoint { volume, point } => {
                let Some(point) = self.pick(volume, &point) else { return };
                self.store().checkpoint(&self.sources[volume].volume, point).expect("written");
            }
            Act::Thin { volume, later } => self.thin(volume, later),
            Act::Reopen { rebuild } => self.reopen(rebuild),
        }
    }

    /// What goes is what the policy says, from what the test itself knows of the points.
    fn thin(&mut self, volume: usize, later: u64) {
        let policy = "all:4ns,2ns:8ns,4ns:16ns".parse().expect("a policy");
        let name = self.sources[volume].volume.clone();
        let Some(info) = self.store().volume(&name) else { return };
        let now_ns = info.last.id.seq.0 + later;
        let candidate = |id: &PointId| Candidate {
            id: *id,
            time_ns: id.seq.0,
            fuzzy: false,
            protected: self.tags.contains_key(&(volume, *id)) || *id >= info.last.id,
        };
        let candidates: Vec<_> = self.sources[volume].points.keys().map(candidate).collect();
        let verdicts = choose(&candidates, &policy, now_ns);
        let gone: Vec<_> = candidates.iter().zip(verdicts).filter(|(_, verdict)| verdict.is_drop()).collect();
        let thinned = self.store().thin(&name, &policy, now_ns).expect("thinned");
        assert_eq!(thinned.dropped, gone.len() as u64);
        for (candidate, _) in gone {
            self.sources[volume].points.remove(&candidate.id);
            let error = self.store().tree_at(&name, candidate.id).expect_err("it is gone");
            assert!(matches!(error, StoreError::NoSuchPoint(..)), "{error}");
        }
        let points = self.sources[volume].points.len() as u64;
        assert_eq!(self.store().volume(&name).expect("it is there").points, points);
    }

    /// What the store says is the same after it was closed, with its index or without.
    fn reopen(&mut self, rebuild: bool) {
        let say = |store: &Store| {
            let volumes = store.volumes().into_iter();
            volumes
                .map(|name| (store.volume(&name), store.points(&name, None).expect("points")))
                .collect::<Vec<_>>()
        };
        // Promotions ask for checkpoints of their own accord; let them come before looking.
        self.store().quiesce();
        let before = say(self.store());
        self.store = None;
        if rebuild {
            std::fs::remove_dir_all(self.dir.path().join("index")).expect("removed");
        }
        self.store = Some(open(&self.disk, self.dir.path()).expect("reopens"));
        assert_eq!(say(self.store()), before);
        assert_eq!(self.store().opened().damage, []);
    }

    fn check(&self) {
        for (number, source) in self.sources.iter().enumerate() {
            if source.points.is_empty() {
                assert!(self.store().volume(&source.volume).is_none());
                continue;
            }
            source.check_all(self.store());
            for point in self.store().points(&source.volume, None).expect("points") {
                let tags = self.tags.get(&(number, point.id)).cloned().unwrap_or_default();
                assert!(point.tags.iter().eq(tags.iter()), "{point:?}");
            }
            assert_eq!(self.store().volume(&source.volume).expect("it is there").next(), source.next_id());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_what_was_done_to_it(acts in prop::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        acts.into_iter().for_each(|act| world.act(act));
        world.check();
        world.reopen(true);
        world.check();
    }
}
