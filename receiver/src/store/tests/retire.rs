//! Compaction of a running store: with everything that may go on beside it, and a crash at every sync of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use tidelock_proto::{ChunkId, Epoch, PointId};

use super::{
    crash::{open, scratch},
    harness::{Source, volume},
    sim::SimDisk,
    thin::{SECOND, ids, kept, policy},
};
use crate::{
    store::{Batch, Lease, Pin, Record, Store, block_on},
    verify,
};

fn retire(store: &Store) -> crate::store::Retired {
    store.retire(&mut |_| {}).expect("compacted")
}

fn whole(store: &Store, context: &str) {
    let summary = verify::verify(store, &|_| true, &mut |event| {
        assert!(!matches!(event, verify::Event::Finding(_)), "{context}: {event:?}");
        true
    });
    assert_eq!(summary.expect("verified").map(|summary| summary.findings), Some(0), "{context}");
}

#[derive(Debug, Clone)]
enum Act {
    Commits(u8),
    /// Ask for chunks of old points.
    Have(u8),
    /// Commit what was told to be held.
    Refer,
    Tag(u8),
    Pin(u8),
    Unpin,
    Promote(u8),
    Wait(u16),
    Thin,
    Retire,
    Reopen {
        rebuild: bool,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1..25u8).prop_map(Act::Commits),
        3 => any::<u8>().prop_map(Act::Have),
        2 => Just(Act::Refer),
        1 => any::<u8>().prop_map(Act::Tag),
        1 => any::<u8>().prop_map(Act::Pin),
        1 => Just(Act::Unpin),
        1 => any::<u8>().prop_map(Act::Promote),
        4 => (1..400u16).prop_map(Act::Wait),
        3 => Just(Act::Thin),
        6 => Just(Act::Retire),
        1 => any::<bool>().prop_map(|rebuild| Act::Reopen { rebuild }),
    ]
}

/// What the journal has to be, and what a sidecar and an operator know.
struct World {
    disk: SimDisk,
    dir: tempfile::TempDir,
    store: Option<Store>,
    source: Source,
    times: BTreeMap<PointId, u64>,
    tagged: Vec<PointId>,
    /// Every chunk there ever was.
    chunks: Vec<(ChunkId, u32)>,
    lease: Option<Lease>,
    told: Vec<(ChunkId, u32)>,
    pins: Vec<(PointId, Pin)>,
    removed: u64,
    /// How often a commit says what it refers to.
    said: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let (disk, dir) = (SimDisk::new(BTreeMap::new()), scratch());
        let store = open(&disk, dir.path()).expect("a new store");
        let mut source = Source::new(volume("t/a"), seed);
        source.now_ns = 1_000_000 * SECOND;
        source.small = true;
        let mut world = Self {
            lease: Some(store.lease("t")),
            store: Some(store),
            disk,
            dir,
            source,
            times: BTreeMap::new(),
            tagged: Vec::new(),
            chunks: Vec::new(),
            told: Vec::new(),
            pins: Vec::new(),
            removed: 0,
            said: 1,
        };
        world.commit(None);
        world
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open")
    }

    fn lease(&self) -> &Lease {
        self.lease.as_ref().expect("there is one")
    }

    fn commit(&mut self, refer: Option<(ChunkId, u32)>) {
        self.source.now_ns += SECOND / 3;
        self.times.insert(self.source.next_id(), self.source.now_ns);
        let batch = match refer {
            Some((id, len)) => {
                // As a session does when the operations come.
                self.lease().count_on(&id);
                let held = self.store().chunk_len_or_pending("t", id).expect("answers");
                assert_eq!(held, Some(len), "what was told to be held is held");
                self.source.refer(id, len, self.said)
            }
            None => self.source.commit(),
        };
        for record in &batch.records {
            if let Record::Chunk(chunk) = record {
                self.chunks.push((chunk.id, chunk.len));
            }
        }
        let point = *self.source.points.keys().next_back().expect("a point");
        self.lease().on_commit(point);
        self.store().append_and_wait(batch).expect("written");
        self.lease().on_durable(point);
    }

    fn pick(&self, number: u8) -> PointId {
        let there = ids(self.store(), &self.source);
        there[usize::from(number) % there.len()]
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Commits(count) => (0..*count).for_each(|_| self.commit(None)),
            Act::Have(number) => {
                for step in 0..8 {
                    let (id, len) = self.chunks[(usize::from(*number) * 7 + step * 31) % self.chunks.len()];
                    self.lease().count_on(&id);
                    if self.store().chunk_len_or_pending("t", id).expect("answers").is_some() {
                        self.lease().on_told(&id);
                        self.told.push((id, len));
                    }
                }
            }
            Act::Refer => {
                let told = std::mem::take(&mut self.told);
                told.into_iter().for_each(|chunk| self.commit(Some(chunk)));
            }
            Act::Tag(number) => {
                let point = self.pick(*number);
                let store = self.store();
                block_on(async { store.tag(&self.source.volume, point, "keep").await.await })
                    .expect("tagged");
                self.tagged.push(point);
            }
            Act::Pin(number) => {
                let point = self.pick(*number);
                self.pins.push((point, self.store().pin(&self.source.volume, point).expect("it is there")));
            }
            Act::Unpin => self.pins.clear(),
            Act::Promote(number) => {
                let (base, info) = (self.pick(*number), self.store().volume(&self.source.volume));
                let expected = info.expect("it is there").epoch;
                let (epoch, volume) = (Epoch(expected.0 + 1), self.source.volume.clone());
                let raise = Record::Epoch { volume, expected, epoch, base };
                self.store().append_and_wait(Batch::of(raise)).expect("promoted");
                self.source.branch(epoch, base);
                self.commit(None);
            }
            Act::Wait(seconds) => self.source.now_ns += u64::from(*seconds) * SECOND,
            Act::Thin => {
                self.store().thin(&self.source.volume, &policy(), self.source.now_ns).expect("thinned");
            }
            Act::Retire => self.removed += retire(self.store()).segments,
            Act::Reopen { rebuild } => {
                (self.lease, self.pins, self.told) = (None, Vec::new(), Vec::new());
                self.store = None;
                if *rebuild {
                    std::fs::remove_dir_all(self.dir.path().join("index")).expect("removed");
                }
                let store = open(&self.disk, self.dir.path()).expect("opens");
                assert_eq!((store.opened().damage.as_slice(), store.opened().rebuilt), (&[][..], *rebuild));
                self.lease = Some(store.lease("t"));
                self.store = Some(store);
            }
        }
    }

    /// The journal is what it was without any compaction, and everything in it opens.
    fn check(&self) {
        let there = ids(self.store(), &self.source);
        assert_eq!(self.store().volume(&self.source.volume).expect("it is there").points, there.len() as u64);
        there.iter().for_each(|id| self.source.check(self.store(), *id));
        let oldest_first = there.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(oldest_first);
        self.tagged.iter().for_each(|id| assert!(there.contains(id), "{id} has a name"));
        self.pins.iter().for_each(|(id, _)| assert!(there.contains(id), "{id} is open"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_goes_on_beside_it_nothing_is_lost(
        seed in any::<u64>(),
        acts in prop::collection::vec(act(), 1..60),
    ) {
        let mut world = World::new(seed);
        for act in &acts {
            let before = ids(world.store(), &world.source);
            world.act(act);
            if matches!(act, Act::Retire | Act::Reopen { .. }) {
                prop_assert_eq!(ids(world.store(), &world.source), before);
            }
            if matches!(act, Act::Retire) {
                world.check();
            }
        }
        world.check();
        whole(world.store(), "at the end");
        world.act(&Act::Reopen { rebuild: true });
        world.check();
        whole(world.store(), "after a rebuild");
    }
}

#[test]
pub(super) fn the_log_is_not_much_longer_than_what_is_needed() {
    let mut world = World::new(1);
    let mut longest = 0;
    for _ in 0..30 {
        world.act(&Act::Commits(60));
        world.act(&Act::Thin);
        world.act(&Act::Retire);
        longest = longest.max(world.store().log_len());
    }
    world.act(&Act::Wait(10_000));
    world.act(&Act::Thin);
    world.act(&Act::Retire);
    let done = retire(world.store());
    // A segment or two are being filled.
    let spare = 2 * 64 * 1024;
    assert!(done.log_bytes <= done.live_bytes * 13 / 10 + spare, "{done:?}");
    assert!(world.removed > 100 && longest < 5 << 20, "{} segments, {longest} bytes", world.removed);
    world.check();
    assert!(world.disk.used() <= done.log_bytes + spare, "{}", world.disk.used());
}

#[test]
fn readers_beside_it_never_see_a_gap() {
    let mut world = World::new(2);
    world.act(&Act::Commits(120));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (store, source) = (world.store().clone(), world.source.clone());
    let tagged = *source.points.keys().nth(60).expect("many points");
    block_on(async { store.tag(&source.volume, tagged, "keep").await.await }).expect("tagged");
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let (store, source, stop) = (&store, &source, &stop);
            scope.spawn(move || {
                let mut rounds = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) || rounds < 3 {
                    source.check(store, tagged);
                    rounds += 1;
                    if reader == 0 && rounds % 16 == 0 && rounds < 80 {
                        whole(store, "beside a compaction");
                    }
                }
            });
        }
        for _ in 0..2000 {
            world.act(&Act::Commits(30));
            world.act(&Act::Thin);
            world.act(&Act::Retire);
            if world.removed > 60 {
                break;
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(world.removed > 20, "{} segments", world.removed);
    world.check();
}

/// What a lease was given up for while the compaction was under way: the journals had been read before.
#[test]
fn a_commit_during_a_compaction_keeps_what_it_refers_to() {
    let mut world = World::new(3);
    for act in [Act::Commits(100), Act::Wait(1000), Act::Thin] {
        world.act(&act);
    }
    world.act(&Act::Have(0));
    world.act(&Act::Have(1));
    let (store, mut turns, mut told) = (world.store().clone(), 0, world.told.len());
    assert!(told > 5, "{told}");
    let done = store.retire(&mut |_| {
        turns += 1;
        if turns == 1 {
            world.act(&Act::Refer);
            world.act(&Act::Commits(2));
            told = 0;
        }
    });
    assert!(done.expect("compacted").segments > 3 && told == 0);
    world.check();
    whole(world.store(), "afterwards");
}

#[test]
fn an_index_never_points_into_a_segment_that_is_gone() {
    let mut world = World::new(4);
    for act in [Act::Commits(100), Act::Wait(1000), Act::Thin, Act::Retire] {
        world.act(&act);
    }
    assert!(world.removed > 3);
    // The machine stops here: the index is what it was on disk.
    let after = scratch();
    super::crash_matrix::copy(&world.dir.path().join("index"), &after.path().join("index"));
    let disk = SimDisk::new(world.disk.durable());
    let store = open(&disk, after.path()).expect("opens");
    assert!(!store.opened().rebuilt && store.opened().damage.is_empty(), "{:?}", store.opened());
    let there = ids(&store, &world.source);
    assert_eq!(there, ids(world.store(), &world.source));
    there.iter().for_each(|id| world.source.check(&store, *id));
    whole(&store, "after the crash");
}

#[test]
fn names_given_with_a_commit_stay() {
    let mut world = World::new(5);
    for name in ["first", "second"] {
        world.act(&Act::Commits(40));
        world.source.tags = vec![name.to_owned()];
        world.act(&Act::Commits(1));
        world.source.tags = Vec::new();
        world.act(&Act::Commits(40));
        for act in [Act::Wait(1000), Act::Thin, Act::Retire, Act::Commits(30), Act::Retire] {
            world.act(&act);
        }
    }
    world.act(&Act::Reopen { rebuild: true });
    let points = world.store().points(&world.source.volume, None).expect("points");
    let names: Vec<_> = points.iter().flat_map(|point| point.tags.clone()).collect();
    assert!(world.removed > 10 && names == ["first", "second"], "{names:?}");
    world.check();
}

#[test]
pub(super) fn operations_in_another_segment_than_their_point_come_along() {
    let mut world = World::new(6);
    world.said = 60;
    for number in 0..400u32 {
        // Nobody needs this one.
        let content = [&number.to_le_bytes()[..], &[7; 3000]].concat();
        let mut filler = Batch::new();
        let id = tidelock_proto::ChunkKey::of_tenant("t").id(&content);
        let codec = tidelock_proto::chunk::Codec::Raw;
        filler.push_chunk("t", id, codec, content.len() as u32, content.into());
        world.store().append_and_wait(filler).expect("written");
        let chunk = world.chunks[world.chunks.len() - 1];
        world.commit(Some(chunk));
    }
    let needed = crate::store::reachable::Reachable::read(world.store().shared(), 1 << 20).expect("read");
    assert!(needed.strays.len() > 3, "{}", needed.strays.len());
    for _ in 0..3 {
        world.act(&Act::Retire);
        world.act(&Act::Commits(20));
    }
    assert!(world.removed > 10, "{}", world.removed);
    world.check();
    world.act(&Act::Reopen { rebuild: true });
    world.check();
    whole(world.store(), "after a rebuild");
}

#[test]
pub(super) fn a_crash_while_compacting_leaves_every_point() {
    let disk = SimDisk::new(BTreeMap::new());
    let (mut source, mut times) = (Source::new(volume("t/a"), 9), BTreeMap::new());
    source.now_ns = 1_000 * SECOND;
    source.small = true;
    let dir = scratch();
    let store = open(&disk, dir.path()).expect("a new store");
    disk.record(StdRng::seed_from_u64(11));
    let mut removed = 0;
    for number in 1..=150u64 {
        source.now_ns += SECOND / 3;
        times.insert(source.next_id(), source.now_ns);
        store.append_and_wait(source.commit()).expect("written");
        disk.acknowledge();
        if number % 30 == 0 {
            store.thin(&source.volume, &policy(), source.now_ns).expect("thinned");
            removed += retire(&store).segments;
        }
    }
    let end = source.now_ns + 100 * SECOND;
    store.thin(&source.volume, &policy(), end).expect("thinned");
    removed += retire(&store).segments;
    drop(store);
    assert!(removed > 8, "{removed} segments");
    let made: Vec<_> = source.points.keys().copied().collect();
    let stays = kept(&source, &times, &[], end);
    let mut leftovers = 0;
    for (number, crash) in disk.recorded().into_iter().enumerate() {
        let context = format!("crash {number} before sync {}, left {:?}", crash.sync, crash.left);
        let (dir, after) = (scratch(), SimDisk::new(crash.files));
        let store = open(&after, dir.path()).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(store.opened().damage, [], "{context}");
        let Some(info) = store.volume(&source.volume) else { continue };
        let acknowledged = made[(crash.acknowledged as usize).saturating_sub(1)];
        let there = ids(&store, &source);
        assert!(info.last.id >= acknowledged, "{context}");
        assert_eq!(info.points, there.len() as u64, "{context}");
        let lost: Vec<_> = stays.iter().filter(|id| **id <= acknowledged && !there.contains(id)).collect();
        assert!(crash.acknowledged == 0 || lost.is_empty(), "{context}: {lost:?}");
        let skip = if number % 5 == 0 { 0 } else { there.len().saturating_sub(8) };
        there.iter().skip(skip).for_each(|id| source.check(&store, *id));
        if number % 3 == 0 {
            let before = after.used();
            retire(&store);
            leftovers += usize::from(after.used() < before);
            assert_eq!(ids(&store, &source), there, "{context}");
            there.iter().skip(skip).for_each(|id| source.check(&store, *id));
            whole(&store, &context);
        }
    }
    assert!(leftovers > 5, "{leftovers}");
}
