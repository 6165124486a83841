//! Images of a real store, crashed at every distance from the last durable point.
#![allow(clippy::unwrap_used)]

use std::fs;

use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use tidelock_proto::{
    ChunkKey, Epoch, FileId, Op, Seq, Tree,
    chunk::Codec,
    point::{Consistency, Cut, How, Point},
    tree::{ChunkRef, Kind, Meta, Name, Piece},
};

use super::*;
use crate::{
    reconcile::{self, Chunks, ChunksError, Options, Report},
    store::{Batch, Commit, Record, StoreOptions, encode_model_ops},
};

const FILE_BYTES: u64 = 8 * 4096;

/// A store whose volume has some files of a few pages, and a place for its image.
struct World {
    dir: TempDir,
    store: Store,
    tree: Tree,
    last: Option<PointId>,
    epoch: Epoch,
    rng: StdRng,
}

struct StoreChunks<'a>(&'a Store);

impl Chunks for StoreChunks<'_> {
    fn fetch(
        &self,
        ids: &[tidelock_proto::ChunkId],
        each: &mut dyn FnMut(usize, bytes::Bytes) -> bool,
    ) -> Result<(), ChunksError> {
        ids.iter().enumerate().all(|(index, id)| each(index, self.0.read_content("t", *id).unwrap()));
        Ok(())
    }
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("store"), StoreOptions::default()).unwrap();
        let rng = StdRng::seed_from_u64(11);
        let mut world = Self { dir, store, tree: Tree::new(), last: None, epoch: Epoch::FIRST, rng };
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let mut ops = vec![Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta }];
        let mut batch = Batch::new();
        for number in 0..6u64 {
            let id = FileId(2 + number);
            ops.push(Op::Create { id, kind: Kind::File, meta });
            ops.push(Op::Link { dir: FileId::ROOT, name: name(number), id });
            let pieces = vec![world.page(&mut batch, FILE_BYTES)];
            ops.push(Op::Write { id, offset: 0, pieces });
        }
        world.commit(batch, ops);
        world
    }

    fn volume(&self) -> VolumeName {
        "t/v".parse().unwrap()
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn image(&self) -> PathBuf {
        self.images().join("t/v")
    }

    fn follower(&self) -> Follower {
        Follower::new(self.store.clone(), &self.images(), self.volume(), Arc::default())
    }

    fn page(&mut self, batch: &mut Batch, len: u64) -> Piece {
        let content: Vec<u8> = (0..len).map(|_| self.rng.random()).collect();
        let id = ChunkKey::of_tenant("t").id(&content);
        batch.push_chunk("t", id, Codec::Raw, content.len() as u32, content.into());
        Piece { len, chunk: Some(ChunkRef { id, at: 0 }) }
    }

    /// Writes a page of one file.
    fn write(&mut self, file: u64) {
        let mut batch = Batch::new();
        let pieces = vec![self.page(&mut batch, 4096)];
        let offset = self.rng.random_range(0..8) * 4096;
        self.commit(batch, vec![Op::Write { id: FileId(2 + file), offset, pieces }]);
    }

    /// Exchanges the names of two files.
    fn swap(&mut self, first: u64, second: u64) {
        let link = |number, id| Op::Link { dir: FileId::ROOT, name: name(number), id };
        let at = |number| self.tree.lookup(FileId::ROOT, &name(number)).unwrap();
        let ops = vec![link(first, at(second)), link(second, at(first))];
        self.commit(Batch::new(), ops);
    }

    fn commit(&mut self, batch: Batch, ops: Vec<Op>) {
        self.commit_upon(self.last, batch, ops);
    }

    /// All that there is, once more, upon nothing: other files have the ids of those before, and the last one is gone.
    fn begin_anew(&mut self) {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let (mut batch, mut ops) =
            (Batch::new(), vec![Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta }]);
        ops.extend((2..7).map(|id| Op::Create { id: FileId(id), kind: Kind::File, meta }));
        for number in 0..5 {
            let id = FileId(2 + (number + 1) % 5);
            ops.push(Op::Link { dir: FileId::ROOT, name: name(number), id });
            let pieces = vec![self.page(&mut batch, FILE_BYTES)];
            ops.push(Op::Write { id, offset: 0, pieces });
        }
        self.tree = Tree::new();
        self.commit_upon(None, batch, ops);
    }

    fn commit_upon(&mut self, parent: Option<PointId>, mut batch: Batch, ops: Vec<Op>) {
        let seq = self.last.filter(|last| last.epoch == self.epoch).map_or(Seq(1), |last| last.seq.next());
        for op in &ops {
            self.tree.apply(op).unwrap();
        }
        self.tree.seal().unwrap();
        let cut = Cut {
            time_ns: seq.0,
            consistency: Consistency::Crash,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: How::Optimistic,
            group: Vec::new(),
            digest: self.tree.digest(),
        };
        let id = PointId::new(self.epoch, seq);
        let point = Point { id, parent, cut, received_ns: 0, tags: Vec::new() };
        batch.push(Record::Commit(Commit { volume: self.volume(), point, ops: encode_model_ops(ops) }));
        self.store.append_and_wait(batch).unwrap();
        self.last = Some(id);
    }

    fn promote(&mut self, base: PointId) {
        let epoch = self.epoch.next();
        let raise = Record::Epoch { volume: self.volume(), expected: self.epoch, epoch, base };
        self.store.append_and_wait(Batch::of(raise)).unwrap();
        self.tree = self.store.tree_at(&self.volume(), base).unwrap();
        (self.epoch, self.last) = (epoch, Some(base));
    }

    /// What would have to be done to the image to make it right; all of it is read.
    fn compare(&self) -> Report {
        let label = promotion_label(&self.volume());
        let options = Options { unfinished: true, ..Options::new(ChunkKey::of_tenant("t"), label) };
        let chunks = StoreChunks(&self.store);
        reconcile::reconcile(&self.image(), &self.tree, &chunks, &options, &|_| {}).unwrap()
    }

    fn assert_right(&self) {
        let report = self.compare();
        assert!(!report.changed() && report.bytes_compared > 0, "{report:?}");
    }

    /// The bytes at a name become others, as if what was written there had not come to the disk.
    fn spoil(&self, number: u64) {
        let path = self.image().join(number.to_string());
        let meta = fs::metadata(&path).unwrap();
        fs::write(&path, vec![0; FILE_BYTES as usize]).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(meta.modified().unwrap()).unwrap();
    }
}

fn name(number: u64) -> Name {
    Name::new(number.to_string().as_bytes()).unwrap()
}

#[test]
fn an_image_follows_many_points_in_one_step() {
    let mut world = World::new();
    let mut follower = world.follower();
    assert!(follower.open().unwrap());
    world.assert_right();
    for round in 0..5 {
        for number in 0..7 {
            world.write(number % 6);
            world.swap(number % 6, round);
        }
        assert!(follower.advance().unwrap());
        assert_eq!(follower.point(), world.last);
        world.assert_right();
    }
    assert!(!follower.advance().unwrap());
}

#[test]
fn after_a_crash_what_later_points_touched_is_compared_and_nothing_else() {
    let mut world = World::new();
    let mut follower = world.follower();
    follower.open().unwrap();
    world.write(0);
    world.swap(1, 2);
    follower.advance().unwrap();
    // The crash: one more point came that was not applied, and nothing was made durable since the first.
    drop(follower);
    world.write(3);
    for touched in 0..4 {
        world.spoil(touched);
    }
    world.spoil(5);
    let mut follower = world.follower();
    follower.open().unwrap();
    assert_eq!(follower.point(), world.last);
    let report = world.compare();
    assert_eq!((report.files_written, report.bytes_written), (1, FILE_BYTES), "{report:?}");
    world.assert_right();

    // Clean: nothing is read.
    follower.settle().unwrap();
    drop(follower);
    world.spoil(0);
    world.follower().open().unwrap();
    assert_eq!(world.compare().files_written, 1);
}

#[test]
fn a_point_that_begins_anew_is_followed_and_found_after_a_crash() {
    let mut world = World::new();
    let mut follower = world.follower();
    follower.open().unwrap();
    world.write(1);
    world.begin_anew();
    world.write(2);
    assert!(follower.advance().unwrap());
    assert_eq!(follower.point(), world.last);
    world.assert_right();
    world.begin_anew();
    drop(follower);
    world.follower().open().unwrap();
    world.assert_right();
}

#[test]
fn without_a_state_everything_is_compared() {
    for lose in ["state", "image"] {
        let mut world = World::new();
        world.follower().open().unwrap();
        world.write(0);
        world.spoil(5);
        match lose {
            "state" => fs::remove_file(world.images().join("t/.v/state")).unwrap(),
            _ => {
                // Another directory in its place, with the marker.
                let (image, aside) = (world.image(), world.dir.path().join("aside"));
                fs::rename(&image, &aside).unwrap();
                fs::create_dir(&image).unwrap();
                for entry in fs::read_dir(&aside).unwrap() {
                    let entry = entry.unwrap();
                    fs::copy(entry.path(), image.join(entry.file_name())).unwrap();
                }
            }
        }
        world.follower().open().unwrap();
        world.assert_right();
    }
}

#[test]
fn where_retention_has_merged_points_everything_is_compared() {
    let mut world = World::new();
    world.follower().open().unwrap();
    for _ in 0..3 {
        world.write(0);
    }
    let policy = "1s:forever".parse().unwrap();
    world.store.thin(&world.volume(), &policy, u64::MAX / 2).unwrap();
    world.write(1);
    world.spoil(5);
    world.follower().open().unwrap();
    world.assert_right();
}

#[test]
fn a_promotion_that_goes_back_takes_the_image_along() {
    let mut world = World::new();
    let mut follower = world.follower();
    follower.open().unwrap();
    world.write(0);
    let base = world.last.unwrap();
    world.write(1);
    world.swap(0, 4);
    follower.advance().unwrap();
    world.promote(base);
    follower.advance().unwrap();
    assert_eq!(follower.point(), Some(base));
    world.assert_right();
    // And on along the new line.
    world.write(2);
    follower.advance().unwrap();
    assert_eq!(follower.point(), world.last);
    world.assert_right();
    // A promotion of the newest point is no step at all.
    world.promote(world.last.unwrap());
    assert!(!follower.advance().unwrap());
    world.write(3);
    follower.advance().unwrap();
    world.assert_right();
}

#[test]
fn an_image_that_was_given_away_comes_back_or_is_made_anew() {
    for taken in [false, true] {
        let mut world = World::new();
        let mut follower = world.follower();
        follower.open().unwrap();
        world.write(0);
        follower.advance().unwrap();
        let given = follower.release().unwrap();
        assert_eq!((given.point, given.path.is_dir()), (world.last.unwrap(), true));
        assert!(!world.image().exists() && follower.is_given());
        // Whoever asks again, and after a restart, is told the same.
        let mut follower = world.follower();
        assert!(follower.is_given());
        let again = worker::answer(&mut follower, true).unwrap();
        assert_eq!((again.path, again.inode, again.point), (given.path.clone(), given.inode, given.point));
        if taken {
            fs::rename(&given.path, world.dir.path().join("taken")).unwrap();
            assert!(worker::answer(&mut follower, true).is_err());
        }
        world.write(1);
        assert!(!follower.is_given());
        follower.open().unwrap();
        assert_eq!(follower.point(), world.last);
        world.assert_right();
    }
}

#[test]
fn what_is_not_an_image_is_left_alone() {
    let world = World::new();
    fs::create_dir_all(world.image()).unwrap();
    fs::write(world.image().join("precious"), "mine").unwrap();
    let refused = world.follower().open();
    assert!(matches!(refused, Err(ImageError::Reconcile(_))), "{refused:?}");
    assert_eq!(fs::read(world.image().join("precious")).unwrap(), b"mine");
}

#[test]
fn one_user_at_a_time() {
    let world = World::new();
    let resting = Resting::open(&world.store, &world.images()).unwrap();
    assert!(matches!(Resting::open(&world.store, &world.images()), Err(ImageError::InUse(_))));
    assert!(matches!(resting.ask(&world.volume(), false), Err(ImageError::Absent { .. })));
}
