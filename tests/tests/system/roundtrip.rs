//! Everything a file system knows of a file comes back.

use std::path::Path;

use tidelock_tests::{
    compare::compare,
    menagerie,
    mount::{Format, Mount},
    needs::{self, Need},
    site::{Site, Tracker},
    wait::SOON,
};

#[test]
fn every_kind_of_metadata_on_ext4_restores_as_it_was() {
    if needs::met(&[Need::Root, Need::Program("mkfs.ext4"), Need::Program("setfacl")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Ext4, 512);
        comes_back(&site, mount.path());
    }
}

#[test]
fn every_kind_of_metadata_on_xfs_restores_as_it_was() {
    if needs::met(&[Need::Root, Need::Program("mkfs.xfs"), Need::Program("setfacl")]) {
        let site = Site::new();
        let mount = Mount::new(&site.path("mount"), Format::Xfs, 512);
        comes_back(&site, mount.path());
    }
}

fn comes_back(site: &Site, parent: &Path) {
    for tracker in [Tracker::Auto, Tracker::Inotify] {
        // Once found by the scan at the start, once made while it is watched.
        for late in [false, true] {
            let name = format!("{}-{late}", tracker.word());
            let volume = parent.join(&name);
            std::fs::create_dir(&volume).expect("new");
            if !late {
                menagerie::build(&volume).expect("all kinds can be made");
            }
            let protected = format!("acme/{name}");
            let receiver = site.receiver();
            let mut sidecar = site.sidecar(&receiver, &volume).volume(&protected).tracker(tracker).start();
            sidecar.settle(SOON);
            if late {
                menagerie::build(&volume).expect("all kinds can be made");
                sidecar.settle(SOON);
            }
            let restored = parent.join(format!("{name}-restored"));
            site.restore_volume(&receiver, &protected, "latest", &restored);
            let differences = compare(&volume, &restored).expect("both trees can be read");
            assert!(differences.is_empty(), "{name}: {differences:#?}");
        }
    }
}
