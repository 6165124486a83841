//! A promotion that is taken back: the old primary goes on, and both others are fenced.

use std::{fs, os::unix::process::ExitStatusExt, path::Path};

use tidelock_tests::{
    compare::assert_same,
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

const FENCED: i32 = 3;
const REFUSED: i32 = 2;
const SIGKILL: i32 = 9;

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("writable");
}

fn image_follows(site: &Site, receiver: &Receiver) {
    wait::until_true("the image follows", SOON, || {
        let status = &site.operator(receiver, &["status", VOLUME])[0];
        status["image"]["state"] == "following" && status["image"]["point"] == status["last"]["id"]
    });
}

#[test]
fn a_promotion_that_is_taken_back_leaves_the_old_primary_as_it_was() {
    let site = Site::new();
    let images = site.path("images");
    let mut receiver = site.try_receiver(&["--image", images.to_str().expect("test paths are UTF-8")]);
    // The command that is killed falls silent.
    receiver.process.allow("promoted").allow("fenced").allow("refused").allow("disconnected");
    let (old, new) = (site.new_dir("old"), site.path("new"));
    write(&old, "both", "written before");
    let mut primary = site.sidecar(&receiver, &old).start();
    primary.process.allow("fenced");
    primary.settle(SOON);
    image_follows(&site, &receiver);
    let unpromote = |receiver| site.operator_command(receiver, &["unpromote", VOLUME]);
    let none = unpromote(&receiver).output().expect("it can be run");
    assert_eq!(none.status.code(), Some(REFUSED), "{}", String::from_utf8_lossy(&none.stderr));

    let to = new.to_str().expect("test paths are UTF-8");
    let promoted = site.operator(&receiver, &["promote", VOLUME, "--to", to, "--window", "1h"]);
    assert_eq!(promoted["window"]["point"], promoted["point"]["id"], "{promoted}");
    assert!(promoted["image"].is_string(), "{promoted}");
    assert_eq!(primary.process.wait(SOON).code(), Some(FENCED));
    write(&old, "old", "what nobody has replicated");
    let mut standby = site.sidecar(&receiver, &new).epoch(2).start();
    standby.process.allow("fenced");
    write(&new, "new", "written in vain");
    standby.settle(SOON);
    image_follows(&site, &receiver);

    // Killed between the fence and the names, and run again.
    let killed =
        unpromote(&receiver).env("TIDELOCK_TEST_AT", "kill:complete").output().expect("it can be run");
    assert_eq!(killed.status.signal(), Some(SIGKILL));
    assert_eq!(standby.process.wait(SOON).code(), Some(FENCED));
    for _ in 0..2 {
        let back = site.operator(&receiver, &["unpromote", VOLUME]);
        assert_eq!(
            (&back["taken_back"], &back["epoch"], &back["resumed"]),
            (&2.into(), &3.into(), &true.into())
        );
        assert_eq!(back["point"]["id"], promoted["point"]["id"], "{back}");
        let kept = site.path("kept");
        let left = back["left"].as_str().expect("it wrote something");
        if !kept.exists() {
            site.restore(&receiver, left, &kept);
            assert_same(&new, &kept);
        }
    }

    let mut primary = site.sidecar(&receiver, &old).epoch(3).start();
    primary.process.allow("fenced");
    primary.settle(SOON);
    let standby = site.path("standby");
    site.restore(&receiver, "latest", &standby);
    assert_same(&old, &standby);
    assert!(old.join("old").exists() && !old.join("new").exists());
    // The image, too, goes back to the line that the promoted primary had left.
    image_follows(&site, &receiver);
    let again = site.path("again");
    let to = again.to_str().expect("test paths are UTF-8");
    assert!(site.operator(&receiver, &["promote", VOLUME, "--to", to])["image"].is_string());
    assert_same(&old, &again);
    assert_eq!(primary.process.wait(SOON).code(), Some(FENCED));
    let committed = site.operator(&receiver, &["commit", VOLUME]);
    assert_eq!((&committed["epoch"], committed["released"].as_array().map(Vec::len)), (&4.into(), Some(0)));
}
