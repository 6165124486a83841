//! `tidelock stats`: what a point, or a whole history, takes.

use tidelock_failover::{At, StatsReport, stats};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    output::{self, bytes},
    source::Source,
};

/// Show sizes, deduplication and compression of a point, or of all points together; no content is read
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, conflicts_with = "all", default_value_t)]
    at: At,
    /// All points together, which replays each of them
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let at = (!args.all).then_some(&args.at);
    let found = stats(&args.source.open()?, &args.volume, at).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    print(&found);
    Ok(())
}

fn print(found: &StatsReport) {
    let usage = &found.usage;
    let of = match &found.point {
        Some(point) => format!("{} {} ({}, {})", found.volume, point.id, point.time, point.consistency),
        None => format!("{}, {} points; files and sizes of the newest", found.volume, usage.points),
    };
    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!(" ({ratio:.2} : 1)"));
    let mut facts = vec![
        ("of", of),
        (
            "files",
            format!(
                "{}, {} directories, {} links, pipes and devices",
                usage.files, usage.directories, usage.others
            ),
        ),
        ("size", format!("{}, {} without holes", bytes(usage.size_bytes), bytes(usage.data_bytes))),
        (
            "distinct content",
            format!("{} in {} chunks{}", bytes(usage.chunk_bytes), usage.chunks, ratio(found.dedup_ratio)),
        ),
        ("stored", format!("{}{}", bytes(usage.stored_bytes), ratio(found.compression_ratio))),
    ];
    if usage.missing_chunks > 0 {
        facts.push(("missing", format!("{} chunks: run `tidelock verify`", usage.missing_chunks)));
    }
    output::facts(&facts);
}
