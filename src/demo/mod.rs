//! The demo: the main job, end to end, on real data, in under a minute.
//!
//! A receiver, a sidecar and a bank run as real processes with mutual TLS in a temporary directory. At a random moment the
//! primary side (bank and sidecar) is killed, the standby is promoted, and the copy is audited.

pub(crate) mod bank;
mod site;

use std::{
    io::{IsTerminal, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use rand::Rng;
use tidelock_proto::{
    VolumeName,
    identity::TrustDomain,
    pki::{self, Request, Validity},
};

use site::Process;

const TENANT: &str = "demo";
const VOLUME: &str = "bank";

/// Runs the demo; an error means that a promise was not kept. `interrupted` is asked now and then.
pub(crate) fn run(seconds: Option<u64>, interrupted: &dyn Fn() -> bool) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("tidelock-demo-").tempdir()?;
    let at = |name: &str| dir.path().join(name);
    for name in ["volume", "logs"] {
        std::fs::create_dir(at(name))?;
    }
    say("making a certificate authority and three identities");
    make_identities(dir.path())?;

    say("starting the receiver (the standby site)");
    let mut receiver = Process::start("receiver", receiver_args(dir.path()), &at("logs"))?;
    let ports = receiver.ports(&at("receiver.ports"))?;
    let address = ports.first().context("the receiver wrote no address")?.clone();

    say("starting the bank and its sidecar (the primary site)");
    let workload: [std::path::PathBuf; 4] = ["demo".into(), "--bank".into(), at("volume"), at("witness")];
    let mut bank = Process::start("bank", workload, &at("logs"))?;
    let mut sidecar = Process::start("sidecar", sidecar_args(dir.path(), &address), &at("logs"))?;
    let http = sidecar.ports(&at("sidecar.ports"))?.first().context("the sidecar wrote no address")?.clone();
    wait_until_replicating(&http, &mut sidecar, interrupted)?;

    let run_for = seconds
        .map_or_else(|| Duration::from_millis(rand::rng().random_range(6_000..12_000)), Duration::from_secs);
    watch_lag(&http, run_for, &mut [&mut bank, &mut sidecar, &mut receiver], interrupted)?;

    say("disaster: SIGKILL of the bank and its sidecar");
    let disaster = SystemTime::now();
    let began = Instant::now();
    bank.kill()?;
    sidecar.kill()?;

    say("promoting the standby");
    let report = promote(dir.path(), &address)?;
    let rto = began.elapsed();
    let disaster_ns = nanos(disaster);
    let audit = bank::audit(&at("promoted"), &at("witness"), disaster_ns)?;
    ensure!(audit.acknowledged > 0, "the bank acknowledged no transfer: nothing was shown");

    println!();
    println!("  integrity check      ok, and the balances sum to what the bank opened with");
    let point = report.get("point").unwrap_or(&report);
    println!(
        "  promoted point       {} ({}, {})",
        text(point, "id"),
        text(point, "consistency"),
        text(point, "tracker")
    );
    println!("  lost transfers       {} of {} acknowledged", audit.lost, audit.acknowledged);
    println!("  RPO                  {:.1} ms", audit.lost_span_ns as f64 / 1e6);
    println!("  RTO                  {:.0} ms from the kill to a promoted copy", rto.as_secs_f64() * 1e3);
    Ok(())
}

fn make_identities(dir: &Path) -> anyhow::Result<()> {
    let ca = dir.join("ca");
    let now = SystemTime::now();
    let day = Validity::starting(now, Duration::from_secs(24 * 3600));
    pki::init(&ca, day)?;
    let volume = Request::Sidecar { volumes: [VolumeName::new(TENANT, VOLUME)?].into() };
    let receiver = Request::Receiver { name: "standby".into(), hosts: vec!["127.0.0.1".into()] };
    let operator = Request::Operator { tenant: None };
    for (name, request) in [("sidecar", volume), ("receiver", receiver), ("operator", operator)] {
        pki::issue(&ca, &TrustDomain::default(), &request, day, &dir.join("id").join(name))?;
    }
    Ok(())
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

fn receiver_args(dir: &Path) -> Vec<String> {
    let mut args: Vec<String> =
        ["receiver", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"].map(Into::into).into();
    for (flag, name) in
        [("--store", "store"), ("--identity", "id/receiver"), ("--port-file", "receiver.ports")]
    {
        args.extend([flag.to_owned(), path(dir, name)]);
    }
    args
}

fn sidecar_args(dir: &Path, receiver: &str) -> Vec<String> {
    let mut args: Vec<String> =
        ["sidecar", "--http", "127.0.0.1:0", "--receiver", receiver].map(Into::into).into();
    args.extend(["--volume".to_owned(), format!("{TENANT}/{VOLUME}={}", path(dir, "volume"))]);
    for (flag, name) in [("--identity", "id/sidecar"), ("--port-file", "sidecar.ports")] {
        args.extend([flag.to_owned(), path(dir, name)]);
    }
    args
}

fn wait_until_replicating(
    http: &str,
    sidecar: &mut Process,
    interrupted: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        sidecar.check()?;
        ensure!(!interrupted(), "interrupted");
        let status = site::status(http)?;
        if volume(&status).get("last_acked").is_some_and(|point| !point.is_null()) {
            say(&format!("replicating; changes come from the {} tracker", text(volume(&status), "tracker")));
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no recovery point within 20 s; the sidecar says {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Shows the lag until the time is over.
fn watch_lag(
    http: &str,
    run_for: Duration,
    processes: &mut [&mut Process],
    interrupted: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    let terminal = std::io::stdout().is_terminal();
    let every = Duration::from_millis(if terminal { 100 } else { 1000 });
    let until = Instant::now() + run_for;
    while Instant::now() < until {
        ensure!(!interrupted(), "interrupted");
        for process in &mut *processes {
            process.check()?;
        }
        let status = site::status(http)?;
        let status = volume(&status);
        let lag = status.get("lag_ms").and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
        let line = format!(
            "  lag {lag:7.2} ms   last point {:>8}",
            status.get("last_acked").map_or_else(String::new, |acked| text(acked, "point"))
        );
        if terminal {
            print!("\r{line}");
            std::io::stdout().flush()?;
        } else {
            println!("{line}");
        }
        std::thread::sleep(every.min(until.saturating_duration_since(Instant::now())));
    }
    if terminal {
        println!();
    }
    Ok(())
}

fn promote(dir: &Path, receiver: &str) -> anyhow::Result<serde_json::Value> {
    let output = Command::new(std::env::current_exe()?)
        .args(["promote", &format!("{TENANT}/{VOLUME}"), "--json", "--receiver", receiver])
        .args(["--identity", &path(dir, "id/operator"), "--to", &path(dir, "promoted")])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!("promote failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("promote printed no report")
}

fn volume(status: &serde_json::Value) -> &serde_json::Value {
    status.get("volumes").and_then(|volumes| volumes.get(0)).unwrap_or(status)
}

fn text(value: &serde_json::Value, key: &str) -> String {
    match value.get(key) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "unknown".into(),
    }
}

fn say(what: &str) {
    println!("· {what}");
}

fn nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
