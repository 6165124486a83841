//! `tidelock test` and `tidelock drill`: failovers that nobody notices.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use tidelock_failover::{Access, At, RehearseOptions, RehearseReport, rehearse};
use tidelock_manifests::Key;
use tidelock_proto::VolumeName;

use super::{
    exit::{FAILED, Failure},
    nice,
    output::{self, duration},
    restore::{Accept, work},
    signals,
    source::Source,
    subject::Subject,
    trial::{self, Common, OfWorkload},
};

/// How often a drill looks whether it is to end.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
struct Check {
    /// Check it with this command: `sh -c` in the directory, with TIDELOCK_DIR, TIDELOCK_VOLUME and TIDELOCK_POINT set. 0 is
    /// good
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// How long the command may take; of a workload, how long its volumes may be filled, and how long it may take until it is ready
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Copy the point, though it could be mounted: then all of it is read
    #[arg(long)]
    copy: bool,
    /// How far this and the command stand back where others need every processor: 0 not at all, 19 most. The time it takes is then
    /// the longer the busier the machine is
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
    /// Do not write the result on the point. A point with a result is kept by retention, like every named one
    #[arg(long)]
    no_record: bool,
    /// Take what is refused otherwise
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    accept: Vec<Accept>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

/// Fail over for a test, beside the running replication: open a point, check it, write the result on it, clean up
///
/// A volume is opened in a directory, and a command may check it. A workload is brought up in a namespace of its own, which NetworkPolicies
/// isolate, with its volumes filled; it has to become ready. The namespace is removed again, also after Ctrl-C, and by the next test if
/// this one is killed. Ends with 1 if the check failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Test {
    /// The volume, as TENANT/NAME; or a workload of Kubernetes: statefulset/NAME or deployment/NAME
    #[arg(value_name = "VOLUME|WORKLOAD")]
    subject: Subject,
    /// Where to open the point of a volume; created, or must be empty. With --run it is mounted there, writable, where FUSE is available, and copied otherwise. It is removed again
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// Leave the directory as the command left it; implies --copy
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    workload: OfWorkload,
    #[command(flatten)]
    check: Check,
}

/// Test volumes on a schedule, until it is stopped; keeps a history and metrics
#[derive(Debug, clap::Args)]
pub(crate) struct Drill {
    /// The volumes, as TENANT/NAME
    #[arg(required = true)]
    volumes: Vec<VolumeName>,
    /// Where to open the points; created, or must be empty. With --run they are mounted there, writable, where FUSE is available, and copied otherwise. They are removed again
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// From the beginning of one drill to the next
    #[arg(long, value_name = "TIME", default_value = "6h", value_parser = humantime::parse_duration)]
    every: Duration,
    /// End after so many rounds
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Append every result to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Write the last results here for Prometheus' textfile collector
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    #[command(flatten)]
    check: Check,
}

impl Check {
    /// Of this thread, and so of all that it starts: the command too.
    fn stand_back(&self) -> Result<(), Failure> {
        Ok(nice::stand_back(self.nice).context("cannot set --nice")?)
    }

    fn open(&self) -> Result<Access, Failure> {
        Ok(self.source.open()?.patient(self.nice > 0))
    }

    fn options(&self, at: At, keep: bool, again: Option<Duration>) -> RehearseOptions {
        RehearseOptions {
            at,
            accept_fuzzy: self.accept.contains(&Accept::Fuzzy),
            command: self.run.clone(),
            timeout: self.timeout,
            keep,
            copy: self.copy,
            record: !self.no_record,
            again,
        }
    }
}

pub(crate) fn test(args: &Test) -> Result<(), Failure> {
    let check = &args.check;
    let volume = match &args.subject {
        Subject::Volume(volume) => volume,
        Subject::Workload(workload) => return of_workload(args, workload),
    };
    let to =
        args.to.as_ref().ok_or_else(|| Failure::usage("--to DIR is missing: where to open the point"))?;
    check.stand_back()?;
    let access = Arc::new(check.open()?);
    let bar = output::Bar::new(check.json);
    let options = check.options(args.at.clone(), args.keep, None);
    let stopped = signals::stopped()?;
    let interrupted = || stopped.load(Ordering::Relaxed);
    let done = rehearse(&access, volume, to, &options, &|event| bar.on(event), &interrupted);
    drop(bar);
    let report = done.map_err(Failure::failover)?;
    if check.json {
        output::json(&report)?;
    } else {
        print(&report);
    }
    verdict(&report)
}

fn of_workload(args: &Test, workload: &Key) -> Result<(), Failure> {
    let check = &args.check;
    if args.to.is_some() || args.keep || check.run.is_some() || check.copy {
        return Err(Failure::usage(
            "--to, --run, --keep and --copy are of volumes: a workload says by itself whether it is ready",
        ));
    }
    let common = Common {
        at: &args.at,
        accept: &check.accept,
        record: !check.no_record,
        json: check.json,
        patience: check.timeout,
        source: &check.source,
    };
    trial::run(workload, &args.workload, &common)
}

fn verdict(report: &RehearseReport) -> Result<(), Failure> {
    if report.passed {
        return Ok(());
    }
    let (volume, point, outcome) = (&report.volume, &report.point.id, &report.outcome);
    Err(Failure::new(FAILED, anyhow::anyhow!("the check of {volume} {point} failed: {outcome}")))
}

fn print(report: &RehearseReport) {
    output::facts(&[
        ("tested", format!("{} {}", report.volume, report.point.id)),
        ("cut at", format!("{} ({})", report.point.time, report.point.consistency)),
        ("result", format!("{}, {}", if report.passed { "passed" } else { "FAILED" }, report.outcome)),
        (
            "RTO",
            format!(
                "{} (open {}, check {})",
                duration(report.rto_ms),
                duration(report.open_ms),
                duration(report.check_ms)
            ),
        ),
        ("recorded", output::or_dash(report.recorded.as_ref())),
        ("opened", opened(report)),
    ]);
}

fn opened(report: &RehearseReport) -> String {
    match (&report.work, &report.mount_missed) {
        (None, _) => "as a mount".to_owned(),
        (Some(done), None) => work(done),
        (Some(done), Some(why)) => format!("{}; not mounted: {why}", work(done)),
    }
}

/// What is known of a volume's drills.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    last_ok: bool,
    last_seconds: f64,
    last_rto_seconds: f64,
}

pub(crate) fn drill(args: &Drill) -> Result<(), Failure> {
    args.check.stand_back()?;
    let stopped = signals::stopped()?;
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut rounds = 0;
    while args.rounds.is_none_or(|most| rounds < most) && !stopped.load(Ordering::Relaxed) {
        let begun = Instant::now();
        rounds += 1;
        let more = args.rounds.is_none_or(|most| rounds < most);
        for volume in &args.volumes {
            let tally = tallies.entry(volume.to_string()).or_default();
            one(args, volume, tally, more, &stopped)?;
        }
        if let Some(path) = &args.metrics {
            write_metrics(path, &tallies).with_context(|| format!("cannot write {}", path.display()))?;
        }
        while more && begun.elapsed() < args.every && !stopped.load(Ordering::Relaxed) {
            std::thread::sleep(POLL.min(args.every));
        }
    }
    let failed: u64 = tallies.values().map(|tally| tally.failed).sum();
    match failed {
        0 => Ok(()),
        failed => Err(Failure::new(FAILED, anyhow::anyhow!("{failed} drills failed"))),
    }
}

/// One drill of one volume, after which there are more or not. A receiver that is away fails the drill and not the schedule.
fn one(
    args: &Drill,
    volume: &VolumeName,
    tally: &mut Tally,
    more: bool,
    stopped: &AtomicBool,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let options = args.check.options(At::Latest, false, more.then_some(args.every));
    let done = args.check.open().and_then(|access| {
        let interrupted = || stopped.load(Ordering::Relaxed);
        rehearse(&Arc::new(access), volume, &args.to, &options, &|_| {}, &interrupted)
            .map_err(Failure::failover)
    });
    if stopped.load(Ordering::Relaxed) {
        return Ok(());
    }
    let now = SystemTime::now();
    tally.last_seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    tally.last_rto_seconds = begun.elapsed().as_secs_f64();
    tally.last_ok = done.as_ref().is_ok_and(|report| report.passed);
    if tally.last_ok {
        tally.passed += 1
    } else {
        tally.failed += 1
    }
    let line = match &done {
        Ok(report) => serde_json::to_value(report)?,
        Err(failure) => serde_json::json!({
            "volume": volume.to_string(),
            "passed": false,
            "time": humantime::format_rfc3339_seconds(now).to_string(),
            "outcome": failure.line(),
        }),
    };
    if let Some(path) = &args.history {
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match (&done, args.check.json) {
        (_, true) => output::print(&line.to_string()),
        (Ok(report), false) => output::print(&format!(
            "{} {} {} {}, RTO {}",
            report.time,
            report.volume,
            report.point.id,
            if report.passed { "passed".to_owned() } else { format!("FAILED: {}", report.outcome) },
            duration(report.rto_ms)
        )),
        (Err(failure), false) => output::print(&format!("{volume} FAILED: {}", failure.line())),
    }
    Ok(())
}

/// Whole or not at all: a collector reads it at any moment.
fn write_metrics(path: &Path, tallies: &BTreeMap<String, Tally>) -> std::io::Result<()> {
    let mut text = String::new();
    let mut metric = |name: &str, help: &str, kind: &str, value: &dyn Fn(&Tally) -> String| {
        text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (volume, tally) in tallies {
            text += &format!("{name}{{volume=\"{volume}\"}} {}\n", value(tally));
        }
    };
    metric("tidelock_drill_success", "Whether the last drill passed.", "gauge", &|tally| {
        u8::from(tally.last_ok).to_string()
    });
    metric("tidelock_drill_timestamp_seconds", "When the last drill ended.", "gauge", &|tally| {
        format!("{:.3}", tally.last_seconds)
    });
    metric(
        "tidelock_drill_rto_seconds",
        "How long the last drill took to a checked copy.",
        "gauge",
        &|tally| format!("{:.3}", tally.last_rto_seconds),
    );
    metric("tidelock_drills_passed_total", "Drills that passed.", "counter", &|tally| {
        tally.passed.to_string()
    });
    metric("tidelock_drills_failed_total", "Drills that failed.", "counter", &|tally| {
        tally.failed.to_string()
    });
    let next = path.with_extension("next");
    fs::write(&next, text)?;
    fs::rename(&next, path)
}
