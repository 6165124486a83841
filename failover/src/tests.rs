//! Points, restore and promotion on a real store without a receiver.
#![allow(clippy::unwrap_used)]

mod apart;
mod branch;
mod window;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tempfile::TempDir;
use tidelock_proto::{
    ChunkKey, Epoch, FileId, Op, PointId, Seq, Tree, VolumeName,
    chunk::Codec,
    point::{Consistency, Cut, Point},
    tree::{ChunkRef, Kind, Meta, Name, Piece},
};
use tidelock_receiver::{
    reconcile::{ReconcileError, marker_path},
    store::{Batch, Commit, Record, Store, StoreOptions, encode_model_ops},
};

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

/// A store whose volume `t/v` has one file that says which point it is.
struct World {
    dir: TempDir,
    tree: Tree,
    last: Option<PointId>,
    epoch: Epoch,
}

impl World {
    /// Three points, one second after the other.
    fn new() -> Self {
        let mut world =
            Self { dir: TempDir::new().unwrap(), tree: Tree::new(), last: None, epoch: Epoch::FIRST };
        for _ in 0..3 {
            world.commit(Consistency::Crash);
        }
        world
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }

    fn access(&self) -> Access {
        Access::direct(&self.store()).unwrap()
    }

    fn volume(&self) -> VolumeName {
        "t/v".parse().unwrap()
    }

    fn commit(&mut self, consistency: Consistency) -> PointId {
        let store = Store::open(&self.store(), StoreOptions::default()).unwrap();
        self.commit_to(&store, consistency)
    }

    fn commit_to(&mut self, store: &Store, consistency: Consistency) -> PointId {
        let seq = self.last.filter(|last| last.epoch == self.epoch).map_or(Seq(1), |last| last.seq.next());
        let id = PointId::new(self.epoch, seq);
        let content = format!("this is {id}").into_bytes();
        let chunk = ChunkKey::of_tenant("t").id(&content);
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let mut ops = Vec::new();
        if self.last.is_none() {
            let name = Name::new(b"which").unwrap();
            ops.push(Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta });
            ops.push(Op::Create { id: FileId(2), kind: Kind::File, meta });
            ops.push(Op::Link { dir: FileId::ROOT, name, id: FileId(2) });
        }
        let piece = Piece { len: content.len() as u64, chunk: Some(ChunkRef { id: chunk, at: 0 }) };
        ops.push(Op::Write { id: FileId(2), offset: 0, pieces: vec![piece] });
        for op in &ops {
            self.tree.apply(op).unwrap();
        }
        self.tree.seal().unwrap();
        let cut = Cut {
            time_ns: (id.epoch.0 * 100 + id.seq.0) * SECOND_NS,
            consistency,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: tidelock_proto::point::How::Optimistic,
            group: Vec::new(),
            digest: self.tree.digest(),
        };
        let point = Point { id, parent: self.last, cut, received_ns: 0, tags: Vec::new() };
        let mut batch = Batch::new();
        batch.push_chunk("t", chunk, Codec::Raw, content.len() as u32, content.into());
        batch.push(Record::Commit(Commit { volume: self.volume(), point, ops: encode_model_ops(ops) }));
        store.append_and_wait(batch).unwrap();
        self.last = Some(id);
        id
    }

    fn promote(&self, options: PromoteOptions) -> Result<PromoteReport, FailoverError> {
        promote(&self.access(), &self.volume(), &self.target(), &options, &|_| {})
    }

    fn epoch(&self) -> u64 {
        status(&self.access(), None).unwrap()[0].epoch
    }

    fn which(&self) -> String {
        fs::read_to_string(self.target().join("which")).unwrap()
    }
}

fn at(text: &str) -> PromoteOptions {
    PromoteOptions { at: text.parse().unwrap(), ..PromoteOptions::default() }
}

#[test]
fn points_and_status_show_what_there_is() {
    let world = World::new();
    let access = world.access();
    let all = points(&access, &world.volume(), None).unwrap();
    assert_eq!(all.iter().map(|point| point.id.as_str()).collect::<Vec<_>>(), ["1.1", "1.2", "1.3"]);
    assert!(all.iter().all(|point| point.current));
    access.tag(&world.volume(), "1.2".parse().unwrap(), "before the upgrade").unwrap();
    assert_eq!(points(&access, &world.volume(), Some(2)).unwrap()[0].tags, ["before the upgrade"]);
    let volume = &status(&access, Some(&world.volume())).unwrap()[0];
    assert_eq!((volume.points, volume.connected, volume.promoted), (3, None, false));
    let none = status(&access, Some(&"t/other".parse().unwrap())).unwrap_err();
    assert_eq!(none.to_string(), "there is no volume t/other; there is t/v");
}

#[test]
fn no_point_is_off_the_line_because_it_came_while_they_were_listed() {
    let mut world = World::new();
    let (access, volume) = (world.access(), world.volume());
    let store = access.store();
    let listed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !listed.load(Ordering::Relaxed) {
                world.commit_to(&store, Consistency::Crash);
            }
        });
        // Each comes at another instant of a listing.
        let mut off = Vec::new();
        while off.is_empty() && access.volume(&volume).unwrap().points < 300 {
            off = points(&access, &volume, Some(5)).unwrap();
            off.retain(|point| !point.current);
        }
        listed.store(true, Ordering::Relaxed);
        assert_eq!(off, []);
    });
}

#[test]
fn a_restore_leaves_no_trace_in_the_store() {
    let world = World::new();
    let options = RestoreOptions { at: "1970-01-01T00:01:42Z".parse().unwrap(), ..RestoreOptions::default() };
    let report = restore(&world.access(), &world.volume(), &world.target(), &options, &|_| {}).unwrap();
    assert_eq!((report.point.id.as_str(), world.which().as_str()), ("1.2", "this is 1.2"));
    assert_eq!(world.epoch(), 1);
    let again = restore(&world.access(), &world.volume(), &world.target(), &options, &|_| {}).unwrap_err();
    assert!(again.is_refusal(), "{again}");
}

#[test]
fn a_promotion_ends_the_epoch_at_its_point() {
    let mut world = World::new();
    let report = world.promote(at("latest")).unwrap();
    assert_eq!(
        (report.point.id.as_str(), report.old_epoch, report.epoch, report.resumed),
        ("1.3", 1, 2, false)
    );
    assert!(
        report.next_command.contains("--volume t/v=") && report.next_command.contains("--epoch 2"),
        "{}",
        report.next_command
    );
    assert_eq!(report.chunks_checked, 1);
    assert_eq!(world.which(), "this is 1.3");
    let volume = &status(&world.access(), None).unwrap()[0];
    assert_eq!((volume.epoch, volume.promoted), (2, true));

    // The new primary goes on, and what the old one had beyond an earlier base would not be on its line.
    world.epoch = Epoch(2);
    world.commit(Consistency::Crash);
    let volume = &status(&world.access(), None).unwrap()[0];
    assert_eq!((volume.promoted, volume.last.as_ref().unwrap().id.as_str()), (false, "2.1"));
}

#[test]
fn what_can_be_refused_is_refused_before_the_epoch_rises() {
    let mut world = World::new();
    fs::create_dir(world.target()).unwrap();
    fs::write(world.target().join("mine"), "").unwrap();
    let refused = world.promote(at("latest")).unwrap_err();
    assert!(matches!(refused, FailoverError::Reconcile(ReconcileError::NotEmpty(_))) && refused.is_refusal());
    fs::remove_file(world.target().join("mine")).unwrap();

    let fuzzy = world.commit(Consistency::Fuzzy);
    assert!(world.promote(at(&fuzzy.to_string())).unwrap_err().is_refusal());
    assert!(matches!(world.promote(at("9.9")), Err(FailoverError::NoPoint { .. })));
    assert!(matches!(world.promote(at("1970-01-01T00:00:00Z")), Err(FailoverError::TooEarly { .. })));
    assert_eq!(world.epoch(), 1);

    let accepted = PromoteOptions { accept_fuzzy: true, ..at("latest") };
    assert_eq!(world.promote(accepted).unwrap().point.id, fuzzy.to_string());
}

#[test]
fn a_promotion_that_was_interrupted_is_completed_by_the_same_command() {
    let world = World::new();
    // The target's parent is a file once the epoch has risen, and so the directory cannot be completed.
    let broken = world.dir.path().join("not-yet");
    let target = broken.join("target");
    let raised = AtomicBool::new(false);
    let events = |event| {
        if event == Event::Step(Step::Difference) && !raised.swap(true, Ordering::Relaxed) {
            fs::remove_dir_all(&broken).unwrap();
            fs::write(&broken, "in the way").unwrap();
        }
    };
    let run = |target: &Path| promote(&world.access(), &world.volume(), target, &at("latest"), &events);
    assert!(run(&target).is_err());
    assert_eq!(world.epoch(), 2);
    fs::remove_file(&broken).unwrap();
    let report = run(&target).unwrap();
    assert_eq!((report.epoch, report.resumed), (2, true));
    assert!(target.join("which").exists() && !marker_path(&target).exists());
    // Once more: it is done, and nothing is written.
    let report = run(&target).unwrap();
    assert_eq!((report.epoch, report.resumed, report.already), (2, true, true));
    // A finished one is not begun again when somebody has started on it.
    fs::write(target.join("which"), "somebody works here").unwrap();
    assert!(run(&target).unwrap_err().is_refusal());
    assert_eq!(world.epoch(), 2);
}

#[test]
fn what_the_old_primary_still_wrote_before_it_was_fenced_is_not_lost() {
    for (last, promoted, epoch) in [(Consistency::Crash, "1.5", 2), (Consistency::Fuzzy, "1.4", 3)] {
        let world = Mutex::new(World::new());
        let (access, volume, target) = {
            let world = world.lock().unwrap();
            (world.access(), world.volume(), world.target())
        };
        let events = |event| {
            if event == Event::Step(Step::Fence) {
                let mut world = world.lock().unwrap();
                world.commit_to(&access.store(), Consistency::Crash);
                world.commit_to(&access.store(), last);
            }
        };
        let report = promote(&access, &volume, &target, &at("latest"), &events).unwrap();
        assert_eq!((report.point.id.as_str(), report.epoch), (promoted, epoch));
        assert_eq!(fs::read_to_string(target.join("which")).unwrap(), format!("this is {promoted}"));
        assert_eq!(points(&access, &volume, None).unwrap().last().unwrap().id, "1.5");
    }
}

#[test]
fn two_operators_cannot_both_promote() {
    let world = World::new();
    let access = world.access();
    let (volume, base) = (world.volume(), PointId::new(Epoch(1), Seq(2)));
    access.raise_epoch(&volume, Epoch(1), Some(base)).unwrap();
    let second = access.raise_epoch(&volume, Epoch(1), Some(base)).unwrap_err();
    assert!(matches!(second, FailoverError::EpochMoved { .. }) && second.is_refusal(), "{second}");
    // The tail of the old primary is still there, off the line, and `latest` is the base.
    drop(access);
    let report = world.promote(at("latest")).unwrap();
    assert_eq!((report.point.id.as_str(), report.epoch, report.resumed), ("1.2", 2, true));
    let tail = points(&world.access(), &volume, None).unwrap().pop().unwrap();
    assert_eq!((tail.id.as_str(), tail.current), ("1.3", false));
}

#[test]
fn a_mistyped_store_is_not_created() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("stroe");
    assert!(matches!(Access::direct(&missing), Err(FailoverError::NotAStore(_))));
    assert!(!missing.exists());
}

/// Every byte of the log that belongs to this text is another.
fn damage(store: &Path, text: &str) {
    for segment in fs::read_dir(store.join("log")).unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = fs::read(&segment).unwrap();
        while let Some(at) = bytes.windows(text.len()).position(|part| part == text.as_bytes()) {
            bytes[at..at + text.len()].fill(b'!');
        }
        fs::write(&segment, bytes).unwrap();
    }
}

#[test]
fn damage_is_found_before_anybody_is_fenced() {
    let world = World::new();
    damage(&world.store(), "this is 1.3");
    let failed = world.promote(at("latest")).unwrap_err();
    assert!(matches!(failed, FailoverError::BeforeFence { .. }), "{failed}");
    assert_eq!(world.epoch(), 1);
    // The same target takes another point, for nothing was promoted to it.
    assert_eq!(world.promote(at("1.2")).unwrap().point.id, "1.2");
    assert_eq!((world.which().as_str(), world.epoch()), ("this is 1.2", 2));
}

#[test]
fn a_store_is_planned_by_the_code_of_a_receiver() {
    let world = World::new();
    let keep = "all:1s".parse().unwrap();
    let found = plan(&world.access(), None, Some(&keep), Some(1 << 30)).unwrap();
    let [volume] = &found.volumes[..] else { panic!("{found:?}") };
    assert_eq!((volume.points, volume.kept, volume.dropped, volume.capped), (3, 1, 2, 0));
    let sizes = found.sizes.unwrap();
    assert_eq!(Some(sizes.freed_bytes), volume.freed_bytes);
    assert!(sizes.freed_bytes > 0 && sizes.stopped_bytes < sizes.log_bytes, "{sizes:?}");
    assert!(sizes.cap.is_some_and(|cap| !cap.acts) && found.unknown.is_none());
    let one = plan(&world.access(), Some(&world.volume()), Some(&keep), None).unwrap();
    assert_eq!((one.sizes, &one.volumes), (None, &found.volumes));
    let default = plan(&world.access(), None, None, None).unwrap();
    assert_eq!(default.keep, tidelock_receiver::retention::Policy::default().to_string());
    assert!(plan(&world.access(), Some(&"t/none".parse().unwrap()), None, None).is_err());
}

#[test]
fn a_plan_says_what_a_promotion_does_and_changes_nothing() {
    let world = World::new();
    let plan = |options: PromoteOptions| {
        plan_promotion(&world.access(), &world.volume(), &world.target(), &options, &|_| {})
    };
    let planned = plan(at("latest")).unwrap();
    assert_eq!((planned.point.id.as_str(), planned.epoch, planned.new_epoch), ("1.3", 1, 2));
    assert_eq!((planned.chunks_checked, planned.already, planned.connected), (1, false, None));
    assert!(!world.target().exists() && world.epoch() == 1);
    let done = world.promote(at("latest")).unwrap();
    assert_eq!((done.point.id, done.epoch), (planned.point.id, planned.new_epoch));
    let again = plan(at("latest")).unwrap();
    assert_eq!((again.resumes, again.already, again.new_epoch), (true, true, 2));
    fs::write(world.target().join("mine"), "").unwrap();
    assert!(plan(at("latest")).unwrap_err().is_refusal());
}

#[test]
fn a_promotion_ends_the_same_wherever_it_was_interrupted() {
    let steps =
        [Step::Select, Step::Check, Step::Restore, Step::Fence, Step::Difference, Step::Complete, Step::Done];
    for step in steps {
        let world = World::new();
        let interrupted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let events = |event| assert_ne!(event, Event::Step(step), "interrupted on purpose");
            promote(&world.access(), &world.volume(), &world.target(), &at("latest"), &events)
        }));
        assert!(interrupted.is_err(), "{step:?} never came");
        let raised = matches!(step, Step::Difference | Step::Complete | Step::Done);
        assert_eq!(world.epoch(), if raised { 2 } else { 1 }, "{step:?}");
        let done = world.promote(at("latest")).unwrap();
        assert_eq!((done.epoch, done.point.id.as_str(), done.resumed), (2, "1.3", raised), "{step:?}");
        assert_eq!((world.which().as_str(), world.epoch()), ("this is 1.3", 2), "{step:?}");
        assert!(!marker_path(&world.target()).exists(), "{step:?}");
    }
}

/// A process that has this file open.
fn reader(file: &Path) -> std::process::Child {
    std::process::Command::new("sleep").arg("60").stdin(fs::File::open(file).unwrap()).spawn().unwrap()
}

#[test]
fn a_directory_that_somebody_works_in_is_not_overwritten() {
    let world = World::new();
    fs::create_dir(world.target()).unwrap();
    let mine = world.target().join("mine");
    fs::write(&mine, "what nobody else has").unwrap();
    let mut worker = reader(&mine);
    let promotion = |force| PromoteOptions { overwrite: true, force, ..at("latest") };
    let restoration = |force| {
        let options = RestoreOptions { overwrite: true, force, ..RestoreOptions::default() };
        restore(&world.access(), &world.volume(), &world.target(), &options, &|_| {}).map(drop)
    };
    let plan = plan_promotion(&world.access(), &world.volume(), &world.target(), &promotion(false), &|_| {});
    for refused in [plan.map(drop), world.promote(promotion(false)).map(drop), restoration(false)] {
        let refused = refused.unwrap_err();
        let named = refused.to_string().contains(&format!("sleep ({})", worker.id()));
        assert!(refused.is_refusal() && named, "{refused}");
    }
    assert_eq!((fs::read_to_string(&mine).unwrap().as_str(), world.epoch()), ("what nobody else has", 1));
    assert!(!marker_path(&world.target()).exists());
    restoration(true).unwrap();
    assert!(!mine.exists());
    world.promote(promotion(true)).unwrap();
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn an_instant_promotion_without_its_journal_still_says_which_epoch_it_has() {
    let world = World::new();
    world.promote(at("latest")).unwrap();
    // As one that was killed at its very end has left it.
    fs::create_dir(world.target().join(tidelock_receiver::reconcile::INSTANT)).unwrap();
    let end = |access: Option<Arc<Access>>| {
        let done = instant((access, None), &world.volume(), &world.target(), &at("latest"), &|_| {}).unwrap();
        done.report().clone()
    };
    let told = end(Some(Arc::new(world.access())));
    assert_eq!((told.old_epoch, told.epoch, told.point.as_str(), told.mounted), (1, 2, "1.3", false));
    assert!(told.next_command.contains("--epoch 2 "), "{}", told.next_command);
    fs::create_dir(world.target().join(tidelock_receiver::reconcile::INSTANT)).unwrap();
    let told = end(None);
    assert!(told.next_command.contains("--epoch EPOCH "), "{}", told.next_command);
}

#[test]
fn the_next_command_is_one_wherever_it_is_run() {
    let world = World::new();
    let target = world.dir.path().join("it's a $new one");
    let done = promote(&world.access(), &world.volume(), &target, &at("latest"), &|_| {}).unwrap();
    let told = done.next_command.replace("tidelock sidecar", "printf '%s\n'");
    let words = std::process::Command::new("sh").arg("-c").arg(told).output().unwrap().stdout;
    let wanted = format!("t/v={}", target.display());
    assert!(String::from_utf8(words).unwrap().lines().any(|word| word == wanted), "{}", done.next_command);
    let current = std::env::current_dir().unwrap();
    assert_eq!(promote::whole(Path::new("new")), current.join("new"));
}

#[test]
fn a_shell_in_an_empty_directory_keeps_nobody_from_promoting_to_it() {
    let world = World::new();
    fs::create_dir(world.target()).unwrap();
    let mut shell =
        std::process::Command::new("sleep").arg("60").current_dir(world.target()).spawn().unwrap();
    let done = world.promote(at("latest"));
    // It is complete, which is seen without a look at who works there.
    let again = world.promote(at("latest"));
    shell.kill().unwrap();
    shell.wait().unwrap();
    assert!(done.unwrap().point.id == "1.3" && again.unwrap().already);
}

#[test]
fn a_rollback_is_in_place_and_not_while_somebody_works_there() {
    let world = World::new();
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("which"), "newer").unwrap();
    fs::write(dir.path().join("more"), "").unwrap();
    let back = |force| {
        let options = RollbackOptions { at: "1.2".parse().unwrap(), force, ..RollbackOptions::default() };
        rollback(&world.access(), &world.volume(), dir.path(), &options, &|_| {})
    };
    let mut worker = reader(&dir.path().join("more"));
    let refused = back(false).unwrap_err();
    assert!(refused.is_refusal() && refused.to_string().contains(&format!("({})", worker.id())), "{refused}");
    assert_eq!(fs::read_to_string(dir.path().join("which")).unwrap(), "newer");
    worker.kill().unwrap();
    worker.wait().unwrap();
    let done = back(false).unwrap();
    assert_eq!((done.point.id.as_str(), done.newest.unwrap().id.as_str()), ("1.2", "1.3"));
    assert_eq!(fs::read_to_string(dir.path().join("which")).unwrap(), "this is 1.2");
    assert!(!dir.path().join("more").exists());
    assert!(!back(true).unwrap().work.changed());
    let nowhere = dir.path().join("which");
    let options = RollbackOptions::default();
    let refused = rollback(&world.access(), &world.volume(), &nowhere, &options, &|_| {}).unwrap_err();
    assert!(refused.is_usage(), "{refused}");
}

#[test]
fn a_directory_that_is_not_the_volume_is_not_rolled_back() {
    let world = World::new();
    let dir = TempDir::new().unwrap();
    let back = |force| {
        let options = RollbackOptions { at: "1.2".parse().unwrap(), force, ..RollbackOptions::default() };
        rollback(&world.access(), &world.volume(), dir.path(), &options, &|_| {}).map(drop)
    };
    fs::write(dir.path().join("precious"), "of something else").unwrap();
    let refused = back(false).unwrap_err();
    assert!(matches!(refused, FailoverError::NotThatVolume { .. }) && refused.is_refusal(), "{refused}");
    assert_eq!(fs::read_to_string(dir.path().join("precious")).unwrap(), "of something else");
    // Whoever has lost everything goes back without being asked, and goes on.
    fs::remove_file(dir.path().join("precious")).unwrap();
    back(false).unwrap();
    fs::remove_file(dir.path().join("which")).unwrap();
    fs::write(marker_path(dir.path()), "t/v 1.2").unwrap();
    back(false).unwrap();
    fs::rename(dir.path().join("which"), dir.path().join("which.locked")).unwrap();
    assert!(back(false).is_err());
    back(true).unwrap();
    assert!(!dir.path().join("which.locked").exists());
}

#[test]
fn nobody_is_told_to_overwrite_by_a_command_that_cannot() {
    let world = World::new();
    fs::create_dir(world.target()).unwrap();
    for name in ["mine", tidelock_receiver::reconcile::MARKER] {
        fs::write(world.target().join(name), "t/other 1.1").unwrap();
        let access = Arc::new(world.access());
        let mounted = mount(access.clone(), None, &world.volume(), &world.target(), &MountOptions::default());
        let instant =
            instant((Some(access.clone()), None), &world.volume(), &world.target(), &at("latest"), &|_| {});
        let planned =
            plan_promotions(&access, &[(world.volume(), world.target())], &at("latest"), true, &|_| {});
        for refused in [mounted.map(drop), instant.map(drop), planned.map(drop)] {
            let refused = refused.unwrap_err();
            let text = refused.to_string();
            assert!(refused.is_refusal() && !text.contains("--overwrite"), "{text}");
            assert_eq!(text.contains("t/other 1.1"), name != "mine", "{text}");
        }
        fs::remove_file(world.target().join("mine")).unwrap_or_default();
    }
}

#[test]
fn a_clone_is_a_volume_of_its_own_with_the_same_chunks() {
    let world = World::new();
    let copy: VolumeName = "t/copy".parse().unwrap();
    let chunks = || stats(&world.access(), &world.volume(), None).unwrap().usage.chunks;
    let before = chunks();
    let log = |world: &World| {
        let len = |entry: fs::DirEntry| entry.metadata().unwrap().len();
        fs::read_dir(world.store().join("log")).unwrap().map(|entry| len(entry.unwrap())).sum::<u64>()
    };
    let (size, at) = (log(&world), "1.2".parse().unwrap());
    let made = clone(&world.access(), &world.volume(), &at, false, &copy).unwrap();
    assert_eq!((made.first.id.as_str(), made.point.id.as_str()), ("1.1", "1.2"));
    assert_eq!((chunks(), made.first.time_ns), (before, made.point.time_ns));
    assert!(log(&world) >= size);
    let options = RestoreOptions::default();
    restore(&world.access(), &copy, &world.target(), &options, &|_| {}).unwrap();
    assert_eq!(world.which(), "this is 1.2");
    assert_eq!(points(&world.access(), &copy, None).unwrap()[0].tags, ["clone of v 1.2"]);
    // Neither over another volume nor to another tenant.
    for (to, why) in [("t/copy", "exists"), ("other/copy", "another tenant")] {
        let error = clone(&world.access(), &world.volume(), &at, false, &to.parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // It goes on without the volume it was made of.
    let mut own = World { last: Some("1.1".parse().unwrap()), ..world };
    own.tree = Access::direct(&own.store()).unwrap().store().tree_at(&copy, own.last.unwrap()).unwrap();
    assert_eq!(own.tree.totals().inodes, 2);
}

#[test]
fn a_test_failover_says_on_the_point_how_it_went_and_leaves_nothing() {
    let world = World::new();
    let test = |command: &str, timeout, copy| {
        let options = RehearseOptions {
            at: At::Latest,
            accept_fuzzy: false,
            command: Some(command.to_owned()),
            timeout: std::time::Duration::from_millis(timeout),
            keep: false,
            copy,
            record: true,
            again: None,
        };
        rehearse(&Arc::new(world.access()), &world.volume(), &world.target(), &options, &|_| {}, &|| false)
            .unwrap()
    };
    let command = "test \"$(cat which)\" = \"this is 1.3\" && test \"$TIDELOCK_POINT\" = 1.3 && touch mine";
    let good = test(command, 60_000, true);
    assert!(good.passed && good.recorded.unwrap().starts_with("verified at "), "{}", good.outcome);
    assert!(good.work.is_some() && good.mount_missed.is_none());
    // As a mount, where there can be one.
    let good = test(command, 60_000, false);
    assert!(good.passed && good.recorded.unwrap().starts_with("verified at "), "{}", good.outcome);
    assert_eq!(good.work.is_some(), good.mount_missed.is_some());
    let bad = test("exit 3", 60_000, false);
    assert_eq!((bad.passed, bad.outcome.as_str()), (false, "exit status: 3"));
    let begun = std::time::Instant::now();
    let slow = test("sleep 60 & sleep 60", 100, false);
    assert!(!slow.passed && begun.elapsed().as_secs() < 30, "{}", slow.outcome);
    let tags = points(&world.access(), &world.volume(), Some(1)).unwrap().remove(0).tags;
    assert_eq!(tags.iter().filter(|tag| tag.starts_with("verified at ")).count(), 2, "{tags:?}");
    assert_eq!(tags.iter().filter(|tag| tag.starts_with("test failed at ")).count(), 2, "{tags:?}");
    assert!(!world.target().exists());
    assert_eq!(world.epoch(), 1);

    let options = RehearseOptions {
        at: At::Latest,
        accept_fuzzy: false,
        command: Some("sleep 60".to_owned()),
        timeout: std::time::Duration::from_secs(60),
        keep: false,
        copy: false,
        record: true,
        again: None,
    };
    let begun = std::time::Instant::now();
    let stopped =
        rehearse(&Arc::new(world.access()), &world.volume(), &world.target(), &options, &|_| {}, &|| true)
            .unwrap_err();
    assert!(matches!(stopped, FailoverError::Interrupted) && begun.elapsed().as_secs() < 30, "{stopped}");
    assert!(!world.target().exists());
}

#[test]
fn only_what_is_held_is_released() {
    let world = World::new();
    let (access, volume, point) = (world.access(), world.volume(), "1.2".parse().unwrap());
    let nothing = release(&access, &volume, &point).unwrap_err();
    assert!(matches!(nothing, FailoverError::NotHeld { .. }), "{nothing}");
    hold(&access, &volume, &point, "the audit").unwrap();
    assert_eq!(release(&access, &volume, &point).unwrap().reasons, ["the audit"]);
    assert!(release(&access, &volume, &point).is_err());
}
