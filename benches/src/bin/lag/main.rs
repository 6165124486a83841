//! How far behind is the copy? From the moment PostgreSQL acknowledges a commit until that commit is durable elsewhere,
//! for Tidelock and for PostgreSQL's own asynchronous streaming replica, on the same server under the same load in
//! the same run; and what each costs in transactions per second.
//!
//! - Load: `pgbench` (TPC-B-like) from a few clients, and one connection more that commits a row, notes the time of the
//!   acknowledgement and PostgreSQL's position in its log, and does so again.
//! - Streaming: a commit is durable when `pg_last_wal_receive_lsn()` of the standby, which it has synced to disk, has
//!   reached its position; asked for every 0.2 ms.
//! - Tidelock: a commit is durable when the sidecar holds the acknowledgement of a point that was cut after it.
//!
//! - What it takes: CPU time for each transaction, of the server, the sidecar, and of what would run on another machine. Unlike the
//!   transactions per second these hardly depend on what else the machine does.
//!
//! The three take turns for a few seconds each, so that no one has the machine's better minutes. Both replicas run
//! on the same machine as the server, which is the hardest case for processor time and the easiest for the network. With
//! `--apart` they have processors of their own, as they would on a standby; the disk stays common.

mod parts;
mod pulse;
mod report;
mod standby;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use tidelock_tests::{
    pg::{Load, Pg, pgbench_init},
    procfs::cpu_ticks,
    site::{Sidecar, Site, Tracker},
    wait::{self, SOON},
};

use parts::Parts;
use pulse::{Beat, Pulse};
use report::{Cpu, Report, Series, Turn};
use standby::Standby;

/// Seeding and catching up on a slow machine.
const CATCH_UP: Duration = Duration::from_secs(300);

/// Measures lag and overhead beside PostgreSQL's own streaming replica. Needs PostgreSQL 15 and the built `tidelock`.
#[derive(Debug, Parser)]
struct Options {
    /// Seconds of load for each of the three, in all.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Turns that each of the three takes.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Scale of the pgbench tables, 16 MiB each.
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Connections of pgbench.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Milliseconds between two timed commits.
    #[arg(long, default_value_t = 5)]
    pause_ms: u64,
    /// Part of a core that the sidecar keeps itself within, if not its own default.
    #[arg(long)]
    cpu_share: Option<f64>,
    /// auto, exact or inotify.
    #[arg(long, default_value = "auto")]
    tracker: String,
    /// Gives the server, its clients and the sidecar one half of the processors and the receiver and the standby the other.
    #[arg(long)]
    apart: bool,
    /// Where the server's data is made instead of the temporary directory; removed afterwards.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() {
    let options = Options::parse();
    if let Err(reason) = tidelock_tests::pg::find_programs() {
        eprintln!("lag: {reason}; as root: apt-get install postgresql-15");
        std::process::exit(1);
    }
    let report = measure(&options);
    if options.json { println!("{:#}", report.json()) } else { print!("{report}") }
}

fn measure(options: &Options) -> Report {
    let parts = Parts::new(options.apart);
    let site = Site::new();
    let parent = options.dir.clone().unwrap_or_else(|| site.path("primary"));
    let parent = tempfile::TempDir::with_prefix_in("lag-", {
        std::fs::create_dir_all(&parent).expect("the directory can be made");
        parent
    })
    .expect("the directory is writable");
    tidelock_tests::site::let_others_pass(parent.path());
    let mut pg = Pg::init(&parent.path().join("data"), &site.path("run"));
    // The standby rests for two thirds of the time; what it has not seen by then must still be there.
    pg.set("wal_keep_size=8GB");
    // PostgreSQL's own defaults: the tests use less memory and checkpoint more often.
    pg.set("shared_buffers=128MB").set("max_wal_size=1GB");
    pg.start();
    pgbench_init(&pg, options.scale);
    pulse::make_table(&pg);
    let mut standby = Standby::make(&pg, &site);
    let receiver = parts.there(|| site.receiver());
    let tracker = match options.tracker.as_str() {
        "exact" => Tracker::Exact,
        "inotify" => Tracker::Inotify,
        _ => Tracker::Auto,
    };
    let mut plan = site.sidecar(&receiver, pg.data()).tracker(tracker);
    if let Some(share) = options.cpu_share {
        plan = plan.arg(&format!("--cpu-share={share}"));
    }

    let turn = Duration::from_secs((options.seconds / options.rounds).max(1));
    // `others` says what the sidecar and the other side have used.
    let under_load = |pg: &Pg, others: &dyn Fn() -> (u64, u64)| {
        let cpu = || {
            let (sidecar, standby) = others();
            Cpu { server: pg.cpu_ticks(), sidecar, standby }
        };
        let before = cpu();
        let pulse = Pulse::start(pg, Duration::from_millis(options.pause_ms));
        let tps = Load::start(pg, options.clients, turn).finish();
        let cpu = cpu().since(before);
        (Turn { seconds: turn.as_secs(), tps, cpu }, pulse.stop())
    };
    let (mut alone, mut tidelock, mut streaming) = (Series::default(), Series::default(), Series::default());
    for _ in 0..options.rounds {
        let (load, _) = under_load(&pg, &|| (0, 0));
        alone.add(&load, []);

        let mut sidecar = plan.start();
        wait_for_sidecar(&pg, &mut sidecar);
        let others = || (cpu_ticks(sidecar.process.pid()), cpu_ticks(receiver.process.pid()));
        let (load, beats) = under_load(&pg, &others);
        sidecar.covered(beats.last().expect("there were commits").acked_ns, CATCH_UP);
        let acks = sidecar.acks();
        tidelock
            .add(&load, beats.iter().filter_map(|beat| tidelock_tests::acks::lag_ns(&acks, beat.acked_ns)));
        sidecar.process.stop();

        let watch = parts.there(|| {
            standby.start(&pg);
            standby.watch()
        });
        let (load, beats) = under_load(&pg, &|| (0, standby.cpu_ticks()));
        let progress = watch.stop_after(beats.last().expect("there were commits").lsn);
        streaming.add(&load, beats.iter().filter_map(|beat| progress.lag_ns(beat)));
        standby.stop();
    }
    let report = Report::new(
        options.scale,
        options.clients,
        turn,
        options.rounds,
        pg.data(),
        alone,
        tidelock,
        streaming,
    );
    pg.stop();
    report
}

/// Seeded, or resumed, and following.
fn wait_for_sidecar(pg: &Pg, sidecar: &mut Sidecar) {
    wait::until_true("the first point", CATCH_UP, || {
        sidecar.process.must_run();
        !sidecar.acks().is_empty()
    });
    let pulse = Pulse::start(pg, Duration::from_millis(50));
    let first: Beat = wait::until("a commit", SOON, || pulse.first());
    sidecar.covered(first.acked_ns, CATCH_UP);
    pulse.stop();
}
