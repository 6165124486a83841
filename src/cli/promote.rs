//! `tidelock promote`: the standby becomes the primary.

use std::path::PathBuf;

use tidelock_failover::{PromoteOptions, PromoteReport, promote};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    output::{self, duration},
    restore::{Target, warn, work},
    signals,
    source::Source,
};

/// Fence the old primary and write the newest point to a directory, ready to be started on
///
/// A promotion that was interrupted is completed by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Another volume of the same group and its directory; may be given several times. It is promoted to the same point
    #[arg(long, value_name = "TENANT/NAME=DIR", value_parser = parse_also)]
    also: Vec<(VolumeName, PathBuf)>,
    #[command(flatten)]
    source: Source,
}

fn parse_also(text: &str) -> Result<(VolumeName, PathBuf), String> {
    let (name, directory) = text.split_once('=').ok_or("write TENANT/NAME=DIRECTORY")?;
    Ok((name.parse().map_err(|error| format!("{error}"))?, directory.into()))
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let target = &args.target;
    let options = PromoteOptions {
        at: target.at.clone(),
        accept_fuzzy: target.accept.is_some(),
        overwrite: target.overwrite,
        trust_mtime: target.trust_mtime,
    };
    signals::say_how_to_go_on()?;
    let access = args.source.open()?;
    let bar = output::Bar::new(target.json);
    let mut reports = vec![
        promote(&access, &target.volume, &target.to, &options, &|event| bar.on(event))
            .map_err(Failure::failover)?,
    ];
    // The first has fenced the sidecar of all, and its point is one that the others have.
    let same = PromoteOptions { at: reports[0].at(), ..options };
    for (volume, directory) in &args.also {
        let done = promote(&access, volume, directory, &same, &|event| bar.on(event));
        reports.push(done.map_err(Failure::failover)?);
    }
    drop(bar);
    let mut next_command = tidelock_failover::next_command(&reports);
    if let Some(receiver) = args.source.receiver() {
        next_command = next_command.replace("HOST:PORT", receiver);
    }
    reports.iter_mut().for_each(|report| report.next_command.clone_from(&next_command));
    if target.json {
        match reports.as_slice() {
            [one] => output::json(one)?,
            all => output::json(&all)?,
        }
        return Ok(());
    }
    for report in &reports {
        print(report);
        if report.resumed {
            eprintln!(
                "tidelock: an earlier run had raised this epoch: if the application was started on the copy of that run, \
                 do not start it here"
            );
        }
        warn(&report.work);
    }
    output::print("\nStart the application there. To protect it from now on:");
    output::print(&format!("  {next_command}"));
    Ok(())
}

fn print(report: &PromoteReport) {
    let recovery = &report.recovery;
    let resumed = if report.resumed { ", which an earlier run had raised" } else { "" };
    let basis = match recovery.rpo_known {
        true => "changes after the last instant known to be covered",
        false => "age of the point; what is covered is not known without a running receiver",
    };
    output::facts(&[
        ("promoted", format!("{} {} in {}", report.volume, report.point.id, report.directory.display())),
        ("cut at", format!("{} ({})", report.point.time, report.point.consistency)),
        ("epoch", format!("{} → {}{resumed}; the old primary is fenced", report.old_epoch, report.epoch)),
        ("RPO", format!("{} ({basis})", duration(recovery.rpo_ms))),
        (
            "RTO",
            format!(
                "{} (select {}, check {}, fence {}, write {})",
                duration(recovery.rto_ms),
                duration(recovery.select_ms),
                duration(recovery.check_ms),
                duration(recovery.fence_ms),
                duration(recovery.restore_ms)
            ),
        ),
        ("work", work(&report.work)),
    ]);
}
