//! What do test failovers cost the replication they run beside? PostgreSQL under pgbench is replicated, and its newest point is tested again and again: opened, a
//! server started on it that recovers and answers, stopped, closed. The lag of every timed commit is compared with the same load without tests, in turns.
//!
//! Server, sidecar, receiver and the tests share this machine; on a standby of its own a test costs the primary nothing. Needs PostgreSQL 15, root and the built `tidelock`.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use serde_json::{Value, json};
use tidelock_tests::{
    acks::lag_ns,
    pg::{Heartbeat, Load, Pg, books_balance, find_programs, pgbench_init},
    site::{Receiver, Sidecar, Site, VOLUME},
    wait::now_ns,
};

/// Seeding and catching up on a slow machine.
const CATCH_UP: Duration = Duration::from_secs(300);

/// No turn is longer.
const LOAD_MAX: Duration = Duration::from_secs(3600);

/// Measures the lag of a replicated PostgreSQL with and without test failovers beside it.
#[derive(Debug, Parser)]
struct Options {
    /// Seconds of load in a turn, at least: it goes on until the turn's tests are done.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Turns with tests, and as many without.
    #[arg(long, default_value_t = 2)]
    turns: u64,
    /// Test failovers in all.
    #[arg(long, default_value_t = 10)]
    tests: u64,
    /// Scale of the pgbench tables, 16 MiB each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Connections of pgbench.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Transactions a second, at most; otherwise the load takes all there is.
    #[arg(long)]
    rate: Option<u32>,
    /// Copies the point instead of mounting it.
    #[arg(long)]
    copy: bool,
    /// Prints JSON instead of lines.
    #[arg(long)]
    json: bool,
}

/// Lags of the commits of some turns, and what the load reached.
#[derive(Default)]
struct Series {
    lags_ns: Vec<u64>,
    tps: Vec<f64>,
}

fn main() {
    let options = Options::parse();
    if let Err(reason) = find_programs() {
        eprintln!("rehearse: {reason}; as root: apt-get install postgresql-15");
        std::process::exit(1);
    }
    let report = measure(&options);
    if options.json { println!("{report:#}") } else { print(&report) }
}

fn measure(options: &Options) -> Value {
    let site = Site::new();
    let mut pg = Pg::init(&site.path("data"), &site.path("run"));
    pg.start();
    pgbench_init(&pg, options.scale);
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, pg.data()).start();
    let heartbeat = Heartbeat::start(&pg, Duration::from_millis(5));
    sidecar.caught_up(CATCH_UP);
    let tester = Tester::new(&site, &receiver, options);
    let (mut without, mut with, mut tests) = (Series::default(), Series::default(), Vec::new());
    for turn in 0..options.turns {
        turn_of(&pg, options, &heartbeat, &mut sidecar, &mut without, || ());
        let count = options.tests * (turn + 1) / options.turns - options.tests * turn / options.turns;
        turn_of(&pg, options, &heartbeat, &mut sidecar, &mut with, || {
            tests.extend(tester.run(count, Duration::from_secs(options.seconds)));
        });
    }
    heartbeat.stop();
    pg.stop();
    let points = site.points(&receiver);
    let results = points.iter().filter_map(|point| point["tags"].as_array()).flatten();
    let verified =
        results.filter(|tag| tag.as_str().is_some_and(|tag| tag.starts_with("verified at "))).count();
    let (plain, tested) = (without.json(), with.json());
    let ratio = tested["p99_ms"].as_f64().zip(plain["p99_ms"].as_f64()).map(|(with, without)| with / without);
    json!({
        "scale": options.scale, "clients": options.clients, "rate": options.rate, "without": plain, "with": tested, "p99_ratio": ratio,
        "tests": tests, "results_on_points": verified, "left_behind": tester.left_behind(),
    })
}

/// One turn under load; the commits of its time go to the series.
fn turn_of(
    pg: &Pg,
    options: &Options,
    heartbeat: &Heartbeat,
    sidecar: &mut Sidecar,
    series: &mut Series,
    beside: impl FnOnce(),
) {
    let begun_ns = now_ns();
    let (begun, committed) = (Instant::now(), commits(pg));
    let load = Load::start_at(pg, options.clients, LOAD_MAX, options.rate);
    beside();
    thread::sleep(Duration::from_secs(options.seconds).saturating_sub(begun.elapsed()));
    series.tps.push((commits(pg) - committed) as f64 / begun.elapsed().as_secs_f64());
    let ended_ns = now_ns();
    load.kill();
    sidecar.caught_up(CATCH_UP);
    let acks = sidecar.acks();
    let beats = heartbeat.acked();
    let within = beats.iter().filter(|beat| (begun_ns..ended_ns).contains(&beat.acked_ns));
    series.lags_ns.extend(within.filter_map(|beat| lag_ns(&acks, beat.acked_ns)));
    series.lags_ns.sort_unstable();
}

/// Transactions that the server has committed so far, the timed ones among them.
fn commits(pg: &Pg) -> i64 {
    let asked = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'";
    pg.connect().query_one(asked, &[]).expect("a superuser may").get(0)
}

struct Tester<'a> {
    site: &'a Site,
    receiver: &'a Receiver,
    to: PathBuf,
    run: String,
    copy: bool,
}

impl<'a> Tester<'a> {
    fn new(site: &'a Site, receiver: &'a Receiver, options: &Options) -> Self {
        let sockets = site.new_dir("tested");
        Pg::at(&site.path("unused"), &sockets);
        Self {
            site,
            receiver,
            to: site.path("test"),
            run: books_balance(&sockets, options.scale),
            copy: options.copy,
        }
    }

    /// Evenly over the time of a turn, and each after the one before.
    fn run(&self, count: u64, time: Duration) -> Vec<Value> {
        let begun = Instant::now();
        let mut reports = Vec::new();
        for number in 0..count {
            let due = time.mul_f64((number as f64 + 0.5) / count as f64);
            thread::sleep(due.saturating_sub(begun.elapsed()));
            let to = self.to.to_str().expect("paths of the bench are UTF-8");
            let mut asked = vec!["test", VOLUME, "--to", to, "--run", &self.run];
            asked.extend(self.copy.then_some("--copy"));
            let report = self.site.operator(self.receiver, &asked);
            assert_eq!(report["passed"], true, "{report}");
            reports.push(json!({
                "point": report["point"]["id"], "mounted": report["work"].is_null(), "open_ms": report["open_ms"],
                "rto_ms": report["rto_ms"],
            }));
        }
        reports
    }

    /// What should not be there: the directory, a mount, a server.
    fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        if self.to.exists() {
            left.push(self.to.display().to_string());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("our own mounts");
        left.extend(mounts.lines().filter(|line| line.contains(" fuse.tidelock ")).map(str::to_owned));
        let tested = self.site.path("tested");
        let sockets = fs::read_dir(tested).expect("the directory is ours").flatten();
        left.extend(
            sockets
                .map(|entry| entry.path())
                .filter(|path| !path.ends_with("log"))
                .map(|path| path.display().to_string()),
        );
        left
    }
}

impl Series {
    fn json(&self) -> Value {
        let quantile = |part: f64| {
            let index = (self.lags_ns.len().saturating_sub(1) as f64 * part).ceil() as usize;
            self.lags_ns.get(index).map(|lag| *lag as f64 / 1e6)
        };
        let tps = self.tps.iter().sum::<f64>() / self.tps.len().max(1) as f64;
        json!({
            "commits": self.lags_ns.len(), "p50_ms": quantile(0.5), "p99_ms": quantile(0.99), "max_ms": quantile(1.0),
            "tps": tps,
        })
    }
}

fn print(report: &Value) {
    let ms = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    for name in ["without", "with"] {
        let row = &report[name];
        println!(
            "{name:>8} tests: lag p50 {:.1} ms, p99 {:.1} ms, max {:.0} ms over {} commits; {:.0} TPS",
            ms(&row["p50_ms"]),
            ms(&row["p99_ms"]),
            ms(&row["max_ms"]),
            row["commits"],
            ms(&row["tps"]),
        );
    }
    println!("p99 with tests is {:.2} of p99 without", ms(&report["p99_ratio"]));
    for test in report["tests"].as_array().into_iter().flatten() {
        let how = if test["mounted"] == true { "mounted" } else { "copied" };
        println!(
            "{} {how} in {:.0} ms, verified in {:.0} ms",
            test["point"],
            ms(&test["open_ms"]),
            ms(&test["rto_ms"])
        );
    }
    println!("results on points: {}; left behind: {}", report["results_on_points"], report["left_behind"]);
}
