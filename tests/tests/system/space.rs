//! How much a store takes: equal content of a tenant once, of another tenant again; overwritten pages little more than themselves.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tidelock_tests::{
    http,
    model::differences,
    process,
    site::{self, Receiver, Site, VOLUME},
    wait::{self, SOON},
};

/// A number from the environment, for a longer run.
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().map_or(usual, |text| text.parse().expect("a number"))
}

/// What a verification counts.
fn counts(site: &Site, receiver: &Receiver) -> Value {
    let report = site.operator(receiver, &["verify"]);
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{report}");
    report
}

fn received(receiver: &Receiver) -> u64 {
    let (_, text) = http::get(&receiver.http, "/metrics").expect("the receiver serves its metrics");
    http::sample(&text, "tidelock_received_bytes_total").unwrap_or(0.0) as u64
}

#[test]
fn a_tree_is_sent_and_stored_once_for_a_tenant_and_again_for_another() {
    let bytes = setting("TIDELOCK_TEST_TREE_MIB", 64) << 20;
    let site = Site::new();
    let tree = site.new_dir("tree");
    let mut rng = StdRng::seed_from_u64(3);
    for number in 0..16 {
        let mut content = vec![0; (bytes / 16) as usize];
        rng.fill_bytes(&mut content);
        fs::write(tree.join(format!("file {number}")), content).expect("writable");
    }
    let receiver = site.receiver();
    let mut was = (0, 0);
    for (volume, anew) in [("acme/one", true), ("acme/two", false), ("other/one", true)] {
        let dir = site.path(&volume.replace('/', "-"));
        process::run(Command::new("cp").arg("-a").arg(&tree).arg(&dir));
        let mut sidecar = site.sidecar(&receiver, &dir).volume(volume).start();
        sidecar.settle(SOON * 4);
        let log = counts(&site, &receiver)["log_bytes"].as_u64().expect("a number");
        let (sent, stored) = (received(&receiver) - was.0, log - was.1);
        was = (was.0 + sent, was.1 + stored);
        println!("{volume}: {sent} bytes sent, {stored} bytes stored");
        // What is sent and stored besides: operations, points, the marker.
        let range = if anew { bytes..bytes + bytes / 50 } else { 0..bytes / 50 };
        assert!(range.contains(&sent) && range.contains(&stored), "{volume}: {sent} sent, {stored} stored");
        // The next one takes so long that a dead peer would be missed.
        assert!(sidecar.process.stop().success());
    }
}

/// Pages that compress to about half.
fn page(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut page = vec![0; len];
    for block in page.chunks_mut(64) {
        let half = block.len() / 2;
        rng.fill(&mut block[..half]);
    }
    page
}

fn packed(page: &[u8]) -> u64 {
    zstd::bulk::compress(page, 3).expect("it fits").len() as u64
}

#[test]
fn overwritten_pages_take_little_more_than_themselves() {
    let (base, writes) = (setting("TIDELOCK_TEST_BASE_MIB", 32) << 20, setting("TIDELOCK_TEST_WRITES", 3000));
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut rng = StdRng::seed_from_u64(4);
    let content = page(&mut rng, base as usize);
    let base_packed: u64 = content.chunks(64 * 1024).map(packed).sum();
    fs::write(volume.join("file"), &content).expect("writable");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    let pages_packed = overwrite(&volume.join("file"), base, writes, &mut rng);
    sidecar.settle(SOON);
    let report = counts(&site, &receiver);
    let stored = report["log_bytes"].as_u64().expect("a number");
    let allowed = (base_packed + pages_packed + writes * 256) * 5 / 4;
    println!(
        "{stored} bytes for a base of {base_packed} and {writes} writes of {pages_packed}, in {} points; {allowed} are allowed",
        report["points"]
    );
    assert!(stored <= allowed, "{stored} bytes, {allowed} are allowed");
    assert!(report["points"].as_u64() > Some(20), "the writes were not seen one after the other: {report}");
}

/// A running receiver says what a policy would give back; the stopped store then gives it back.
#[test]
fn the_space_that_a_plan_tells_comes_back() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut rng = StdRng::seed_from_u64(6);
    fs::write(volume.join("file"), page(&mut rng, 8 << 20)).expect("writable");
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    overwrite(&volume.join("file"), 8 << 20, 600, &mut rng);
    sidecar.settle(SOON);
    sidecar.process.stop();
    // All but the newest point go, as soon as each is older than a second.
    let keep = ["--keep", "all:1s"];
    let plan = wait::until("all points but the newest are old", SOON, || {
        let plan = site.operator(&receiver, &["store", "plan", VOLUME, keep[0], keep[1]]);
        (plan["volumes"][0]["kept"] == 1).then_some(plan)
    });
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("no number: {value}"));
    assert!(number(&plan["volumes"][0]["dropped"]) > 3, "{plan}");
    let whole = site.operator(&receiver, &["store", "plan", keep[0], keep[1], "--store-cap", "64M"]);
    let sizes = &whole["sizes"];
    assert_eq!((&whole["keep"], &sizes["cap"]["dropped"]), (&"all:1s".into(), &0.into()), "{whole}");
    assert_eq!(plan["volumes"][0]["freed_bytes"], sizes["freed_bytes"], "{plan} {whole}");
    assert!(whole["estimates"].as_array().is_some_and(|all| all.len() >= 2), "{whole}");
    receiver.process.stop();
    let store = site.path("store");
    let on_store = |command: &[&str]| {
        let mut command = site.tidelock(command.iter().copied());
        site::json(&process::output(command.arg("--json").arg("--store").arg(&store)))
    };
    let again = on_store(&["store", "plan", keep[0], keep[1]]);
    assert_eq!(again["sizes"]["stopped_bytes"], sizes["stopped_bytes"], "{again} {whole}");
    let done = on_store(&["store", "compact", keep[0], keep[1]]);
    let (log, after) = (number(&sizes["log_bytes"]), number(&done["after_bytes"]));
    let told = log - number(&sizes["stopped_bytes"]);
    println!("{told} bytes foretold, {} given back", log - after);
    assert!(told > 300_000 && told.abs_diff(log - after) < told / 100 + 4096, "{told}: {whole} {done}");
}

/// Writes pages of 8 KiB here and there, a few at a time; the answer is what they take compressed.
fn overwrite(path: &Path, base: u64, writes: u64, rng: &mut StdRng) -> u64 {
    let file = File::options().write(true).open(path).expect("the file is there");
    let mut sum = 0;
    for _ in 0..writes {
        let page = page(rng, 8192);
        sum += packed(&page);
        let at = rng.random_range(0..base / 8192) * 8192;
        file.write_all_at(&page, at).expect("writable");
        // A pace that a log of its own would have.
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    sum
}

#[test]
fn at_its_cap_a_store_lets_the_oldest_points_go_and_keeps_the_held_one() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.try_receiver(&["--store-cap", "64M", "--store-warn", "40"]);
    receiver.process.allow("store is full").allow("went before their time");
    receiver.process.allow("store-cap").allow("disconnected");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("store-cap").allow("not connected");
    let mut rng = StdRng::seed_from_u64(5);
    let mut burst = || {
        let mut content = vec![0; 8 << 20];
        rng.fill_bytes(&mut content);
        fs::write(volume.join("file"), content).expect("writable");
    };
    burst();
    sidecar.settle(SOON);
    let (was, held) =
        (site.path("was"), site.operator(&receiver, &["hold", VOLUME, "--reason", "the audit"]));
    process::run(Command::new("cp").arg("-a").arg(&volume).arg(&was));
    assert_eq!(held["reasons"][0], "the audit", "{held}");
    let id = held["point"]["id"].as_str().expect("a point").to_owned();
    let status = || site.operator(&receiver, &["status", VOLUME])[0]["conditions"].to_string();
    assert!(!status().contains("store-"), "{}", status());
    for _ in 0..3 {
        burst();
        sidecar.settle(SOON);
    }
    assert!(status().contains("store-near-cap"), "{}", status());
    // More than fits: the rest waits until the oldest points have gone.
    for _ in 0..6 {
        burst();
        sidecar.settle(SOON * 2);
    }
    let points = site.points(&receiver);
    // A burst may be cut more than once.
    let newest =
        points.iter().filter_map(|point| point["id"].as_str()?.strip_prefix("1.")?.parse::<usize>().ok());
    let made = newest.max().expect("points of the first epoch");
    assert!(points.len() > 1 && points.len() < made, "{} of {made} points are left", points.len());
    let kept = points.iter().find(|point| point["id"] == id.as_str()).expect("the held point is there");
    assert_eq!(kept["tags"][0], "held: the audit", "{kept}");
    let restored = site.path("restored");
    site.restore(&receiver, &id, &restored);
    assert_eq!(differences(&was, &restored, false), Vec::<String>::new());
    site.operator(&receiver, &["release", VOLUME, "--at", &id]);
    let free =
        || site.points(&receiver).iter().all(|point| point["tags"].as_array().is_none_or(Vec::is_empty));
    wait::until_true("no point is held", SOON, free);
    counts(&site, &receiver);
}
