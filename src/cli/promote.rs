//! `tidelock promote`: the standby becomes the primary.

use tidelock_failover::{PromoteOptions, PromoteReport, promote};

use super::{
    exit::Failure,
    output::{self, duration},
    restore::{Target, warn, work},
    source::Source,
};

/// Fence the old primary and write the newest point to a directory, ready to be started on
///
/// A promotion that was interrupted is completed by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let target = &args.target;
    let options = PromoteOptions {
        at: target.at,
        accept_fuzzy: target.accept.is_some(),
        overwrite: target.overwrite,
        trust_mtime: target.trust_mtime,
    };
    let access = args.source.open()?;
    let bar = output::Bar::new(target.json);
    let done = promote(&access, &target.volume, &target.to, &options, &|event| bar.on(event));
    drop(bar);
    let mut report = done.map_err(Failure::failover)?;
    if let Some(receiver) = args.source.receiver() {
        report.next_command = report.next_command.replace("HOST:PORT", receiver);
    }
    if target.json {
        return Ok(output::json(&report)?);
    }
    print(&report);
    warn(&report.work);
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
    output::print("\nStart the application there. To protect it from now on:");
    output::print(&format!("  {}", report.next_command));
}
