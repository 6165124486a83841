//! `tidelock test WORKLOAD`: a test failover in a namespace of its own.

use std::{collections::BTreeMap, path::PathBuf, time::SystemTime};

use serde_json::{Value, json};
use tidelock_cluster::{
    api::{ApplyApi, ApplyCalls, connect_to},
    jobs::{Worker, bodies},
    trial::{self, Report, TrialError, Wish},
};
use tidelock_failover::{Access, At, FenceReport, PromoteOptions, record_result};
use tidelock_manifests::{Key, Trial, trial as plan_trial};
use tidelock_proto::Verdict;

use super::{
    exit::{FAILED, Failure, INTERRUPTED, REFUSED},
    failover::fence,
    output::{self, duration},
    restore::Accept,
    signals,
    source::Source,
    workload::{self, Elsewhere, Works},
};

/// Of a workload alone.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Of a workload")]
pub(crate) struct OfWorkload {
    /// The workload's namespace, where it was
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    namespace: String,
    /// The kubeconfig's context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Directory with the tls.crt, tls.key and ca.crt that volumes are filled with, instead of the Secret. It is in the trial's namespace while
    /// they are filled
    #[arg(long, value_name = "DIR")]
    fill_identity: Option<PathBuf>,
    #[command(flatten)]
    works: Works,
    #[command(flatten)]
    elsewhere: Elsewhere,
    /// Print the objects; ask no API, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What both kinds of tests are told.
pub(crate) struct Common<'a> {
    pub(crate) at: &'a At,
    pub(crate) accept: &'a [Accept],
    pub(crate) record: bool,
    pub(crate) json: bool,
    pub(crate) patience: std::time::Duration,
    pub(crate) source: &'a Source,
}

pub(crate) fn run(workload: &Key, args: &OfWorkload, common: &Common<'_>) -> Result<(), Failure> {
    let access = common.source.open()?;
    let options = PromoteOptions {
        at: common.at.clone(),
        accept_fuzzy: common.accept.contains(&Accept::Fuzzy),
        accept_unverified: common.accept.contains(&Accept::Unverified),
        ..PromoteOptions::default()
    };
    let (document, volumes, unprotected) = workload::find(&access, &args.namespace, workload, &options)?;
    for claim in unprotected {
        eprintln!("tidelock: claim {claim} was never protected: it is empty in the trial");
    }
    // The choice of a failover, which fences nobody.
    let chosen = fence(&access, &volumes, &options, true)?;
    let points = chosen.iter().filter_map(|one| Some((one.volume.parse().ok()?, one.point.id.parse().ok()?)));
    let points: BTreeMap<_, _> = points.collect();
    let worker = args.works.worker(common.source)?;
    let port = worker.receiver.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let port = port.ok_or_else(|| Failure::usage("write --receiver-there as HOST:PORT"))?;
    let refused = |error: anyhow::Error| Failure::new(REFUSED, error);
    let planned = plan_trial(&document, &args.elsewhere.mapping(&[]), port);
    let planned = planned.map_err(|error| refused(error.into()))?;
    let own = planned.plan.objects.iter().find(|one| Key::of(one).as_ref() == Some(workload));
    let own = own.ok_or_else(|| refused(anyhow::anyhow!("the record does not hold {workload}")))?;
    let bodies = bodies(&document, own, &worker).map_err(|error| refused(error.into()))?;
    let mut wish = Wish {
        trial: planned,
        bodies,
        points,
        secret: Value::Null,
        receiver: worker.receiver.clone(),
        patience: common.patience,
    };
    if args.dry_run {
        return show(&wish, &chosen, common.json);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(connect_to(args.context.clone()));
    let calls = ApplyApi::new(client.map_err(|error| refused(error.into()))?);
    wish.secret = runtime.block_on(identity(&calls, args, &worker, &wish.trial))?;
    if !common.json {
        tell(&wish, &chosen);
    }
    let done = runtime.block_on(async {
        let stop = signals::shutdown()?;
        let tried = trial::run(&calls, &wish, stop, &mut |told| eprintln!("  {told}")).await;
        tried.map_err(|error| match error {
            error @ TrialError::Interrupted => Failure::new(INTERRUPTED, error),
            error @ TrialError::Foreign(_) => Failure::new(REFUSED, error),
            error => Failure::new(FAILED, error),
        })
    })?;
    let recorded = if common.record { record(&access, workload, &chosen, &done)? } else { Vec::new() };
    if common.json {
        output::json(
            &json!({"workload": workload.to_string(), "points": chosen, "trial": done, "rto_ms": done.rto_ms(),
            "recorded": recorded}),
        )?;
    } else {
        print(workload, &chosen, &done, &recorded);
    }
    match done.passed {
        true => Ok(()),
        false => {
            Err(Failure::new(FAILED, anyhow::anyhow!("the test of {workload} failed: {}", done.outcome)))
        }
    }
}

/// The Secret that fills, in the trial's namespace: that which a failover would use, or of files.
async fn identity(
    calls: &ApplyApi,
    args: &OfWorkload,
    worker: &Worker,
    trial: &Trial,
) -> Result<Value, Failure> {
    let name = &worker.secret;
    let data = match &args.fill_identity {
        Some(directory) => return workload::secret(directory, name, &trial.plan.to),
        None => {
            let found = calls.read("Secret", &args.namespace, &worker.secret).await;
            let found = found.map_err(|error| Failure::new(FAILED, error))?;
            let missing = || {
                Failure::new(
                    REFUSED,
                    anyhow::anyhow!(
                        "there is no Secret {} in namespace {}, which a failover would fill volumes with: make it, or name a \
                     directory with --fill-identity",
                        worker.secret,
                        args.namespace
                    ),
                )
            };
            found.ok_or_else(missing)?["data"].clone()
        }
    };
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data,
        "metadata": {"name": name, "namespace": trial.plan.to}}))
}

/// Writes the result on each point.
fn record(
    access: &Access,
    workload: &Key,
    chosen: &[FenceReport],
    done: &Report,
) -> Result<Vec<String>, Failure> {
    let outcome = match done.passed {
        true => Ok(done.rto_ms().round() as u64),
        false => Err(format!("{workload}: {}", done.outcome)),
    };
    let verdict = Verdict { time: SystemTime::now(), outcome, mounted: false, again: None };
    let mut recorded = Vec::new();
    for one in chosen {
        let volume = one.volume.parse().map_err(Failure::usage)?;
        recorded
            .extend(record_result(access, &volume, &one.point, verdict.clone()).map_err(Failure::failover)?);
    }
    Ok(recorded)
}

fn show(wish: &Wish, chosen: &[FenceReport], json: bool) -> Result<(), Failure> {
    let Trial { policies, claims, plan } = &wish.trial;
    let jobs: Vec<Value> = wish.bodies.iter().filter_map(|body| trial::fill(wish, body)).collect();
    let objects =
        [&plan.namespace].into_iter().chain(policies).chain(claims).chain(&jobs).chain(&plan.objects);
    if json {
        let objects: Vec<&Value> = objects.collect();
        return Ok(output::json(&json!({"workload": plan.workload, "points": chosen, "objects": objects,
            "warnings": plan.warnings}))?);
    }
    for object in objects {
        output::print(&format!("---\n{}", serde_json::to_string_pretty(object)?));
    }
    tell(wish, chosen);
    eprintln!("Nothing was changed.");
    Ok(())
}

fn tell(wish: &Wish, chosen: &[FenceReport]) {
    let plan = &wish.trial.plan;
    eprintln!(
        "{} of namespace {} is tried in namespace {}, which is removed afterwards:",
        plan.workload, plan.from, plan.to
    );
    for one in chosen {
        eprintln!("  volume {} at {} ({})", one.volume, one.point.id, one.point.time);
    }
    eprintln!("  {} objects, isolated by NetworkPolicies", plan.objects.len() + wish.trial.claims.len());
    plan.warnings.iter().for_each(|warning| eprintln!("  note: {warning}"));
}

fn print(workload: &Key, chosen: &[FenceReport], done: &Report, recorded: &[String]) {
    let points: Vec<String> = chosen.iter().map(|one| format!("{} {}", one.volume, one.point.id)).collect();
    let left = if done.found_left { "; one that an earlier run had left was removed first" } else { "" };
    output::facts(&[
        ("tested", format!("{workload}: {}", points.join(", "))),
        ("result", format!("{}, {}", if done.passed { "passed" } else { "FAILED" }, done.outcome)),
        (
            "RTO",
            format!(
                "{} (fill {}, apply {}, start {})",
                duration(done.rto_ms()),
                duration(done.fill_ms),
                duration(done.apply_ms),
                duration(done.ready_ms)
            ),
        ),
        ("recorded", output::or_dash(recorded.first())),
        ("namespace", format!("{} was removed{left}", done.namespace)),
    ]);
}
