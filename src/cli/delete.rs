//! `tidelock store delete`: a volume, or all of a tenant's, with all points.

use std::io::{BufRead, IsTerminal};

use tidelock_failover::{Deletable, deletable, deletable_of, delete};
use tidelock_proto::VolumeName;

use super::{
    exit::{Failure, REFUSED},
    output,
    source::Source,
};

/// Delete a volume, or all volumes of a tenant, WITH ALL POINTS; tags and holds do not keep it
///
/// A running receiver gives the space back in the background; with --store it is given back before this ends. Chunks that other volumes need stay.
/// Whoever wrote the volume is refused from then on; a sidecar that is to begin it anew needs the --epoch that is printed.
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// The volume, as TENANT/NAME
    #[arg(required_unless_present = "tenant", conflicts_with = "tenant")]
    volume: Option<VolumeName>,
    /// Delete all volumes of this tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Do not ask for the name again
    #[arg(long)]
    yes: bool,
    /// Even if a sidecar is connected; its replication ends
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &DeleteArgs) -> Result<(), Failure> {
    let access = args.source.open()?;
    let (name, volumes) = match (&args.volume, &args.tenant) {
        (Some(volume), _) => {
            (volume.to_string(), vec![deletable(&access, volume).map_err(Failure::failover)?])
        }
        (None, tenant) => {
            let tenant = tenant.clone().unwrap_or_default();
            let volumes = deletable_of(&access, &tenant).map_err(Failure::failover)?;
            (tenant, volumes)
        }
    };
    if volumes.is_empty() {
        return Err(Failure::usage(format!("tenant {name} has no volumes here")));
    }
    if let Some(volume) = volumes.iter().find(|volume| volume.connected && !args.force) {
        let why = anyhow::anyhow!(
            "the sidecar of {} is connected: stop it first, or use --force, which ends its replication; nothing was deleted",
            volume.volume
        );
        return Err(Failure::new(REFUSED, why));
    }
    if !args.yes {
        confirm(&name, &volumes)?;
    }
    let mut done = Vec::new();
    for volume in &volumes {
        done.push(delete(&access, volume, args.force).map_err(Failure::failover)?);
    }
    if args.json {
        return Ok(output::json(&done)?);
    }
    for report in &done {
        let space = report.freed_bytes.map_or("later, by the receiver".to_owned(), output::bytes);
        output::facts(&[
            ("deleted", report.volume.clone()),
            ("points", report.points.to_string()),
            ("given back", space),
            ("to begin anew", format!("start its sidecar with --epoch {}", report.next_epoch)),
        ]);
    }
    Ok(())
}

/// Has the name typed again by whoever sits there.
fn confirm(name: &str, volumes: &[Deletable]) -> Result<(), Failure> {
    let points: u64 = volumes.iter().map(|volume| volume.points).sum();
    let refused = |why: &str| Failure::usage(format!("{why}; nothing was deleted"));
    if !std::io::stdin().is_terminal() {
        return Err(refused("there is nobody to ask: add --yes"));
    }
    for volume in volumes {
        eprintln!("{}: {} points", volume.volume, volume.points);
    }
    eprintln!("All {points} points will be gone for good. Type {name} to delete:");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(anyhow::Error::from)?;
    if line.trim() == name { Ok(()) } else { Err(refused("that is another name")) }
}
