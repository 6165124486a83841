//! How long do cuts take, and how long does the application stand still for them? A server under pgbench, protected with exact
//! ranges and without a pause, then with inotify and pauses, and not at all; in turns, so that no one has the machine's
//! better minutes. Everything runs on one machine.
//!
//! A cut's time is from the first change after the last cut until it converged, its rounds are the captures in
//! between, and how often points come is the time between them. All come from the sidecar (`--trace-cuts`); throughput comes from pgbench.

mod report;

use std::{path::Path, time::Duration};

use clap::Parser;
use tidelock_tests::{
    cuts,
    pg::{Load, Pg, pgbench_init},
    site::{Receiver, Site, Tracker},
    wait,
};

use report::{Report, Series};

/// Seeding and catching up on a slow machine.
const CATCH_UP: Duration = Duration::from_secs(300);

/// Prints the distribution of rounds, cut time and pause time under pgbench. Needs PostgreSQL 15 and the built `tidelock`.
#[derive(Debug, Parser)]
struct Options {
    /// Seconds of load for each of the three, in all.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Turns that each of the three takes.
    #[arg(long, default_value_t = 3)]
    turns: u64,
    /// Scale of the pgbench tables, 16 MiB each.
    #[arg(long, default_value_t = 3)]
    scale: u32,
    /// Connections of pgbench.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// The sidecar's `--pause-limit`.
    #[arg(long, default_value = "250ms")]
    pause_limit: humantime::Duration,
    /// The sidecar's `--cut-deadline` where it pauses.
    #[arg(long, default_value = "1s")]
    cut_deadline: humantime::Duration,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() {
    let options = Options::parse();
    if let Err(reason) = tidelock_tests::pg::find_programs() {
        eprintln!("cut: {reason}; as root: apt-get install postgresql-15");
        std::process::exit(1);
    }
    let report = measure(&options);
    if options.json { println!("{:#}", report.json()) } else { print!("{report}") }
}

fn measure(options: &Options) -> Report {
    let site = Site::new();
    let mut pg = Pg::init(&site.path("primary"), &site.path("run"));
    pg.start();
    pgbench_init(&pg, options.scale);
    let receiver = site.receiver();
    let limit = format!("--pause-limit={}", options.pause_limit);
    let deadline = format!("--cut-deadline={}", options.cut_deadline);
    let process = format!("--pause-process={}/postmaster.pid", pg.data().display());
    let pauses = ["--escalate=pause", &limit, &deadline, &process];
    let turn = Duration::from_secs((options.seconds / options.turns).max(1));
    let mut report = Report::new(options.scale, options.clients, options.pause_limit.into());
    for number in 0..options.turns {
        report.alone.add(Load::start(&pg, options.clients, turn).finish(), &[], (0, 0));
        let protected = |tracker, arguments: &[&str], series: &mut Series| {
            let trace = site.path(&format!("{tracker:?}-{number}.cuts"));
            let (tps, cuts, time) =
                protected(&site, &receiver, &pg, tracker, arguments, &trace, options.clients, turn);
            series.add(tps, &cuts, time);
        };
        protected(Tracker::Exact, &[], &mut report.exact);
        protected(Tracker::Inotify, &pauses, &mut report.pausing);
    }
    pg.stop();
    report
}

/// A turn beside a sidecar: the throughput, the cuts while the load ran, and when that was.
#[allow(clippy::too_many_arguments, reason = "one call")]
fn protected(
    site: &Site,
    receiver: &Receiver,
    pg: &Pg,
    tracker: Tracker,
    arguments: &[&str],
    trace: &Path,
    clients: u32,
    turn: Duration,
) -> (f64, Vec<cuts::Cut>, (u64, u64)) {
    let plan = site.sidecar(receiver, pg.data()).tracker(tracker);
    let plan = plan.arg("--trace-cuts").arg(trace.to_str().expect("paths of the bench are UTF-8"));
    let mut sidecar = arguments.iter().fold(plan, |plan, argument| plan.arg(argument)).start();
    // Seeded, or resumed, and following.
    sidecar.settle(CATCH_UP);
    let from = wait::now_ns();
    let tps = Load::start(pg, clients, turn).finish();
    let to = wait::now_ns();
    sidecar.settle(CATCH_UP);
    sidecar.process.stop();
    let cuts = cuts::read(trace).into_iter().filter(|cut| (from..to).contains(&cut.cut_ns)).collect();
    (tps, cuts, (from, to))
}
