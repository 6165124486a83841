//! PostgreSQL under load: any point is a database that recovers, with all it had promised.

use std::{fs, path::Path, time::Duration};

use crate::databases::{FENCED, points};
use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidelock_tests::{
    acks::Ack,
    cuts,
    mount::{Format, Mount},
    needs::{self, Need},
    pg::{
        Heartbeat, Load, Pg,
        check::{Expected, check_copy},
        pgbench_init,
    },
    procfs,
    site::{Site, Tracker},
    wait::{self, SOON},
};

const SCALE: u32 = 3;
const CLIENTS: u32 = 4;
/// Seeding, checkpoints and a busy machine.
const SETTLE: Duration = Duration::from_secs(120);

#[test]
fn random_points_with_exact_ranges_recover_completely() {
    let needs = [Need::PostgreSql, Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")];
    if needs::met(&needs) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Ext4, 2048);
        let count = points(20, 50);
        random_points_recover(&site, mount.path(), Tracker::Exact, None, count, count);
    }
}

#[test]
fn random_points_with_inotify_alone_recover_completely() {
    if needs::met(&[Need::PostgreSql]) {
        let site = Site::new();
        // Large files that change all the time are seldom quiet without exact ranges: there may be few points.
        random_points_recover(&site, &site.new_dir("mount"), Tracker::Inotify, None, 1, 8);
    }
}

#[test]
fn random_points_with_inotify_and_pauses_recover_completely() {
    if needs::met(&[Need::PostgreSql]) {
        let site = Site::new();
        let limit = Some(Duration::from_millis(250));
        random_points_recover(&site, &site.new_dir("mount"), Tracker::Inotify, limit, 5, 3);
    }
}

/// Of the points cut in 30 s, `least` or more, `check` are promoted and started. With a `pause_limit` the server is paused for them.
fn random_points_recover(
    site: &Site,
    parent: &Path,
    tracker: Tracker,
    pause_limit: Option<Duration>,
    least: usize,
    check: usize,
) {
    let data = parent.join("data");
    let mut pg = Pg::init(&data, &site.path("run"));
    let mut receiver = site.receiver();
    let trace = site.path("cuts");
    let mut plan = site.sidecar(&receiver, &data).tracker(tracker);
    if let Some(limit) = pause_limit {
        plan = plan.arg("--escalate=pause").arg(&format!("--pause-limit={}ms", limit.as_millis()));
        plan = plan.arg(&format!("--pause-process={}/postmaster.pid", data.display()));
        plan = plan.arg("--trace-cuts").arg(trace.to_str().expect("test paths are UTF-8"));
    }
    let mut sidecar = plan.start();
    pg.start();
    pgbench_init(&pg, SCALE);
    let heartbeat = Heartbeat::start(&pg, Duration::from_millis(2));
    // Points before this one hold tables that are not filled yet.
    let filled = sidecar.covered(heartbeat_is_committed(&heartbeat), SETTLE);
    let load = Load::start(&pg, CLIENTS, Duration::from_secs(30));
    let tps = load.finish();
    let beats = heartbeat.stop();
    sidecar.caught_up(SETTLE);
    pg.stop();

    let acks = sidecar.acks();
    let candidates: Vec<Ack> = acks.into_iter().filter(|ack| ack.id >= filled.id).collect();
    println!("{tracker:?}: {} points in 30 s, {tps:.0} TPS beside it", candidates.len());
    if let Some(limit) = pause_limit {
        let pauses: Vec<Duration> =
            cuts::read(&trace).iter().map(|cut| cut.paused).filter(|paused| !paused.is_zero()).collect();
        let longest = pauses.iter().max().expect("a busy database was paused");
        println!("{} pauses, the longest {longest:?}", pauses.len());
        assert!(*longest < cuts::longest_pause(limit), "a pause of {longest:?}");
    }
    let mut rng = StdRng::seed_from_u64(wait::now_ns());
    let chosen: Vec<&Ack> = candidates.choose_multiple(&mut rng, check).collect();
    let count = chosen.len();
    assert!(candidates.len() >= least, "only {} points", candidates.len());
    sidecar.process.allow("fenced");
    let mut bad = Vec::new();
    for ack in chosen {
        let copy = site.path("copy");
        site.promote(&mut receiver, &ack.id.to_string(), &copy);
        let expected = Expected { scale: SCALE, beats: &beats, cut_ns: ack.cut_ns };
        let wrong = check_copy(&copy, &site.path("copy-run"), expected);
        if !wrong.is_empty() {
            bad.push(format!("{}: {}", ack.id, wrong.join("; ")));
        }
        fs::remove_dir_all(&copy).expect("the copy is ours");
    }
    assert_eq!(sidecar.process.wait(SOON).code(), Some(FENCED));
    assert!(bad.is_empty(), "{} of {count} points are bad:\n{}", bad.len(), bad.join("\n"));
}

/// When a heartbeat was acknowledged, of which there must be one.
fn heartbeat_is_committed(heartbeat: &Heartbeat) -> u64 {
    let beat = wait::until("a heartbeat", SOON, || heartbeat.acked().first().copied());
    beat.acked_ns
}

#[test]
fn memory_stays_bounded_while_the_receiver_is_away_under_load() {
    if !needs::met(&[Need::PostgreSql]) {
        return;
    }
    let site = Site::new();
    let data = site.path("data");
    let mut pg = Pg::init(&data, &site.path("run"));
    pg.start();
    pgbench_init(&pg, SCALE);
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &data).start();
    sidecar.process.allow("not connected");
    let heartbeat = Heartbeat::start(&pg, Duration::from_millis(10));
    sidecar.covered(heartbeat_is_committed(&heartbeat), SETTLE);

    receiver.process.kill();
    let tps = Load::start(&pg, CLIENTS, Duration::from_secs(60)).finish();
    let peak = procfs::peak_memory_bytes(sidecar.process.pid());
    println!("a minute alone at {tps:.0} TPS: peak {} MiB", peak >> 20);
    assert!(peak < 128 << 20, "{} MiB while the receiver was away", peak >> 20);

    let _receiver = site.receiver();
    heartbeat.stop();
    sidecar.caught_up(SETTLE);
    let peak = procfs::peak_memory_bytes(sidecar.process.pid());
    println!("after catching up: peak {} MiB", peak >> 20);
    assert!(peak < 128 << 20, "{} MiB while catching up", peak >> 20);
    pg.stop();
}
