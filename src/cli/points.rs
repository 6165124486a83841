//! `tidelock points`: the recovery points of a volume.

use tidelock_failover::{PointReport, points};
use tidelock_proto::VolumeName;

use super::{exit::Failure, output, source::Source};

/// List the recovery points of a volume, oldest first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// Only this many of the newest
    #[arg(long, short = 'n', default_value_t = 50, value_name = "COUNT")]
    newest: usize,
    /// All of them
    #[arg(long, conflicts_with = "newest")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let newest = if args.all { None } else { Some(args.newest) };
    let found = points(&args.source.open()?, &args.volume, newest).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    output::table(
        ["POINT", "TIME", "CONSISTENCY", "TRACKER", "HOW", "LINE", "GROUP", "TAGS", "CONDITIONS"],
        &rows,
    );
    Ok(())
}

fn row(point: &PointReport) -> [String; 9] {
    [
        point.id.clone(),
        point.time.clone(),
        point.consistency.to_string(),
        point.tracker.clone(),
        point.how.to_string(),
        if point.current { "current" } else { "old" }.to_owned(),
        output::or_dash((!point.group.is_empty()).then(|| point.group.join(", "))),
        point.tags.join(", "),
        point.conditions.join(", "),
    ]
}
