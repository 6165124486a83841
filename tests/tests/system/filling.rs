//! What a pod needs before its application starts: an empty volume that is filled, and an identity that comes late.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;
use tidelock_tests::{
    http,
    process::{self, Process},
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

fn fill(site: &Site, receiver: &Receiver, volumes: &[(&str, &Path)]) -> Output {
    process::output(&mut command(site, receiver, volumes))
}

fn command(site: &Site, receiver: &Receiver, volumes: &[(&str, &Path)]) -> Command {
    let ((volume, to), others) = volumes.split_first().expect("a volume");
    let mut command = site.operator_command(receiver, &["restore", volume, "--if-empty"]);
    command.arg("--to").arg(to);
    for (volume, to) in others {
        command.arg("--also").arg(format!("{volume}={}", to.display()));
    }
    command
}

fn states(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{output:?}");
    let done: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let state = |filled: &Value| filled["state"].as_str().expect("a word").to_owned();
    done.as_array().expect("a list").iter().map(state).collect()
}

#[test]
fn only_an_empty_volume_is_filled_and_a_full_one_needs_no_receiver() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    let to = site.new_dir("to");
    assert_eq!(states(&fill(&site, &receiver, &[(VOLUME, &to)])), ["unknown"]);

    fs::write(volume.join("ledger"), "first").expect("writable");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    sidecar.process.stop();
    assert_eq!(states(&fill(&site, &receiver, &[(VOLUME, &to)])), ["restored"]);
    assert_eq!(fs::read(to.join("ledger")).expect("restored"), b"first");

    fs::write(to.join("ledger"), "second").expect("writable");
    receiver.process.stop();
    assert_eq!(states(&fill(&site, &receiver, &[(VOLUME, &to)])), ["kept"]);
    assert_eq!(fs::read(to.join("ledger")).expect("kept"), b"second");

    // An empty one cannot do without the receiver.
    let empty = site.new_dir("empty");
    let output = fill(&site, &receiver, &[(VOLUME, &empty)]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(fs::read_dir(&empty).expect("there").next().is_none());
}

#[test]
fn volumes_are_filled_to_one_point_or_not_at_all() {
    let site = Site::new();
    let volumes = ["one", "two"].map(|name| site.new_dir(name));
    let receiver = site.receiver();
    let names = [VOLUME, "acme/wal"];
    let identity =
        site.issue("sidecar", &["--tenant", "acme", "--volume", "data", "--volume", "wal"], "both.id");
    let second = format!("--volume={}={}", names[1], volumes[1].display());
    let plan = site.sidecar(&receiver, &volumes[0]).identity(&identity).arg(&second);
    let replicate = |byte: u8| {
        for volume in &volumes {
            fs::write(volume.join("ledger"), vec![byte; 300_000]).expect("writable");
        }
        let mut sidecar = plan.start();
        sidecar.settle(SOON);
        sidecar.process.stop();
    };
    replicate(1);

    let targets = ["to-one", "to-two"].map(|name| site.new_dir(name));
    let wanted = [(names[0], targets[0].as_path()), (names[1], targets[1].as_path())];
    let marked = || targets.each_ref().map(|target| target.join(".tidelock-incomplete").exists());
    let kill_at = |step: &str| {
        let mut killed = command(&site, &receiver, &wanted);
        let ended = process::output(killed.env("TIDELOCK_TEST_AT", format!("kill:{step}")));
        assert_eq!(ended.status.signal(), Some(9), "{ended:?}");
    };
    kill_at("content");
    assert_eq!(marked(), [true, false]);
    // What comes meanwhile changes nothing: the point was chosen.
    replicate(2);
    kill_at("complete");
    assert_eq!(marked(), [true, true]);
    // As if it had been killed just after the first was complete.
    fs::remove_file(targets[0].join(".tidelock-incomplete")).expect("it is there");
    assert_eq!(states(&fill(&site, &receiver, &wanted)), ["kept", "restored"]);
    assert_eq!(marked(), [false, false]);
    for target in &targets {
        assert!(fs::read(target.join("ledger")).expect("restored").iter().all(|byte| *byte == 1));
    }
    assert_eq!(states(&fill(&site, &receiver, &wanted)), ["kept", "kept"]);

    // One that is empty beside one that is not: nobody knows what is meant.
    for entry in fs::read_dir(&targets[1]).expect("there") {
        fs::remove_file(entry.expect("readable").path()).expect("ours");
    }
    let output = fill(&site, &receiver, &wanted);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_sidecar_waits_for_its_identity_and_lives() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let late = site.new_dir("late.id");
    // A port of our own, because nobody is told of it before the identity is there.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let http = port.to_string();
    let mut command =
        site.tidelock(["sidecar", "--wait-for-identity", "--receiver", &receiver.listen, "--http", &http]);
    command.arg(format!("--volume={VOLUME}={}", volume.display())).arg("--identity").arg(&late);
    let mut sidecar = Process::spawn("sidecar", &mut command, &site.path("late.log"));
    sidecar.allow("waiting for the identity");
    let answers = |path: &str, wanted: u16| http::get(&http, path).is_some_and(|(code, _)| code == wanted);
    wait::until_true("it says that it lives", SOON, || answers("/healthz", 200));
    assert!(answers("/readyz", 503));
    for file in fs::read_dir(site.sidecar_identity(VOLUME)).expect("issued") {
        let file = file.expect("readable");
        fs::copy(file.path(), late.join(file.file_name())).expect("writable");
    }
    wait::until_true("it protects the volume", SOON, || answers("/readyz", 200));
    sidecar.stop();
}
