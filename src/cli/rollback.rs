//! `tidelock rollback`: a live directory back to a point.

use std::path::PathBuf;

use tidelock_failover::{At, RollbackOptions, rollback};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    output,
    restore::{Accept, warn, warn_unseen, work},
    signals,
    source::Source,
};

/// Make a live directory what it was at a point, in place; the application and its sidecar must be stopped
///
/// WHAT IS NOT IN THE POINT IS DELETED, names that the sidecar leaves out among it. What was there is the newest point, if the sidecar
/// ended with its final cut. An interrupted one is continued by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The point: EPOCH.SEQ, tag:NAME, the newest not after a time (2026-01-31T12:30:00Z), or an age (-5m)
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// The directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Though processes have files open there, the sidecar is connected, or the directory has no name in common with the volume
    #[arg(long)]
    force: bool,
    /// Take what is refused otherwise
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    accept: Vec<Accept>,
    /// Do not read files of the right size and modification time
    #[arg(long)]
    trust_mtime: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let options = RollbackOptions {
        at: args.at.clone(),
        accept_fuzzy: args.accept.contains(&Accept::Fuzzy),
        trust_mtime: args.trust_mtime,
        force: args.force,
    };
    signals::say_how_to_go_on()?;
    let access = args.source.open()?;
    let bar = output::Bar::new(args.json);
    let done = rollback(&access, &args.volume, &args.dir, &options, &|event| bar.on(event));
    drop(bar);
    let report = done.map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&report)?);
    }
    let newest = report.newest.as_ref().map_or("-", |newest| newest.id.as_str());
    output::facts(&[
        (
            "rolled back",
            format!("{} to {} in {}", report.volume, report.point.id, report.directory.display()),
        ),
        ("cut at", format!("{} ({})", report.point.time, report.point.consistency)),
        ("forward again", format!("--at {newest}")),
        ("work", work(&report.work)),
        ("took", output::duration(report.took_ms)),
    ]);
    warn_unseen(report.openers.unseen);
    warn(&report.work);
    Ok(())
}
