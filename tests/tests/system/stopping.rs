//! A pod that is deleted loses nothing: the kubelet ends the application, and the native sidecar after it.

use std::{fs, process::Command};

use tidelock_tests::{
    compare::compare,
    needs::{Need, met},
    pg::Pg,
    process::Process,
    site::{Site, VOLUME},
    wait::{self, SOON},
};

/// Writes all the time, and much at its end: what it was asked to end for.
const APPLICATION: &str = "trap 'for i in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/urandom >last-$i; done; \
     mv a moved; echo bye >bye; exit 0' TERM; echo ready; i=0; while :; do i=$((i+1)); echo $i >a; done";

#[test]
fn what_an_application_writes_when_it_is_ended_is_in_the_last_point() {
    for round in 0..3 {
        let site = Site::new();
        let volume = site.new_dir("volume");
        let mut command = Command::new("bash");
        command.args(["-c", APPLICATION]).current_dir(&volume);
        let receiver = site.receiver();
        let mut sidecar = site.sidecar(&receiver, &volume).start();
        let mut app = Process::spawn("application", &mut command, &site.path("app.log"));
        wait::until_true("the application works", SOON, || app.log().contains("ready"));
        wait::until_true("points", SOON, || sidecar.acks().len() > 2 * round);
        // As the kubelet does it: the containers first, and when they have ended the sidecars, each by SIGTERM.
        assert!(app.stop().success());
        assert_eq!(sidecar.process.stop().code(), Some(0));
        let restored = site.path("restored");
        site.restore(&receiver, "latest", &restored);
        let differences = compare(&volume, &restored).expect("both can be read");
        assert!(differences.is_empty(), "round {round}: {differences:#?}");
        assert_eq!(fs::read_to_string(restored.join("bye")).expect("there"), "bye\n");
    }
}

#[test]
fn a_database_that_was_shut_down_is_restored_as_one_that_was() {
    if !met(&[Need::PostgreSql]) {
        return;
    }
    let site = Site::new();
    let data = site.path("data");
    let mut pg = Pg::init(&data, &site.path("run"));
    pg.start();
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &data).start();
    sidecar.caught_up(2 * SOON);
    pg.connect().batch_execute("create table t as select generate_series(1, 5000) i").expect("written");
    pg.stop();
    assert_eq!(sidecar.process.stop().code(), Some(0));
    let restored = site.path("restored");
    site.restore(&receiver, "latest", &restored);
    let differences = compare(&data, &restored).expect("both can be read");
    assert!(differences.is_empty(), "{differences:#?}");
    let there = Pg::at(&restored, &site.path("run-there"));
    let said = tidelock_tests::process::run(there.command("pg_controldata").arg("-D").arg(&restored));
    assert!(said.contains("shut down") && !said.contains("in production"), "{said}");
}

#[test]
fn without_a_receiver_the_end_is_in_time_and_says_what_is_missing() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).arg("--drain-timeout=1s").start();
    sidecar.caught_up(SOON);
    receiver.process.kill();
    fs::write(volume.join("late"), "late").expect("writable");
    sidecar.process.allow("");
    let ended = sidecar.process.stop();
    assert_eq!(ended.code(), Some(1), "{}", sidecar.process.log());
    assert!(sidecar.process.log().contains("what changed last is not on the receiver"));
    // Nothing is lost with it: whoever comes next in the same place sends it.
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.caught_up(SOON);
    let restored = site.path("restored");
    site.restore_volume(&receiver, VOLUME, "latest", &restored);
    assert_eq!(fs::read_to_string(restored.join("late")).expect("there"), "late");
}
