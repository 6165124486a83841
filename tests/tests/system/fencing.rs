//! One writer per epoch: a promotion ends the old one, and it knows.

use std::{
    fs,
    time::{Duration, Instant},
};

use tidelock_tests::{
    site::{Site, VOLUME},
    wait::{self, SOON},
};

/// Exit code of a sidecar whose epoch is over.
const FENCED: i32 = 3;

#[test]
fn a_promotion_fences_the_old_writer_within_a_second() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    fs::write(volume.join("ledger"), "before the promotion").expect("writable");
    let mut receiver = site.receiver();
    receiver.process.allow("promoted").allow("fenced");
    let mut old = site.sidecar(&receiver, &volume).start();
    old.process.allow("fenced");
    old.settle(SOON);

    let promoted = site.path("promoted");
    let to = promoted.to_str().expect("test paths are UTF-8");
    site.operator(&receiver, &["promote", VOLUME, "--to", to]);
    let returned = Instant::now();
    let fenced =
        wait::until("the old writer's status says that it is fenced", Duration::from_secs(1), || {
            let status = old.status()?["volumes"][0].clone();
            (status["state"] == "fenced").then_some(status)
        });
    let known = returned.elapsed();
    assert!(
        fenced["reason"].as_str().is_some_and(|reason| reason.contains("epoch 2")),
        "no reason: {fenced}"
    );
    assert_eq!(fenced["ready"], false);
    assert_eq!(old.process.wait(SOON).code(), Some(FENCED));
    assert!(
        old.process.log().contains("promoted to epoch 2"),
        "silent about its end:\n{}",
        old.process.log()
    );
    println!("fenced {known:?} and gone {:?} after the promotion returned", returned.elapsed());
    assert_eq!(fs::read(promoted.join("ledger")).expect("promoted"), b"before the promotion");

    let mut late = site.sidecar(&receiver, &volume).start_blind();
    late.allow("fenced");
    assert_eq!(late.wait(SOON).code(), Some(FENCED), "an old epoch was not refused:\n{}", late.log());
    assert!(late.log().contains("epoch"), "the refusal does not name the epochs:\n{}", late.log());

    let mut new = site.sidecar(&receiver, &promoted).epoch(2).start();
    fs::write(promoted.join("ledger"), "after it").expect("writable");
    let point = new.settle(SOON);
    assert_eq!(point.id.epoch.0, 2);
    let restored = site.path("restored");
    site.restore(&receiver, "latest", &restored);
    assert_eq!(fs::read(restored.join("ledger")).expect("restored"), b"after it");
}
