//! `tidelock clone`: a volume out of a point.

use tidelock_failover::{At, clone};
use tidelock_proto::VolumeName;

use super::{exit::Failure, output, restore::Accept, source::Source};

/// Make a new volume whose first point is a point of this one; no content is copied
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// The new volume, of the same tenant
    #[arg(long = "as", value_name = "TENANT/NAME")]
    to: VolumeName,
    /// Take what is refused otherwise
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    accept: Vec<Accept>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let accept_fuzzy = args.accept.contains(&Accept::Fuzzy);
    let made = clone(&args.source.open()?, &args.volume, &args.at, accept_fuzzy, &args.to)
        .map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&made)?);
    }
    output::facts(&[
        ("cloned", format!("{} {}", made.volume, made.point.id)),
        ("as", format!("{} {}", made.clone, made.first.id)),
        ("cut at", format!("{} ({})", made.first.time, made.first.consistency)),
    ]);
    output::print(&format!("\nTo have it as files: tidelock restore {} --to DIR", made.clone));
    Ok(())
}
