//! `tidelock points`: the recovery points of a volume.

use serde::Serialize;
use tidelock_failover::{Access, PointReport, points, status};
use tidelock_manifests::Key;
use tidelock_proto::VolumeName;

use super::{exit::Failure, output, source::Source, subject::Subject, workload::volumes_of};

/// List the recovery points of a volume, or of all volumes of a workload, oldest first
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME; or a workload of Kubernetes: statefulset/NAME or deployment/NAME
    #[arg(value_name = "VOLUME|WORKLOAD")]
    subject: Subject,
    /// The workload's namespace
    #[arg(long, default_value = "default", value_name = "NAME")]
    namespace: String,
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

const HEADING: [&str; 9] =
    ["POINT", "TIME", "CONSISTENCY", "TRACKER", "HOW", "LINE", "GROUP", "TAGS", "CONDITIONS"];

/// The points of one of a workload's volumes.
#[derive(Serialize)]
struct OfVolume {
    volume: String,
    points: Vec<PointReport>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let access = args.source.open()?;
    match &args.subject {
        Subject::Volume(volume) => of_volume(args, &access, volume),
        Subject::Workload(workload) => of_workload(args, &access, workload),
    }
}

fn list(args: &Args, access: &Access, volume: &VolumeName) -> Result<Vec<PointReport>, Failure> {
    let newest = if args.all { None } else { Some(args.newest) };
    points(access, volume, newest).map_err(Failure::failover)
}

fn of_volume(args: &Args, access: &Access, volume: &VolumeName) -> Result<(), Failure> {
    let found = list(args, access, volume)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    output::table(HEADING, &rows);
    tell_hidden(args, access, volume, found.len())
}

/// Says how many older ones there are.
fn tell_hidden(args: &Args, access: &Access, volume: &VolumeName, shown: usize) -> Result<(), Failure> {
    if args.all || shown < args.newest {
        return Ok(());
    }
    let all =
        status(access, Some(volume)).map_err(Failure::failover)?.iter().map(|of| of.points).sum::<u64>();
    if all > shown as u64 {
        eprintln!(
            "tidelock: the newest {shown} of {all} points of {volume}: -n COUNT shows more, --all all of them"
        );
    }
    Ok(())
}

fn of_workload(args: &Args, access: &Access, workload: &Key) -> Result<(), Failure> {
    let volumes = volumes_of(access, &args.namespace, workload)?;
    let mut found = Vec::new();
    for volume in &volumes {
        let points = list(args, access, volume)?;
        found.push(OfVolume { volume: volume.to_string(), points });
    }
    if args.json {
        return Ok(output::json(&found)?);
    }
    let mut rows: Vec<_> =
        found.iter().flat_map(|of| of.points.iter().map(|point| (&of.volume, point))).collect();
    rows.sort_by_key(|(volume, point)| (point.time_ns, *volume));
    let rows: Vec<[String; 10]> = rows.into_iter().map(|(volume, point)| wide(volume, point)).collect();
    let mut heading = ["VOLUME"; 10];
    heading[1..].copy_from_slice(&HEADING);
    output::table(heading, &rows);
    volumes.iter().zip(&found).try_for_each(|(volume, of)| tell_hidden(args, access, volume, of.points.len()))
}

fn wide(volume: &str, point: &PointReport) -> [String; 10] {
    let mut cells = std::array::from_fn(|_| volume.to_owned());
    cells[1..].clone_from_slice(&row(point));
    cells
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
