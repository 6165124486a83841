//! Every write path, on every file system: the next point holds what was written, byte for byte; and it would not
//! without the event that the path is known by.

#[path = "paths/btrfs.rs"]
mod btrfs;
#[path = "paths/ext4.rs"]
mod ext4;
#[path = "paths/groups.rs"]
mod groups;
#[path = "paths/xfs.rs"]
mod xfs;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tidelock_proto::{ChunkId, PointId, VolumeName};
use tidelock_receiver::store::{Store, StoreOptions};
use tidelock_tests::{
    mount::{Format, Mount},
    needs::{self, Need},
    paths::{self, Cell, Step, cells},
    site::{Sidecar, Site, Tracker, VOLUME},
    wait::SOON,
};

const BUSY_ROUNDS: usize = 2;

/// What a run is made on.
#[derive(Clone, Copy)]
struct Ground {
    format: Format,
    options: &'static str,
    /// What the sidecar must say it watches with.
    tracker: Tracker,
    /// Where names come from.
    names: &'static str,
    reflink: bool,
    /// Cells that the file system refuses.
    refuses: &'static [&'static str],
}

impl Ground {
    fn can(&self, cell: &Cell) -> bool {
        (self.reflink || !cell.reflink) && !self.refuses.contains(&cell.name)
    }
}

const EXT4: Ground = Ground {
    format: Format::Ext4,
    options: "loop",
    tracker: Tracker::Exact,
    names: "inotify",
    reflink: false,
    refuses: &[],
};
const EXT4_FANOTIFY: Ground = Ground { names: "fanotify", ..EXT4 };
const EXT4_NODELALLOC: Ground = Ground { options: "loop,nodelalloc", ..EXT4 };
const XFS: Ground = Ground { format: Format::Xfs, reflink: true, ..EXT4 };
const BTRFS: Ground = Ground {
    format: Format::Btrfs,
    tracker: Tracker::Inotify,
    reflink: true,
    refuses: &["collapse", "insert"],
    ..EXT4
};
/// Without checksums direct I/O goes past the page cache.
const BTRFS_NODATASUM: Ground = Ground { options: "loop,nodatasum", ..BTRFS };

#[test]
fn every_write_path_on_ext4_is_in_the_next_point() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        nothing_missing(EXT4);
        nothing_missing(EXT4_NODELALLOC);
    }
}

#[test]
fn every_write_path_on_ext4_is_in_the_next_point_with_names_from_fanotify() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        nothing_missing(EXT4_FANOTIFY);
    }
}

#[test]
fn every_write_path_on_xfs_is_in_the_next_point() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.xfs")]) {
        nothing_missing(XFS);
    }
}

#[test]
fn every_write_path_on_btrfs_is_in_the_next_point() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.btrfs")]) {
        nothing_missing(BTRFS);
        nothing_missing(BTRFS_NODATASUM);
    }
}

fn nothing_missing(ground: Ground) {
    // On a volume at rest each event stands alone; while another file is written all the time, drains fall anywhere
    // within a change.
    for (rounds, busy) in [(1, false), (BUSY_ROUNDS, true)] {
        let wrong = run(ground, &|_| true, rounds, busy, &[]);
        assert!(wrong.is_empty(), "{:?}, {}, busy: {busy}: {wrong:#?}", ground.format, ground.options);
    }
}

#[test]
fn without_its_event_every_write_path_on_ext4_is_missed() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        everything_missing(EXT4, ext4::LEFT_OUT, ext4::NO_OTHER_BYTES);
    }
}

#[test]
fn without_names_from_fanotify_what_needs_them_is_missed() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        let (without, missed) = ext4::LEFT_OUT[ext4::LEFT_OUT.len() - 1];
        assert_eq!(without[0], "inotify/names");
        let names: BTreeSet<&str> = missed.iter().flat_map(|group| group.iter().copied()).collect();
        let wrong = run(EXT4_FANOTIFY, &|cell| names.contains(cell.name), 1, false, without);
        for name in names {
            assert!(
                wrong.keys().any(|line| line.starts_with(&format!("{name} (phase"))),
                "{name}: {wrong:?}"
            );
        }
    }
}

#[test]
fn without_its_event_every_write_path_on_xfs_is_missed() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.xfs")]) {
        everything_missing(XFS, xfs::LEFT_OUT, xfs::NO_OTHER_BYTES);
    }
}

#[test]
fn without_its_event_every_write_path_on_btrfs_is_missed() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.btrfs")]) {
        everything_missing(BTRFS, btrfs::LEFT_OUT, btrfs::NO_OTHER_BYTES);
    }
}

/// Event sources left out together, because one makes up for another, and the cells that must then go wrong.
type LeftOut = (&'static [&'static str], &'static [&'static [&'static str]]);

fn everything_missing(ground: Ground, left_out: &[LeftOut], no_other_bytes: &[&str]) {
    let mut to_miss: BTreeSet<&str> = cells()
        .iter()
        .filter(|cell| ground.can(cell))
        .map(|cell| cell.name)
        .filter(|name| !no_other_bytes.contains(name))
        .collect();
    let mut unmissed = Vec::new();
    for (without, groups) in left_out {
        let names: BTreeSet<&str> = groups.iter().flat_map(|group| group.iter().copied()).collect();
        let wrong = run(ground, &|cell| names.contains(cell.name), 1, false, without);
        for name in names {
            to_miss.remove(name);
            let known = cells().iter().any(|cell| cell.name == name && ground.can(cell));
            if known && !wrong.keys().any(|line| line.starts_with(&format!("{name} (phase"))) {
                unmissed.push((name, without));
            }
        }
    }
    assert!(unmissed.is_empty(), "right although left out: {unmissed:#?}");
    assert!(to_miss.is_empty(), "no event is named for {to_miss:?}");
}

/// The same event from the source of names that is used.
fn of_names(source: &str, names: &str) -> String {
    source.replace("inotify/", &format!("{names}/"))
}

/// A phase of a cell that was made, the point that must have it, and what was there.
struct Made {
    cell: &'static str,
    phase: u32,
    dir: String,
    point: PointId,
    state: paths::State,
}

/// Makes the changes of the chosen cells, each followed by a point; returns what the points got wrong.
fn run(
    ground: Ground,
    chosen: &dyn Fn(&Cell) -> bool,
    rounds: usize,
    busy: bool,
    without: &[&str],
) -> BTreeMap<String, Vec<String>> {
    let site = Site::new();
    let mount = Mount::with_options(&site.path("mount"), ground.format, 512, ground.options);
    let volume = mount.path().join("volume");
    fs::create_dir(&volume).expect("new");
    let mut prepared: Vec<(Cell, String, Step)> = Vec::new();
    for round in 0..rounds {
        for (number, cell) in cells().into_iter().enumerate() {
            if ground.can(&cell) && chosen(&cell) {
                let dir = format!("{number}-{round}");
                prepared.push((cell, dir.clone(), prepare(&cell, &volume.join(&dir))));
            }
        }
    }

    File::create(volume.join(MARKER)).expect("new");
    let mut receiver = site.receiver();
    let without: Vec<String> = without.iter().map(|source| of_names(source, ground.names)).collect();
    let without: Vec<&str> = without.iter().map(String::as_str).collect();
    let plan = site.sidecar(&receiver, &volume).arg("--names").arg(ground.names);
    let mut sidecar = plan.without(&without).start();
    settle(&mut sidecar, &volume);
    let points = site.points(&receiver);
    let tracker = points.last().and_then(|point| point["tracker"].as_str()).map(str::to_owned);
    assert_eq!(tracker.as_deref(), Some(ground.tracker.word()), "{points:?}");
    let bustle = busy.then(|| Bustle::start(&volume.join("busy"), ground.tracker));
    let mut made = Vec::new();
    for (cell, dir, mut step) in prepared {
        for phase in 0..cell.phases {
            step(phase).unwrap_or_else(|error| panic!("{} ({phase}): {error:#}", cell.name));
            let point = settle(&mut sidecar, &volume);
            let state = paths::state(&volume.join(&dir)).expect("readable");
            made.push(Made { cell: cell.name, phase, dir: dir.clone(), point, state });
        }
    }
    drop(bustle);
    sidecar.process.stop();
    receiver.process.stop();
    judge(&site.store(), &made).expect("the store can be read")
}

const MARKER: &str = "marker";

/// Waits for a point that covers everything done so far. What makes it come is a change of mode, which is announced by an
/// event that is never left out.
fn settle(sidecar: &mut Sidecar, volume: &Path) -> PointId {
    let marker = volume.join(MARKER);
    let mode = fs::metadata(&marker).expect("made before").permissions().mode() ^ 0o011;
    fs::set_permissions(&marker, fs::Permissions::from_mode(mode)).expect("it is ours");
    sidecar.caught_up(SOON).id
}

fn prepare(cell: &Cell, dir: &Path) -> Step {
    fs::create_dir(dir).expect("new");
    (cell.prepare)(dir).unwrap_or_else(|error| panic!("{}: {error:#}", cell.name))
}

/// Reads every point from the store itself: a restore for each would take minutes.
fn judge(store: &Path, made: &[Made]) -> Result<BTreeMap<String, Vec<String>>> {
    let volume: VolumeName = VOLUME.parse()?;
    let store = Store::open(store, StoreOptions::default())?;
    for point in store.points(&volume, None)?.iter().step_by(64) {
        store.checkpoint(&volume, point.id)?;
    }
    let cache: RefCell<HashMap<ChunkId, Vec<u8>>> = RefCell::default();
    let chunk = |id: ChunkId| {
        if let Some(content) = cache.borrow().get(&id) {
            return Ok(content.clone());
        }
        let content = store.read_content(volume.tenant(), id).context("a chunk")?.to_vec();
        cache.borrow_mut().insert(id, content.clone());
        Ok(content)
    };
    let mut wrong = BTreeMap::new();
    for made in made {
        let tree = store.tree_at(&volume, made.point)?;
        let lines = paths::differences(&made.state, &tree, &[&made.dir], &chunk)?;
        if !lines.is_empty() {
            wrong.insert(format!("{} (phase {}, {})", made.cell, made.phase, made.dir), lines);
        }
    }
    Ok(wrong)
}

/// Another file of the volume that is written all the time, until dropped.
struct Bustle {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Bustle {
    fn start(path: &Path, tracker: Tracker) -> Self {
        // A file that is compared as a whole, and written back, is not quiet in between as often.
        let pause = Duration::from_micros(if tracker == Tracker::Exact { 300 } else { 20_000 });
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, file) = (stop.clone(), File::create(path).expect("new"));
        let thread = thread::spawn(move || {
            for byte in (0..=u8::MAX).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                file.write_all_at(&[byte; 100], 0).expect("there is room");
                thread::sleep(pause);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Bustle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
