//! A volume is deleted: its space comes back, whoever wrote it is told, and a volume that shares its chunks keeps them.

use std::{fs, path::Path, process::Command};

use rand::{RngCore, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tidelock_tests::{
    model::differences,
    process,
    site::{Receiver, Site, json},
    wait::{self, SOON},
};

const REFUSED: i32 = 2;
const USAGE: i32 = 64;
const MIB: u64 = 1 << 20;
const ONE: &str = "acme/one";
const TWO: &str = "acme/two";

fn write(path: &Path, mib: u64, seed: u64) {
    let mut content = vec![0; (mib * MIB) as usize];
    StdRng::seed_from_u64(seed).fill_bytes(&mut content);
    fs::write(path, content).expect("writable");
}

fn log_bytes(site: &Site, receiver: &Receiver) -> u64 {
    let report = site.operator(receiver, &["verify"]);
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{report}");
    report["log_bytes"].as_u64().expect("a number")
}

/// A deletion that must not happen: how it ends, and what it says.
fn refused(site: &Site, receiver: &Receiver, arguments: &[&str]) -> (Option<i32>, String) {
    let all = [&["store", "delete", ONE], arguments].concat();
    let out = process::output(&mut site.operator_command(receiver, &all));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("nothing was deleted"), "{said}");
    (out.status.code(), said)
}

#[test]
fn a_deleted_volume_gives_its_space_back_and_others_keep_what_they_share_with_it() {
    let site = Site::new();
    let (one, two) = (site.new_dir("one"), site.path("two"));
    write(&one.join("shared"), 6, 1);
    process::run(Command::new("cp").arg("-a").arg(&one).arg(&two));
    write(&one.join("own"), 24, 2);
    // For segments of 10 MiB.
    let image = site.path("image");
    let mut receiver =
        site.try_receiver(&["--store-cap", "160M", "--image", image.to_str().expect("a plain path")]);
    receiver.process.allow("volume deleted").allow("disconnected");
    let mut first = site.sidecar(&receiver, &one).volume(ONE).start();
    first.process.allow("was deleted").allow("not connected");
    first.settle(SOON);
    let mut second = site.sidecar(&receiver, &two).volume(TWO).start();
    second.settle(SOON);
    let images = |volume: &str| ["", "."].map(|dot| image.join(format!("acme/{dot}{volume}")).exists());
    wait::until_true("there is an image", SOON, || image.join("acme/one/own").exists());
    let before = log_bytes(&site, &receiver);
    assert!((30 * MIB..33 * MIB).contains(&before), "{before} bytes");

    let (code, said) = refused(&site, &receiver, &["--yes"]);
    assert!(code == Some(REFUSED) && said.contains("is connected"), "{code:?} {said}");
    let (code, said) = refused(&site, &receiver, &["--force"]);
    assert!(code == Some(USAGE) && said.contains("--yes"), "{code:?} {said}");
    let points = site.operator(&receiver, &["points", ONE, "--all"]);
    let points = points["points"].as_array().map_or(0, Vec::len);

    let done = site.operator(&receiver, &["store", "delete", ONE, "--force", "--yes"]);
    assert_eq!(done[0]["next_epoch"], 2, "{done}");
    assert_eq!((images("one"), images("two")), ([false; 2], [true; 2]));
    assert!(done[0]["points"].as_u64() >= Some(points as u64), "{done}, there were {points}");
    let ended = first.process.wait(SOON);
    assert!(!ended.success() && first.process.log().contains("--epoch 2"), "{}", first.process.log());
    wait::until_true("space comes back", SOON * 4, || log_bytes(&site, &receiver) < before - 16 * MIB);
    second.settle(SOON);
    let same = |volume: &str, dir: &Path, to: &str| {
        let to = site.path(to);
        site.restore_volume(&receiver, volume, "latest", &to);
        assert_eq!(differences(dir, &to, true), Vec::<String>::new(), "{volume}");
    };
    same(TWO, &two, "two-restored");
    fs::remove_file(one.join("own")).expect("removed");
    let mut anew = site.sidecar(&receiver, &one).volume(ONE).epoch(2).start();
    anew.settle(SOON);
    same(ONE, &one, "one-restored");
    anew.process.stop();
    second.process.stop();
    receiver.process.stop();

    let mut command = site.tidelock(["store", "delete", "--tenant", "acme", "--yes", "--json", "--store"]);
    let done = json(&process::output(command.arg(site.store())));
    assert_eq!((&done[0]["volume"], &done[1]["volume"]), (&ONE.into(), &TWO.into()), "{done}");
    let freed: u64 =
        done.as_array().expect("a list").iter().filter_map(|one| one["freed_bytes"].as_u64()).sum();
    assert!(freed > 6 * MIB, "{done}");
    let receiver = site.receiver();
    assert_eq!(site.operator(&receiver, &["status"]), Value::Array(Vec::new()));
    assert!(log_bytes(&site, &receiver) < MIB);
}
