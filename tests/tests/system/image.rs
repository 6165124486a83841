//! The hot image: it follows under load, survives the loss of power under it, and is what a promotion takes.

use std::{fs, thread, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tidelock_tests::{
    model::{Mutator, Powers, differences},
    mount::{Format, Mount},
    needs::{self, Need},
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

/// Losses of power on each file system.
const LOSSES: u64 = 3;
/// Operations tried between two of them.
const OPERATIONS: u64 = 1_500;

#[test]
fn an_image_that_lost_its_unsynced_writes_on_ext4_is_made_right() {
    if needs::met(&[Need::Root, Need::Program("mkfs.ext4"), Need::Program("xfs_io")]) {
        loses_power(Format::Ext4);
    }
}

#[test]
fn an_image_that_lost_its_unsynced_writes_on_xfs_is_made_right() {
    if needs::met(&[Need::Root, Need::Program("mkfs.xfs"), Need::Program("xfs_io")]) {
        loses_power(Format::Xfs);
    }
}

/// The receiver is killed under load, and what its image had not synced is gone; the image is equal to its point again, each time without being made anew.
fn loses_power(format: Format) {
    let site = Site::new();
    let images = Mount::new(&site.path("images"), format, 1024);
    let dir = images.path().join("dir");
    let image = ["--image", dir.to_str().expect("test paths are UTF-8")];
    let volume = site.new_dir("volume");
    let worked = site.new_dir("volume/worked");
    let mut mutator = Mutator::new(&worked, 17, Powers { mmap: true, root: true, reserve: true });
    mutator.run(OPERATIONS);
    // Larger than all that is written later, and not touched again: it need not be read.
    fs::write(volume.join("large"), vec![7; 48 << 20]).expect("the volume is writable");
    let mut receiver = site.try_receiver(&image);
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("not connected");
    sidecar.settle(SOON);
    follows(&site, &receiver);
    let mut rng = StdRng::seed_from_u64(23);
    for _ in 0..LOSSES {
        for _ in 0..rng.random_range(5..20) {
            mutator.run(OPERATIONS / 20);
            // Load, and not a burst: the image is to follow, and to have something unsynced at any moment.
            thread::sleep(Duration::from_millis(20));
        }
        receiver.process.kill();
        images.lose_power();
        receiver = site.try_receiver(&image);
        receiver.process.allow("promoted").allow("fenced").allow("disconnected");
        wait::until_true("the image follows again", SOON, || {
            status(&site, &receiver)["image"]["state"] == "following"
        });
        let log = receiver.process.log();
        let compared = log.lines().find(|line| line.contains("image is right"));
        if let Some(compared) = compared {
            let read: u64 = number(compared, "compared=");
            assert!(read < 48 << 20, "what is not in doubt was read: {compared}");
        }
    }
    sidecar.settle(SOON);
    sidecar.process.stop();
    follows(&site, &receiver);
    let last = status(&site, &receiver)["last"]["id"].clone();
    let to = images.path().join("promoted");
    let report = site.operator(&receiver, &["promote", VOLUME, "--to", to.to_str().expect("UTF-8")]);
    assert!(report["image"].is_string() && report["image_missed"].is_null(), "{report}");
    assert_eq!((&report["point"]["id"], &report["work"]["bytes_written"]), (&last, &0.into()), "{report}");
    assert_eq!(differences(&volume, &to, false), Vec::<String>::new());
}

#[test]
fn an_image_without_space_costs_the_replication_nothing() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4")]) {
        return;
    }
    let site = Site::new();
    let images = Mount::new(&site.path("images"), Format::Ext4, 64);
    let volume = site.new_dir("volume");
    let mut receiver = site.try_receiver(&["--image", images.path().to_str().expect("UTF-8")]);
    receiver.process.allow("image-failed").allow("promoted").allow("fenced");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("fenced");
    sidecar.settle(SOON);
    follows(&site, &receiver);
    fs::write(volume.join("large"), vec![1; 100 << 20]).expect("the volume is writable");
    sidecar.settle(SOON);
    wait::until_true("status has the condition", SOON, || {
        status(&site, &receiver)["conditions"].to_string().contains("image-failed")
    });
    assert!(status(&site, &receiver)["image"]["failure"].as_str().is_some_and(|why| why.contains("space")));
    let last = sidecar.settle(SOON);
    sidecar.process.stop();
    let to = site.path("promoted");
    let report = site.operator(&receiver, &["promote", VOLUME, "--to", to.to_str().expect("UTF-8")]);
    assert!(report["image_missed"].as_str().is_some_and(|why| why.contains("failed")), "{report}");
    assert!(report["point"]["id"].as_str() >= Some(last.id.to_string().as_str()), "{report}");
    assert_eq!(differences(&volume, &to, true), Vec::<String>::new());
}

fn status(site: &Site, receiver: &Receiver) -> Value {
    site.operator(receiver, &["status", VOLUME])[0].clone()
}

/// Waits until the image is at the newest point.
fn follows(site: &Site, receiver: &Receiver) {
    wait::until_true("the image is at the newest point", SOON, || {
        let status = status(site, receiver);
        status["image"]["point"].is_string() && status["image"]["point"] == status["last"]["id"]
    });
}

fn number(line: &str, field: &str) -> u64 {
    let digits = line.split(field).nth(1).expect("the field is there");
    digits
        .split(|byte: char| !byte.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .expect("a number")
}
