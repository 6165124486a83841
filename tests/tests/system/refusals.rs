//! What an operator may ask for by mistake, and is refused before anything is changed.

use std::{fs, path::Path, process::Output};

use tidelock_tests::{
    process,
    site::{Receiver, Sidecar, Site, VOLUME},
    wait::SOON,
};

const REFUSED: i32 = 2;

/// A volume that is replicated while somebody does the wrong thing.
struct Live {
    site: Site,
    volume: std::path::PathBuf,
    receiver: Receiver,
    sidecar: Sidecar,
}

impl Live {
    fn new() -> Self {
        let site = Site::new();
        let volume = site.new_dir("volume");
        let receiver = site.receiver();
        let mut sidecar = site.sidecar(&receiver, &volume).start();
        fs::write(volume.join("ledger"), "of a primary that works").expect("writable");
        sidecar.settle(SOON);
        Self { site, volume, receiver, sidecar }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        process::output(&mut self.site.operator_command(&self.receiver, arguments))
    }

    /// Refused with a word of this, and nobody is fenced.
    fn refuses(&self, arguments: &[&str], word: &str) {
        let said = self.ask(arguments);
        let error = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(REFUSED), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
        let epoch = self.site.operator(&self.receiver, &["status", VOLUME])[0]["epoch"].clone();
        assert_eq!(epoch, 1, "{arguments:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

#[test]
fn nothing_is_promoted_into_a_volume_that_is_replicated() {
    let mut live = Live::new();
    let (root, within) = (live.volume.clone(), live.volume.join("new/copy"));
    let by = format!("tidelock ({})", live.sidecar.process.pid());
    for more in [&[][..], &["--dry-run"]] {
        for (to, overwrite) in [(&root, Some("--overwrite")), (&within, None)] {
            let mut asked = vec!["promote", VOLUME, "--to", text(to)];
            asked.extend(overwrite.iter().chain(more));
            live.refuses(&asked, &by);
        }
    }
    live.refuses(&["restore", VOLUME, "--to", text(&root), "--overwrite"], &by);
    assert!(
        !root.join(".tidelock-incomplete").exists() && !within.exists(),
        "something was left in the volume"
    );
    assert!(root.join("ledger").exists());
    // A part of a point may be wanted right there.
    let part = live.volume.join("part");
    live.site.restore(&live.receiver, "latest", &part);
    live.sidecar.settle(SOON);
    live.sidecar.process.stop();
}
