//! Groups: several volumes of one sidecar are cut at one instant and share their numbers.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    path::Path,
    process::Command,
    time::Duration,
};

use tidelock_proto::{
    ChunkId, PointId, Tree, VolumeName,
    point::{Consistency, Point},
};
use tidelock_receiver::store::{Store, StoreOptions};
use tidelock_tests::{
    compare::assert_same,
    mount::{Format, Mount},
    needs::{self, Need},
    process::Process,
    site::{Receiver, Sidecar, SidecarPlan, Site, VOLUME},
    wait::{self, SOON},
    witness::{self, ALL, InTree, Source, check},
};

use crate::databases::points;

/// The other volume of the group.
const WAL: &str = "acme/wal";
/// Points of the group that are judged, and how many it takes to believe them.
const POINTS: (usize, usize) = (1500, 20_000);

/// A sidecar of [`VOLUME`] and [`WAL`].
fn group<'a>(site: &'a Site, receiver: &Receiver, data: &Path, wal: &Path) -> SidecarPlan<'a> {
    let both = ["--tenant", "acme", "--volume", "data", "--volume", "wal"];
    let identity = match site.path("both.id") {
        there if there.exists() => there,
        _ => site.issue("sidecar", &both, "both.id"),
    };
    let wal = format!("{WAL}={}", wal.display());
    site.sidecar(receiver, data).identity(&identity).arg("--volume").arg(&wal)
}

/// Both volumes have had a durable point since this was asked.
fn settle(sidecar: &mut Sidecar) {
    let ack = sidecar.settle(SOON);
    wait::until_true("the same point in both volumes", SOON, || {
        sidecar.acks().iter().filter(|other| other.id == ack.id).count() >= 2
    });
}

#[test]
fn every_point_of_two_volumes_is_one_instant_of_both() {
    if !needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4"), Need::Program("mkfs.xfs")]) {
        return;
    }
    let site = Site::new();
    let mounts =
        [Mount::new(&site.path("data"), Format::Ext4, 512), Mount::new(&site.path("wal"), Format::Xfs, 512)];
    let roots = mounts.each_ref().map(|mount| mount.path().join("volume"));
    roots.iter().for_each(|root| std::fs::create_dir(root).expect("new"));
    let log = site.path("witness.log");
    let mut program = Command::new(env!("CARGO_BIN_EXE_witness"));
    program.arg("all").args(&roots).arg(&log).arg("100");
    let mut witness = Process::spawn("witness", &mut program, &site.path("witness.out"));
    wait::until_true("the first value", SOON, || log.metadata().is_ok_and(|meta| meta.len() > 0));

    let mut receiver = site.receiver();
    let mut sidecar = group(&site, &receiver, &roots[0], &roots[1]).start();
    let wanted = points(POINTS.0, POINTS.1);
    wait::until_true("enough points", SOON + Duration::from_millis(50) * wanted as u32, || {
        sidecar.process.must_run();
        witness.must_run();
        sidecar.acks().len() >= 2 * wanted
    });
    witness.kill();
    settle(&mut sidecar);
    sidecar.process.stop();
    receiver.process.stop();

    let readings = readings(&site.store());
    let across = readings.iter().filter(|reading| reading.counters[0] != reading.counters[1]).count();
    println!("{} points of the group, {across} of them between the volumes", readings.len());
    assert!(readings.len() >= wanted, "only {} points of the group", readings.len());
    let log = witness::read_log(&log).expect("readable");
    let wrong = check::violations(&readings, &log);
    assert!(wrong.is_empty(), "{} violations, the first: {}", wrong.len(), wrong[0]);
}

/// The counters at every crash point that both volumes have.
fn readings(store: &Path) -> Vec<check::Reading> {
    let volumes: [VolumeName; 2] = [VOLUME, WAL].map(|name| name.parse().expect("a volume name"));
    let store = Store::open(store, StoreOptions::default()).expect("the receiver has left it");
    let points = volumes.each_ref().map(|volume| {
        let points = store.points(volume, None).expect("the volume is there");
        for point in points.iter().step_by(64) {
            store.checkpoint(volume, point.id).expect("every point has its tree");
        }
        points.into_iter().map(|point| (point.id, point)).collect::<BTreeMap<PointId, Point>>()
    });
    let cache = RefCell::new(HashMap::new());
    let chunk = |id: ChunkId| -> Result<Vec<u8>, String> {
        if let Some(content) = cache.borrow().get(&id) {
            return Ok(Vec::clone(content));
        }
        let content = store.read_content("acme", id).map_err(|error| error.to_string())?.to_vec();
        cache.borrow_mut().insert(id, content.clone());
        Ok(content)
    };
    let mut readings = Vec::new();
    for (id, point) in &points[0] {
        let Some(other) = points[1].get(id) else { continue };
        assert_eq!(point.cut.time_ns, other.cut.time_ns, "{id} is two instants");
        assert_eq!((&point.cut.group[..], &other.cut.group[..]), (&volumes[..], &volumes[..]));
        if [point, other].iter().any(|point| point.cut.consistency != Consistency::Crash) {
            continue;
        }
        let trees: [Tree; 2] =
            volumes.each_ref().map(|volume| store.tree_at(volume, *id).expect("every point has its tree"));
        let sources = trees.each_ref().map(|tree| InTree { tree, chunk: &chunk });
        let sources: Vec<&dyn Source> = sources.iter().map(|source| source as &dyn Source).collect();
        let counters = witness::counters_in(ALL, &sources).unwrap_or_else(|reason| panic!("{id}: {reason}"));
        readings.push(check::Reading { id: *id, cut_ns: point.cut.time_ns, counters });
    }
    readings
}

#[test]
fn a_volume_that_joins_goes_on_above_the_number_of_the_other() {
    let site = Site::new();
    let (data, wal) = (site.new_dir("data"), site.new_dir("wal"));
    let mut receiver = site.receiver();
    let mut alone = site.sidecar(&receiver, &data).start();
    for _ in 0..3 {
        alone.settle(SOON);
    }
    let before = alone.settle(SOON).id;
    alone.process.stop();
    std::fs::write(wal.join("log"), "of the other volume").expect("writable");
    let mut both = group(&site, &receiver, &data, &wal).start();
    settle(&mut both);
    both.process.stop();
    receiver.process.stop();

    let store = Store::open(&site.store(), StoreOptions::default()).expect("the receiver has left it");
    let ids = |volume: &str| {
        let points = store.points(&volume.parse().expect("valid"), None).expect("the volume is there");
        points.iter().map(|point| point.id.to_string()).collect::<Vec<_>>()
    };
    let (of_data, of_wal) = (ids(VOLUME), ids(WAL));
    let joined = of_data.iter().position(|id| *id == before.to_string()).expect("it was durable") + 1;
    assert_eq!(of_data[joined..], of_wal, "the points of the group have one number in both volumes");
    assert!(!of_wal.is_empty());
}

#[test]
fn a_group_is_promoted_to_one_point_of_both() {
    let site = Site::new();
    let (data, wal) = (site.new_dir("data"), site.new_dir("wal"));
    let mut receiver = site.receiver();
    receiver.process.allow("promoted").allow("fenced");
    let mut old = group(&site, &receiver, &data, &wal).start();
    old.process.allow("fenced");
    let mut written = 0;
    let mut write = || {
        written += 1;
        for dir in [&data, &wal] {
            std::fs::write(dir.join("next"), written.to_string()).expect("writable");
            std::fs::rename(dir.join("next"), dir.join("file")).expect("writable");
        }
    };
    for _ in 0..20 {
        write();
    }
    settle(&mut old);
    write();
    let (new_data, new_wal) = (site.path("new-data"), site.path("new-wal"));
    let also = format!("{WAL}={}", new_wal.display());
    let to = new_data.to_str().expect("test paths are UTF-8");
    let promoted = site.operator(&receiver, &["promote", VOLUME, "--to", to, "--also", &also]);
    assert_eq!(promoted[0]["point"]["id"], promoted[1]["point"]["id"], "{promoted}");
    assert_eq!(old.process.wait(SOON).code(), Some(3), "the old sidecar goes on");
    let number = |dir: &Path| {
        let text = std::fs::read_to_string(dir.join("file")).expect("promoted");
        text.parse::<i64>().expect("a number")
    };
    let ahead = number(&new_data) - number(&new_wal);
    assert!((0..=1).contains(&ahead), "the log is written last: {ahead}");

    let mut new = group(&site, &receiver, &new_data, &new_wal).epoch(epoch_of(&promoted)).start();
    settle(&mut new);
    new.process.stop();
}

#[test]
fn a_promotion_of_a_group_is_taken_back_for_both_volumes() {
    let site = Site::new();
    let (data, wal) = (site.new_dir("data"), site.new_dir("wal"));
    let mut receiver = site.receiver();
    receiver.process.allow("promoted").allow("fenced").allow("refused").allow("disconnected");
    let write = |dirs: [&Path; 2], text: &str| {
        dirs.iter().for_each(|dir| std::fs::write(dir.join("file"), text).expect("writable"));
    };
    write([&data, &wal], "before");
    let mut old = group(&site, &receiver, &data, &wal).start();
    old.process.allow("fenced");
    settle(&mut old);
    let (new_data, new_wal) = (site.path("new-data"), site.path("new-wal"));
    let also = format!("{WAL}={}", new_wal.display());
    let to = new_data.to_str().expect("test paths are UTF-8");
    let promoted =
        site.operator(&receiver, &["promote", VOLUME, "--to", to, "--also", &also, "--window", "1h"]);
    for one in [&promoted[0], &promoted[1]] {
        assert_eq!(one["window"]["point"], one["point"]["id"], "{promoted}");
    }
    assert_eq!(old.process.wait(SOON).code(), Some(3), "the old sidecar goes on");
    write([&data, &wal], "what nobody has replicated");
    let mut new = group(&site, &receiver, &new_data, &new_wal).epoch(epoch_of(&promoted)).start();
    new.process.allow("fenced");
    write([&new_data, &new_wal], "written in vain");
    settle(&mut new);

    // Killed with the one fenced and the other not, and run again, twice.
    let mut killed = site.operator_command(&receiver, &["unpromote", VOLUME, WAL]);
    let killed = killed.env("TIDELOCK_TEST_AT", "kill:complete").output().expect("it can be run");
    assert!(!killed.status.success());
    assert_eq!(new.process.wait(SOON).code(), Some(3), "the fence of one is the sidecar's");
    for _ in 0..2 {
        let back = site.operator(&receiver, &["unpromote", VOLUME, WAL]);
        assert_eq!(back[0]["point"]["id"], promoted[0]["point"]["id"], "{back}");
        assert_eq!(back[0]["point"]["id"], back[1]["point"]["id"], "{back}");
    }
    let back = site.operator(&receiver, &["unpromote", VOLUME, WAL]);
    let command = back[0]["next_command"].as_str().expect("a command");
    let mut plan = group(&site, &receiver, &data, &wal).epoch(epoch_of(&back));
    if command.contains("--raise-epoch") {
        plan = plan.arg("--raise-epoch");
    }
    let mut old = plan.start();
    settle(&mut old);
    old.process.stop();
    for (volume, dir) in [(VOLUME, &data), (WAL, &wal)] {
        let copy = site.path(&format!("copy-of-{}", dir.file_name().expect("a name").display()));
        site.restore_volume(&receiver, volume, "latest", &copy);
        assert_same(dir, &copy);
    }
}

/// The epoch that the printed command has.
fn epoch_of(reports: &serde_json::Value) -> u64 {
    let command = reports[0]["next_command"].as_str().expect("a command");
    let epoch = command.split_once("--epoch ").expect("it names the epoch").1;
    epoch.split(' ').next().and_then(|epoch| epoch.parse().ok()).expect("a number")
}
