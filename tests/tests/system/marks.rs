//! Names for points, questions about durability, and the application's own commands around a cut.

use std::{fs, path::Path, process::Output, time::Duration};

use serde_json::Value;
use tidelock_tests::{
    process,
    site::{self, Receiver, Sidecar, Site, Tracker, VOLUME},
    wait::{self, SOON},
};

/// Runs `tidelock mark` or `checkpoint` beside a sidecar.
fn ask(site: &Site, sidecar: &Sidecar, arguments: &[&str]) -> Output {
    let mut command = site.tidelock(arguments.iter().copied());
    process::output(command.args(["--json", "--sidecar", &sidecar.http]))
}

fn mark(site: &Site, sidecar: &Sidecar, tag: &str, more: &[&str]) -> Value {
    site::json(&ask(site, sidecar, &[&["mark", VOLUME, "--tag", tag, "--wait"], more].concat()))
}

/// The point with this name, as `tidelock points` shows it.
fn point(site: &Site, receiver: &Receiver, tag: &str) -> Value {
    let has = |point: &&Value| point["tags"].as_array().is_some_and(|tags| tags.iter().any(|one| one == tag));
    let points = site.points(receiver);
    points.iter().find(has).unwrap_or_else(|| panic!("no point named {tag}")).clone()
}

#[test]
fn a_fuzzy_point_is_no_yes() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let sidecar = site.sidecar(&receiver, &volume).tracker(Tracker::Poll).start();
    wait::until_true("a point", SOON, || !sidecar.acks().is_empty());
    let mut command = site.tidelock(["checkpoint", "--wait", "--json", "--sidecar", &sidecar.http]);
    let answer = command.output().expect("it can be run");
    assert_eq!(answer.status.code(), Some(1), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stderr).contains("fuzzy"), "{answer:?}");
    assert!(String::from_utf8_lossy(&answer.stdout).contains("\"durable\": true"), "{answer:?}");
}

#[test]
fn a_name_and_a_yes_mean_what_was_written_before() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    for round in 0..5 {
        let text = format!("round {round}");
        fs::write(volume.join("file"), &text).expect("writable");
        let tag = format!("tag {round}");
        let marked = mark(&site, &sidecar, &tag, &[]);
        assert_eq!(marked["durable"], true, "{marked}");
        assert_eq!(point(&site, &receiver, &tag)["id"], marked["point"]);
        // Nothing changes meanwhile: a second name gets a point all the same.
        let again = mark(&site, &sidecar, &format!("{tag} again"), &[]);
        assert_ne!(again["point"], marked["point"]);
        fs::write(volume.join("file"), "later").expect("writable");
        let sure = site::json(&ask(&site, &sidecar, &["checkpoint", "--wait"]));
        assert_eq!(sure["durable"], true, "{sure}");
        let (named, newest) = (site.path(&format!("named-{round}")), site.path(&format!("newest-{round}")));
        site.restore(&receiver, &format!("tag:{tag}"), &named);
        site.restore(&receiver, "latest", &newest);
        assert_eq!(fs::read_to_string(named.join("file")).expect("restored"), text);
        assert_eq!(fs::read_to_string(newest.join("file")).expect("restored"), "later");
    }
    let other = ask(&site, &sidecar, &["mark", "acme/other", "--tag", "x"]);
    assert!(String::from_utf8_lossy(&other.stderr).contains("acme/other is not protected here"), "{other:?}");
    let hookless = ask(&site, &sidecar, &["mark", VOLUME, "--tag", "x", "--app"]);
    assert!(String::from_utf8_lossy(&hookless.stderr).contains("--quiesce-hook"), "{hookless:?}");

    sidecar.process.allow("not connected");
    receiver.process.kill();
    wait::until_true("the loss of the receiver", SOON, || {
        sidecar.status().is_some_and(|status| status["volumes"][0]["state"] == "connecting")
    });
    fs::write(volume.join("file"), "nowhere else").expect("writable");
    assert_eq!(ask(&site, &sidecar, &["checkpoint"]).status.code(), Some(1), "a yes that nobody can know");
    sidecar.process.kill();
}

#[test]
fn an_app_point_is_of_the_application_at_rest() {
    let site = Site::new();
    let (volume, receiver) = (site.new_dir("volume"), site.receiver());
    let state = |word: &str| format!("echo {word} > {}/state", volume.display());
    let run = |quiesce: &str, failure: &str| {
        let plan = site.sidecar(&receiver, &volume).arg("--quiesce-hook").arg(quiesce);
        let plan = plan.arg("--unquiesce-hook").arg(&state("running")).arg("--hook-timeout").arg("2s");
        let mut sidecar = plan.arg("--on-hook-failure").arg(failure).start();
        sidecar.process.allow("no app point");
        sidecar.settle(SOON);
        sidecar
    };
    let running = || {
        wait::until_true("the application runs on", Duration::from_secs(5), || read(&volume) == "running");
    };

    let mut sidecar = run(&state("quiesced"), "skip");
    for round in 0..5 {
        let tag = format!("app-{round}");
        let marked = mark(&site, &sidecar, &tag, &["--app"]);
        assert_eq!((&marked["durable"], &marked["consistency"]), (&true.into(), &"app".into()), "{marked}");
        assert_eq!(point(&site, &receiver, &tag)["consistency"], "app");
        let restored = site.path(&tag);
        site.restore(&receiver, &format!("tag:{tag}"), &restored);
        assert_eq!(read(&restored), "quiesced");
        running();
    }
    sidecar.process.stop();

    for (name, hook) in [
        ("fails", format!("{}; exit 7", state("broken"))),
        ("hangs", format!("{}; sleep 99", state("stuck"))),
    ] {
        let mut sidecar = run(&hook, "skip");
        let tag = format!("skipped-{name}");
        let skipped = ask(&site, &sidecar, &["mark", VOLUME, "--tag", &tag, "--app", "--wait"]);
        assert_eq!(skipped.status.code(), Some(1), "{skipped:?}");
        assert!(String::from_utf8_lossy(&skipped.stderr).contains("quiesce hook"), "{skipped:?}");
        running();
        sidecar.settle(SOON);
        let points = site.points(&receiver);
        assert!(points.iter().all(|point| !point["tags"].to_string().contains(&tag)));
        sidecar.process.stop();

        let mut sidecar = run(&hook, "continue");
        let marked = mark(&site, &sidecar, &format!("continued-{name}"), &["--app"]);
        assert_eq!((&marked["durable"], &marked["consistency"]), (&true.into(), &"crash".into()), "{marked}");
        running();
        sidecar.process.stop();
    }
}

fn read(volume: &Path) -> String {
    fs::read_to_string(volume.join("state")).unwrap_or_default().trim().to_owned()
}
