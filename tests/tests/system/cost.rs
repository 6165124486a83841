//! What protection costs, counted.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    time::Duration,
};

use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use tidelock_tests::{
    mount::{Format, Mount},
    needs::{self, Need},
    process::run,
    procfs,
    site::{Sidecar, Site, Tracker},
    wait::{self, SOON},
};

const GIB: u64 = 1 << 30;
const WRITES: u64 = 64;

#[test]
fn four_gib_seed_within_memory_and_a_page_written_costs_a_page() {
    if !needs::met(&[Need::Root, Need::Tracepoints, Need::Program("mkfs.ext4"), Need::Program("ip")]) {
        return;
    }
    own_network();
    let site = Site::new();
    let mount = Mount::new(&site.path("mount"), Format::Ext4, 6 << 10);
    let volume = mount.path().join("volume");
    fs::create_dir(&volume).expect("new");
    fill(&volume.join("big"), 4 * GIB);

    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).tracker(Tracker::Exact).start();
    sidecar.caught_up(Duration::from_secs(300));
    let peak = procfs::peak_memory_bytes(sidecar.process.pid());
    println!("seeded 4 GiB: peak {} MiB", peak >> 20);
    assert!(peak < 128 << 20, "{} MiB while seeding 4 GiB", peak >> 20);

    let mut rng = SmallRng::seed_from_u64(9);
    write_pages(&mut sidecar, &volume.join("big"), 8, &mut rng);
    let (read, sent) = (procfs::read_bytes(sidecar.process.pid()), wire_bytes());
    write_pages(&mut sidecar, &volume.join("big"), WRITES, &mut rng);
    let read = (procfs::read_bytes(sidecar.process.pid()) - read) / WRITES;
    let sent = (wire_bytes() - sent) / WRITES;
    println!("a random 4 KiB write costs {read} bytes of reads and {sent} bytes on the wire, both ways");
    assert!(read < 64 << 10, "{read} bytes read for a 4 KiB write");
    assert!(sent < 12 << 10, "{sent} bytes on the wire for a 4 KiB write");
}

#[test]
fn all_of_the_sidecar_stands_back_behind_the_application() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.settle(SOON);
    let nice = procfs::nice_values(sidecar.process.pid());
    assert!(nice.len() > 2 && nice.iter().all(|nice| *nice == 5), "{nice:?}");
}

/// Writes pages at random places, each durable on the receiver before the next.
fn write_pages(sidecar: &mut Sidecar, file: &Path, count: u64, rng: &mut SmallRng) {
    let file = File::options().write(true).open(file).expect("writable");
    let mut page = [0; 4096];
    for _ in 0..count {
        rng.fill_bytes(&mut page);
        let at = rng.random_range(0..4 * GIB / 4096) * 4096;
        // Not asked of the sidecar: that would be counted as traffic.
        let before = sidecar.acks().len();
        file.write_all_at(&page, at).expect("writable");
        wait::until_true("a point with the page", SOON, || sidecar.acks().len() > before);
    }
}

/// A loopback interface that nobody else uses, so that its counters are ours.
fn own_network() {
    // SAFETY: only this thread and its children get another network; no memory is involved.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "cannot unshare the network");
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
}

/// All bytes that went over the loopback interface of this thread's network: both directions, all headers.
fn wire_bytes() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/dev").expect("the network has devices");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).expect("it has a loopback");
    line.split_ascii_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a counter")
}

/// Content that neither compresses nor repeats.
fn fill(path: &Path, len: u64) {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut file = File::create(path).expect("new");
    let mut block = vec![0; 1 << 20];
    for _ in 0..len >> 20 {
        rng.fill_bytes(&mut block);
        file.write_all(&block).expect("there is room");
    }
}
