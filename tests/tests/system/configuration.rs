//! What is set up wrongly stops with one line that says what to do.

use std::{fs, path::Path, process::Command};

use tidelock_tests::{
    process::Process,
    site::{Site, VOLUME},
    wait::SOON,
};

#[test]
fn a_bad_configuration_stops_with_one_line_that_says_what_to_do() {
    let site = Site::new();
    let (volume, inner) = (site.new_dir("volume"), site.new_dir("volume/inner"));
    let file = site.path("file");
    fs::write(&file, "not a directory").expect("writable");
    site.sidecar_identity(VOLUME);
    site.issue("sidecar", &["--tenant", "acme", "--volume", "other"], "other.id");
    fs::write(site.new_dir("broken.id").join("tls.crt"), "not a certificate").expect("writable");
    let receiver = site.receiver();

    let sidecar = |volumes: &[(&str, &Path)], identity: &str| {
        let mut command = site.tidelock(["sidecar", "--receiver", &receiver.listen, "--http", "127.0.0.1:0"]);
        for (name, dir) in volumes {
            command.arg("--volume").arg(format!("{name}={}", dir.display()));
        }
        command.arg("--identity").arg(site.path(identity));
        command
    };
    let second = || {
        let mut command = site.tidelock(["receiver", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.arg("--store").arg(site.store()).arg("--identity").arg(site.path("receiver.id"));
        command
    };
    let gone = site.path("gone");
    stops(&site, "missing", sidecar(&[(VOLUME, &gone)], "acme-data.id"), &["gone", "exist"]);
    stops(&site, "file", sidecar(&[(VOLUME, &file)], "acme-data.id"), &["file", "not a directory"]);
    stops(
        &site,
        "overlap",
        sidecar(&[(VOLUME, &volume), ("acme/inner", &inner)], "acme-data.id"),
        &["acme/data", "acme/inner", "overlap"],
    );
    stops(
        &site,
        "same",
        sidecar(&[(VOLUME, &volume), ("acme/again", &volume)], "acme-data.id"),
        &["acme/data", "acme/again", "same directory"],
    );
    let with = |option: &str| {
        let mut command = sidecar(&[(VOLUME, &volume)], "acme-data.id");
        command.arg(option);
        command
    };
    for (option, words) in [
        ("--cut-interval=0s", ["--cut-interval", "1ms"]),
        ("--hook-timeout=0s", ["--hook-timeout", "10ms"]),
        ("--scrub-every=0s", ["--scrub-every", "1s"]),
        ("--scrub-rate=-1", ["number of bytes", "4M"]),
        ("--pack-threads=0", ["--pack-threads", "1.."]),
    ] {
        assert_eq!(stops(&site, &option[2..option.len() - 3], with(option), &words), 64);
    }
    stops(&site, "no-identity", sidecar(&[(VOLUME, &volume)], "none.id"), &["none.id"]);
    stops(&site, "bad-identity", sidecar(&[(VOLUME, &volume)], "broken.id"), &["broken.id"]);
    stops(&site, "not-covered", sidecar(&[(VOLUME, &volume)], "other.id"), &["acme/data", "pki issue"]);
    stops(&site, "bad-name", sidecar(&[("data", &volume)], "acme-data.id"), &["TENANT/NAME"]);
    stops(&site, "locked", second(), &["store", "in use"]);
}

#[test]
fn a_receiver_under_a_name_that_its_certificate_lacks_is_not_trusted() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    site.issue("receiver", &["--dns", "elsewhere.example"], "elsewhere.id");
    fs::remove_dir_all(site.path("receiver.id")).expect("it is ours");
    fs::rename(site.path("elsewhere.id"), site.path("receiver.id")).expect("both are ours");
    let mut receiver = site.receiver();
    receiver.process.allow("");
    let mut command = site.tidelock(["sidecar", "--receiver", &receiver.listen, "--http", "127.0.0.1:0"]);
    command.arg("--volume").arg(format!("{VOLUME}={}", volume.display()));
    command.arg("--identity").arg(site.sidecar_identity(VOLUME));
    stops(&site, "wrong-name", command, &["127.0.0.1", "certificate", "elsewhere.example"]);
}

fn stops(site: &Site, case: &str, mut command: Command, words: &[&str]) -> i32 {
    let mut process = Process::spawn(case, &mut command, &site.path(&format!("{case}.log")));
    process.allow("");
    let status = process.wait(SOON);
    let log = process.log();
    let code = status.code().unwrap_or_else(|| panic!("{case}: ended with {status}:\n{log}"));
    assert!(code != 0, "{case}: ended with {status}:\n{log}");
    let said: Vec<&str> =
        log.lines().filter(|line| line.starts_with("tidelock: ") || line.starts_with("error: ")).collect();
    let [line] = said.as_slice() else { panic!("{case}: not one line but {}:\n{log}", said.len()) };
    for word in words {
        assert!(line.contains(word), "{case}: {word:?} is not in: {line}");
    }
    println!("{case}: {line}");
    code
}
