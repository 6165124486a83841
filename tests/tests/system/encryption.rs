//! Tenants that are encrypted in the store and in its archive: what disk and bucket give away, and what happens without the key.

use std::{
    collections::HashSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_proto::ChunkKey;
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

/// Everything that can be seen of a directory: the names in it, the bytes of its files, and what zstd makes of these.
fn seen(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for path in files(dir) {
        all.extend_from_slice(path.strip_prefix(dir).expect("beneath it").as_os_str().as_encoded_bytes());
        let bytes = fs::read(path).expect("readable");
        for at in positions(&bytes, &ZSTD_MAGIC) {
            // What is no frame ends at once.
            let decoder = zstd::stream::read::Decoder::new(&bytes[at..]).expect("zstd has memory");
            let _whole_or_cut = decoder.single_frame().take(1 << 20).read_to_end(&mut all);
        }
        // Reserved space is long, and says nothing.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        all.extend_from_slice(&bytes[..end]);
    }
    all
}

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn positions<'a>(bytes: &'a [u8], wanted: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let windows = bytes.windows(wanted.len()).enumerate();
    windows.filter(move |(_, window)| *window == wanted).map(|(at, _)| at)
}

/// Which of these are somewhere in it.
fn found<'a, T: AsRef<[u8]>>(all: &[u8], wanted: &'a [T]) -> Vec<&'a T> {
    wanted.iter().filter(|wanted| positions(all, wanted.as_ref()).next().is_some()).collect()
}

/// Whether some KiB of the log of this store is there twice.
fn repeats(store: &Path) -> bool {
    let mut known = HashSet::new();
    files(&store.join("log")).iter().any(|path| {
        let bytes = fs::read(path).expect("readable");
        let windows = (0..bytes.len().saturating_sub(1024)).step_by(8).map(|at| &bytes[at..at + 1024]);
        let mut windows = windows.filter(|window| window.iter().any(|byte| *byte != 0));
        windows.any(|window| !known.insert(window.to_vec()))
    })
}

#[test]
fn nothing_of_an_encrypted_tenant_is_found_on_the_receivers_disk_or_in_its_archive() {
    let site = Site::new();
    let (keys, volume, plain) = (site.new_dir("keys"), site.new_dir("volume"), site.new_dir("plain"));
    let (equal, bucket) = (site.new_dir("equal"), site.new_dir("bucket"));
    let key_file = keys.join("acme.key");
    let key_path = key_file.to_str().expect("UTF-8");
    process::run(&mut site.tidelock(["store", "keygen", key_path]));
    let again = process::output(&mut site.tidelock(["store", "keygen", key_path]));
    assert!(!again.status.success(), "a key is never written over");
    process::run(site.tidelock(["store", "keygen"]).arg(keys.join("beta.key")));
    let mut rng = StdRng::seed_from_u64(11);
    let secrets = write_secrets(&volume, &mut rng);
    let open = write_secrets(&plain, &mut rng);
    // The same chunk for three tenants, two of them encrypted.
    let mut chunk = vec![0; 12_000];
    rng.fill(&mut chunk[..]);
    for dir in [&volume, &plain, &equal] {
        fs::write(dir.join("equal"), &chunk).expect("writable");
    }
    let id = |tenant| ChunkKey::of_tenant(tenant).id(&chunk).0;
    let with_keys = ["--tenant-keys", keys.to_str().expect("UTF-8")];
    let url = format!("file://{}", bucket.display());
    let archived = ["--archive", &url, "--ack", "archive", "--archive-interval", "50ms"];

    let mut receiver = site.try_receiver(&[&with_keys[..], &archived].concat());
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let mut other = site.sidecar(&receiver, &plain).volume("other/data").start();
    let mut third = site.sidecar(&receiver, &equal).volume("beta/data").start();
    for sidecar in [&mut sidecar, &mut other, &mut third] {
        sidecar.settle(SOON);
    }
    let restored = site.path("restored");
    site.restore(&receiver, "latest", &restored);
    assert_eq!(differences(&volume, &restored, false), Vec::<String>::new());
    sidecar.process.kill();
    third.process.kill();
    receiver.process.kill();
    // The index writes the rest of what it has in memory.
    let verify = |store: &Path, more: &[&str]| {
        process::output(site.tidelock(["verify", "--json"]).arg("--store").arg(store).args(more))
    };
    let fetched = site.path("fetched");
    process::run(site.tidelock(["store", "fetch", "--archive", &url, "--store"]).arg(&fetched));
    for store in [site.store(), fetched] {
        let report = json(&verify(&store, &with_keys));
        assert_eq!(report["findings"].as_array().map(Vec::len), Some(0), "{report}");
    }
    for place in [site.store(), bucket] {
        let (all, place) = (seen(&place), place.display());
        assert_eq!(found(&all, &secrets), Vec::<&String>::new(), "in {place}");
        assert_eq!(found(&all, &[id("acme"), id("beta")]), Vec::<&[u8; 32]>::new(), "in {place}");
        let control = (found(&all, &open).len(), found(&all, &[id("other")]).len());
        assert_eq!(control, (open.len(), 1), "the test does not look at what is there, in {place}");
    }
    let kept = positions(&seen(&site.store().join("log")), &chunk).count();
    assert_eq!(kept, 1, "only who is not encrypted keeps it as it is");
    assert_ne!(id("acme"), id("beta"));
    assert!(!repeats(&site.store()), "equal content of two tenants rests as equal bytes");

    // Without the key, from the store.
    let refused = process::output(site.tidelock(["points", VOLUME, "--store"]).arg(site.store()));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("tenant acme is encrypted"), "{said}");
    let unseen = verify(&site.store(), &[]);
    let said = String::from_utf8_lossy(&unseen.stderr);
    assert_eq!(refused.status.code(), Some(64));
    assert!(unseen.status.code() == Some(64) && said.contains("tenant acme was not looked at"), "{said}");

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
