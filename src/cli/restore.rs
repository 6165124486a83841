//! `tidelock restore`: a point as a directory, without touching the replication.

use std::path::PathBuf;

use clap::ValueEnum;
use tidelock_cluster::identity::{self, Wanted};
use tidelock_failover::{At, Fill, Filled, Part, RestoreOptions, RestoreReport, restore};
use tidelock_proto::VolumeName;
use tidelock_receiver::history::Patterns;

use super::{
    exit::{FAILED, Failure},
    failpoint,
    identity_from::IdentityFrom,
    output,
    promote::parse_also,
    signals,
    source::Source,
};

/// What is refused unless it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accept {
    /// Points whose files were copied one by one
    Fuzzy,
    /// A promotion while the sidecar compares a volume because it had lost events
    Unverified,
}

/// Which point, and into what.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The volume, as TENANT/NAME
    pub(crate) volume: VolumeName,
    /// The directory; it is created, or must be empty
    #[arg(long, value_name = "DIR")]
    pub(crate) to: PathBuf,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, the newest not after a time (2026-01-31T12:30:00Z), or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) at: At,
    /// Take what is refused otherwise
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    pub(crate) accept: Vec<Accept>,
    /// Make a directory equal that is not empty: what differs is changed, WHAT IS NOT IN THE POINT IS DELETED
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Though processes have files open in the directory, a sidecar replicates it or what it lies in, or there is too little room
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not read files of the right size and modification time
    #[arg(long)]
    pub(crate) trust_mtime: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write a recovery point to a directory; replication goes on
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Only what this pattern means, with all below it; may be given several times. Without a slash: a name, anywhere;
    /// with one: a path from the root
    #[arg(long, value_name = "GLOB", conflicts_with = "overwrite")]
    include: Vec<String>,
    /// Not what this pattern means, nor anything below it; may be given several times
    #[arg(long, value_name = "GLOB", conflicts_with = "overwrite")]
    exclude: Vec<String>,
    /// Do nothing if the directory holds something already, or if the receiver has no point of the volume: for start scripts
    #[arg(long, conflicts_with_all = ["overwrite", "include", "exclude", "accept"])]
    if_empty: bool,
    /// With --if-empty: another volume of the same group and its directory; may be given several times. All get the same point
    #[arg(long, value_name = "TENANT/NAME=DIR", requires = "if_empty", value_parser = parse_also)]
    also: Vec<(VolumeName, PathBuf)>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    identity_from: IdentityFrom,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.if_empty {
        return run_if_empty(args);
    }
    obtain(args)?;
    let target = &args.target;
    let options = RestoreOptions {
        at: target.at.clone(),
        accept_fuzzy: target.accept.contains(&Accept::Fuzzy),
        overwrite: target.overwrite,
        trust_mtime: target.trust_mtime,
        force: target.force,
        part: Part { include: patterns(&args.include)?, exclude: patterns(&args.exclude)? },
    };
    signals::say_how_to_go_on()?;
    let access = args.source.open()?;
    let bar = output::Bar::new(target.json);
    let done = restore(&access, &target.volume, &target.to, &options, &|event| bar.on(event));
    drop(bar);
    let report = done.map_err(Failure::failover)?;
    if target.json {
        return Ok(output::json(&report)?);
    }
    show(&report);
    Ok(())
}

/// Gets the identity of whoever may read these points, if an injector gives it.
fn obtain(args: &Args) -> Result<(), Failure> {
    if !args.identity_from.is_given() {
        return Ok(());
    }
    let (_, directory) = args.source.running()?;
    let source = args.identity_from.clone().source(Wanted::Restore, directory.to_owned())?;
    let Some(source) = source else { return Ok(()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(identity::obtain(&source)).map_err(|error| Failure::new(FAILED, error))
}

fn run_if_empty(args: &Args) -> Result<(), Failure> {
    let target = &args.target;
    let mut volumes = vec![(target.volume.clone(), target.to.clone())];
    volumes.extend(args.also.iter().cloned());
    signals::say_how_to_go_on()?;
    let fill = Fill::look(volumes).map_err(Failure::failover)?;
    let done = if fill.is_needed() {
        obtain(args)?;
        let access = args.source.open()?;
        let bar = output::Bar::new(target.json);
        let events = |event| {
            bar.on(event);
            failpoint::on(event);
        };
        fill.run(&access, &target.at, &events).map_err(Failure::failover)?
    } else {
        fill.kept()
    };
    if target.json {
        return Ok(output::json(&done)?);
    }
    for filled in &done {
        match filled {
            Filled::Kept { volume } => {
                output::facts(&[("kept", format!("{volume}: the directory is not empty"))])
            }
            Filled::Unknown { volume } => {
                output::facts(&[("empty", format!("{volume}: no point is known of it"))])
            }
            Filled::Restored(report) => show(report),
        }
    }
    Ok(())
}

fn show(report: &RestoreReport) {
    output::facts(&[
        ("restored", format!("{} {} to {}", report.volume, report.point.id, report.directory.display())),
        ("cut at", format!("{} ({})", report.point.time, report.point.consistency)),
        ("work", work(&report.work)),
        ("took", output::duration(report.took_ms)),
    ]);
    warn(&report.work);
    warn_unseen(report.unseen);
}

fn patterns(texts: &[String]) -> Result<Patterns, Failure> {
    Patterns::new(texts.iter().map(String::as_str)).map_err(Failure::usage)
}

/// What was done to a directory, in a line.
pub(crate) fn work(report: &tidelock_receiver::reconcile::Report) -> String {
    let cloned = match &report.clone_missed {
        _ if report.files_cloned > 0 => {
            let bytes = output::bytes(report.bytes_cloned);
            format!("; {} files with {bytes} cloned from the hot image", report.files_cloned)
        }
        Some(reason) => format!("; nothing cloned from the hot image ({reason})"),
        None => String::new(),
    };
    format!(
        "{} files written, {} unchanged, {} names removed; {} written, {} compared, {} fetched{cloned}",
        report.files_written,
        report.files_unchanged,
        report.removed,
        output::bytes(report.bytes_written),
        output::bytes(report.bytes_compared),
        output::bytes(report.bytes_fetched),
    )
}

/// Says what this user could not set.
pub(crate) fn warn(report: &tidelock_receiver::reconcile::Report) {
    if report.refused > 0 {
        let examples = report.refused_examples.join(", ");
        eprintln!(
            "tidelock: {} attributes were not permitted to this user ({examples}): run as root to have them all",
            report.refused
        );
    }
}

/// Says that somebody may work there who was not seen.
pub(crate) fn warn_unseen(unseen: u64) {
    if unseen > 0 {
        let root = if rustix::process::geteuid().is_root() { "" } else { "; root may" };
        eprintln!("tidelock: {unseen} processes could not be looked at, and may have files open there{root}");
    }
}
