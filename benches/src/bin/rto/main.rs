//! How long until a standby can be started on? A volume of many files is replicated to a receiver that keeps a hot image, the primary is killed, and the newest point is
//! promoted; before that, the newest and the oldest point are mounted. And how fast is a copy out of the store: `restore` and `cp -a` of the same tree to the same disk, in turns, each until it is on the disk.
//!
//! The receiver, the sidecar and all directories are on this machine. Needs the built `tidelock`.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tidelock_tests::{
    mount::private_namespace,
    needs::Need,
    process,
    site::{Receiver, Site, VOLUME},
    wait,
};

/// Seeding on a slow machine.
const SEED: Duration = Duration::from_secs(1800);
/// Files in a directory.
const FILES_PER_DIR: u64 = 1000;
/// One in so many files is written again before the last point.
const CHANGED_PART: u64 = 100;

/// Prints how long a promotion with a hot image takes, and a mount (as root, with /dev/fuse), and how fast a restore is beside `cp -a`. `TMPDIR` says on which disk; it needs room for five volumes.
#[derive(Debug, Parser)]
struct Options {
    /// Size of the volume, in GiB.
    #[arg(long, default_value_t = 2.0)]
    gib: f64,
    /// Files it consists of, all of one size.
    #[arg(long, default_value_t = 100_000)]
    files: u64,
    /// Turns of restore and `cp -a`, and of mounts of each point.
    #[arg(long, default_value_t = 2)]
    turns: u64,
    /// Prints JSON instead of lines.
    #[arg(long)]
    json: bool,
}

fn main() {
    let options = Options::parse();
    let can_mount = Need::Fuse.lacking();
    if can_mount.is_none() {
        private_namespace();
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    let file_bytes = (options.gib * f64::from(1 << 30)) as u64 / options.files.max(1);
    fill(&volume, options.files, file_bytes, 1);
    let images = site.path("images");
    let mut receiver =
        site.try_receiver(&["--image", images.to_str().expect("paths of the bench are UTF-8")]);
    receiver.process.allow("promoted").allow("disconnected").allow("fenced");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let first = sidecar.settle(SEED).id.to_string();
    fill(&volume, options.files.div_ceil(CHANGED_PART), file_bytes, 2);
    sidecar.settle(SEED);
    let last = wait::until("the image at the newest point", SEED, || {
        let status = site.operator(&receiver, &["status", VOLUME])[0].take();
        let last = status["last"]["id"].as_str()?.to_owned();
        (status["image"]["point"] == last.as_str()).then_some(last)
    });
    // The primary is gone; what was written last is young in every cache, as it is on the day.
    sidecar.process.kill();
    let mounts = match can_mount {
        None => mounts(&site, &receiver, [&last, &first], options.turns),
        Some(reason) => json!({ "not_tried": reason }),
    };
    let promoted = promote(&site, &receiver);
    receiver.process.stop();
    let copies = copies(&site, &volume, &last, options.turns, options.gib);
    let report = json!({
        "gib": options.gib, "files": options.files, "mount": mounts, "promote": promoted, "copies": copies,
    });
    if options.json { println!("{report:#}") } else { print(&report) }
}

/// Content that nothing makes smaller.
fn fill(volume: &Path, files: u64, file_bytes: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut content = vec![0; usize::try_from(file_bytes).expect("a file fits memory")];
    for number in 0..files {
        let dir = volume.join((number / FILES_PER_DIR).to_string());
        if number % FILES_PER_DIR == 0 {
            fs::create_dir_all(&dir).expect("the volume is writable");
        }
        rng.fill(&mut content[..]);
        fs::write(dir.join(number.to_string()), &content).expect("the volume is writable");
    }
    sync(volume);
}

/// Milliseconds from the start of the command to the first bytes of a file, for the newest and the oldest point.
fn mounts(site: &Site, receiver: &Receiver, points: [&str; 2], turns: u64) -> Value {
    let dir = site.path("mounted");
    let [newest, oldest] = points.map(|point| {
        let turn = |_| {
            let begun = Instant::now();
            let (mut mount, _) = site.mount(receiver, point, &dir, &[]);
            fs::read(dir.join("0/0")).expect("it was filled");
            let taken_ms = begun.elapsed().as_secs_f64() * 1e3;
            assert!(mount.stop().success());
            taken_ms
        };
        (0..turns).map(turn).collect::<Vec<_>>()
    });
    json!({ "newest_ms": newest, "oldest_ms": oldest })
}

/// The whole command, from its start to its end, and what it says of its parts.
fn promote(site: &Site, receiver: &Receiver) -> Value {
    let to = site.path("promoted");
    let begun = Instant::now();
    let mut report = site.operator(receiver, &["promote", VOLUME, "--to", to.to_str().expect("UTF-8")]);
    let command_ms = begun.elapsed().as_secs_f64() * 1e3;
    assert!(report["image"].is_string(), "the image was not taken: {}", report["image_missed"]);
    let mut recovery = report["recovery"].take();
    recovery["command_ms"] = command_ms.into();
    recovery
}

/// Seconds of each, on a disk that had nothing left to write.
fn copies(site: &Site, volume: &Path, point: &str, turns: u64, gib: f64) -> Value {
    let (mut restore, mut copy) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        let to = site.path("restored");
        restore.push(timed(&to, || {
            site.restore_from_store(point, &to);
        }));
        let to = site.path("copied");
        copy.push(timed(&to, || {
            process::run(Command::new("cp").arg("-a").arg(volume).arg(&to));
        }));
    }
    let best = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    json!({
        "restore_s": restore, "cp_s": copy,
        "restore_mib_s": gib * 1024.0 / best(&restore), "cp_mib_s": gib * 1024.0 / best(&copy),
        "ratio": best(&copy) / best(&restore),
    })
}

fn timed(to: &PathBuf, work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    sync(to);
    let taken = begun.elapsed().as_secs_f64();
    fs::remove_dir_all(to).expect("it is ours");
    sync(to.parent().expect("it has one"));
    taken
}

fn sync(dir: &Path) {
    let dir = File::open(dir).expect("it is there");
    rustix::fs::syncfs(&dir).expect("the disk takes it");
}

fn print(report: &Value) {
    println!("mount to the first read, ms: {}", report["mount"]);
    let promote = &report["promote"];
    let ms = |name: &str| promote[name].as_f64().unwrap_or(f64::NAN);
    println!("volume: {} GiB in {} files", report["gib"], report["files"]);
    println!(
        "promote with hot image: RTO {:.0} ms (select {:.0}, check {:.0}, copy {:.0}, fence {:.1}, difference {:.0}); the command {:.0} ms",
        ms("rto_ms"),
        ms("select_ms"),
        ms("check_ms"),
        ms("copy_ms"),
        ms("fence_ms"),
        ms("difference_ms"),
        ms("command_ms"),
    );
    let copies = &report["copies"];
    println!(
        "restore {:.0} MiB/s, cp -a {:.0} MiB/s, ratio {:.2} (best of each; seconds: {} and {})",
        copies["restore_mib_s"].as_f64().unwrap_or(f64::NAN),
        copies["cp_mib_s"].as_f64().unwrap_or(f64::NAN),
        copies["ratio"].as_f64().unwrap_or(f64::NAN),
        copies["restore_s"],
        copies["cp_s"],
    );
}
