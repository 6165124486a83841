//! The way home: a primary that was cut off, what it wrote alone, and the way back to it.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use serde_json::Value;
use tidelock_tests::{
    compare::assert_same,
    needs::{self, Need},
    places::Places,
    process::Process,
    site::{Site, VOLUME},
    wait::{self, SOON},
};

const FENCED: i32 = 3;
const REFUSED: i32 = 2;
const MIB: u64 = 1 << 20;
const TAIL: &str = "acme/data-tail";
/// The database's size.
const SIZE: u64 = 24 * MIB;

/// Writes runs of noise into the database, at random; returns how many bytes that were.
fn rewrite(volume: &Path, rng: &mut SmallRng, runs: u64, len: u64) -> u64 {
    let file = fs::File::options().write(true).open(volume.join("database")).expect("it is there");
    let mut bytes = vec![0; len as usize];
    for _ in 0..runs {
        rng.fill_bytes(&mut bytes);
        file.write_all_at(&bytes, rng.random_range(0..(SIZE - len) / 4096) * 4096).expect("writable");
    }
    runs * len
}

fn noise(path: PathBuf, rng: &mut SmallRng, len: u64) -> u64 {
    let mut bytes = vec![0; len as usize];
    rng.fill_bytes(&mut bytes);
    fs::write(path, bytes).expect("writable");
    len
}

fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn the_way_home_takes_only_what_differs_and_loses_nothing() {
    if !needs::met(&[Need::Root, Need::Program("ip")]) {
        return;
    }
    let (site, places, mut rng) = (Site::new(), Places::new(), SmallRng::seed_from_u64(7));
    let (old, new) = (site.new_dir("old"), site.path("new"));
    noise(old.join("database"), &mut rng, SIZE);
    fs::create_dir(old.join("logs")).expect("new");
    for n in 0..40 {
        noise(old.join(format!("logs/{n}")), &mut rng, 5000);
    }

    // A primary at home, its standby away.
    places.away.enter();
    let mut away = site.receiver_at("away", places.away.address);
    away.process
        .allow("promoted")
        .allow("fenced")
        .allow("disconnected")
        .allow("epoch 1")
        .allow("sendmsg error");
    places.home.enter();
    let mut primary = site.sidecar(&away, &old).start();
    primary.process.allow("fenced").allow("not connected").allow("sendmsg error");
    primary.settle(4 * SOON);
    let acknowledged = site.path("acknowledged");
    assert!(Command::new("cp").arg("-a").arg(&old).arg(&acknowledged).status().expect("cp runs").success());

    // The network breaks; the primary goes on.
    places.set_whole(false);
    let acks = primary.acks().len();
    let mut changed = rewrite(&old, &mut rng, 2, MIB / 2);
    changed += noise(old.join("logs/alone"), &mut rng, 100_000);
    fs::write(old.join("logs/3"), "written by nobody else").expect("writable");
    fs::remove_file(old.join("logs/4")).expect("it was there");

    // The standby takes over, and goes on, too.
    places.away.enter();
    let promoted = site.operator(&away, &["promote", VOLUME, "--to", path(&new)]);
    assert_eq!(promoted["epoch"], 2, "{promoted}");
    assert_same(&acknowledged, &new);
    changed += rewrite(&new, &mut rng, 4, MIB);
    changed += noise(new.join("logs/since"), &mut rng, 300_000);
    fs::remove_file(new.join("logs/5")).expect("it was there");
    fs::rename(new.join("logs/6"), new.join("six")).expect("it was there");
    assert_eq!(primary.acks().len(), acks, "somebody acknowledged what nobody has");

    // The network heals: the old writer learns that it is one.
    places.set_whole(true);
    assert_eq!(primary.process.wait(4 * SOON).code(), Some(FENCED), "{}", primary.process.log());
    drop(primary);

    // What it wrote alone is kept beside the line.
    places.home.enter();
    let before = places.home.sent_bytes();
    let kept = site.operator(&away, &["seed", VOLUME, "--from", path(&old), "--branch", TAIL]);
    let tail_bytes = places.home.sent_bytes() - before;
    let again = site.operator(&away, &["seed", VOLUME, "--from", path(&old), "--branch", TAIL]);
    assert_eq!((&again["point"]["id"], &again["branch"]["resumed"]), (&kept["point"]["id"], &true.into()));
    let differs = site.operator(&away, &["diff", TAIL, "1.1", "1.2"]);
    let names: Vec<&str> = paths(&differs);
    for name in ["database", "logs/3", "logs/4", "logs/alone"] {
        assert!(names.contains(&name), "{name} is not in {differs}");
    }
    assert!(!names.contains(&"logs/7"), "{differs}");
    let branches = site.operator(&away, &["branches", VOLUME]);
    assert_eq!((&branches[0]["branch"], branches.as_array().map(Vec::len)), (&TAIL.into(), Some(1)));
    assert_eq!(branches[0]["base"], promoted["point"]["id"], "{branches}");
    let tail = site.path("tail");
    site.restore_volume(&away, TAIL, "latest", &tail);
    assert_same(&old, &tail);

    // It is no newer state of the volume itself.
    let seed = site.operator_command(&away, &["seed", VOLUME, "--from", path(&old)]).output();
    let refused = seed.expect("it can be run");
    assert_eq!(refused.status.code(), Some(REFUSED), "{}", String::from_utf8_lossy(&refused.stderr));

    // A receiver at home begins with the old directory, and the new primary replicates to it.
    let mut home = site.receiver_at("home", places.home.address);
    home.process.allow("promoted").allow("fenced");
    site.operator(&home, &["seed", VOLUME, "--from", path(&old)]);
    places.away.enter();
    let before = places.away.sent_bytes();
    let script = "echo ready; i=0; while :; do i=$((i+1)); echo $i >counter; sleep 0.01; done";
    let mut app = Command::new("sh");
    app.args(["-c", script]).current_dir(&new);
    let mut app = Process::spawn("application", &mut app, &site.path("application.log"));
    wait::until_true("the application works", SOON, || app.log().contains("ready"));
    let plan = site.sidecar(&home, &new).epoch(2).arg("--raise-epoch").arg("--on-fence=stop");
    let mut primary = plan.arg(&format!("--pause-process={}", app.pid())).start();
    primary.process.allow("fenced");
    primary.caught_up(4 * SOON);

    // The move back writes the old directory, which by now is kept twice.
    places.home.enter();
    let moved = site.operator(&home, &["move", VOLUME, "--to", path(&old), "--overwrite"]);
    assert_eq!(primary.process.wait(SOON).code(), Some(FENCED));
    assert_eq!(app.wait(SOON).code(), None, "the application was not ended");
    let sent = places.away.sent_bytes() - before;
    println!("{changed} bytes changed; the way home sent {sent}, the tail {tail_bytes}: {moved}");
    assert!(sent <= changed * 6 / 5 + MIB, "{sent} bytes crossed the network for {changed} that had changed");
    assert!(tail_bytes <= changed * 6 / 5 + MIB, "{tail_bytes} bytes for the tail");
    assert_eq!(moved["epoch"], 3, "{moved}");
    assert_same(&new, &old);
    let found = site.operator(&home, &["restore", VOLUME, "--at", "1.1", "--to", path(&site.path("found"))]);
    assert_same(&tail, &site.path("found"));
    assert_eq!(found["point"]["tags"][0], "old primary of epoch 1 as found", "{found}");

    // Home again: the standby away catches up from what it has.
    let plan = site.sidecar(&away, &old).epoch(3).arg("--raise-epoch");
    let mut primary = plan.start();
    primary.settle(4 * SOON);
    let standby = site.path("standby");
    site.restore(&away, "latest", &standby);
    assert_same(&old, &standby);
}

fn paths(diff: &Value) -> Vec<&str> {
    let changes = diff["changes"].as_array().unwrap_or_else(|| panic!("no changes: {diff}"));
    changes.iter().filter_map(|change| change["path"].as_str()).collect()
}
