//! The object tier against real S3 servers: one that works, one that is away for a while, and one that must be refused.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::Value;
use tidelock_tests::{
    http,
    model::differences,
    needs::{self, Need},
    process::{self, Process},
    s3::{self, BUCKET, S3},
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

const URL: &str = "s3://tidelock/standby";

fn arguments(ack: &str) -> Vec<String> {
    let all = ["--archive", URL, "--ack", ack, "--archive-interval", "100ms", "--archive-lease", "2s"];
    all.map(str::to_owned).to_vec()
}

fn start(site: &Site, ack: &str) -> Receiver {
    let all = arguments(ack);
    let mut receiver = site.try_receiver(&all.iter().map(String::as_str).collect::<Vec<_>>());
    receiver.process.allow("archive taken over").allow("disconnected");
    receiver.process.allow("rest of the store cannot be fetched");
    receiver
}

fn metric(receiver: &Receiver, name: &str) -> f64 {
    let (_, text) = http::get(&receiver.http, "/metrics").expect("the receiver serves its metrics");
    http::sample(&text, name).unwrap_or_else(|| panic!("no metric {name} in:\n{text}"))
}

/// What opening has fetched, and what was left for later.
fn fetched_bytes(receiver: &Receiver) -> (u64, u64) {
    let log = receiver.process.log();
    let line = log.lines().find(|line| line.contains("store fetched from the archive"));
    let line = line.unwrap_or_else(|| panic!("nothing was fetched: {log}"));
    let number = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
    };
    (number("bytes"), number("later_bytes"))
}

fn conditions(site: &Site, receiver: &Receiver) -> String {
    site.operator(receiver, &["status", VOLUME])[0]["conditions"].to_string()
}

fn write(volume: &Path, seed: u8, bytes: usize) {
    use rand::{Rng, SeedableRng};
    let mut content = vec![0; bytes];
    rand::rngs::StdRng::seed_from_u64(u64::from(seed)).fill(&mut content[..]);
    fs::write(volume.join(format!("file {seed}")), content).expect("the volume is writable");
}

/// The disk of the receiver is lost, again and again; what was acknowledged is in the bucket.
#[test]
fn a_lost_disk_costs_nothing_that_the_archive_has() {
    if !needs::met(&[Need::Program("weed")]) {
        return;
    }
    let mut site = Site::new();
    let mut server = S3::start(&site.path("s3"));
    site.set_environment(server.environment());
    let volume = site.new_dir("volume");
    let mut receiver = start(&site, "archive");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("not connected").allow("lost");
    // More than a segment.
    write(&volume, 1, 70 << 20);
    sidecar.settle(SOON);
    write(&volume, 2, 5000);
    let acked = sidecar.settle(SOON);

    receiver.process.kill();
    fs::remove_dir_all(site.store()).expect("the store is lost");
    let mut receiver = start(&site, "archive");
    let (fetched, later) = fetched_bytes(&receiver);
    assert!(fetched < 16 << 20 && later > 60 << 20, "{fetched} bytes to open, {later} later");
    let restored = site.path("restored");
    site.restore(&receiver, &acked.id.to_string(), &restored);
    assert_eq!(differences(&volume, &restored, true), Vec::<String>::new());

    // It goes on, and the next one after it.
    write(&volume, 3, 5000);
    let acked = sidecar.settle(SOON);
    let uploaded = metric(&receiver, "tidelock_archive_uploaded_bytes");
    assert!(uploaded < 20e6, "{uploaded} bytes uploaded: what was there is not uploaded again");

    // Away for a while: nothing is acknowledged that is not in the bucket, and then all of it.
    receiver.process.allow("archive cannot be written");
    server.kill();
    let before = sidecar.acks().len();
    write(&volume, 4, 5000);
    wait::until_true("status says so", SOON, || conditions(&site, &receiver).contains("archive-unreachable"));
    assert_eq!(
        sidecar.acks().len(),
        before,
        "acknowledged {:?}, and it is nowhere else",
        sidecar.acks().last()
    );
    server.again();
    sidecar.settle(SOON);
    let whole = || receiver.process.log().contains("all of the store is here");
    wait::until_true("the rest has come", SOON, whole);
    assert_eq!(site.operator(&receiver, &["verify"])["findings"], Value::Array(Vec::new()));
    assert!(sidecar.acks().len() > before && acked.id < sidecar.acks().last().expect("points").id);
    wait::until_true("the condition is gone", SOON, || !conditions(&site, &receiver).contains("archive"));

    // Without any receiver.
    receiver.process.kill();
    let fetched = site.path("fetched");
    let mut fetch = site.tidelock(["store", "fetch", "--archive", URL, "--json", "--store"]);
    process::run(fetch.arg(&fetched));
    let mut promote = site.tidelock(["promote", VOLUME, "--json", "--to"]);
    let promoted = site.path("promoted");
    process::run(promote.arg(&promoted).arg("--store").arg(&fetched));
    assert_eq!(differences(&volume, &promoted, true), Vec::<String>::new());
}

/// Acknowledgements from the disk alone do not wait for a bucket that is away, and only one receiver has it at a time.
#[test]
fn local_acknowledgements_do_not_need_the_archive() {
    if !needs::met(&[Need::Program("weed")]) {
        return;
    }
    let mut site = Site::new();
    let mut server = S3::start(&site.path("s3"));
    site.set_environment(server.environment());
    let volume = site.new_dir("volume");
    let mut receiver = start(&site, "local");
    receiver.process.allow("archive cannot be written").allow("archive cannot be reached");
    receiver.process.allow("archive does not answer");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("not connected").allow("lost");
    sidecar.settle(SOON);

    // Somebody else with the same archive, while this one lives.
    let other = site.path("other");
    let mut second =
        site.tidelock(["receiver", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--identity"]);
    second.arg(site.path("receiver.id")).args(arguments("local")).arg("--store").arg(&other);
    let refused = process::output(&mut second);
    assert_eq!(refused.status.code(), Some(64));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("in use by receiver"), "{said}");

    // It hangs, and then it is gone.
    server.hang(true);
    write(&volume, 3, 100_000);
    sidecar.settle(SOON);
    wait::until_true("status says so", SOON, || conditions(&site, &receiver).contains("archive-unreachable"));
    server.hang(false);
    wait::until_true("it answers again", SOON, || metric(&receiver, "tidelock_archive_unreachable") == 0.0);

    server.kill();
    write(&volume, 1, 100_000);
    sidecar.settle(SOON);
    wait::until_true("status says so", SOON, || conditions(&site, &receiver).contains("archive-unreachable"));
    assert_eq!(metric(&receiver, "tidelock_archive_unreachable"), 1.0);
    let lag = || metric(&receiver, "tidelock_archive_lag_seconds");
    wait::until_true("the archive's lag grows", SOON, || lag() > 0.5);

    // A restart does not need it either.
    receiver.process.kill();
    let mut receiver = start(&site, "local");
    receiver.process.allow("archive cannot be written").allow("archive cannot be reached");
    // The sidecar may have given up the attempt that this one found in its socket.
    receiver.process.allow("the peer fell silent");
    write(&volume, 2, 100_000);
    let acked = sidecar.settle(SOON);

    server.again();
    wait::until_true("the archive catches up", SOON, || {
        metric(&receiver, "tidelock_archive_unreachable") == 0.0
            && metric(&receiver, "tidelock_archive_missing_bytes") == 0.0
    });
    receiver.process.kill();
    fs::remove_dir_all(site.store()).expect("the store is lost");
    let receiver = start(&site, "local");
    let restored = site.path("restored");
    site.restore(&receiver, &acked.id.to_string(), &restored);
    assert_eq!(differences(&volume, &restored, true), Vec::<String>::new());
    let report: Value = site.operator(&receiver, &["verify"]);
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{report}");
}

/// A server that lets every writer win is noticed before anything is written there.
#[test]
fn a_server_that_ignores_preconditions_is_refused() {
    if !needs::met(&[Need::Program("rclone")]) {
        return;
    }
    let mut site = Site::new();
    let served = site.new_dir("served");
    fs::create_dir(served.join(BUCKET)).expect("a bucket");
    let address = format!("127.0.0.1:{}", s3::free_ports(1)[0]);
    let mut rclone = Command::new("rclone");
    rclone.args(["serve", "s3", "--addr", &address, "--auth-key", "key,secret-of-the-tests"]).arg(&served);
    let mut rclone = Process::spawn("rclone", &mut rclone, &site.path("rclone.log"));
    // Whatever it says of writers that meet: that it cannot keep them apart is the point.
    rclone.allow("ERROR");
    wait::until_true("it answers", Duration::from_secs(30), || http::get(&address, "/").is_some());
    site.set_environment(vec![
        ("AWS_ACCESS_KEY_ID", "key".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests".to_owned()),
        ("AWS_ENDPOINT", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
    ]);
    let mut receiver =
        site.tidelock(["receiver", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--identity"]);
    receiver.arg(site.path("receiver.id")).args(arguments("local")).arg("--store").arg(site.store());
    let refused = process::output(&mut receiver);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(64), "{said}");
    assert!(said.contains("ignores `If-None-Match`"), "{said}");
}
