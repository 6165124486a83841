//! `tidelock store`: work on a store as a whole.

use std::{
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tidelock_failover::{FailoverError, RebuildReport, check_store, rebuild};
use tidelock_proto::VolumeName;
use tidelock_receiver::{
    archive::{self, ArchiveUrl},
    retention::Policy,
    store::{CompactOptions, Store, StoreOptions},
};

use super::{
    delete::{self, DeleteArgs},
    exit::{DAMAGED, Failure},
    keys::{self, KeyArgs, KeygenArgs},
    output,
    plan::{self, PlanArgs},
};

/// Work on a store as a whole
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Rebuild(RebuildArgs),
    Plan(PlanArgs),
    Delete(DeleteArgs),
    Compact(CompactArgs),
    Keygen(KeygenArgs),
    Fetch(FetchArgs),
}

/// Write the log anew with what its points still need, and give the rest of its space back; the receiver must be stopped
#[derive(Debug, clap::Args)]
struct CompactArgs {
    /// The store; no receiver may be using it
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Drop the points first that this policy does not keep
    #[arg(long, value_name = "POLICY")]
    keep: Option<Policy>,
    /// Delete this volume WITH ALL ITS POINTS
    #[arg(long, value_name = "TENANT/NAME", requires = "yes")]
    delete_volume: Option<VolumeName>,
    /// Confirm the deletion
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    keys: KeyArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Fetch a store from its archive into an empty directory, for `--store`; whoever writes the archive goes on
///
/// A receiver fetches by itself: start it with an empty --store and --archive. This is for looking, restoring and promoting without one.
#[derive(Debug, clap::Args)]
struct FetchArgs {
    /// Where the archive is: s3://BUCKET/PREFIX, gs://…, az://… or file:///DIR
    #[arg(long, value_name = "URL")]
    archive: ArchiveUrl,
    /// The directory; created if it is not there
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Make the index and the catalogue anew from the log alone
#[derive(Debug, clap::Args)]
struct RebuildArgs {
    /// The store; no receiver may be using it
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Rebuild(args) => run_rebuild(args),
        Command::Plan(args) => plan::run(args),
        Command::Delete(args) => delete::run(args),
        Command::Compact(args) => run_compact(args),
        Command::Keygen(args) => keys::keygen(args),
        Command::Fetch(args) => run_fetch(args),
    }
}

fn run_compact(args: &CompactArgs) -> Result<(), Failure> {
    check_store(&args.store).map_err(Failure::failover)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let what = CompactOptions {
        thin: args.keep.clone().map(|policy| (policy, now_ns)),
        without: args.delete_volume.clone(),
    };
    let options = StoreOptions { keys: args.keys.load()?, ..StoreOptions::default() };
    let done = Store::compact(&args.store, options, &what)
        .map_err(|error| Failure::failover(FailoverError::from(error)))?;
    if args.json {
        return Ok(output::json(&done)?);
    }
    output::facts(&[
        ("log before", output::bytes(done.before_bytes)),
        ("log now", output::bytes(done.after_bytes)),
        ("points dropped", done.dropped.to_string()),
        ("points", done.points.to_string()),
        ("chunks", done.chunks.to_string()),
    ]);
    Ok(())
}

fn run_fetch(args: &FetchArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (fetched, holder) = runtime.block_on(archive::fetch(&args.archive, &args.store))?;
    if args.json {
        return Ok(output::json(&fetched)?);
    }
    output::facts(&[
        ("segments", fetched.segments.to_string()),
        ("fetched", output::bytes(fetched.bytes)),
        ("written by", holder),
        ("took", output::duration(begun.elapsed().as_secs_f64() * 1e3)),
    ]);
    Ok(())
}

fn run_rebuild(args: &RebuildArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let report = rebuild(&args.store, args.keys.load()?).map_err(Failure::failover)?;
    if args.json {
        output::json(&report)?;
    } else {
        print(&report, begun);
    }
    if report.damaged == 0 {
        return Ok(());
    }
    let damaged = report.damaged;
    Err(Failure::new(
        DAMAGED,
        anyhow::anyhow!(
            "the log is damaged in {damaged} places; `tidelock verify` says which points that touches"
        ),
    ))
}

fn print(report: &RebuildReport, begun: Instant) {
    output::facts(&[
        ("rebuilt from", format!("{} records", report.records)),
        ("volumes", report.volumes.to_string()),
        ("points", report.points.to_string()),
        ("damaged places", report.damaged.to_string()),
        ("took", output::duration(begun.elapsed().as_secs_f64() * 1e3)),
    ]);
    report.damage.iter().for_each(|damage| output::print(damage));
}
