//! Damage in a live store that is healed while it goes on: from the sidecar's volume, and from the archive.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tidelock_tests::{
    model::differences,
    process,
    site::{Receiver, Site, VOLUME},
    wait::SOON,
};

/// Where in the log of the store these bytes are.
fn place(site: &Site, content: &[u8]) -> (PathBuf, u64) {
    let segments = fs::read_dir(site.store().join("log")).expect("a log");
    let mut places = segments.filter_map(|segment| {
        let path = segment.expect("readable").path();
        let bytes = fs::read(&path).expect("readable");
        let at = bytes.windows(content.len()).position(|window| window == content)?;
        Some((path, at as u64))
    });
    places.next().expect("the content is in the log as it is")
}

/// Turns over some bits.
fn damage((path, at): &(PathBuf, u64)) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("ours");
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, *at).expect("there");
    file.write_all_at(&bytes.map(|byte| !byte), *at).expect("written");
}

fn write(path: &Path, seed: u64) -> Vec<u8> {
    let mut content = vec![0; 9_000];
    StdRng::seed_from_u64(seed).fill(&mut content[..]);
    fs::write(path, &content).expect("the volume is writable");
    content
}

fn verify(site: &Site, receiver: &Receiver, more: &[&str]) -> (Option<i32>, Value) {
    let out = process::output(&mut site.operator_command(receiver, &[&["verify"], more].concat()));
    (out.status.code(), serde_json::from_slice(&out.stdout).expect("a report"))
}

fn findings(report: &Value) -> usize {
    report["findings"].as_array().expect("findings").len()
}

#[test]
fn a_chunk_that_rotted_comes_again_from_the_sidecar() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let (kept, _) = (write(&volume.join("kept"), 1), write(&volume.join("whole"), 2));
    let gone = write(&volume.join("gone"), 3);
    let mut receiver = site.receiver();
    receiver.process.allow("store is damaged");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("the receiver has lost chunks");
    let first = sidecar.settle(SOON);
    // Of the old content nobody has anything any more.
    write(&volume.join("gone"), 4);
    sidecar.settle(SOON);

    damage(&place(&site, &kept[4000..]));
    let (code, report) = verify(&site, &receiver, &[]);
    assert_eq!((code, findings(&report)), (Some(5), 1), "{report}");
    assert_eq!(report["findings"][0]["file"], "kept", "{report}");
    let (code, report) = verify(&site, &receiver, &["--repair"]);
    assert_eq!((code, findings(&report), &report["resent_chunks"]), (Some(0), 0, &1.into()), "{report}");
    assert_eq!(verify(&site, &receiver, &[]).0, Some(0));
    let restored = site.path("restored");
    site.restore(&receiver, "latest", &restored);
    assert_eq!(differences(&volume, &restored, true), Vec::<String>::new());
    let earlier = site.path("earlier");
    site.restore(&receiver, &first.id.to_string(), &earlier);
    assert_eq!(fs::read(earlier.join("kept")).expect("restored"), kept);

    damage(&place(&site, &gone[4000..]));
    let (code, report) = verify(&site, &receiver, &["--repair"]);
    assert_eq!((code, findings(&report), &report["resent_chunks"]), (Some(5), 1, &0.into()), "{report}");
    assert_eq!(report["findings"][0]["file"], "gone", "what nobody has stays a finding: {report}");

    // It goes on, and the log alone says the same of the points.
    write(&volume.join("more"), 5);
    sidecar.settle(SOON);
    sidecar.process.kill();
    receiver.process.kill();
    let mut rebuild = site.tidelock(["store", "rebuild", "--json", "--store"]);
    process::output(rebuild.arg(site.store()));
    let mut again = site.tidelock(["verify", "--json", "--store"]);
    let out = process::output(again.arg(site.store()));
    let report: Value = serde_json::from_slice(&out.stdout).expect("a report");
    // The old content may be in more points than one.
    assert!(out.status.code() == Some(5) && report["damaged_points"].as_u64() >= Some(1), "{report}");
    assert_eq!(report["findings"][0]["file"], "gone", "{report}");
    let refused = process::output(site.tidelock(["verify", VOLUME, "--repair", "--store"]).arg(site.store()));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("needs a running receiver"), "{said}");
}

#[test]
fn a_damaged_segment_gets_its_bytes_back_from_the_archive() {
    let site = Site::new();
    let (volume, bucket) = (site.new_dir("volume"), site.new_dir("bucket"));
    let old = write(&volume.join("file"), 1);
    let url = format!("file://{}", bucket.display());
    let mut receiver =
        site.try_receiver(&["--archive", &url, "--ack", "archive", "--archive-interval", "50ms"]);
    receiver.process.allow("store is damaged").allow("damaged bytes of the log written again");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let first = sidecar.settle(SOON);
    write(&volume.join("file"), 2);
    sidecar.settle(SOON);

    // A chunk that no sidecar has any more, and what is around it: records of every kind.
    let (segment, at) = place(&site, &old);
    let file = OpenOptions::new().write(true).open(segment).expect("ours");
    file.write_all_at(&vec![0; 12_000], at).expect("written");
    let (code, report) = verify(&site, &receiver, &[]);
    assert!(code == Some(5) && findings(&report) > 0, "{report}");
    let (code, report) = verify(&site, &receiver, &["--repair"]);
    assert_eq!((code, findings(&report), &report["resent_chunks"]), (Some(0), 0, &0.into()), "{report}");
    assert!(report["restored_bytes"].as_u64() >= Some(9_000), "{report}");
    let earlier = site.path("earlier");
    site.restore(&receiver, &first.id.to_string(), &earlier);
    assert_eq!(fs::read(earlier.join("file")).expect("restored"), old);
}

/// Somebody goes back to a copy of the receiver's disk, or its end was lost.
#[test]
fn numbers_of_points_that_the_receiver_lost_are_not_given_to_others() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("not connected").allow("the receiver has lost points");
    write(&volume.join("file"), 1);
    let kept = sidecar.settle(SOON);
    receiver.process.stop();
    let copy = site.path("copy");
    process::run(Command::new("cp").arg("-a").arg(site.store()).arg(&copy));
    receiver = site.receiver();
    write(&volume.join("file"), 2);
    let lost = sidecar.settle(SOON);
    assert!(lost.id > kept.id);
    receiver.process.stop();
    fs::remove_dir_all(site.store()).expect("ours");
    fs::rename(&copy, site.store()).expect("ours");
    receiver = site.receiver();
    write(&volume.join("file"), 3);
    let again = sidecar.settle(SOON);
    assert!(again.id > lost.id, "{again:?} after {lost:?}");
    let restored = site.path("restored");
    site.restore(&receiver, &again.id.to_string(), &restored);
    assert_eq!(differences(&volume, &restored, true), Vec::<String>::new());
}

#[test]
fn a_group_goes_on_by_itself_where_the_newest_point_of_one_volume_is_damaged() {
    let site = Site::new();
    let (data, wal) = (site.new_dir("volume"), site.new_dir("wal"));
    let both = ["--tenant", "acme", "--volume", "data", "--volume", "wal"];
    let identity = site.issue("sidecar", &both, "both.id");
    let mut receiver = site.receiver();
    let second = format!("acme/wal={}", wal.display());
    let plan = site.sidecar(&receiver, &data).identity(&identity).arg("--volume").arg(&second);
    let mut sidecar = plan.start();
    sidecar.process.allow("not connected").allow("cannot open its newest point any more");
    write(&data.join("file"), 1);
    write(&wal.join("segment"), 2);
    let whole = sidecar.settle(SOON);
    fs::write(data.join("hit by a flipped bit"), "in its commit").expect("the volume is writable");
    sidecar.settle(SOON);
    write(&data.join("more"), 3);
    let newest = sidecar.settle(SOON);
    receiver.process.stop();
    damage(&place(&site, b"hit by a flipped bit"));

    // Nobody does anything but start the receiver again.
    receiver = site.receiver();
    receiver.process.allow("newest-damaged").allow("store is damaged").allow("operator's request failed");
    write(&wal.join("segment"), 4);
    let anew = sidecar.settle(SOON);
    assert!(anew.id > newest.id);
    let log = receiver.process.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("newest-damaged")).collect();
    assert!(!told.is_empty() && told.iter().all(|line| line.contains(VOLUME)), "{log}");
    let same = |at: &str, name: &str| {
        for (volume, dir) in [(VOLUME, &data), ("acme/wal", &wal)] {
            let restored = site.path(&format!("{name}-{}", dir.file_name().expect("named").display()));
            site.restore_volume(&receiver, volume, at, &restored);
            assert_eq!(differences(dir, &restored, true), Vec::<String>::new(), "{volume} at {at}");
        }
    };
    same(&anew.id.to_string(), "anew");
    let status = site.operator(&receiver, &["status"]);
    let volumes = status.as_array().expect("volumes");
    let conditions = volumes.iter().flat_map(|volume| volume["conditions"].as_array().expect("a list"));
    assert!(volumes.len() == 2 && conditions.clone().count() == 0, "{status}");

    // What is older is what it was; what was damaged is told.
    site.restore(&receiver, &whole.id.to_string(), &site.path("whole"));
    let lost = newest.id.to_string();
    site.restore_volume(&receiver, "acme/wal", &lost, &site.path("not-hit"));
    let (at, to) = (lost.as_str(), site.path("hit"));
    let to = to.to_str().expect("UTF-8");
    let refused =
        process::output(&mut site.operator_command(&receiver, &["restore", VOLUME, "--at", at, "--to", to]));
    assert!(!refused.status.success());
    let (code, report) = verify(&site, &receiver, &[]);
    assert_eq!((code, &report["findings"][0]["last"]), (Some(5), &lost.as_str().into()), "{report}");

    // It is an ordinary point to who comes next.
    sidecar.process.stop();
    let plan = site.sidecar(&receiver, &data).identity(&identity).arg("--volume").arg(&second);
    let mut sidecar = plan.start();
    write(&data.join("more"), 5);
    let last = sidecar.settle(SOON);
    same(&last.id.to_string(), "last");
}
