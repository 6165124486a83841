//! What an operator sees at a glance: what comes, how the last test went and whether the next one is late, and what is still fetched.

use std::{fs, os::unix::process::ExitStatusExt, path::PathBuf};

use serde_json::Value;
use tidelock_tests::{
    needs::{self, Need},
    process::{self, Process},
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

/// No page of it is like another, and none can be compressed.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 11u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state ^ (state >> 29)).to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}

fn status(site: &Site, receiver: &Receiver) -> Value {
    site.operator(receiver, &["status", VOLUME])[0].clone()
}

#[test]
fn throughput_is_told_while_something_comes() {
    const BYTES: usize = 32 << 20;
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    // Beside so much a connection's last words can be lost.
    receiver.process.allow("disconnected peer=operator");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let first = sidecar.settle(SOON);
    fs::write(volume.join("noise"), noise(BYTES)).expect("writable");
    sidecar.settle(SOON);
    let busy = status(&site, &receiver);
    let rate = |status: &Value, field: &str| status["throughput"][field].as_f64().expect("it is told");
    // The mean of at most five seconds, in which all of it came.
    for field in ["content_bytes_per_s", "wire_bytes_per_s"] {
        let rate = rate(&busy, field);
        assert!((BYTES as f64 / 5.5..BYTES as f64 * 2.5).contains(&rate), "{busy}");
    }
    wait::until_true("nothing comes any more but a sign of life", SOON, || {
        let idle = status(&site, &receiver);
        rate(&idle, "content_bytes_per_s") == 0.0 && rate(&idle, "wire_bytes_per_s") < 5_000.0
    });
    let last = sidecar.settle(SOON);
    let span = (last.cut_ns - first.cut_ns) / 1_000_000_000;
    assert!(status(&site, &receiver)["span_s"].as_u64() >= Some(span));
    sidecar.process.stop();
}

#[test]
fn the_last_test_is_told_and_that_the_next_one_is_late() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let first = sidecar.settle(SOON).id.to_string();
    let second = sidecar.settle(SOON).id.to_string();
    assert_eq!(status(&site, &receiver)["last_test"], Value::Null);
    let to = site.path("rehearsal");
    let to = to.to_str().expect("test paths are UTF-8");
    let test = |at: &str, run: &str| {
        let asked = ["test", VOLUME, "--at", at, "--to", to, "--run", run];
        process::output(&mut site.operator_command(&receiver, &asked))
    };
    assert!(test(&second, "true").status.success());
    let passed = status(&site, &receiver)["last_test"].clone();
    assert_eq!((&passed["passed"], &passed["point"]), (&true.into(), &second.as_str().into()), "{passed}");
    assert!(passed["rto_ms"].as_u64().is_some() && passed["age_s"].as_u64() < Some(30), "{passed}");
    assert_eq!((&passed["every_s"], &passed["overdue"]), (&Value::Null, &false.into()), "{passed}");
    // The newest result counts, whatever point it is of. Results have whole seconds, and the later of two in one is the newer.
    wait::until_true("the failure is later", SOON, || {
        assert_eq!(test(&first, "exit 3").status.code(), Some(1));
        status(&site, &receiver)["last_test"]["passed"] == false
    });
    let failed = status(&site, &receiver)["last_test"].clone();
    assert_eq!(
        (&failed["point"], &failed["reason"]),
        (&first.as_str().into(), &"exit status: 3".into()),
        "{failed}"
    );

    // A drill that is ended before its next round is late soon; one that was not to have another never is.
    let drill = |more: &[&str]| {
        let mut command = site.operator_command(&receiver, &["drill", VOLUME, "--to", to, "--every", "1s"]);
        command.args(more);
        command
    };
    let mut endless = Process::spawn("drill", &mut drill(&[]), &site.path("drill.log"));
    wait::until_true("the drill has begun", SOON, || status(&site, &receiver)["last_test"]["every_s"] == 1);
    endless.stop();
    wait::until_true("the next one is late", SOON, || {
        status(&site, &receiver)["last_test"]["overdue"] == true
    });
    let mut table = site.tidelock(["status", VOLUME, "--receiver", &receiver.listen, "--identity"]);
    let table = process::run(table.arg(site.path("operator.id")));
    assert!(table.contains("OVERDUE, ok "), "{table}");
    sidecar.settle(SOON);
    process::run(&mut drill(&["--rounds", "1"]));
    let once = status(&site, &receiver)["last_test"].clone();
    assert_eq!((&once["every_s"], &once["overdue"]), (&Value::Null, &false.into()), "{once}");
    sidecar.process.stop();
}

#[test]
fn results_that_a_point_has_no_room_for_are_not_missed() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    sidecar.process.stop();
    let to = site.path("rehearsal");
    let to = to.to_str().expect("test paths are UTF-8");
    // Rounds of less than a second have the same result; different times make different ones.
    let mut drill = site.operator_command(&receiver, &["drill", VOLUME, "--to", to, "--every", "1s"]);
    let mut drill = Process::spawn("drill", &mut drill, &site.path("drill.log"));
    wait::until_true("the point is full of results", SOON, || {
        drill.must_run();
        site.points(&receiver).last().and_then(|point| point["tags"].as_array().map(Vec::len)) == Some(12)
    });
    drill.stop();
    let last = status(&site, &receiver)["last_test"].clone();
    assert_eq!((&last["passed"], &last["every_s"]), (&true.into(), &Value::Null), "{last}");
}

#[test]
fn what_an_instant_promotion_still_fetches_is_told_even_when_it_does_not_answer() {
    if !needs::met(&[Need::Fuse]) {
        return;
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    receiver.process.allow("promoted");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    fs::write(volume.join("noise"), noise(1 << 20)).expect("writable");
    let last = sidecar.settle(SOON).id.to_string();
    sidecar.process.stop();
    let to = site.path("promoted");
    let to = to.to_str().expect("test paths are UTF-8");
    let mut command = site.operator_command(&receiver, &["promote", VOLUME, "--instant", "--to", to]);
    command.env("TIDELOCK_TEST_AT", "stop:done");
    let mut serving = Process::spawn("promote", &mut command, &site.path("promote.log"));
    let stat = PathBuf::from(format!("/proc/{}/stat", serving.pid()));
    wait::until_true("the promotion is held", SOON, || {
        serving.must_run();
        fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
    });
    let held = status(&site, &receiver);
    assert_eq!(held["instants"].as_array().map(Vec::len), Some(1), "{held}");
    let instant = &held["instants"][0];
    assert_eq!((&instant["point"], &instant["directory"]), (&last.as_str().into(), &to.into()), "{held}");
    assert_eq!((&instant["hydration"], &held["promoted"]), (&Value::Null, &true.into()), "{held}");
    serving.signal(libc::SIGCONT);
    wait::until_true("nothing is fetched any more", SOON, || {
        serving.must_run();
        status(&site, &receiver)["instants"] == serde_json::json!([])
    });
    assert!(serving.stop().success(), "{}", serving.log());
}

#[test]
fn a_watch_outlives_its_receiver() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    sidecar.process.stop();
    let mut watch =
        site.tidelock(["status", "--watch", "--interval", "50ms", "--receiver", &receiver.listen]);
    watch.arg("--identity").arg(site.path("operator.id"));
    let mut watch = Process::spawn("watch", &mut watch, &site.path("watch.log"));
    let shown = |watch: &mut Process, what: &str| {
        watch.must_run();
        watch.log().matches(what).count()
    };
    wait::until_true("two looks", SOON, || shown(&mut watch, VOLUME) >= 2);
    receiver.process.stop();
    wait::until_true("it says that nobody answers", SOON, || shown(&mut watch, "not to be had now") > 0);
    let before = shown(&mut watch, VOLUME);
    let _receiver = site.receiver();
    wait::until_true("it is back", SOON, || shown(&mut watch, VOLUME) > before + 1);
    watch.signal(libc::SIGINT);
    let status = watch.wait(SOON);
    assert!(status.success() || status.signal() == Some(libc::SIGINT), "{status}");
}
