//! `tidelock promote --instant`, which goes on until the plain directory is there, and `tidelock hydration`.

use std::{
    path::PathBuf,
    sync::Arc,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use tidelock_failover::{
    Event, InstantEnd, InstantReport, PromoteOptions, hydration, instant, is_begun, quoted,
};
use tidelock_receiver::reconcile::{Phase, Progress};

use super::{
    exit::{Failure, INTERRUPTED},
    failpoint, output, promote, signals,
    source::Source,
};

/// How often it is looked whether the mount is still wanted.
const POLL: Duration = Duration::from_millis(50);
/// How often whether everything is local: that looks at the whole tree.
const LOOK: Duration = Duration::from_secs(1);

/// Tell how far an instant promotion is
///
/// Asks the mount itself, so it needs no receiver.
#[derive(Debug, clap::Args)]
pub(crate) struct Hydration {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run_hydration(args: &Hydration) -> Result<(), Failure> {
    let told = hydration(&args.directory).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&told)?);
    }
    let number = |field: &str| told[field].as_u64().unwrap_or_default();
    let state = match (told["failed"].as_bool(), told["complete"].as_bool()) {
        (Some(true), _) => "FAILED: run the command anew",
        (_, Some(true)) => {
            "everything is local: stop the application and unmount it, and the plain directory takes its place"
        }
        _ => "hydrating",
    };
    let text = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
    output::facts(&[
        ("promoted", format!("{} {}, epoch {}", text("volume"), text("point"), number("epoch"))),
        (
            "absent",
            format!("{} of {}", output::bytes(number("absent_bytes")), output::bytes(number("total_bytes"))),
        ),
        ("state", state.to_owned()),
    ]);
    Ok(())
}

/// Promotes, serves, and completes.
pub(super) fn run(
    target: &super::restore::Target,
    source: &Source,
    options: &PromoteOptions,
) -> Result<(), Failure> {
    let stopped = signals::stopped()?;
    let begun = is_begun(&target.to);
    // An earlier run has fenced: a receiver that is away keeps nobody from what is local.
    let access = match source.reach() {
        Some(_) if begun => None,
        _ => Some(Arc::new(source.open()?)),
    };
    let bar = output::Bar::new(target.json);
    let on = |event| {
        failpoint::on(event);
        bar.on(event);
    };
    let serving = instant((access, source.reach()), &target.volume, &target.to, options, &on);
    drop(bar);
    let serving = serving.map_err(Failure::failover)?;
    let report = serving.report();
    let mut next_command = report.next_command.clone();
    if let Some(receiver) = source.receiver() {
        next_command = next_command.replace("HOST:PORT", receiver);
    }
    let report = InstantReport { next_command, ..report.clone() };
    if target.json {
        output::json(&report)?;
    } else {
        print(&report);
    }
    if let Some(promotion) = &report.promotion {
        promote::warn_resumed(promotion);
    }
    let (mut told, mut looked) = (false, Instant::now());
    while !stopped.load(Ordering::Relaxed) && !serving.is_gone() {
        thread::sleep(POLL);
        if told || looked.elapsed() < LOOK {
            continue;
        }
        looked = Instant::now();
        let Some(hydration) = serving.hydration() else { continue };
        let tidelock_failover::Hydration { absent_bytes, total_bytes, complete, .. } = hydration;
        failpoint::on(Event::Progress(Progress {
            phase: Phase::Content,
            done: total_bytes - absent_bytes.min(total_bytes),
            total: total_bytes,
        }));
        if complete {
            told = true;
            eprintln!(
                "tidelock: everything is local; when the application has stopped, Ctrl-C here or `umount {}` makes it a plain directory",
                quoted(&report.directory)
            );
        }
    }
    let bar = output::Bar::new(target.json);
    let end = serving.end(&|event| {
        failpoint::on(event);
        bar.on(event);
    });
    drop(bar);
    let end = end.map_err(Failure::failover)?;
    if target.json {
        output::json(&end)?;
    }
    match end {
        InstantEnd::Complete if target.json => Ok(()),
        InstantEnd::Complete => {
            output::print(&format!("{} is a plain directory now, whole.", report.directory.display()));
            Ok(())
        }
        InstantEnd::Unfinished { absent_bytes, used } => {
            let used = if used { "; it was still in use: what is open there fails now" } else { "" };
            let left = output::bytes(absent_bytes);
            Err(Failure::new(
                INTERRUPTED,
                anyhow::anyhow!(
                    "{left} are not local yet{used}: run the same command again, and it goes on from there"
                ),
            ))
        }
    }
}

fn print(report: &InstantReport) {
    if let Some(promotion) = &report.promotion {
        promote::print(promotion);
    }
    let state = match report.mounted {
        true => format!("mounted at {}; this process has to go on", report.directory.display()),
        false => format!("complete: {} is a plain directory", report.directory.display()),
    };
    output::facts(&[
        ("instant", state),
        (
            "absent",
            format!("{} of {}", output::bytes(report.absent_bytes), output::bytes(report.total_bytes)),
        ),
        ("usable in", output::duration(report.took_ms)),
    ]);
    output::print("\nStart the application there. To protect it from now on:");
    output::print(&format!(
        "  {}{}",
        report.next_command,
        if report.mounted { " --tracker inotify" } else { "" }
    ));
    if report.mounted {
        output::print("(once it is a plain directory start the sidecar anew, without --tracker)");
    }
}
