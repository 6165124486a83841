//! A tenant that is encrypted in the store: what its disk gives away, and what happens without the key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_tests::{
    model::differences,
    process,
    site::{Site, VOLUME, json},
    wait::SOON,
};

/// Something that nobody else has written, and that does not compress.
fn marker(rng: &mut StdRng) -> String {
    (0..24).map(|_| rng.random_range('A'..='Z')).collect()
}

/// Files whose names, content and attributes are found again if they are anywhere; the answer is what to look for.
fn write_secrets(volume: &Path, rng: &mut StdRng) -> Vec<String> {
    let mut secrets = Vec::new();
    for _ in 0..8 {
        let [name, content, target] = [0; 3].map(|_| marker(rng));
        let text = format!("{}{content}{}", "-".repeat(3000), "-".repeat(2000));
        fs::write(volume.join(&name), text).expect("writable");
        std::os::unix::fs::symlink(&target, volume.join(format!("{name}.link"))).expect("writable");
        secrets.extend([name.clone(), content, target]);
        let value = marker(rng);
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(volume.join(&name), "user.secret", value.as_bytes(), flags).is_ok() {
            secrets.push(value);
        }
    }
    secrets
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Which of the texts are somewhere in a directory's files.
fn found<'a>(dir: &Path, wanted: &'a [String]) -> Vec<&'a String> {
    let all: Vec<u8> = files(dir).iter().flat_map(|path| fs::read(path).expect("readable")).collect();
    wanted.iter().filter(|text| all.windows(text.len()).any(|bytes| bytes == text.as_bytes())).collect()
}

#[test]
fn nothing_of_an_encrypted_tenant_is_found_on_the_receivers_disk() {
    let site = Site::new();
    let (keys, volume, plain) = (site.new_dir("keys"), site.new_dir("volume"), site.new_dir("plain"));
    let key_file = keys.join("acme.key");
    let key_path = key_file.to_str().expect("UTF-8");
    process::run(&mut site.tidelock(["store", "keygen", key_path]));
    let again = process::output(&mut site.tidelock(["store", "keygen", key_path]));
    assert!(!again.status.success(), "a key is never written over");
    let mut rng = StdRng::seed_from_u64(11);
    let secrets = write_secrets(&volume, &mut rng);
    let open = write_secrets(&plain, &mut rng);
    let with_keys = ["--tenant-keys", keys.to_str().expect("UTF-8")];

    let mut receiver = site.try_receiver(&with_keys);
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let mut other = site.sidecar(&receiver, &plain).volume("other/data").start();
    sidecar.settle(SOON);
    other.settle(SOON);
    let restored = site.path("restored");
    site.restore(&receiver, "latest", &restored);
    assert_eq!(differences(&volume, &restored, false), Vec::<String>::new());
    sidecar.process.kill();
    receiver.process.kill();
    // The index writes the rest of what it has in memory.
    let verify = |more: &[&str]| {
        let mut verify = site.tidelock(["verify", "--json"]);
        process::output(verify.arg("--store").arg(site.store()).args(more))
    };
    let report = json(&verify(&with_keys));
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(0), "{report}");
    assert_eq!(found(&site.store(), &secrets), Vec::<&String>::new());
    assert!(!found(&site.store(), &open).is_empty(), "the test does not look at what is there");

    // Without the key, from the store.
    let refused = process::output(site.tidelock(["points", VOLUME, "--store"]).arg(site.store()));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("tenant acme is encrypted"), "{said}");
    assert_eq!(verify(&[]).status.code(), Some(5), "what could not be looked at is told");

    // Without the key, a receiver: the other tenant goes on, this one waits.
    other.process.allow("not connected");
    let mut receiver = site.try_receiver(&[]);
    receiver.process.allow("tenant is encrypted").allow("locked");
    other.settle(SOON);
    let mut locked = site.sidecar(&receiver, &volume).start();
    locked.process.allow("locked").allow("not connected");
    tidelock_tests::wait::until_true("the sidecar knows why", SOON, || {
        locked.status().is_some_and(|status| status.to_string().contains("tenant acme is encrypted"))
    });
    receiver.process.kill();

    // With another one it does not start.
    let wrong = site.path("wrong");
    process::run(site.tidelock(["store", "keygen"]).arg(&wrong));
    let mut start =
        site.tidelock(["receiver", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store"]);
    start.arg(site.store()).arg("--identity").arg(site.path("receiver.id"));
    start.arg("--tenant-key").arg(format!("acme={}", wrong.display()));
    let out = process::output(&mut start);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(64) && said.contains("the key given for tenant acme is not"), "{said}");

    // With it everything is as it was.
    let receiver = site.try_receiver(&with_keys);
    locked.settle(SOON);
    let restored = site.path("restored-again");
    site.restore(&receiver, "latest", &restored);
    assert_eq!(differences(&volume, &restored, false), Vec::<String>::new());
}
