//! A store that is promoted from again and again, each time as if for the first time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tidelock_tests::{
    compare::compare,
    process,
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

/// A site whose store has a few points of a volume, kept aside, so that each promotion finds the same.
pub(crate) struct Kept {
    pub(crate) site: Site,
    pub(crate) volume: PathBuf,
    pub(crate) last: String,
}

impl Kept {
    pub(crate) fn new() -> Self {
        let site = Site::new();
        let volume = site.new_dir("volume");
        let mut receiver = site.receiver();
        let mut sidecar = site.sidecar(&receiver, &volume).start();
        fs::create_dir(volume.join("dir")).expect("writable");
        for number in 0..20u8 {
            fs::write(volume.join(format!("dir/{number}")), vec![number; 50_000]).expect("writable");
        }
        sidecar.settle(SOON);
        fs::write(volume.join("last"), "word").expect("writable");
        sidecar.settle(SOON);
        sidecar.process.stop();
        let last = site.points(&receiver).pop().expect("a point")["id"].as_str().expect("an id").to_owned();
        receiver.process.stop();
        fs::rename(site.store(), site.path("kept")).expect("nobody has it open");
        Self { site, volume, last }
    }

    /// A receiver of a fresh copy of the store.
    pub(crate) fn receiver(&self) -> Receiver {
        let _ = fs::remove_dir_all(self.site.store());
        process::run(Command::new("cp").arg("-a").arg(self.site.path("kept")).arg(self.site.store()));
        self.again()
    }

    pub(crate) fn again(&self) -> Receiver {
        let mut receiver = self.site.receiver();
        receiver.process.allow("promoted");
        receiver
    }

    /// A receiver of a fresh copy of the store whose image follows.
    pub(crate) fn receiver_with_image(&self) -> Receiver {
        let _ = fs::remove_dir_all(self.site.store());
        let _ = fs::remove_dir_all(self.site.path("images"));
        process::run(Command::new("cp").arg("-a").arg(self.site.path("kept")).arg(self.site.store()));
        let receiver = self.again_with_image();
        wait::until_true("the image follows", SOON, || {
            self.site.operator(&receiver, &["status", VOLUME])[0]["image"]["point"] == self.last.as_str()
        });
        receiver
    }

    pub(crate) fn again_with_image(&self) -> Receiver {
        let images = self.site.path("images");
        let mut receiver = self.site.try_receiver(&["--image", images.to_str().expect("UTF-8")]);
        receiver.process.allow("promoted");
        receiver
    }

    pub(crate) fn promotion(&self, receiver: &Receiver, to: &Path) -> Command {
        let to = to.to_str().expect("test paths are UTF-8");
        self.site.operator_command(receiver, &["promote", VOLUME, "--to", to])
    }

    /// The state that every promotion must end in.
    pub(crate) fn check(&self, receiver: &Receiver, to: &Path, report: &Value, case: &str) {
        assert_eq!((&report["epoch"], &report["old_epoch"]), (&2.into(), &1.into()), "{case}: {report}");
        assert_eq!(report["point"]["id"], self.last.as_str(), "{case}: {report}");
        let status = self.site.operator(receiver, &["status", VOLUME]);
        assert_eq!((&status[0]["epoch"], &status[0]["promoted"]), (&2.into(), &true.into()), "{case}");
        let differences = compare(&self.volume, to).expect("both can be read");
        assert!(differences.is_empty(), "{case}: {differences:#?}");
    }
}
