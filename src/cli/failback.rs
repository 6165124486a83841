//! `tidelock failback`: a workload returns to the cluster where its old volumes are.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tidelock_cluster::{
    api::{ApplyApi, connect_to},
    failback::{FailbackError, Planned, Report, Step, Wish, failback, look},
};
use tidelock_failover::{At, PromoteOptions};
use tidelock_manifests::Key;
use tidelock_proto::limits::EPOCH_MAX;

use super::{
    exit::{FAILED, Failure, REFUSED},
    failover::{handed, tell_kinds, verdict},
    output::{self, duration},
    restore::Accept,
    source::Source,
    workload::{self, Elsewhere, Works},
};

/// Bring a workload back to the cluster where its old volumes are; only what differs moves, and nothing is lost
///
/// At home the workload is ended, and what its volumes hold that nobody else has is kept as a branch of each, NAME-epoch-N. They are made equal
/// to the newest point while the standby works on. Then the standby's workload is ended, its last cut is waited for, the epoch rises upon
/// it, and what came since is written at home. The objects are those that were recorded last. Until the epoch rises the standby stays the
/// primary. An interrupted failback is completed by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The workload: statefulset/NAME or deployment/NAME
    workload: Key,
    /// Its namespace, in both clusters
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    namespace: String,
    /// The kubeconfig's context of the cluster that it returns to
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig's context of the cluster where it runs now; without it no writer may be connected
    #[arg(long, value_name = "NAME")]
    from_context: Option<String>,
    #[command(flatten)]
    elsewhere: Elsewhere,
    #[command(flatten)]
    works: Works,
    /// The epoch that the old primary wrote in, if its workload at home does not say so; before one failover it is the current one less one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=EPOCH_MAX))]
    home_epoch: Option<u64>,
    /// Do not keep what the old primary left: it is overwritten
    #[arg(long)]
    no_branch: bool,
    /// Print the Jobs and objects, and say what would be done; ask no API, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long pods may take to end, and how long the workload until it is ready
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Take what is refused otherwise
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    accept: Vec<Accept>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

fn failure(error: FailbackError) -> Failure {
    let code = if error.is_refusal() { REFUSED } else { FAILED };
    Failure::new(code, error)
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    // Volumes are written while this goes on.
    args.source.running()?;
    let access = Arc::new(args.source.open()?);
    let document = workload::record(&access, &args.namespace, &args.workload, &At::Latest)?;
    let (volumes, unprotected) = workload::volumes(&access, &document)?;
    for claim in unprotected {
        eprintln!("tidelock: claim {claim} was never protected: it stays as it is at home");
    }
    let wish = Wish {
        document,
        volumes,
        mapping: args.elsewhere.mapping(&[]),
        worker: args.works.worker(&args.source)?,
        receiver: args.works.receiver_there.clone(),
        home_epoch: args.home_epoch,
        keep: !args.no_branch,
        options: PromoteOptions {
            accept_fuzzy: args.accept.contains(&Accept::Fuzzy),
            accept_unverified: args.accept.contains(&Accept::Unverified),
            ..PromoteOptions::default()
        },
        patience: args.wait,
    };
    let planned = look(&access, &wish).map_err(failure)?;
    if args.dry_run {
        return show(args, &planned);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let connect = |context: &Option<String>| {
        let client = runtime.block_on(connect_to(context.clone()));
        client.map(ApplyApi::new).map_err(|error| Failure::new(REFUSED, error))
    };
    let home = connect(&args.context)?;
    let standby = args.from_context.as_ref().map(|_| connect(&args.from_context)).transpose()?;
    if !args.json {
        tell(args, &planned);
    }
    let mut say = |step: Step| eprintln!("{}", word(&step));
    let done = runtime.block_on(failback(&home, standby.as_ref(), &access, &wish, &mut say));
    let report = done.map_err(failure)?;
    if args.json {
        let (applied, down_ms) = (&report.applied, report.phases.down_ms());
        output::json(
            &json!({"workload": args.workload.to_string(), "already": report.already, "branches": report.planned.branches,
            "fenced": report.fenced, "applied": applied, "phases": report.phases, "rto_ms": down_ms}),
        )?;
    } else {
        print(&report);
    }
    verdict(&report.planned.plan.workload, &report.applied)
}

fn word(step: &Step) -> String {
    match step {
        Step::HomeRests => "ending the workload at home".to_owned(),
        Step::Keep => "keeping what the old primary left".to_owned(),
        Step::Copy => "copying what differs, while the standby works".to_owned(),
        Step::StandbyRests => "ending the workload at the standby: from here on nobody serves".to_owned(),
        Step::Fence => "raising the epoch".to_owned(),
        Step::Difference => "copying what came since".to_owned(),
        Step::Apply => "applying the objects at home".to_owned(),
        Step::Told(told) => format!("  {told}"),
    }
}

fn show(args: &Args, planned: &Planned) -> Result<(), Failure> {
    if args.json {
        return Ok(output::json(planned)?);
    }
    let objects = planned.jobs.iter().chain([&planned.plan.namespace]).chain(&planned.plan.objects);
    for object in objects {
        output::print(&format!("---\n{}", serde_json::to_string_pretty(object)?));
    }
    tell(args, planned);
    tell_kinds(&planned.plan);
    eprintln!("Nothing was changed.");
    Ok(())
}

fn tell(args: &Args, planned: &Planned) {
    let context = |context: &Option<String>| context.clone().unwrap_or_else(|| "the current one".to_owned());
    eprintln!(
        "{} of namespace {} returns to context {}:",
        args.workload,
        args.namespace,
        context(&args.context)
    );
    eprintln!("  1. it is ended there");
    for (volume, branch) in &planned.branches {
        eprintln!("  2. what is left there of {volume} in epoch {} is kept as {branch}", planned.home_epoch);
    }
    for volume in &planned.volumes {
        let last = volume.last.as_ref().map_or("-", |last| last.id.as_str());
        eprintln!(
            "  3. {} is made equal to the newest point, now {last}; what differs is written",
            volume.volume
        );
    }
    match &args.from_context {
        Some(from) => eprintln!("  4. it is ended in context {from}, and its last cut is waited for"),
        None => eprintln!("  4. nobody is ended: no --from-context"),
    }
    let epoch = planned.volumes.iter().map(|volume| volume.epoch).max().unwrap_or_default();
    eprintln!("  5. the epoch rises from {epoch}, and what came since is written");
    eprintln!("  6. {} objects are applied, and the workload is waited for", planned.plan.objects.len());
    planned.plan.warnings.iter().for_each(|warning| eprintln!("  note: {warning}"));
}

fn print(report: &Report) {
    report.fenced.iter().for_each(|fenced| eprintln!("{}", handed(fenced)));
    let branches: Vec<&str> = report.planned.branches.values().map(String::as_str).collect();
    let (phases, applied) = (&report.phases, &report.applied);
    let home = match report.already {
        true => ", as an earlier run had brought it".to_owned(),
        false => format!(" after {} without service", duration(phases.down_ms())),
    };
    output::facts(&[
        ("home", format!("{} in namespace {}{home}", report.planned.plan.workload, report.planned.plan.to)),
        ("applied", format!("{} objects", applied.objects)),
        ("branches", if branches.is_empty() { "none".to_owned() } else { branches.join(", ") }),
        (
            "took",
            format!(
                "keep {}, copy {}; standby's end {}, fence {}, difference {}, apply {}, start {}",
                duration(phases.keep_ms),
                duration(phases.copy_ms),
                duration(phases.rest_ms),
                duration(phases.fence_ms),
                duration(phases.difference_ms),
                duration(phases.apply_ms),
                duration(phases.ready_ms)
            ),
        ),
    ]);
    output::print("\nThe standby's objects are still there, with no pods; its volumes are old from now on.");
}
