//! Copies beside the hot image begin as clones of it, and are the point's whatever the image does meanwhile.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::Value;
use tidelock_tests::{
    model::{Mutator, Powers, differences},
    mount::{Format, Mount},
    needs::{self, Need},
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

/// What is not touched after the first point, in bytes.
const LARGE_BYTES: usize = 48 << 20;
/// Restores while the image moves on.
const ROUNDS: usize = 4;

#[test]
fn a_copy_beside_the_image_is_cloned_on_xfs() {
    if needs::met(&[Need::Root, Need::Program("mkfs.xfs")]) {
        copies(Format::Xfs, true);
    }
}

#[test]
fn a_copy_beside_the_image_is_cloned_on_btrfs() {
    if needs::met(&[Need::Root, Need::Program("mkfs.btrfs")]) {
        copies(Format::Btrfs, true);
    }
}

#[test]
fn a_copy_beside_the_image_is_written_on_ext4() {
    if needs::met(&[Need::Root, Need::Program("mkfs.ext4")]) {
        copies(Format::Ext4, false);
    }
}

fn copies(format: Format, clones: bool) {
    let site = Site::new();
    let images = Mount::new(&site.path("images"), format, 1024);
    let dir = images.path().join("dir");
    let volume = site.new_dir("volume");
    let worked = site.new_dir("volume/worked");
    let mut mutator = Mutator::new(&worked, 29, Powers { mmap: true, root: true, reserve: false });
    mutator.run(1_000);
    // Different in every page, so that what is at the wrong place is seen.
    let large: Vec<u8> = (0..LARGE_BYTES).map(|at| (at >> 9) as u8 ^ (at >> 17) as u8 ^ at as u8).collect();
    fs::write(volume.join("large"), &large).expect("the volume is writable");
    let mut receiver = site.try_receiver(&["--image", text(&dir)]);
    receiver.process.allow("promoted").allow("fenced").allow("disconnected");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("not connected").allow("fenced");
    let first = sidecar.settle(SOON).id.to_string();
    let truth = site.path("truth");
    site.restore(&receiver, &first, &truth);
    follows(&site, &receiver);

    // An older point, while the image goes on to newer ones: the clones are wrong in places, and the copy is not.
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                mutator.run(100);
                let at = mutator.done() as usize * 4096 % LARGE_BYTES;
                let file = fs::File::options().write(true).open(volume.join("large")).expect("it is there");
                std::os::unix::fs::FileExt::write_all_at(&file, &[0xee; 4096], at as u64).expect("writable");
                thread::sleep(Duration::from_millis(20));
            }
        });
        let _stop = StopAtEnd(&stop);
        for round in 0..ROUNDS {
            let to = images.path().join(format!("copy-{round}"));
            let work = site.restore(&receiver, &first, &to)["work"].clone();
            // What xfs has reserved in a file of the image is reserved in its clone, too, and reads as zeros.
            assert_eq!(differences(&truth, &to, format != Format::Xfs), Vec::<String>::new());
            judge(&work, clones);
            fs::remove_dir_all(&to).expect("it is ours");
        }
    });

    // The newest point, where the image cannot be renamed to.
    sidecar.settle(SOON);
    sidecar.process.stop();
    follows(&site, &receiver);
    let to = images.path().join("promoted");
    let report = site.operator(&receiver, &["promote", VOLUME, "--copy", "--to", text(&to)]);
    judge(&report["work"], clones);
    if clones {
        // Parts of chunks are fetched to be compared; nothing has to be written.
        let written = report["work"]["bytes_written"].as_u64();
        assert!(written.is_some_and(|bytes| bytes < 1 << 20), "{report}");
    }
    assert_eq!(differences(&volume, &to, false), Vec::<String>::new());
}

/// Most of it was there.
fn judge(work: &Value, clones: bool) {
    let number = |field: &str| work[field].as_u64().expect("a number");
    let (cloned, compared) = (number("bytes_cloned"), number("bytes_compared"));
    if clones {
        assert!(cloned >= LARGE_BYTES as u64 && work["clone_missed"].is_null(), "{work}");
        assert!(compared >= LARGE_BYTES as u64, "what is cloned is compared: {work}");
        assert!(number("bytes_written") < LARGE_BYTES as u64 / 2, "what was right was written: {work}");
    } else {
        assert_eq!((cloned, compared), (0, 0), "{work}");
        assert!(work["clone_missed"].is_string(), "{work}");
    }
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// Waits until the image is at the newest point.
fn follows(site: &Site, receiver: &Receiver) {
    wait::until_true("the image is at the newest point", SOON, || {
        let status = site.operator(receiver, &["status", VOLUME])[0].clone();
        status["image"]["point"].is_string() && status["image"]["point"] == status["last"]["id"]
    });
}
