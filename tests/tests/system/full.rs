//! A receiver whose disk is full: it says so, loses nothing, can be promoted from, and goes on by itself.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use serde_json::Value;
use tidelock_tests::{
    http,
    model::differences,
    mount::{Format, Mount},
    needs::{self, Need},
    process,
    site::{Receiver, Site, VOLUME, json},
    wait::{self, SOON},
};

/// What the receiver keeps free beside a segment, and a segment.
const STOPS_BELOW: u64 = (128 + 64) << 20;
/// More than a segment.
const BURST_BYTES: usize = 72 << 20;

#[test]
fn a_full_disk_costs_lag_and_nothing_else() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4")]) {
        return;
    }
    let site = Site::new();
    let store = Mount::new(&site.store(), Format::Ext4, 520);
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    // The sidecar comes and goes; its last datagram is not always heard.
    receiver.process.allow("full").allow("promoted").allow("fenced").allow("disconnected");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("store-full").allow("fenced").allow("not connected");
    sidecar.settle(SOON);

    let ballast = store.path().join("ballast");
    fill(&ballast);
    burst(&volume.join("data"), 1);
    wait::until_true("status says that the store is full", SOON, || is_full(&site, &receiver));
    wait::until_true("the sidecar knows why", SOON, || {
        sidecar.status().is_some_and(|status| status.to_string().contains("store-full"))
    });
    assert_eq!(gauge(&receiver), 1.0);
    let lag = |receiver| status(&site, receiver)["lag_ms"].as_f64().expect("a lag");
    let before = lag(&receiver);
    wait::until_true("lag grows", SOON, || lag(&receiver) > before + 500.0);
    let acked = sidecar.acks().last().expect("points").id.to_string();
    site.restore(&receiver, &acked, &site.path("while-full"));

    fs::remove_file(&ballast).expect("removed");
    sidecar.settle(SOON);
    assert_eq!(gauge(&receiver), 0.0);
    assert!(!is_full(&site, &receiver));
    let restored = site.path("restored");
    site.restore(&receiver, "latest", &restored);
    assert_eq!(differences(&volume, &restored, true), Vec::<String>::new());

    fill(&ballast);
    burst(&volume.join("data"), 2);
    wait::until_true("status says that the store is full again", SOON, || is_full(&site, &receiver));
    let promoted = site.path("promoted");
    site.operator(&receiver, &["promote", VOLUME, "--to", promoted.to_str().expect("UTF-8")]);
    let report = site.operator(&receiver, &["verify"]);
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{report}");
    let points = report["points"].as_u64().expect("a number");
    // One from before the disk was full and one from after it at least; how many more is a matter of time.
    assert!(points >= 2 && report["chunks"].as_u64() > Some(500), "{report}");

    receiver.process.kill();
    let mut rebuild = site.tidelock(["store", "rebuild", "--json", "--store"]);
    let rebuilt = json(&process::output(rebuild.arg(site.store())));
    assert_eq!(
        (rebuilt["points"].as_u64(), rebuilt["damaged"].as_u64()),
        (Some(points), Some(0)),
        "{rebuilt}"
    );

    // One bit of a chunk in the first segment.
    let segment = File::options().read(true).write(true).open(site.store().join("log/0000000001.seg"));
    let segment = segment.expect("the segment is there");
    let mut byte = [0];
    segment.read_exact_at(&mut byte, 32 << 20).expect("readable");
    segment.write_all_at(&[byte[0] ^ 1], 32 << 20).expect("writable");
    let mut verify = site.tidelock(["verify", VOLUME, "--json", "--store"]);
    let out = process::output(verify.arg(site.store()));
    assert_eq!(out.status.code(), Some(5), "damage has an exit code of its own");
    let report: Value = serde_json::from_slice(&out.stdout).expect("JSON all the same");
    assert_eq!(report["findings"][0]["volume"], VOLUME, "{report}");
    assert_eq!(report["findings"][0]["segment"], 1, "{report}");
}

/// Leaves less than another segment needs.
fn fill(ballast: &Path) {
    let file = File::create(ballast).expect("created");
    let free = rustix::fs::fstatvfs(&file).expect("answers");
    let len = (free.f_bavail * free.f_frsize).saturating_sub(STOPS_BELOW - (8 << 20));
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).expect("there is space");
}

/// Content that nothing makes smaller.
fn burst(file: &Path, seed: u64) {
    use rand::{Rng, SeedableRng};
    let mut content = vec![0; BURST_BYTES];
    rand::rngs::StdRng::seed_from_u64(seed).fill(&mut content[..]);
    fs::write(file, content).expect("the volume is writable");
}

fn status(site: &Site, receiver: &Receiver) -> Value {
    site.operator(receiver, &["status", VOLUME])[0].clone()
}

fn is_full(site: &Site, receiver: &Receiver) -> bool {
    status(site, receiver)["conditions"].to_string().contains("store-full")
}

fn gauge(receiver: &Receiver) -> f64 {
    let (_, text) = http::get(&receiver.http, "/metrics").expect("the receiver serves its metrics");
    http::sample(&text, "tidelock_store_full").expect("the metric is there")
}
