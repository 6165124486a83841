//! `tidelock store`: work on a store whose receiver does not run.

use std::{path::PathBuf, time::Instant};

use tidelock_failover::{RebuildReport, rebuild};

use super::{
    exit::{DAMAGED, Failure},
    output,
};

/// Work on a store whose receiver does not run
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Rebuild(RebuildArgs),
}

/// Make the index and the catalogue anew from the log alone
#[derive(Debug, clap::Args)]
struct RebuildArgs {
    /// The store; no receiver may be using it
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Rebuild(args) => run_rebuild(args),
    }
}

fn run_rebuild(args: &RebuildArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let report = rebuild(&args.store).map_err(Failure::failover)?;
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
