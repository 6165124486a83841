//! `tidelock promote`: the standby becomes the primary.

use std::{path::PathBuf, time::Duration};

use tidelock_failover::{
    Access, At, PointReport, PromoteOptions, PromotePlan, PromoteReport, check_group, plan_promotions,
    prepare_promotion,
};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    failpoint, instant,
    logging::{self, LogArgs},
    output::{self, duration},
    restore::{Accept, Target, warn, warn_unseen, work},
    signals,
    source::Source,
};

/// Write the newest point to a directory, fence the old primary, and hand the directory over, ready to be started on
///
/// The copy is written and checked first; whatever can fail fails before the old primary is fenced. A promotion that was
/// interrupted is completed by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Another volume of the same group and its directory; may be given several times. It is promoted to the same point
    #[arg(long, value_name = "TENANT/NAME=DIR", value_parser = parse_also)]
    also: Vec<(VolumeName, PathBuf)>,
    /// Write a copy even if the receiver has a hot image that could be taken
    #[arg(long)]
    copy: bool,
    /// With --store: the receiver's --image directory, whose image of the newest point is taken by rename instead of writing a copy
    #[arg(long, value_name = "DIR", requires = "store")]
    image: Option<PathBuf>,
    /// Mount the point at once and fetch the rest while it is used. What is written is kept beneath the directory; the command goes on until, unmounted, that is plain
    #[arg(long, conflicts_with_all = ["also", "copy", "image", "overwrite", "trust_mtime"])]
    instant: bool,
    /// For how long `tidelock unpromote` can give the volume back to the old primary, unless `tidelock commit` ends that
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    window: Option<Duration>,
    /// Say what would be done, and whether it would be refused; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    log: LogArgs,
}

/// Stop the application on the old primary, take a last cut, and promote that: nothing is lost
///
/// The copy is written first. Then the sidecar stops the application (it must run with `--on-fence stop`), takes a last cut, and
/// once that is durable the old writer is fenced and its application ended. If anything fails before the fence, the application
/// runs on. An interrupted move is completed by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Move {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The directory; it is created, or must be empty
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Another volume of the same group and its directory; may be given several times. It is promoted to the same point
    #[arg(long, value_name = "TENANT/NAME=DIR", value_parser = parse_also)]
    also: Vec<(VolumeName, PathBuf)>,
    /// Make a directory equal that is not empty: what differs is changed, WHAT IS NOT IN THE POINT IS DELETED
    #[arg(long)]
    overwrite: bool,
    /// Though processes have files open in the directory, a sidecar replicates it or what it lies in, or there is too little room
    #[arg(long)]
    force: bool,
    /// Do not read files of the right size and modification time
    #[arg(long)]
    trust_mtime: bool,
    /// For how long `tidelock unpromote` can give the volume back to the old primary, unless `tidelock commit` ends that
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    window: Option<Duration>,
    /// Say what would be done, and whether it would be refused; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run_move(args: Move) -> Result<(), Failure> {
    let Move { volume, to, also, overwrite, force, trust_mtime, window, dry_run, json, source } = args;
    let target =
        Target { volume, to, at: At::Latest, accept: Vec::new(), overwrite, force, trust_mtime, json };
    let log = LogArgs::default();
    with(&Args { target, also, copy: false, image: None, instant: false, window, dry_run, source, log }, true)
}

pub(super) fn parse_also(text: &str) -> Result<(VolumeName, PathBuf), String> {
    let (name, directory) = text.split_once('=').ok_or("write TENANT/NAME=DIRECTORY")?;
    Ok((name.parse().map_err(|error| format!("{error}"))?, directory.into()))
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    with(args, false)
}

fn with(args: &Args, planned: bool) -> Result<(), Failure> {
    let target = &args.target;
    let options = PromoteOptions {
        at: target.at.clone(),
        accept_fuzzy: target.accept.contains(&Accept::Fuzzy),
        accept_unverified: target.accept.contains(&Accept::Unverified),
        overwrite: target.overwrite,
        trust_mtime: target.trust_mtime,
        force: target.force,
        copy: args.copy,
        planned,
        window: args.window,
    };
    let mut volumes = vec![(target.volume.clone(), target.to.clone())];
    volumes.extend(args.also.iter().cloned());
    if args.instant && !args.dry_run {
        logging::init(&args.log)?;
        return instant::run(target, &args.source, &options);
    }
    signals::say_how_to_go_on()?;
    let access = args.source.open_with_images(args.image.as_deref())?;
    check_group(&access, &volumes, &options).map_err(Failure::failover)?;
    if args.dry_run {
        return dry_run(&access, &volumes, &options, (args.instant, target.json));
    }
    let mut reports = promote(&access, &volumes, &options, target.json)?;
    let mut next_command = tidelock_failover::next_command(&reports);
    if let Some(receiver) = args.source.receiver() {
        next_command = next_command.replace("HOST:PORT", receiver);
    }
    reports.iter_mut().for_each(|report| report.next_command.clone_from(&next_command));
    if !target.json {
        reports.iter().for_each(print);
    }
    for report in &reports {
        warn_resumed(report);
        warn(&report.work);
        warn_unseen(report.unseen);
        warn_group(&report.point, &volumes);
    }
    if target.json {
        return one_or_all(&reports);
    }
    output::print("\nStart the application there. To protect it from now on:");
    output::print(&format!("  {next_command}"));
    print_window(&reports);
    Ok(())
}

/// Two directories may be of one epoch.
pub(super) fn warn_resumed(report: &PromoteReport) {
    if report.resumed && !report.already {
        eprintln!(
            "tidelock: an earlier run had raised epoch {} of {}: if the application was started on the copy of that run, do not start it here",
            report.epoch, report.volume
        );
    }
}

/// The others of a group are left where they were, and their sidecar is the one that is fenced.
fn warn_group(point: &PointReport, volumes: &[(VolumeName, PathBuf)]) {
    let promoted = |other: &&String| volumes.iter().any(|(volume, _)| volume.to_string() == **other);
    let left: Vec<_> = point.group.iter().filter(|other| !promoted(other)).map(String::as_str).collect();
    if !left.is_empty() {
        eprintln!(
            "tidelock: {} is cut together with it and has the same writer: promote it, too, or all by one command with --also",
            left.join(", ")
        );
    }
}

/// All copies are written before the first volume is fenced. The first fences the sidecar of all, and its point is one that the
/// others have.
fn promote(
    access: &Access,
    volumes: &[(VolumeName, PathBuf)],
    options: &PromoteOptions,
    json: bool,
) -> Result<Vec<PromoteReport>, Failure> {
    let bar = output::Bar::new(json);
    let on = |event| {
        failpoint::on(event);
        bar.on(event);
    };
    let mut prepared = Vec::new();
    for (volume, directory) in volumes {
        let ready = prepare_promotion(access, volume, directory, options, &on);
        prepared.push(ready.map_err(Failure::failover)?);
    }
    let mut reports: Vec<PromoteReport> = Vec::new();
    for ready in prepared {
        let same = reports.first().map(PromoteReport::at);
        reports.push(ready.finish(access, same.as_ref(), &on).map_err(Failure::failover)?);
    }
    Ok(reports)
}

fn dry_run(
    access: &Access,
    volumes: &[(VolumeName, PathBuf)],
    options: &PromoteOptions,
    (instant, json): (bool, bool),
) -> Result<(), Failure> {
    let bar = output::Bar::new(json);
    let plans = plan_promotions(access, volumes, options, instant, &|event| bar.on(event));
    drop(bar);
    let plans = plans.map_err(Failure::failover)?;
    plans.iter().for_each(|plan| warn_group(&plan.point, volumes));
    if json {
        return one_or_all(&plans);
    }
    plans.iter().for_each(print_plan);
    output::print("\nNothing was changed.");
    Ok(())
}

pub(crate) fn one_or_all<T: serde::Serialize>(all: &[T]) -> Result<(), Failure> {
    match all {
        [one] => Ok(output::json(one)?),
        all => Ok(output::json(&all)?),
    }
}

/// What a figure of the RPO means.
fn basis(known: bool, resumed: bool, behind_bytes: Option<u64>) -> String {
    let known = match (known, resumed) {
        (_, true) => "at most: counted until now, and an earlier run had fenced the old primary before",
        (true, false) => "changes after the last instant known to be covered",
        (false, false) => "age of the point; what is covered is not known without a running receiver",
    };
    let behind = behind_bytes.filter(|bytes| *bytes > 0);
    let behind =
        behind.map(|bytes| format!("; {} changed and not committed when last heard", output::bytes(bytes)));
    format!("{known}{}", behind.unwrap_or_default())
}

fn print_plan(plan: &PromotePlan) {
    let primary = match plan.connected {
        Some(true) => "is connected, and would be fenced while it works: `tidelock move` loses nothing",
        Some(false) => "is not connected",
        None => "is not known without a running receiver",
    };
    let epoch = match plan.resumes {
        true => format!("{}, which an earlier run raised", plan.epoch),
        false => format!("{} → {}", plan.epoch, plan.new_epoch),
    };
    let copy = match plan.already {
        true => "is complete from an earlier run; nothing would be written".to_owned(),
        false => {
            let free = plan.free_bytes.map(|free| format!("; there is room for {}", output::bytes(free)));
            let (inodes, data) = (plan.inodes, output::bytes(plan.data_bytes));
            let how = if plan.instant { "would be mounted at once, and fetch" } else { "would get" };
            format!("{how} {inodes} inodes with {data}{}", free.unwrap_or_default())
        }
    };
    let back = match plan.window_s {
        Some(seconds) => {
            let time = humantime::format_duration(Duration::from_secs(seconds));
            format!("by `tidelock unpromote`, for {time}")
        }
        None => "no: --window TIME leaves a way back".to_owned(),
    };
    output::facts(&[
        ("would promote", format!("{} {} to {}", plan.volume, plan.point.id, plan.directory.display())),
        ("cut at", format!("{} ({})", plan.point.time, plan.point.consistency)),
        ("epoch", epoch),
        ("old primary", primary.to_owned()),
        ("directory", copy),
        ("looked up", format!("{} chunks, all there", plan.chunks_checked)),
        ("taken back", back),
        (
            "RPO",
            format!("{} ({})", duration(plan.rpo_ms), basis(plan.rpo_known, plan.resumes, plan.behind_bytes)),
        ),
    ]);
}

/// How to go back, and how to end that.
fn print_window(reports: &[PromoteReport]) {
    let names: Vec<&str> = reports.iter().map(|report| report.volume.as_str()).collect();
    if let Some(window) = reports.iter().find_map(|report| report.window.as_ref()) {
        output::print(&format!("\nUntil {} this gives it back to the old primary:", window.until));
        output::print(&format!("  tidelock unpromote {}", names.join(" ")));
        output::print("and this says that it is for good:");
        output::print(&format!("  tidelock commit {}", names.join(" ")));
    }
    for report in reports {
        if let Some(reason) = &report.window_missed {
            eprintln!("tidelock: the promotion of {} cannot be taken back: {reason}", report.volume);
        }
    }
}

/// The facts of a promotion; what was written for it, where it was not mounted.
pub(super) fn print(report: &PromoteReport) {
    let recovery = &report.recovery;
    let resumed = if report.resumed { ", which an earlier run had raised" } else { "" };
    let done = match (&report.difference, report.already) {
        _ if report.image.is_some() => "nothing was copied: the hot image was renamed".to_owned(),
        (_, true) => "nothing: an earlier run had completed the directory".to_owned(),
        (None, false) => work(&report.work),
        (Some(later), false) => {
            format!("{}; after the fence: {}", work(&report.work), work(later))
        }
    };
    output::facts(&[
        ("promoted", format!("{} {} in {}", report.volume, report.point.id, report.directory.display())),
        ("cut at", format!("{} ({})", report.point.time, report.point.consistency)),
        ("epoch", format!("{} → {}{resumed}; the old primary is fenced", report.old_epoch, report.epoch)),
        (
            "RPO",
            format!(
                "{} ({})",
                duration(recovery.rpo_ms),
                basis(recovery.rpo_known, report.resumed, recovery.behind_bytes)
            ),
        ),
        (
            "RTO",
            format!(
                "{} (select {}, check {}, copy {}, fence {}, difference {})",
                duration(recovery.rto_ms),
                duration(recovery.select_ms),
                duration(recovery.check_ms),
                duration(recovery.copy_ms),
                duration(recovery.fence_ms),
                duration(recovery.difference_ms)
            ),
        ),
        ("work", done),
    ]);
    if let Some(reason) = &report.image_missed {
        eprintln!("tidelock: the hot image was not taken: {reason}");
    }
}
