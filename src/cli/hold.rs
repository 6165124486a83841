//! `tidelock hold` and `tidelock release`: points that stay whatever retention says.

use tidelock_failover::{At, HoldReport, hold, release};
use tidelock_proto::VolumeName;

use super::{exit::Failure, output, source::Source};

/// Keep a recovery point until it is released, whatever retention and the store's cap say
#[derive(Debug, clap::Args)]
pub(crate) struct Hold {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// Why; `tidelock points` shows it
    #[arg(long, value_name = "TEXT", default_value = "by an operator", value_parser = reason)]
    reason: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

/// Let retention have a point again that was held
#[derive(Debug, clap::Args)]
pub(crate) struct Release {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The point: EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run_hold(args: &Hold) -> Result<(), Failure> {
    let done = hold(&args.source.open()?, &args.volume, &args.at, &args.reason).map_err(Failure::failover)?;
    print("held", &done, args.json)
}

pub(crate) fn run_release(args: &Release) -> Result<(), Failure> {
    let done = release(&args.source.open()?, &args.volume, &args.at).map_err(Failure::failover)?;
    print("released", &done, args.json)
}

/// A hold that `points` shows without a word is one that nobody dares to release.
fn reason(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: say why, or leave --reason away".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

fn print(what: &'static str, done: &HoldReport, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::json(done)?);
    }
    output::facts(&[
        (what, format!("{} {}", done.volume, done.point.id)),
        ("cut at", format!("{} ({})", done.point.time, done.point.consistency)),
        ("for", done.reasons.join(", ")),
    ]);
    Ok(())
}
