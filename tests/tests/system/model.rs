//! The model test: everything that can be done to a tree, while both sides are killed at random.
//!
//! `TIDELOCK_SEED=N` replays a seed that failed.

use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_tests::{
    acks::Ack,
    model::{Mutator, Powers, copy_tree, differences},
    mount::{Format, Mount},
    needs::{self, Need},
    site::{Receiver, Sidecar, Site, Tracker},
    wait::{self, SOON},
};

/// Operations tried in all.
const OPERATIONS: u64 = 12_000;
/// Operations tried where holes are compared, too.
const OPERATIONS_WITH_HOLES: u64 = 4_000;
/// Copies of the volume that points are compared with in the end.
const ORACLES: usize = 12;

#[test]
fn random_operations_and_kills_with_exact_ranges_on_ext4() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Ext4, 1024);
        trees_agree(&site, mount.path(), Tracker::Exact, Compared::AllButHoles);
    }
}

#[test]
fn random_operations_and_kills_keep_the_holes_on_ext4() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Ext4, 1024);
        trees_agree(&site, mount.path(), Tracker::Exact, Compared::HolesToo);
    }
}

#[test]
fn random_operations_and_kills_with_exact_ranges_on_xfs() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.xfs")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Xfs, 1024);
        trees_agree(&site, mount.path(), Tracker::Exact, Compared::AllButHoles);
    }
}

#[test]
fn random_operations_and_kills_with_inotify_alone() {
    let site = Site::new();
    trees_agree(&site, &site.new_dir("mount"), Tracker::Inotify, Compared::AllButHoles);
}

/// Beside the receiver's store, whose events are on the same file system.
#[test]
fn random_operations_and_kills_with_names_from_fanotify() {
    if needs::met(&[Need::Root]) {
        let site = Site::new();
        trees_agree(&site, &site.new_dir("mount"), Tracker::Fanotify, Compared::AllButHoles);
    }
}

/// What trees must agree in. Holes can be compared where nothing is reserved ahead (see [`Powers::holes_stay`]), and with the
/// volume itself only: `cp` does not keep them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    AllButHoles,
    HolesToo,
}

/// The volume as it was when a point was cut.
struct Oracle {
    point: Ack,
    copy: PathBuf,
}

struct Pair<'a> {
    site: &'a Site,
    volume: PathBuf,
    tracker: Tracker,
    receiver: Receiver,
    sidecar: Sidecar,
}

impl Pair<'_> {
    fn kill(&mut self, receiver: bool, sidecar: bool) {
        if receiver {
            self.receiver.process.kill();
        }
        if sidecar {
            self.sidecar.process.kill();
        }
        if receiver {
            self.receiver = receive(self.site);
        }
        if sidecar {
            self.sidecar = start(self.site, &self.receiver, &self.volume, self.tracker);
        }
    }
}

fn receive(site: &Site) -> Receiver {
    let mut receiver = site.receiver();
    receiver.process.allow("disconnected").allow("another sidecar took over");
    receiver
}

fn start(site: &Site, receiver: &Receiver, volume: &Path, tracker: Tracker) -> Sidecar {
    let mut sidecar = site.sidecar(receiver, volume).tracker(tracker).start();
    // The link breaks at every kill: that is what the test does.
    sidecar.process.allow("not connected");
    sidecar
}

fn trees_agree(site: &Site, parent: &Path, tracker: Tracker, compared: Compared) {
    let seed = std::env::var("TIDELOCK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(wait::now_ns);
    println!("replay with TIDELOCK_SEED={seed}");
    let volume = parent.join("volume");
    std::fs::create_dir(&volume).expect("new");
    // Neither inotify nor fanotify sees stores through mappings; a scrub finds them later, which is not what is tested here.
    let reserve = compared == Compared::AllButHoles;
    let powers = Powers { mmap: tracker == Tracker::Exact, root: needs::is_root(), reserve };
    let operations = if powers.holes_stay() { OPERATIONS_WITH_HOLES } else { OPERATIONS };
    let mut mutator = Mutator::new(&volume, seed, powers);
    let mut rng = StdRng::seed_from_u64(seed ^ 0x7469_6465);
    mutator.run(200);

    let receiver = receive(site);
    let sidecar = start(site, &receiver, &volume, tracker);
    let mut pair = Pair { site, volume: volume.clone(), tracker, receiver, sidecar };
    let mut oracles = Vec::new();
    for round in 0.. {
        if mutator.tried() >= operations {
            break;
        }
        mutator.run(rng.random_range(20..200));
        match rng.random_range(0..10) {
            0 => pair.kill(true, false),
            1 => pair.kill(false, true),
            2 => pair.kill(true, true),
            3..5 if oracles.len() < ORACLES => {
                let point = pair.sidecar.settle(SOON);
                mutator.rest();
                if powers.holes_stay() {
                    assert_equal(site, &pair.receiver, point, &volume, seed, true);
                }
                let copy = site.path(&format!("oracle-{round}"));
                copy_tree(&volume, &copy);
                oracles.push(Oracle { point, copy });
            }
            _ => {}
        }
    }
    let last = pair.sidecar.settle(SOON);
    println!("{} operations done, {} points", mutator.done(), pair.sidecar.acks().len());
    assert_equal(site, &pair.receiver, last, &volume, seed, powers.holes_stay());
    for Oracle { point, copy } in oracles {
        assert_equal(site, &pair.receiver, point, &copy, seed, false);
    }
}

fn assert_equal(site: &Site, receiver: &Receiver, point: Ack, expected: &Path, seed: u64, holes: bool) {
    let restored = site.path(&format!("restored-{}", point.id));
    site.restore(receiver, &point.id.to_string(), &restored);
    let wrong = differences(expected, &restored, holes);
    assert!(wrong.is_empty(), "seed {seed}, point {}: {wrong:#?}", point.id);
    std::fs::remove_dir_all(&restored).expect("it is ours");
}
