//! `tidelock status`: how the volumes are.

use tidelock_failover::{VolumeReport, status};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    output::{self, or_dash},
    source::Source,
};

/// Show the state and lag of all volumes, or of one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: Option<VolumeName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let found = status(&args.source.open()?, args.volume.as_ref()).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    let heading = [
        "VOLUME",
        "STATE",
        "LAG",
        "BEHIND",
        "EPOCH",
        "LAST POINT",
        "CUT",
        "CONSISTENCY",
        "TRACKER",
        "POINTS",
        "DATA",
    ];
    output::table(heading, &rows);
    for volume in found.iter().filter(|volume| !volume.conditions.is_empty()) {
        output::print(&format!("{}: {}", volume.volume, volume.conditions.join(", ")));
    }
    Ok(())
}

fn row(volume: &VolumeReport) -> [String; 11] {
    let last = volume.last.as_ref();
    [
        volume.volume.clone(),
        state(volume),
        or_dash(volume.lag_ms.map(output::duration)),
        or_dash(volume.behind_bytes.map(output::bytes)),
        volume.epoch.to_string(),
        or_dash(last.map(|last| last.id.clone())),
        or_dash(last.map(|last| last.time.clone())),
        or_dash(volume.consistency),
        or_dash(volume.tracker.clone()),
        volume.points.to_string(),
        or_dash(volume.data_bytes.map(output::bytes)),
    ]
}

fn state(volume: &VolumeReport) -> String {
    match (volume.promoted, volume.connected) {
        (true, _) => "promoted".to_owned(),
        (false, Some(true)) => volume.state.clone().unwrap_or_else(|| "connected".to_owned()),
        (false, Some(false)) => "disconnected".to_owned(),
        (false, None) => "stored".to_owned(),
    }
}
