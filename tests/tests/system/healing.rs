//! What goes wrong is named while it lasts, is on the points it affects, and heals by itself.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tidelock_tests::{
    compare::{Leave, compare_leaving},
    model::{Mutator, Powers, copy_tree, differences},
    mount::{Format, Mount},
    needs::{self, Need},
    process::run,
    site::{Receiver, Sidecar, Site, Tracker, VOLUME},
    wait::{self, SOON},
};

#[test]
fn a_full_ring_is_named_and_the_next_point_is_right() {
    if needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Ext4, 512);
        // More records than two rings of 4 MiB hold, without a further one to say so.
        lost_events_heal(&site, mount.path(), Tracker::Exact, |volume| {
            let file = File::create(volume.join("burst")).expect("new");
            (0..200_000).for_each(|i| file.write_all_at(b"x", i % 64 * 4096).expect("there is room"));
        });
    }
}

#[test]
fn a_full_inotify_queue_is_named_and_the_next_point_is_right() {
    let site = Site::new();
    lost_events_heal(&site, &site.new_dir("mount"), Tracker::Inotify, |volume| {
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").expect("inotify has limits");
        let (a, b) = (volume.join("burst-a"), volume.join("burst-b"));
        fs::write(&a, "").expect("writable");
        for _ in 0..limit.trim().parse::<u64>().expect("a number") / 4 + 1 {
            fs::rename(&a, &b).and_then(|()| fs::rename(&b, &a)).expect("it is there");
        }
    });
}

#[test]
fn a_full_fanotify_queue_is_named_and_the_next_point_is_right() {
    if needs::met(&[Need::Root]) {
        let site = Site::new();
        lost_events_heal(&site, &site.new_dir("mount"), Tracker::Fanotify, |volume| {
            let limit =
                fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").expect("fanotify has limits");
            // Events of one name become one.
            for name in 0..=limit.trim().parse::<u64>().expect("a number") {
                let name = volume.join(format!("burst-{name}"));
                fs::write(&name, "").and_then(|()| fs::remove_file(&name)).expect("writable");
            }
        });
    }
}

#[test]
fn where_changes_raise_no_events_they_are_found_by_comparing_and_points_say_fuzzy() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut mutator =
        Mutator::new(&volume, 17, Powers { mmap: false, root: needs::is_root(), reserve: false });
    mutator.run(300);
    let receiver = site.receiver();
    let silent = ["inotify/modify", "inotify/names"];
    let sidecar = site.sidecar(&receiver, &volume).tracker(Tracker::Poll).without(&silent).start();
    wait::until_true("a point", SOON, || !sidecar.acks().is_empty());
    mutator.run(300);
    let latest = site.path("latest");
    wait::until_true("a point with all changes", 3 * SOON, || {
        let _ = fs::remove_dir_all(&latest);
        let to = latest.to_str().expect("test paths are UTF-8");
        let at = ["restore", VOLUME, "--at", "latest", "--accept", "fuzzy", "--to", to];
        site.operator(&receiver, &at);
        differences(&volume, &latest, false).is_empty()
    });
    let status = sidecar.status().expect("it serves");
    assert!(status.to_string().contains("polling"), "{status}");
    let points = site.points(&receiver);
    let fuzzy = |point: &Value| point["consistency"] == "fuzzy" && point["tracker"] == "poll";
    assert!(points.iter().all(fuzzy), "{points:?}");
}

/// Bursts of changes while the sidecar is not looking; every time the next point equals the volume.
fn lost_events_heal(site: &Site, parent: &Path, tracker: Tracker, burst: impl Fn(&Path)) {
    let volume = parent.join("volume");
    fs::create_dir(&volume).expect("new");
    let powers = Powers { mmap: tracker == Tracker::Exact, root: needs::is_root(), reserve: false };
    let mut mutator = Mutator::new(&volume, 11, powers);
    mutator.run(300);
    let mut receiver = site.receiver();
    receiver.process.allow("disconnected");
    let mut sidecar = site.sidecar(&receiver, &volume).tracker(tracker).start();
    // A sidecar that is stopped for long is taken for gone by its receiver.
    sidecar.process.allow("events were lost").allow("not connected");
    sidecar.settle(SOON);
    for round in 1..=2u32 {
        sidecar.process.signal(libc::SIGSTOP);
        mutator.run(100);
        burst(&volume);
        mutator.run(100);
        sidecar.process.signal(libc::SIGCONT);
        let point = sidecar.settle(SOON).id.to_string();
        assert!(sidecar.metric("tidelock_events_lost_total") >= f64::from(round), "nothing was lost");
        assert!(sidecar.metric("tidelock_rescans_total") >= f64::from(round));
        let restored = site.path(&format!("restored-{round}"));
        site.restore(&receiver, &point, &restored);
        let wrong = differences(&volume, &restored, false);
        assert!(wrong.is_empty(), "round {round}, point {point}: {wrong:#?}");
        let points = site.points(&receiver);
        assert!(points.iter().all(|point| point["consistency"] == "crash"), "{points:?}");
        let marked = points.iter().filter(|point| has(&point["conditions"], "unverified")).count();
        assert!(marked >= round as usize, "{marked} points say that events were lost");
        assert_eq!(status(&sidecar).expect("it answers")["conditions"].get("unverified"), None);
    }
}

/// A user namespace with limits of its own, so that nothing else on the machine feels them.
const LIMITED: [&str; 7] = [
    "unshare",
    "--user",
    "--map-root-user",
    "sh",
    "-c",
    "cd /proc/sys/user && echo $0 >max_inotify_watches && echo $1 >max_inotify_instances && shift && exec \"$@\"",
    "10",
];

#[test]
fn too_few_watches_are_named_and_heal_once_the_limit_is_raised() {
    limit_heals("128", "echo 100000 >/proc/sys/user/max_inotify_watches");
}

#[test]
fn no_inotify_instance_is_named_and_heals_once_the_limit_is_raised() {
    limit_heals(
        "0",
        "cd /proc/sys/user && echo 100000 >max_inotify_watches && echo 128 >max_inotify_instances",
    );
}

fn limit_heals(instances: &str, raise: &str) {
    if !needs::met(&[Need::Root, Need::Program("unshare"), Need::Program("nsenter")]) {
        return;
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    for dir in 0..1000 {
        let dir = volume.join(format!("d{}/d{dir}", dir % 10));
        fs::create_dir_all(&dir).and_then(|()| fs::write(dir.join("file"), "as it was")).expect("writable");
    }
    let receiver = site.receiver();
    let within = [&LIMITED[..], &[instances]].concat();
    let mut sidecar = site.sidecar(&receiver, &volume).tracker(Tracker::Inotify).within(&within).start();
    sidecar.process.allow("directories are not watched");
    let status = until_condition(&mut sidecar, "watch-limit");
    assert!(
        status["conditions"]["watch-limit"].as_str().is_some_and(|why| why.contains("sysctl")),
        "{status}"
    );
    assert_eq!(status["protected"], false, "{status}");
    // Seen without an event, though not at once.
    fs::write(volume.join("d3/d503/file"), "as it is").expect("writable");
    fs::write(volume.join("d3/d513/new"), "new").expect("writable");
    sidecar.covered(wait::now_ns(), SOON);
    let points = site.points(&receiver);
    assert!(points.iter().all(|point| point["consistency"] == "fuzzy"), "{points:?}");
    assert!(points.iter().all(|point| has(&point["conditions"], "watch-limit")), "{points:?}");

    let pid = sidecar.process.pid().to_string();
    run(Command::new("nsenter").args(["--user", "--target", &pid, "sh", "-c", raise]));
    until_protected(&mut sidecar);
    fs::write(volume.join("d7/d777/file"), "at last").expect("writable");
    last_point_is_right(&site, &receiver, &mut sidecar, &volume);
    assert_eq!(sidecar.metric("tidelock_protected"), 1.0);
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_heals_once_it_can() {
    if !needs::met(&[Need::Root, Need::Program("unshare")]) {
        return;
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    let (secret, other) = (volume.join("secret"), volume.join("other"));
    fs::write(&secret, "as it was").and_then(|()| fs::write(&other, "as it was")).expect("writable");
    // Of a user that the namespace does not know: its root has no power over the file.
    let close = |path: &Path| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(path, mode).and_then(|()| chown(path, Some(4321), None)).expect("we may");
    };
    close(&secret);
    let receiver = site.receiver();
    let within = ["unshare", "--user", "--map-root-user"];
    let mut sidecar = site.sidecar(&receiver, &volume).tracker(Tracker::Inotify).within(&within).start();
    sidecar.process.allow("something is not captured");
    let status = until_condition(&mut sidecar, "unreadable");
    assert!(
        status["conditions"]["unreadable"].as_str().is_some_and(|why| why.contains("secret")),
        "{status}"
    );
    sidecar.settle(SOON);
    let points = site.points(&receiver);
    assert!(points.iter().all(|point| point["consistency"] == "fuzzy"), "{points:?}");

    chown(&secret, Some(0), None).expect("we may");
    until_protected(&mut sidecar);
    last_point_is_right(&site, &receiver, &mut sidecar, &volume);

    // Gone is as good as readable.
    fs::write(&secret, "as it is").expect("writable");
    close(&secret);
    sidecar.settle(SOON);
    until_condition(&mut sidecar, "unreadable");
    fs::remove_file(&secret).expect("we may");
    until_protected(&mut sidecar);
    last_point_is_right(&site, &receiver, &mut sidecar, &volume);
}

#[test]
fn a_root_that_vanishes_is_no_deletion_and_is_taken_up_again() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4")]) {
        return;
    }
    let site = Site::new();
    let mount = Mount::new(&site.path("mount"), Format::Ext4, 256);
    let volume = mount.path();
    fs::remove_dir(volume.join("lost+found")).expect("empty");
    fs::create_dir(volume.join("dir"))
        .and_then(|()| fs::write(volume.join("dir/file"), "as it was"))
        .expect("new");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, volume).start();
    sidecar.process.allow("no longer at its path");
    let tracker = status(&sidecar).expect("it answers")["tracker"].clone();
    sidecar.settle(SOON);

    // Mounted over: another file system whose root looks alike.
    let over = Mount::new(volume, Format::Ext4, 64);
    until_condition(&mut sidecar, "root-gone");
    fs::write(over.path().join("elsewhere"), "none of the volume's").expect("writable");
    drop(over);
    until_protected(&mut sidecar);
    fs::write(volume.join("dir/file"), "as it is").expect("writable");
    last_point_is_right(&site, &receiver, &mut sidecar, volume);

    // Unmounted, changed while nobody looked, and mounted again.
    let device = device_of(volume);
    run(Command::new("umount").arg("--lazy").arg(volume));
    until_condition(&mut sidecar, "root-gone");
    run(Command::new("mount").arg(&device).arg(volume));
    fs::write(volume.join("dir/file"), "after it was away").expect("writable");
    until_protected(&mut sidecar);
    fs::write(volume.join("dir/new"), "seen by the new watches").expect("writable");
    last_point_is_right(&site, &receiver, &mut sidecar, volume);
    assert_eq!(status(&sidecar).expect("it answers")["tracker"], tracker);

    // Emptied.
    let (away, before) = (site.path("away"), site.points(&receiver).len());
    copy_tree(volume, &away);
    for entry in fs::read_dir(volume).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("ours");
    }
    until_condition(&mut sidecar, "root-empty");
    let points = site.points(&receiver);
    let last = points[points.len() - 1]["id"].as_str().expect("a point");
    assert!(points.len() >= before);
    site.restore(&receiver, last, &site.path("not-empty"));
    assert_ne!(
        fs::read_dir(site.path("not-empty")).expect("restored").count(),
        0,
        "replicated as a deletion"
    );
    fs::create_dir(volume.join("back")).expect("writable");
    until_protected(&mut sidecar);
    last_point_is_right(&site, &receiver, &mut sidecar, volume);
}

#[test]
fn the_scrub_finds_and_repairs_a_store_that_inotify_does_not_see() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4")]) {
        return;
    }
    let site = Site::new();
    let mount = Mount::new(&site.path("mount"), Format::Ext4, 256);
    let volume = mount.path().join("volume");
    fs::create_dir(&volume).expect("new");
    let path = volume.join("mapped");
    fs::write(&path, vec![1; 1 << 20]).expect("there is room");
    let file = File::options().read(true).write(true).open(&path).expect("ours");
    let receiver = site.receiver();
    let plan = site.sidecar(&receiver, &volume).tracker(Tracker::Inotify);
    let mut sidecar = plan.arg("--scrub-every").arg("1s").arg("--scrub-rate").arg("64M").start();
    sidecar.process.allow("the scrub found a change");
    sidecar.settle(SOON);

    // SAFETY: nobody shortens the file.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.expect("it can be mapped");
    map[123_456] = 7;
    // Older than the change, so that reading without care would set it.
    let accessed = || file.metadata().and_then(|meta| meta.accessed()).expect("ours");
    let before = accessed();
    wait::until_true("the scrub", SOON, || sidecar.metric("tidelock_missed_changes_total") > 0.0);
    wait::until_true("word of it", SOON, || sidecar.process.log().contains("path=\"mapped\""));
    assert_eq!(accessed(), before);
    last_point_is_right(&site, &receiver, &mut sidecar, &volume);
    drop((map, file));
}

/// The device mounted there last.
fn device_of(path: &Path) -> PathBuf {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("readable");
    let path = path.to_str().expect("test paths are UTF-8");
    let mut lines = mounts.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|line| line.get(1) == Some(&path)).expect("it is mounted")[0].into()
}

/// The status of the only volume.
fn status(sidecar: &Sidecar) -> Option<Value> {
    sidecar.status().map(|all| all["volumes"][0].clone())
}

fn has(list: &Value, name: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|item| item == name))
}

fn until_condition(sidecar: &mut Sidecar, name: &str) -> Value {
    wait::until(&format!("condition {name}"), SOON, || {
        sidecar.process.must_run();
        status(sidecar).filter(|status| status["ready"] == true && status["conditions"].get(name).is_some())
    })
}

fn until_protected(sidecar: &mut Sidecar) {
    wait::until_true("protection", SOON, || {
        sidecar.process.must_run();
        status(sidecar).is_some_and(|status| status["protected"] == true && status["state"] == "replicating")
    });
}

/// The point that covers this moment is proven and equals the volume.
fn last_point_is_right(site: &Site, receiver: &Receiver, sidecar: &mut Sidecar, volume: &Path) {
    let id = sidecar.settle(SOON).id.to_string();
    let points = site.points(receiver);
    let point = points.iter().find(|point| point["id"] == id.as_str()).expect("it is there");
    assert_eq!(point["consistency"], "crash", "{point}");
    let restored = site.path(&format!("restored-{id}"));
    site.restore(receiver, &id, &restored);
    // The point may be an instant in the middle of writing the marker.
    let leave = Leave { names: vec![".marker".to_owned()], ..Leave::default() };
    let wrong = compare_leaving(&leave, volume, &restored).expect("both can be read");
    assert!(wrong.is_empty(), "{id}: {wrong:#?}");
}
