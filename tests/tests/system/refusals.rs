//! What an operator may ask for by mistake, and is refused before anything is changed.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tidelock_tests::{
    mount::{Format, Mount},
    needs::{self, Need},
    process,
    site::{Receiver, Sidecar, Site, VOLUME, json},
    wait::{self, SOON},
};

use crate::kept::Kept;

const REFUSED: i32 = 2;
const FAILED: i32 = 1;
const USAGE: i32 = 64;
/// A volume of another sidecar.
const OTHER: &str = "acme/other";

/// A volume that is replicated while somebody does the wrong thing.
struct Live {
    site: Site,
    volume: PathBuf,
    receiver: Receiver,
    sidecar: Sidecar,
}

impl Live {
    fn new() -> Self {
        let site = Site::new();
        let volume = site.new_dir("volume");
        let receiver = site.receiver();
        let mut sidecar = site.sidecar(&receiver, &volume).start();
        fs::write(volume.join("ledger"), "of a primary that works").expect("writable");
        sidecar.settle(SOON);
        Self { site, volume, receiver, sidecar }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        process::output(&mut self.site.operator_command(&self.receiver, arguments))
    }

    /// Refused with a word of this, and nobody is fenced.
    fn refuses(&self, arguments: &[&str], word: &str) {
        let said = self.ask(arguments);
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(REFUSED), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
        let epoch = self.site.operator(&self.receiver, &["status", VOLUME])[0]["epoch"].clone();
        assert_eq!(epoch, 1, "{arguments:?}");
    }
}

/// Takes all there is, also what is kept back for root.
fn fill(ballast: &Path) {
    let mut file = File::create(ballast).expect("created");
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    // Whatever is written later than it is taken in.
    let _ = file.sync_all();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn volumes_are_promoted_together_only_if_they_were_cut_together() {
    let mut live = Live::new();
    let other = live.site.new_dir("other");
    fs::write(other.join("file"), "of another pod").expect("writable");
    let mut sidecar = live.site.sidecar(&live.receiver, &other).volume(OTHER).start();
    sidecar.settle(SOON);
    let to = live.site.path("new");
    let also = |dir: &str| format!("{OTHER}={}", live.site.path(dir).display());
    for more in [&[][..], &["--dry-run"]] {
        let asked = ["promote", VOLUME, "--to", text(&to)];
        let beside = also("beside");
        live.refuses(&[&asked[..], &["--also", &beside], more].concat(), "not cut together");
        for (also, word) in [
            (format!("{VOLUME}={}", live.site.path("beside").display()), "named twice"),
            (also("new"), "one directory"),
            (also("new/within"), "one directory"),
        ] {
            let said = live.ask(&[&asked[..], &["--also", &also], more].concat());
            let error = String::from_utf8_lossy(&said.stderr).into_owned();
            assert!(said.status.code() == Some(USAGE) && error.contains(word), "{also}: {said:?}");
        }
    }
    assert!(!to.exists());
    sidecar.process.stop();
    live.sidecar.process.stop();
}

#[test]
fn a_second_copy_of_an_epoch_comes_with_a_warning() {
    let kept = Kept::new();
    let receiver = kept.receiver();
    let promote = |to: &str, more: &[&str]| {
        let said = process::output(kept.promotion(&receiver, &kept.site.path(to)).args(more));
        assert!(said.status.success(), "{said:?}");
        String::from_utf8_lossy(&said.stderr).contains("do not start it here")
    };
    assert!(!promote("first", &[]));
    // Once more in the same place is no second copy.
    assert!(!promote("first", &[]));
    assert!(promote("second", &[]));
    if Need::Fuse.lacking().is_none() {
        let to = kept.site.path("third");
        let (mut serving, report) = kept.site.mounted(kept.promotion(&receiver, &to).arg("--instant"));
        assert_eq!(report["promotion"]["resumed"], true, "{report}");
        wait::until_true("it is warned", SOON, || serving.log().contains("do not start it here"));
        serving.signal(libc::SIGTERM);
        serving.wait(SOON);
    }
}

#[test]
fn of_several_volumes_none_is_given_back_unless_all_can_be() {
    let kept = Kept::new();
    let receiver = kept.receiver();
    let report =
        json(&process::output(kept.promotion(&receiver, &kept.site.path("new")).args(["--window", "1h"])));
    assert!(report["window"].is_object(), "{report}");
    let epoch = || kept.site.operator(&receiver, &["status", VOLUME])[0]["epoch"].clone();
    for command in ["unpromote", "commit"] {
        let asked = [command, VOLUME, "acme/typo"];
        let said = process::output(&mut kept.site.operator_command(&receiver, &asked));
        assert!(!said.status.success(), "{command}: {said:?}");
        assert_eq!(epoch(), 2, "{command}");
    }
    let back = kept.site.operator(&receiver, &["unpromote", VOLUME]);
    assert_eq!(back["epoch"], 3, "{back}");
}

#[test]
fn points_that_are_not_listed_are_counted() {
    let kept = Kept::new();
    let receiver = kept.receiver();
    let list = |more: &[&str]| {
        let mut command = kept.site.tidelock(["points", VOLUME, "--receiver", &receiver.listen]);
        let said = process::output(command.args(more).arg("--identity").arg(kept.site.path("operator.id")));
        assert!(said.status.success(), "{said:?}");
        String::from_utf8_lossy(&said.stderr).into_owned()
    };
    let all = kept.site.points(&receiver).len();
    assert!(list(&["-n", "1"]).contains(&format!("the newest 1 of {all} points of {VOLUME}")));
    assert_eq!((list(&[]), list(&["--all"])), (String::new(), String::new()));
}

#[test]
fn a_dry_run_says_no_where_the_real_run_could_not_write() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4")]) {
        return;
    }
    let kept = Kept::new();
    let receiver = kept.receiver();
    let disk = Mount::new(&kept.site.path("disk"), Format::Ext4, 64);
    let to = disk.path().join("new");
    let ask = |more: &[&str]| {
        let said = process::output(kept.promotion(&receiver, &to).args(more));
        (said.status.code(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    let remount =
        |how: &str| process::run(Command::new("mount").args(["-o", how]).arg(disk.path())).is_empty();
    let epoch = || kept.site.operator(&receiver, &["status", VOLUME])[0]["epoch"].clone();

    assert!(remount("remount,ro"));
    for more in [&["--dry-run"][..], &[]] {
        let (code, error) = ask(more);
        assert!(code == Some(FAILED) && error.contains("cannot write to"), "{more:?}: {error}");
    }
    assert!(remount("remount,rw"));

    let ballast = disk.path().join("ballast");
    fill(&ballast);
    for more in [&["--dry-run"][..], &[], &["--dry-run", "--instant"]] {
        let (code, error) = ask(more);
        assert!(code == Some(REFUSED) && error.contains("make room"), "{more:?}: {error}");
        assert!(!to.exists(), "{more:?}");
    }
    // Whoever knows better finds out before anybody is fenced, and is not sent back in time.
    let (code, error) = ask(&["--force"]);
    assert!(code == Some(FAILED) && error.contains("make room"), "{error}");
    assert_eq!(epoch(), 1);
    fs::remove_file(&ballast).expect("removed");
    let report = json(&process::output(&mut kept.promotion(&receiver, &to)));
    kept.check(&receiver, &to, &report, "with room");
}

#[test]
fn who_may_not_mount_hears_it_before_anybody_is_fenced() {
    let helper = ["/bin", "/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join("fusermount3").exists());
    if helper || !needs::met(&[Need::Root, Need::Fuse, Need::Program("setpriv")]) {
        return;
    }
    let kept = Kept::new();
    let receiver = kept.receiver();
    let to = kept.site.path("new");
    for more in [&["--dry-run"][..], &[]] {
        let promotion = kept.promotion(&receiver, &to);
        let mut command = Command::new("setpriv");
        command
            .args(["--bounding-set", "-sys_admin"])
            .arg(promotion.get_program())
            .args(promotion.get_args());
        let said = process::output(command.arg("--instant").args(more));
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(FAILED) && error.contains("fusermount3"), "{more:?}: {said:?}");
        assert_eq!(kept.site.operator(&receiver, &["status", VOLUME])[0]["epoch"], 1, "{more:?}");
    }
}

#[test]
fn a_move_that_cannot_be_made_is_refused_before_anything_is_copied() {
    let mut live = Live::new();
    let to = live.site.path("new");
    let asked = ["move", VOLUME, "--to", text(&to)];
    wait::until_true("the sidecar has said what it may do", SOON, || {
        let said = live.ask(&[&asked[..], &["--dry-run"]].concat());
        said.status.code() == Some(REFUSED)
            && String::from_utf8_lossy(&said.stderr).contains("--on-fence stop")
    });
    live.refuses(&asked, "--on-fence stop");
    live.sidecar.process.stop();
    wait::until_true("the receiver sees it leave", SOON, || {
        live.site.operator(&live.receiver, &["status", VOLUME])[0]["connected"] == false
    });
    for more in [&["--dry-run"][..], &[]] {
        live.refuses(&[&asked[..], more].concat(), "is not connected");
    }
    assert!(!to.exists(), "something was copied");
}

#[test]
fn nothing_is_promoted_into_a_volume_that_is_replicated() {
    let mut live = Live::new();
    let (root, within) = (live.volume.clone(), live.volume.join("new/copy"));
    let by = format!("tidelock ({})", live.sidecar.process.pid());
    for more in [&[][..], &["--dry-run"]] {
        for (to, overwrite) in [(&root, Some("--overwrite")), (&within, None)] {
            let overwrite: Vec<_> = overwrite.into_iter().collect();
            live.refuses(&[&["promote", VOLUME, "--to", text(to)][..], &overwrite, more].concat(), &by);
        }
    }
    live.refuses(&["restore", VOLUME, "--to", text(&root), "--overwrite"], &by);
    assert!(
        !root.join(".tidelock-incomplete").exists() && !within.exists(),
        "something was left in the volume"
    );
    assert!(root.join("ledger").exists());
    // A part of a point may be wanted right there.
    let part = live.volume.join("part");
    live.site.restore(&live.receiver, "latest", &part);
    live.sidecar.settle(SOON);
    live.sidecar.process.stop();
}
