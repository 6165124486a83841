//! An idle volume costs next to nothing.

use std::{fs, time::Duration};

use tidelock_tests::{
    mount::{Format, Mount},
    needs::{self, Need},
    procfs,
    site::{Site, Tracker},
    wait::{self, SOON},
};

const FILES: u32 = 100_000;
/// Longer than the sidecar ever lets something wait that it has put off.
const QUIET: Duration = Duration::from_secs(8);

#[test]
fn an_idle_volume_of_100_000_files_costs_no_reads_and_hardly_any_processor() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4")]) {
        return;
    }
    let site = Site::new();
    let mount = Mount::new(&site.path("mount"), Format::Ext4, 4096);
    let volume = mount.path().join("volume");
    for dir in 0..FILES / 1000 {
        let dir = volume.join(dir.to_string());
        fs::create_dir_all(&dir).expect("new");
        (0..1000).for_each(|file| fs::write(dir.join(file.to_string()), "x").expect("there is room"));
    }
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).tracker(Tracker::Auto).start();
    sidecar.caught_up(4 * SOON);
    // Change times are recorded once they are old enough; then there is nothing left to do.
    let mut points = (0, std::time::Instant::now());
    wait::until_true("no more points", 4 * SOON, || {
        let now = sidecar.acks().len();
        if now != points.0 {
            points = (now, std::time::Instant::now());
        }
        points.1.elapsed() > QUIET
    });

    let pid = sidecar.process.pid();
    let captured = sidecar.metric("tidelock_read_bytes_total");
    let before = (procfs::cpu_ticks(pid), procfs::read_bytes(pid));
    std::thread::sleep(QUIET);
    let after = (procfs::cpu_ticks(pid), procfs::read_bytes(pid));
    let share = (after.0 - before.0) as f64 * 0.01 / QUIET.as_secs_f64();
    let read = after.1 - before.1;
    println!("idle with {FILES} files: {:.2} % of a core, {read} bytes through read calls", share * 100.0);
    assert!(share < 0.005, "{:.2} % of a core", share * 100.0);
    // The list of processors that are online, once a second.
    assert!(read < 4096, "{read} bytes read");
    assert_eq!(sidecar.metric("tidelock_read_bytes_total"), captured, "the volume was read");
}
