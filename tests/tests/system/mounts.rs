//! What is mounted within a volume is named while it lasts, and what it hid is there again afterwards.

use std::{fs, path::Path, process::Command};

use tidelock_tests::{
    compare::assert_same,
    mount::{Format, Mount},
    needs::{self, Need},
    process::run,
    site::{Sidecar, Site, Tracker},
    wait::{self, SOON},
};

const CONDITION: &str = "mount-within";

fn says(sidecar: &Sidecar) -> Option<String> {
    let status = sidecar.status()?["volumes"][0].clone();
    let said = status["conditions"][CONDITION].as_str()?.to_owned();
    assert_eq!(status["protected"], false, "{status}");
    Some(said)
}

fn mount(on: &Path) {
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(on));
}

fn unmount(on: &Path) {
    run(Command::new("umount").arg(on));
}

#[test]
fn what_a_mount_hides_is_in_the_points_again_when_it_is_gone() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4"), Need::Program("umount")]) {
        return;
    }
    for tracker in [Tracker::Auto, Tracker::Inotify] {
        let site = Site::new();
        let disk = Mount::new(&site.path("mount"), Format::Ext4, 64);
        let volume = disk.path().join("volume");
        let (early, late) = (volume.join("early"), volume.join("late"));
        for dir in [&early, &late] {
            fs::create_dir_all(dir.join("deep")).expect("new");
            fs::write(dir.join("deep/file"), "before").expect("writable");
        }
        mount(&early);
        let receiver = site.receiver();
        let mut sidecar = site.sidecar(&receiver, &volume).tracker(tracker).start();
        sidecar.process.allow("mounted within the volume");
        let said = wait::until("a condition", SOON, || says(&sidecar));
        assert!(said.contains("early") && said.contains("--exclude"), "{said}");
        sidecar.settle(SOON);

        // Whether this is seen depends on what else happens to the name.
        mount(&late);
        fs::write(volume.join("beside"), "x").expect("writable");
        sidecar.settle(SOON);
        for dir in [&early, &late] {
            unmount(dir);
            fs::write(dir.join("deep/file"), "uncovered").expect("writable");
        }
        let point = sidecar.settle(SOON).id.to_string();
        assert_eq!(says(&sidecar), None);
        let restored = site.path("restored");
        site.restore(&receiver, &point, &restored);
        assert_same(&volume, &restored);
    }
}
