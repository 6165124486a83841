//! How many reviews the injector answers, and how fast: the built binary on one core, the recorded review of a StatefulSet's
//! pod, TLS connections that stay.
//!
//! First at a fixed rate, where a latency counts from the moment at which the review was due, so that a stall counts for all
//! that it holds up; then as fast as answers come.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tidelock_tests::{
    https::{Authority, Https},
    process::Process,
    site::{binary, scratch},
    wait::{self, SOON},
};

/// Measure the injector.
#[derive(Debug, Parser)]
struct Args {
    /// Reviews a second in the first part
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds of each part
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Connections
    #[arg(long, default_value_t = 8)]
    connections: u32,
    /// The injector's core; the load has the others
    #[arg(long, default_value = "0")]
    core: String,
}

const PATH: &str = "/mutate/namespace";

fn main() -> Result<()> {
    let args = Args::parse();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/injector/tests/data");
    let review =
        fs::read(data.join("admissionreview-create-statefulset-pod.json")).context("the recorded review")?;
    let dir = scratch();
    let at = |name: &str| dir.path().join(name);
    let authority = Authority::new();
    authority.issue(&at("certificate"));
    let mut command = Command::new("taskset");
    command.args(["-c", &args.core]).arg(binary()).args(["injector", "--listen", "127.0.0.1:0"]);
    command.args(["--http", "127.0.0.1:0", "--receiver", "standby.example.org:9900", "--certificate"]);
    command.arg(at("certificate")).arg("--port-file").arg(at("ports"));
    let mut injector = Process::spawn("injector", &mut command, &at("log"));
    let ports = wait::until("the injector listens", SOON, || {
        injector.must_run();
        fs::read_to_string(at("ports")).ok()
    });
    let address = ports.lines().next().context("an address")?;
    let connect = || authority.connect(address).context("a handshake");
    let part = Duration::from_secs(args.seconds);

    let every = Duration::from_secs(1) * args.connections / args.rate;
    let at_rate = load(args.connections, &connect, |https, begun, number| {
        let due = begun + every * number;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        ask(https, &review)?;
        Ok((due.elapsed(), begun.elapsed() < part))
    })?;
    report(&format!("at {} a second", args.rate), at_rate, part);
    let flat_out = load(args.connections, &connect, |https, begun, _| {
        let asked = Instant::now();
        ask(https, &review)?;
        Ok((asked.elapsed(), begun.elapsed() < part))
    })?;
    report("as fast as answers come", flat_out, part);
    injector.stop();
    Ok(())
}

/// Latencies of all connections, each on a thread that goes on until `step` says that it is over.
fn load(
    connections: u32,
    connect: &(impl Fn() -> Result<Https> + Sync),
    step: impl Fn(&mut Https, Instant, u32) -> Result<(Duration, bool)> + Sync,
) -> Result<Vec<Duration>> {
    let one = || {
        let mut https = connect()?;
        let (begun, mut took) = (Instant::now(), Vec::new());
        for number in 0.. {
            let (latency, more) = step(&mut https, begun, number)?;
            took.push(latency);
            if !more {
                break;
            }
        }
        Ok::<_, anyhow::Error>(took)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(one)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().expect("no thread panics")?);
        }
        Ok(all)
    })
}

fn ask(https: &mut Https, review: &[u8]) -> Result<()> {
    let (status, body) = https.post(PATH, review)?;
    ensure!(status == 200 && body.len() > 1000, "answered {status}");
    Ok(())
}

fn report(what: &str, mut took: Vec<Duration>, part: Duration) {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let rate = took.len() as f64 / part.as_secs_f64();
    println!(
        "{what}: {rate:.0} reviews/s, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}
