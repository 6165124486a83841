//! Points that are mounted: the same as the volume in everything, and nothing is left of them.

use std::{fs, path::Path, process::Command, time::Duration};

use tidelock_tests::{
    compare::{Leave, compare, compare_leaving},
    menagerie,
    model::{Mutator, Powers},
    mount::private_namespace,
    needs::{self, Need},
    pg::{
        Heartbeat, Load, Pg,
        check::{Expected, check_copy},
        pgbench_init,
    },
    process,
    site::{Site, VOLUME},
    wait::{self, SOON},
};

/// Operations tried between two comparisons.
const OPERATIONS: u64 = 1_500;
const ROUNDS: usize = 4;
/// A database under load on a busy machine.
const SETTLE: Duration = Duration::from_secs(120);

fn ready() -> bool {
    let met = needs::met(&[Need::Fuse, Need::Program("umount"), Need::Program("setfacl")]);
    if met {
        private_namespace();
    }
    met
}

#[test]
fn a_mounted_point_is_what_the_volume_was() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    menagerie::build(&volume).expect("the menagerie can be built");
    let mut receiver = site.receiver();
    receiver.process.allow("disconnected");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("socket").allow("not connected");
    let point = sidecar.settle(SOON).id.to_string();
    let copy = site.path("copy");
    site.restore(&receiver, &point, &copy);

    // Replication goes on, and what is mounted stays what it was.
    let dir = site.path("mounted");
    let (mut mount, report) = site.mount(&receiver, "latest", &dir, &[]);
    assert_eq!(report["point"]["id"], point.as_str(), "{report}");
    fs::write(volume.join("plain"), "another").expect("the volume is writable");
    fs::remove_file(volume.join("hard-a")).expect("it is there");
    let later = sidecar.settle(SOON).id.to_string();
    assert_ne!(later, point);
    assert!(fs::write(dir.join("plain"), "no").is_err(), "a mount without a word is read-only");
    assert_eq!(compare(&copy, &dir).expect("both can be read"), Vec::<String>::new());
    assert!(mount.stop().success());
    assert!(!dir.exists() && !is_mounted(&dir));

    // Two at once, each its own point; one ends by umount, and its directory was there before.
    fs::create_dir(&dir).expect("new");
    let (mut new, _) = site.mount(&receiver, &later, &dir, &[]);
    let (mut old, _) = site.mount(&receiver, &point, &site.path("old"), &["--cache", "64K"]);
    assert_eq!(compare(&volume, &dir).expect("both can be read"), Vec::<String>::new());
    assert_eq!(
        fs::read(site.path("old/noise")).expect("readable"),
        fs::read(copy.join("noise")).expect("too")
    );
    process::run(Command::new("umount").arg(&dir));
    assert!(new.wait(SOON).success());
    assert!(dir.is_dir() && !is_mounted(&dir));

    // A receiver that is away is an error, and is reached again.
    sidecar.process.stop();
    receiver.process.stop();
    old.allow("cannot read");
    let sparse = site.path("old/sparse");
    assert!(
        fs::File::open(&sparse).and_then(|mut file| std::io::copy(&mut file, &mut std::io::sink())).is_err()
    );
    let mut receiver = site.receiver();
    wait::until_true("what is mounted can be read again", SOON, || {
        compare(&copy, &site.path("old")).is_ok_and(|lines| lines.is_empty())
    });
    assert!(old.stop().success());

    // The same from the store alone.
    receiver.process.stop();
    let mut command = site.tidelock(["mount", VOLUME, "--json", "--at", &point, "--store"]);
    let (mut mount, _) = site.mounted(command.arg(site.store()).arg(&dir));
    assert_eq!(compare(&copy, &dir).expect("both can be read"), Vec::<String>::new());
    assert!(mount.stop().success());
}

#[test]
fn a_mount_that_is_in_use_or_was_killed_leaves_nothing() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    fs::write(volume.join("file"), "content").expect("writable");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    let dir = site.path("mounted");
    let used = site.new_dir("used");
    fs::write(used.join("own"), "").expect("writable");
    let to = used.to_str().expect("test paths are UTF-8");
    let refused = process::output(&mut site.operator_command(&receiver, &["mount", VOLUME, to]));
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");

    let (mut mount, _) = site.mount(&receiver, "latest", &dir, &[]);
    let open = fs::File::open(dir.join("file")).expect("readable");
    mount.allow("in use");
    assert!(mount.stop().success());
    assert!(!dir.exists() && !is_mounted(&dir));
    drop(open);

    let (mut mount, _) = site.mount(&receiver, "latest", &dir, &[]);
    mount.kill();
    assert!(fs::metadata(&dir).is_err(), "nobody answers");
    let (mut mount, _) = site.mount(&receiver, "latest", &dir, &[]);
    assert_eq!(fs::read(dir.join("file")).expect("readable"), b"content");
    assert!(mount.stop().success());
    assert!(!is_mounted(&dir));
}

/// Whatever programs do in a writable mount has the effect that it has in a directory, and none on the volume.
#[test]
fn a_writable_mount_behaves_as_a_directory() {
    if !ready() {
        return;
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    let powers = Powers { mmap: true, root: true, reserve: true };
    Mutator::new(&volume, 5, powers).run(OPERATIONS);
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let point = sidecar.settle(SOON).id.to_string();
    let (copy, dir) = (site.path("copy"), site.path("mounted"));
    site.restore(&receiver, &point, &copy);
    let (mut mount, report) = site.mount(&receiver, &point, &dir, &["--writable"]);
    assert_eq!(report["writable"], true, "{report}");
    // The same seed does the same to both.
    let leave = Leave { times: true, holes: true, ..Leave::default() };
    let (mut here, mut there) = (Mutator::new(&copy, 29, powers), Mutator::new(&dir, 29, powers));
    for _ in 0..ROUNDS {
        here.run(OPERATIONS);
        there.run(OPERATIONS);
        let lines = compare_leaving(&leave, &copy, &dir).expect("both can be read");
        assert_eq!(lines, Vec::<String>::new());
    }
    assert_eq!(here.done(), there.done(), "the same operations were possible");
    assert!(mount.stop().success());
    assert!(!dir.exists());
    let untouched = site.path("untouched");
    site.restore(&receiver, "latest", &untouched);
    // The kernel takes reserved space for a hole until somebody has read it.
    let leave = Leave { holes: true, ..Leave::default() };
    assert_eq!(compare_leaving(&leave, &volume, &untouched).expect("both can be read"), Vec::<String>::new());
}

#[test]
fn postgresql_starts_from_a_mounted_point_while_replication_goes_on() {
    if !ready() || !needs::met(&[Need::PostgreSql]) {
        return;
    }
    let site = Site::new();
    let data = site.path("data");
    let mut pg = Pg::init(&data, &site.path("run"));
    pg.start();
    pgbench_init(&pg, 1);
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &data).start();
    let heartbeat = Heartbeat::start(&pg, Duration::from_millis(2));
    let load = Load::start(&pg, 2, Duration::from_secs(60));
    wait::until_true("some commits", SOON, || heartbeat.acked().len() > 300);
    let point = sidecar.caught_up(SETTLE);
    let dir = site.path("mounted");
    let (mut mount, _) = site.mount(&receiver, &point.id.to_string(), &dir, &["--writable"]);
    // On the machine of the primary, whose process still has this number.
    fs::remove_file(dir.join("postmaster.pid")).expect("it was captured");
    let expected = Expected { scale: 1, beats: &heartbeat.acked(), cut_ns: point.cut_ns };
    let wrong = check_copy(&dir, &site.path("copy-run"), expected);
    assert_eq!(wrong, Vec::<String>::new());
    assert!(mount.stop().success());
    assert!(sidecar.caught_up(SETTLE).id > point.id, "replication went on");
    load.kill();
    heartbeat.stop();
    pg.kill();
}

fn is_mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("our own mounts");
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == dir))
}
