//! The write-order witness: no point shows a state that never was.

use std::{cell::RefCell, collections::HashMap, path::Path, process::Command, time::Duration};

use tidelock_proto::{ChunkId, VolumeName, point::Consistency};
use tidelock_receiver::store::{Store, StoreOptions};
use tidelock_tests::{
    mount::{Format, Mount},
    needs::{self, Need},
    process::Process,
    site::{Site, Tracker, VOLUME},
    wait::{self, SOON},
    witness::{self, InTree, check},
};

const POINTS: usize = 5000;

#[test]
fn every_point_with_exact_ranges_on_ext4_is_an_instant_that_was() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Ext4, 512);
        every_point_was(&site, mount.path(), Tracker::Exact, POINTS, &[]);
    }
}

#[test]
fn every_point_with_exact_ranges_on_xfs_is_an_instant_that_was() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.xfs")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Xfs, 512);
        every_point_was(&site, mount.path(), Tracker::Exact, POINTS, &[]);
    }
}

#[test]
fn every_point_with_inotify_alone_is_an_instant_that_was() {
    let site = Site::new();
    every_point_was(&site, &site.new_dir("mount"), Tracker::Inotify, POINTS, &[]);
}

#[test]
fn every_point_with_inotify_and_pauses_is_an_instant_that_was() {
    let site = Site::new();
    let arguments =
        ["--escalate=pause", "--cut-deadline=0ms", "--pause-process=witness.pid", "--trace-cuts=cuts"];
    every_point_was(&site, &site.new_dir("mount"), Tracker::Inotify, 1500, &arguments);
    let cuts = tidelock_tests::cuts::read(&site.path("cuts"));
    let paused = cuts.iter().filter(|cut| cut.id.is_some() && !cut.paused.is_zero()).count();
    println!("{paused} points were cut in pauses");
    assert!(paused >= 10, "only {paused} points were cut in pauses");
}

/// Judges `least` or more points, taken by a sidecar with more arguments.
fn every_point_was(site: &Site, parent: &Path, tracker: Tracker, least: usize, arguments: &[&str]) {
    let (volume, log) = (parent.join("volume"), site.path("witness.log"));
    std::fs::create_dir(&volume).expect("new");
    let mut program = Command::new(env!("CARGO_BIN_EXE_witness"));
    let mut witness = Process::spawn(
        "witness",
        program.arg("calls").arg(&volume).arg(&log).arg("100"),
        &site.path("witness.out"),
    );
    wait::until_true("the first value", SOON, || log.metadata().is_ok_and(|meta| meta.len() > 0));

    std::fs::write(site.path("witness.pid"), witness.pid().to_string()).expect("writable");
    let mut receiver = site.receiver();
    let plan = site.sidecar(&receiver, &volume).tracker(tracker);
    let mut sidecar = arguments.iter().fold(plan, |plan, argument| plan.arg(argument)).start();
    wait::until_true("enough points", Duration::from_secs(180), || {
        sidecar.process.must_run();
        witness.must_run();
        sidecar.acks().len() >= least
    });
    witness.kill();
    sidecar.settle(SOON);
    let acks = sidecar.acks().len();
    sidecar.process.stop();
    receiver.process.stop();

    let log = witness::read_log(&log).expect("readable");
    let (readings, mut wrong) = readings(&site.store());
    wrong.extend(check::violations(&readings, &log));
    let within =
        readings.iter().filter(|reading| reading.counters[0] != reading.counters[witness::LENGTH - 1]);
    println!(
        "{tracker:?}: {} crash points of {acks} acknowledged, {} of them between two writes of a value",
        readings.len(),
        within.count()
    );
    assert!(wrong.is_empty(), "{} violations, the first: {}", wrong.len(), wrong[0]);
    assert!(readings.len() >= least, "only {} crash points", readings.len());
}

/// The counters of every crash point, read from the store itself: thousands of restores would take an hour. And what is wrong
/// with the points that cannot be read: the writer never left a counter unreadable, so such a point never was.
fn readings(store: &Path) -> (Vec<check::Reading>, Vec<String>) {
    let volume: VolumeName = VOLUME.parse().expect("a volume name");
    let store = Store::open(store, StoreOptions::default()).expect("the receiver has left it");
    let points = store.points(&volume, None).expect("the volume is there");
    let cache = RefCell::new(HashMap::new());
    let chunk = |id: ChunkId| -> Result<Vec<u8>, String> {
        if let Some(content) = cache.borrow().get(&id) {
            return Ok(Vec::clone(content));
        }
        let content = store.read_content(volume.tenant(), id).map_err(|error| error.to_string())?.to_vec();
        cache.borrow_mut().insert(id, content.clone());
        Ok(content)
    };
    // So that no tree is more than a few commits from one that can be loaded.
    for point in points.iter().step_by(64) {
        store.checkpoint(&volume, point.id).expect("every point has its tree");
    }
    let (mut readings, mut wrong) = (Vec::new(), Vec::new());
    for point in points.iter().filter(|point| point.cut.consistency == Consistency::Crash) {
        let tree = store.tree_at(&volume, point.id).map_err(|error| error.to_string());
        match tree.and_then(|tree| witness::counters(&InTree { tree: &tree, chunk: &chunk })) {
            Ok(counters) => {
                readings.push(check::Reading { id: point.id, cut_ns: point.cut.time_ns, counters });
            }
            Err(reason) => wrong.push(format!("{} cannot be read: {reason}", point.id)),
        }
    }
    (readings, wrong)
}
