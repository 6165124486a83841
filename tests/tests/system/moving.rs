//! A planned move: nothing that was acknowledged stays behind, and nobody stands still for nothing.

use std::{fs, path::Path, process::Command, time::Duration};

use crate::databases::points;
use serde_json::Value;
use tidelock_tests::{
    needs::{self, Need},
    pg::{
        Heartbeat, Load, Pg,
        check::{Expected, check_copy},
        pgbench_init,
    },
    process::Process,
    procfs,
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

const SCALE: u32 = 1;
const FENCED: i32 = 3;
const USAGE: i32 = 64;
/// Two files, one after the other, for as long as it lives.
const WRITER: &str = "echo ready; i=0; while :; do i=$((i+1)); echo $i >a; echo $i >b; done";

#[test]
fn every_transaction_that_was_acknowledged_before_a_move_is_on_the_other_side() {
    if !needs::met(&[Need::PostgreSql]) {
        return;
    }
    for round in 0..points(2, 10) {
        let site = Site::new();
        let data = site.path("data");
        let mut pg = Pg::init(&data, &site.path("run"));
        pg.start();
        pgbench_init(&pg, SCALE);
        let mut receiver = site.receiver();
        receiver.process.allow("promoted").allow("fenced");
        let plan = site.sidecar(&receiver, &data).arg("--on-fence=stop");
        let pid_file = format!("--pause-process={}/postmaster.pid", data.display());
        let mut sidecar = plan.arg(&pid_file).start();
        sidecar.process.allow("fenced");
        sidecar.caught_up(4 * SOON);
        let heartbeat = Heartbeat::start(&pg, Duration::ZERO);
        let load = Load::start(&pg, 4, Duration::from_secs(600));
        let enough = 500 + 300 * round;
        wait::until_true("transactions", 4 * SOON, || heartbeat.acked().len() > enough);
        // A load that never rests delays the copy, not the move.
        let copy = site.path("moved");
        let to = copy.to_str().expect("test paths are UTF-8");
        let report = site.operator(&receiver, &["move", VOLUME, "--to", to]);
        let beats = heartbeat.stop();
        load.kill();
        pg.kill();
        assert_eq!(sidecar.process.wait(SOON).code(), Some(FENCED));
        let stood = &report["recovery"]["fence_ms"];
        println!("round {round}: {} rows acknowledged, fenced after {stood} ms", beats.len());
        let expected = Expected { scale: SCALE, beats: &beats, cut_ns: u64::MAX };
        let wrong = check_copy(&copy, &site.path("copy-run"), expected);
        assert!(wrong.is_empty(), "round {round}, {report}: {}", wrong.join("; "));
        assert_eq!(report["recovery"]["rpo_ms"], 0.0, "{report}");
    }
}

fn application(site: &Site, volume: &Path, name: &str, script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(volume);
    let app = Process::spawn(name, &mut command, &site.path(&format!("{name}.log")));
    wait::until_true("the application works", SOON, || app.log().contains("ready"));
    app
}

/// What a move that must fail says.
fn refused(site: &Site, receiver: &Receiver) -> String {
    let to = site.path("moved");
    let to = to.to_str().expect("test paths are UTF-8");
    let out = site.operator_command(receiver, &["move", VOLUME, "--to", to]).output().expect("it can be run");
    assert!(!out.status.success(), "it was moved: {}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn writes_on(volume: &Path) -> bool {
    let before = fs::read(volume.join("a")).expect("it is there");
    let deadline = std::time::Instant::now() + SOON;
    while std::time::Instant::now() < deadline {
        if fs::read(volume.join("a")).expect("it is there") != before {
            return true;
        }
    }
    false
}

fn epoch(site: &Site, receiver: &Receiver) -> Value {
    site.operator(receiver, &["status"])[0]["epoch"].clone()
}

#[test]
fn a_move_without_means_to_stop_the_application_changes_nothing() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let _app = application(&site, &volume, "application", WRITER);
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("a planned move is refused");
    wait::until_true("a point", SOON, || !sidecar.acks().is_empty());
    let said = refused(&site, &receiver);
    assert!(said.contains("--on-fence stop"), "{said}");
    assert_eq!(epoch(&site, &receiver), 1);
    let acks = sidecar.acks().len();
    wait::until_true("further points", SOON, || sidecar.acks().len() > acks + 3);
}

#[test]
fn a_move_is_refused_while_somebody_else_writes_and_the_application_runs_on() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let app = application(&site, &volume, "application", WRITER);
    let other = site.new_dir("volume/other");
    let _other = application(&site, &other, "other", WRITER);
    let mut receiver = site.receiver();
    receiver.process.allow("promotion");
    let plan = site.sidecar(&receiver, &volume).arg("--on-fence=stop");
    let mut sidecar = plan.arg(&format!("--pause-process={}", app.pid())).start();
    sidecar
        .process
        .allow("nothing came of a planned move")
        .allow("not connected")
        .allow("a promotion was tried");
    wait::until_true("points", SOON, || sidecar.acks().len() > 3);
    let said = refused(&site, &receiver);
    assert!(said.contains("somebody else writes there"), "{said}");
    assert_eq!(epoch(&site, &receiver), 1);
    assert!(writes_on(&volume), "the application stands still");
    let acks = sidecar.acks().len();
    wait::until_true("further points", SOON, || sidecar.acks().len() > acks + 3);
}

#[test]
fn a_fenced_sidecar_ends_its_application_if_asked_to() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    // With a child that would write on.
    let script = format!("({WRITER}) & {}", WRITER.replace("ready;", "ready; mkdir -p c; cd c;"));
    let mut app = application(&site, &volume, "application", &script);
    let child = *procfs::children(app.pid()).first().expect("it has one");
    let mut receiver = site.receiver();
    receiver.process.allow("promoted").allow("fenced");
    let plan = site.sidecar(&receiver, &volume).arg("--on-fence=stop");
    let mut sidecar = plan.arg(&format!("--pause-process={}", app.pid())).start();
    sidecar.process.allow("fenced");
    wait::until_true("points", SOON, || sidecar.acks().len() > 3);
    let to = site.path("promoted");
    site.operator(&receiver, &["promote", VOLUME, "--to", to.to_str().expect("test paths are UTF-8")]);
    assert_eq!(app.wait(SOON).code(), None, "it was not killed");
    wait::until_true("its child is gone", SOON, || !Path::new(&format!("/proc/{child}")).exists());
    assert_eq!(sidecar.process.wait(SOON).code(), Some(FENCED));
}

#[test]
fn the_whole_machine_is_not_ended_by_mistake() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).arg("--on-fence=stop").start_blind();
    sidecar.allow("--on-fence stop");
    assert_eq!(sidecar.wait(SOON).code(), Some(USAGE));
    assert!(sidecar.log().contains("--pause-process"), "{}", sidecar.log());
}
