//! What an operator does at three in the morning, interrupted: a promotion ends the same wherever it or its receiver was killed.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
};

use tidelock_tests::{
    needs::Need,
    process::{self, Process},
    site::{Site, VOLUME, json},
    wait::{self, SOON},
};

use crate::kept::Kept;

/// All steps of a promotion, and the middle of writing.
const STEPS: [&str; 8] = ["select", "check", "restore", "content", "fence", "difference", "complete", "done"];

/// The same where the receiver's image is taken.
const STEPS_WITH_IMAGE: [&str; 7] =
    ["select", "check", "fence", "difference", "handover", "complete", "done"];

#[test]
fn a_promotion_that_is_killed_at_any_step_is_completed_by_the_same_command() {
    let kept = Kept::new();
    for step in STEPS {
        let receiver = kept.receiver();
        let to = kept.site.path(&format!("killed-{step}"));
        let mut command = kept.promotion(&receiver, &to);
        let killed = process::output(command.env("TIDELOCK_TEST_AT", format!("kill:{step}")));
        assert_eq!(killed.status.signal(), Some(libc::SIGKILL), "{step}: {killed:?}");
        let report = json(&process::output(&mut kept.promotion(&receiver, &to)));
        kept.check(&receiver, &to, &report, step);
        let already = &report["already"];
        assert_eq!(*already, step == "done", "{step}: {report}");
        // Nothing more is lost once the old primary is fenced, however late the command is repeated.
        let (resumed, known) = (&report["resumed"], &report["recovery"]["rpo_known"]);
        assert_eq!(*resumed == true, *known == false, "{step}: {report}");
    }
}

#[test]
fn a_receiver_that_is_killed_at_any_step_of_a_promotion_changes_nothing_about_its_end() {
    let kept = Kept::new();
    for step in STEPS {
        let mut receiver = kept.receiver();
        let to = kept.site.path(&format!("lost-{step}"));
        let mut command = kept.promotion(&receiver, &to);
        command.env("TIDELOCK_TEST_AT", format!("stop:{step}"));
        let mut promotion =
            Process::spawn("promote", &mut command, &kept.site.path(&format!("lost-{step}.log")));
        let stat = PathBuf::from(format!("/proc/{}/stat", promotion.pid()));
        wait::until_true("the promotion is held", SOON, || {
            promotion.must_run();
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        receiver.process.kill();
        let receiver = kept.again();
        promotion.signal(libc::SIGCONT);
        promotion.wait(SOON);
        let report = json(&process::output(&mut kept.promotion(&receiver, &to)));
        kept.check(&receiver, &to, &report, step);
    }
}

#[test]
fn a_promotion_that_takes_the_image_is_completed_by_the_same_command() {
    let kept = Kept::new();
    for step in STEPS_WITH_IMAGE {
        let receiver = kept.receiver_with_image();
        let to = kept.site.path(&format!("killed-{step}"));
        let mut command = kept.promotion(&receiver, &to);
        let killed = process::output(command.env("TIDELOCK_TEST_AT", format!("kill:{step}")));
        assert_eq!(killed.status.signal(), Some(libc::SIGKILL), "{step}: {killed:?}");
        let report = json(&process::output(&mut kept.promotion(&receiver, &to)));
        kept.check(&receiver, &to, &report, step);
        // Once it has its name it is an unfinished copy like any other.
        let taken = !matches!(step, "complete" | "done");
        assert_eq!(
            (report["image"].is_string(), report["work"]["bytes_written"] == 0),
            (taken, true),
            "{step}: {report}"
        );
        assert_eq!(report["already"], step == "done", "{step}: {report}");
    }
}

#[test]
fn a_receiver_that_is_killed_while_its_image_is_taken_changes_nothing_about_the_end() {
    let kept = Kept::new();
    for step in STEPS_WITH_IMAGE {
        let mut receiver = kept.receiver_with_image();
        let to = kept.site.path(&format!("lost-{step}"));
        let mut command = kept.promotion(&receiver, &to);
        command.env("TIDELOCK_TEST_AT", format!("stop:{step}"));
        let log = kept.site.path(&format!("lost-{step}.log"));
        let mut promotion = Process::spawn("promote", &mut command, &log);
        let stat = PathBuf::from(format!("/proc/{}/stat", promotion.pid()));
        wait::until_true("the promotion is held", SOON, || {
            promotion.must_run();
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        receiver.process.kill();
        let receiver = kept.again_with_image();
        promotion.signal(libc::SIGCONT);
        promotion.wait(SOON);
        let report = json(&process::output(&mut kept.promotion(&receiver, &to)));
        kept.check(&receiver, &to, &report, step);
    }
}

#[test]
fn an_image_is_taken_without_its_receiver() {
    let kept = Kept::new();
    let mut receiver = kept.receiver_with_image();
    receiver.process.kill();
    let to = kept.site.path("promoted");
    let mut command = kept.site.tidelock(["promote", VOLUME, "--json", "--to"]);
    command.arg(&to).arg("--store").arg(kept.site.store()).arg("--image").arg(kept.site.path("images"));
    let report = json(&process::output(&mut command));
    assert!(report["image"].is_string(), "{report}");
    kept.check(&kept.again(), &to, &report, "from the store");
}

#[test]
fn a_rehearsal_a_clone_and_a_rollback_go_beside_a_primary() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    fs::write(volume.join("ledger"), "first").expect("writable");
    let first = sidecar.settle(SOON).id.to_string();
    fs::write(volume.join("ledger"), "second").expect("writable");
    sidecar.settle(SOON);

    let to = site.path("rehearsal");
    let to = to.to_str().expect("test paths are UTF-8");
    let run = "grep -q first ledger";
    let test = |at: &str| {
        let asked = ["test", VOLUME, "--at", at, "--to", to, "--run", run];
        process::output(&mut site.operator_command(&receiver, &asked))
    };
    let good = json(&test(&first));
    assert!(good["passed"] == true && good["rto_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{good}");
    // Mounted where that is possible: then nothing was copied.
    assert_eq!(good["work"].is_null(), Need::Fuse.lacking().is_none(), "{good}");
    let bad = test("latest");
    assert_eq!(bad.status.code(), Some(1), "{bad:?}");
    assert!(!Path::new(to).exists());
    let points = site.points(&receiver);
    let tags =
        |id: &str| points.iter().find(|point| point["id"] == id).expect("it is listed")["tags"].clone();
    assert!(tags(&first)[0].as_str().is_some_and(|tag| tag.starts_with("verified at ")), "{points:?}");

    let (history, metrics) = (site.path("history"), site.path("drill.prom"));
    let mut drill = site.operator_command(&receiver, &["drill", VOLUME, "--to", to, "--every", "10ms"]);
    drill.args(["--rounds", "2", "--copy", "--no-record", "--run", "grep -q second ledger"]);
    process::run(drill.arg("--history").arg(&history).arg("--metrics").arg(&metrics));
    let lines = fs::read_to_string(&history).expect("written");
    assert_eq!(lines.lines().filter(|line| line.contains("\"passed\":true")).count(), 2, "{lines}");
    let sample = fs::read_to_string(&metrics).expect("written");
    assert!(sample.contains(&format!("tidelock_drills_passed_total{{volume=\"{VOLUME}\"}} 2")), "{sample}");

    let cloned = site.operator(&receiver, &["clone", VOLUME, "--at", &first, "--as", "acme/copy"]);
    assert_eq!(cloned["first"]["id"], "1.1");
    let restored = site.path("restored");
    site.restore_volume(&receiver, "acme/copy", "latest", &restored);
    assert_eq!(fs::read(restored.join("ledger")).expect("restored"), b"first");

    // A sidecar that runs is in the way of a rollback, and goes on from it afterwards.
    let dir = volume.to_str().expect("test paths are UTF-8");
    let back = ["rollback", VOLUME, "--at", &first, "--dir", dir];
    let refused = process::output(&mut site.operator_command(&receiver, &back));
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    sidecar.process.stop();
    wait::until_true("the receiver sees it leave", SOON, || {
        site.operator(&receiver, &["status", VOLUME])[0]["connected"] == false
    });
    site.operator(&receiver, &back);
    assert_eq!(fs::read(volume.join("ledger")).expect("rolled back"), b"first");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    let next = site.path("next");
    site.restore(&receiver, "latest", &next);
    assert_eq!(fs::read(next.join("ledger")).expect("restored"), b"first");
    sidecar.process.stop();
}

#[test]
fn a_dry_run_says_what_a_promotion_then_does() {
    let kept = Kept::new();
    let receiver = kept.receiver();
    let to = kept.site.path("promoted");
    let plan = json(&process::output(kept.promotion(&receiver, &to).arg("--dry-run")));
    assert_eq!((&plan["epoch"], &plan["new_epoch"]), (&1.into(), &2.into()), "{plan}");
    assert!(!to.exists());
    let report = json(&process::output(&mut kept.promotion(&receiver, &to)));
    assert_eq!((&report["point"]["id"], &report["epoch"]), (&plan["point"]["id"], &plan["new_epoch"]));
    assert_eq!(report["work"]["bytes_written"], plan["data_bytes"]);
    kept.check(&receiver, &to, &report, "after a dry run");
}

#[test]
fn shells_and_manuals_are_served() {
    let site = Site::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = process::run(&mut site.tidelock(["completions", shell]));
        assert!(script.contains("promote") && script.contains("dry-run"), "{shell}");
    }
    let pages = site.path("share/man/man1");
    process::run(site.tidelock(["man"]).arg(&pages));
    let page = fs::read_to_string(pages.join("tidelock-promote.1")).expect("a page");
    assert!(page.contains("dry"), "{page}");
}
