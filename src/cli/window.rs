//! `tidelock commit` and `tidelock unpromote`: the two ends of a promotion's window.

use std::time::SystemTime;

use tidelock_failover::{CommitReport, UnpromoteReport, check_unpromote, commit, status, unpromote};
use tidelock_proto::VolumeName;

use super::{exit::Failure, failpoint, output, promote::one_or_all, source::Source};

/// Say that a promotion is for good: it cannot be taken back any more
#[derive(Debug, clap::Args)]
pub(crate) struct Commit {
    /// The volumes, as TENANT/NAME
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<VolumeName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

/// Take a promotion back: fence the new primary, and let the old one go on from where it was
///
/// The promotion must have been made with --window, within that time. STOP THE APPLICATION on the new primary first: what it wrote stays in the
/// store, beside the line, and is no longer what the volume is. The old primary's directory is not touched. An interrupted one is completed by the
/// same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Unpromote {
    /// The volumes, as TENANT/NAME; those of a group together
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<VolumeName>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run_commit(args: &Commit) -> Result<(), Failure> {
    let access = args.source.open()?;
    // None is committed before all are known.
    for volume in &args.volumes {
        status(&access, Some(volume)).map_err(Failure::failover)?;
    }
    let one = |volume| commit(&access, volume).map_err(Failure::failover);
    let reports: Vec<CommitReport> = args.volumes.iter().map(one).collect::<Result<_, _>>()?;
    if args.json {
        return one_or_all(&reports);
    }
    for report in &reports {
        let released = match report.released.is_empty() {
            true => "nothing: no window was open".to_owned(),
            false => report.released.join(", "),
        };
        output::facts(&[
            ("committed", format!("{} in epoch {}", report.volume, report.epoch)),
            ("released", released),
        ]);
    }
    Ok(())
}

pub(crate) fn run_unpromote(args: &Unpromote) -> Result<(), Failure> {
    let access = args.source.open()?;
    for volume in &args.volumes {
        check_unpromote(&access, volume, SystemTime::now()).map_err(Failure::failover)?;
    }
    let mut reports: Vec<UnpromoteReport> = Vec::new();
    for volume in &args.volumes {
        let done = unpromote(&access, volume, SystemTime::now(), &failpoint::on);
        reports.push(done.map_err(Failure::failover)?);
    }
    let mut next_command = tidelock_failover::next_after_unpromote(&reports);
    if let Some(receiver) = args.source.receiver() {
        next_command = next_command.replace("HOST:PORT", receiver);
    }
    reports.iter_mut().for_each(|report| report.next_command.clone_from(&next_command));
    if args.json {
        return one_or_all(&reports);
    }
    for report in &reports {
        let resumed = if report.resumed { ", which an earlier run had raised" } else { "" };
        let left = report.left.as_ref().map_or("nothing".to_owned(), |left| {
            format!(
                "up to {left}, which stays: tidelock clone {} --at {left} --as TENANT/NAME",
                report.volume
            )
        });
        let (taken_back, epoch) = (report.taken_back, report.epoch);
        output::facts(&[
            ("given back", format!("{} at {}", report.volume, report.point.id)),
            ("cut at", format!("{} ({})", report.point.time, report.point.consistency)),
            ("epoch", format!("{taken_back} → {epoch}{resumed}; the promoted primary is fenced")),
            ("it had written", left),
        ]);
    }
    output::print(
        "\nIf the application still runs on the promoted primary, stop it: nobody replicates what it writes.",
    );
    output::print("Start the application on the old primary again, and its sidecar:");
    output::print(&format!("  {next_command}"));
    Ok(())
}
