//! An instant promotion that is cut off at any step, by a kill of the command or of the receiver: the same command ends it, in the same state, and never are two epochs accepted.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tidelock_tests::{
    compare::compare,
    needs::{self, Need},
    process::{self, Process},
    site::{Receiver, VOLUME, json},
    wait::{self, SOON},
};

use crate::kept::Kept;

/// Until it can be used; `done` is when it can.
const BEGINNING: [&str; 8] = ["select", "check", "place", "fence", "difference", "journal", "mount", "done"];
/// From then on to the plain directory: half of it is local, everything is and nobody uses it any more, half of the names are where they belong, it is whole, it is in its place.
const END: [&str; 5] = ["content", "complete", "names", "move", "clear"];

/// Exit codes of a sidecar: its epoch is over; its epoch was never granted.
const FENCED: i32 = 3;
const REFUSED: i32 = 1;

#[test]
fn an_instant_promotion_that_is_killed_at_any_step_is_completed_by_the_same_command() {
    if !needs::met(&[Need::Fuse]) {
        return;
    }
    let kept = Kept::new();
    for step in BEGINNING.into_iter().chain(END) {
        let mut receiver = kept.receiver();
        receiver.process.allow("disconnected").allow("refused").allow("fenced");
        let to = kept.site.path(&format!("killed-{step}"));
        let mut killed = begin(&kept, &receiver, &to, &format!("kill:{step}"));
        let mut told = false;
        let status = wait::until("the command is killed", SOON, || {
            // The last steps come when it is to end.
            if !told && step != "content" && hydration(&kept, &to)["complete"] == true {
                killed.signal(libc::SIGTERM);
                told = true;
            }
            killed.ended()
        });
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{step}: {status}\n{}", killed.log());
        one_epoch(&kept, &receiver, step);
        complete(&kept, &receiver, &to, step);
    }
}

#[test]
fn a_receiver_that_is_killed_at_any_step_of_an_instant_promotion_changes_nothing_about_its_end() {
    if !needs::met(&[Need::Fuse]) {
        return;
    }
    let kept = Kept::new();
    for step in BEGINNING {
        let mut receiver = kept.receiver();
        let to = kept.site.path(&format!("lost-{step}"));
        let mut promotion = begin(&kept, &receiver, &to, &format!("stop:{step}"));
        promotion.allow("waits for the receiver").allow("cannot hydrate").allow("still held");
        let stat = PathBuf::from(format!("/proc/{}/stat", promotion.pid()));
        wait::until_true("the promotion is held", SOON, || {
            promotion.must_run();
            fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        receiver.process.kill();
        let mut receiver = kept.again();
        receiver.process.allow("disconnected").allow("refused").allow("fenced");
        one_epoch(&kept, &receiver, step);
        promotion.signal(libc::SIGCONT);
        // It ends by itself, or it goes on without the old connection.
        let mut told = false;
        wait::until("the command ends", 2 * SOON, || {
            if !told && hydration(&kept, &to)["complete"] == true {
                promotion.signal(libc::SIGTERM);
                told = true;
            }
            promotion.ended()
        });
        one_epoch(&kept, &receiver, step);
        if told {
            kept.check_promoted(&receiver, &to, step);
        } else {
            complete(&kept, &receiver, &to, step);
        }
    }
}

fn begin(kept: &Kept, receiver: &Receiver, to: &Path, failpoint: &str) -> Process {
    let mut command = kept.promotion(receiver, to);
    command.arg("--instant").env("TIDELOCK_TEST_AT", failpoint);
    Process::spawn("promote", &mut command, &to.with_extension("log"))
}

fn hydration(kept: &Kept, to: &Path) -> Value {
    let mut command = kept.site.tidelock(["hydration", "--json"]);
    let out = process::output(command.arg(to));
    if out.status.success() { json(&out) } else { Value::Null }
}

/// The same command again, to the end.
fn complete(kept: &Kept, receiver: &Receiver, to: &Path, case: &str) {
    let mut command = kept.promotion(receiver, to);
    let (mut serving, report) = kept.site.mounted(command.arg("--instant"));
    assert_eq!((&report["epoch"], &report["old_epoch"]), (&2.into(), &1.into()), "{case}: {report}");
    assert_eq!(report["point"], kept.last.as_str(), "{case}: {report}");
    one_epoch(kept, receiver, case);
    if report["mounted"] == true {
        kept.check_promoted(receiver, to, case);
        wait::until_true("everything is local", SOON, || hydration(kept, to)["complete"] == true);
        assert!(serving.stop().success(), "{case}: {}", serving.log());
    } else {
        assert!(serving.wait(SOON).success(), "{case}: {}", serving.log());
    }
    kept.check_promoted(receiver, to, case);
    assert!(!to.join(".tidelock-instant").exists() && !to.join(".tidelock-incomplete").exists(), "{case}");
}

/// A writer of any other epoch than the one there is is refused, and ends.
fn one_epoch(kept: &Kept, receiver: &Receiver, case: &str) {
    let epoch = kept.site.operator(receiver, &["status", VOLUME])[0]["epoch"].clone();
    let (other, code) = if epoch == 1 { (2, REFUSED) } else { (1, FENCED) };
    assert!(epoch == 1 || epoch == 2, "{case}: {epoch}");
    let mut writer = kept.site.sidecar(receiver, &kept.volume).epoch(other).start_blind();
    writer.allow("epoch").allow("fenced").allow("denied");
    assert_eq!(
        writer.wait(SOON).code(),
        Some(code),
        "{case}: epoch {other} beside {epoch}:\n{}",
        writer.log()
    );
}

impl Kept {
    /// The promoted state, mounted or plain.
    fn check_promoted(&self, receiver: &Receiver, to: &Path, case: &str) {
        let status = self.site.operator(receiver, &["status", VOLUME]);
        assert_eq!((&status[0]["epoch"], &status[0]["promoted"]), (&2.into(), &true.into()), "{case}");
        assert_eq!(status[0]["last"]["id"], self.last.as_str(), "{case}");
        let differences = compare(&self.volume, to).expect("both can be read");
        assert!(differences.is_empty(), "{case}: {differences:#?}");
    }
}
