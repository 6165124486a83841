//! `tidelock failover`: a workload is brought up in another cluster or namespace, from what was recorded of it.

use std::{
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;
use serde_json::Value;
use tidelock_cluster::{
    api::{ApplyApi, ApplyCalls, connect_to},
    failover::{Applied, ApplyError, carry_out, check_claims, look, unknown_kinds},
};
use tidelock_failover::{Access, At, FenceReport, PromoteOptions, fence_without_copy};
use tidelock_manifests::{Document, Handover, Key, Plan, plan};
use tidelock_proto::VolumeName;

use super::{
    exit::{FAILED, Failure, REFUSED},
    output,
    restore::Accept,
    source::Source,
    workload::{self, Elsewhere, pair, secret},
};

/// Bring a workload up elsewhere: fence its old writer, apply its objects, and have its volumes filled with a point
///
/// The objects are those that were recorded at that point; the namespace is made if it is not there. The cluster that the kubeconfig
/// names must have an injector, which fills the volumes before the application starts. It needs nothing from the failed site. An
/// interrupted failover is completed by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The workload: statefulset/NAME or deployment/NAME
    workload: Key,
    /// Its namespace, where it was
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    namespace: String,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, the newest not after a time (2026-01-31T12:30:00Z), or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// A namespace is called otherwise there; volumes there are new ones then, filled with the old ones' points
    #[arg(long, value_name = "OLD=NEW", value_parser = pair)]
    namespace_map: Vec<(String, String)>,
    #[command(flatten)]
    elsewhere: Elsewhere,
    /// The receiver that pods there use, if their injector does not tell them
    #[arg(long, value_name = "HOST:PORT")]
    receiver_there: Option<String>,
    /// Directory with the tls.crt, tls.key and ca.crt that volumes are filled with there, of a reader or an operator: a Secret is made of
    /// it. Needed only where the injector gives no identities, or in another namespace, unless the Secret is there
    #[arg(long, value_name = "DIR")]
    fill_identity: Option<PathBuf>,
    /// Print the objects and say what would be done; ask no API, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The kubeconfig's context
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// How long the workload may take until it is ready; 0s does not wait
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

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    fenced: &'a [FenceReport],
    applied: Option<&'a Applied>,
    /// What is lost, in milliseconds.
    rpo_ms: f64,
    /// Until the workload was ready, in milliseconds, and what of it was what.
    rto_ms: Option<f64>,
    phases: Option<Phases>,
}

#[derive(Clone, Copy, Serialize)]
struct Phases {
    fence_ms: f64,
    apply_ms: f64,
    ready_ms: f64,
}

impl Phases {
    fn of(fenced: &[FenceReport], applied: &Applied) -> Self {
        let fence_ms = fenced.iter().map(|report| report.took_ms).sum();
        Self { fence_ms, apply_ms: applied.apply_ms, ready_ms: applied.ready_ms }
    }

    fn sum(self) -> f64 {
        self.fence_ms + self.apply_ms + self.ready_ms
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let access = args.source.open()?;
    let options = PromoteOptions {
        at: args.at.clone(),
        accept_fuzzy: args.accept.contains(&Accept::Fuzzy),
        accept_unverified: args.accept.contains(&Accept::Unverified),
        ..PromoteOptions::default()
    };
    let (document, volumes, unprotected) =
        workload::find(&access, &args.namespace, &args.workload, &options)?;
    for claim in unprotected {
        eprintln!("tidelock: claim {claim} was never protected: it will be empty there");
    }
    let looked = fence(&access, &volumes, &options, true)?;
    let mut planned = make(args, &document, &handover(args, &looked))?;
    if args.dry_run {
        return show(args, &planned, &looked);
    }
    // Who cannot reach the cluster there, or would start on something else, fences nobody.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(connect_to(args.context.clone()));
    let calls = ApplyApi::new(client.map_err(|error| Failure::new(REFUSED, error))?);
    let refused = |error: ApplyError| Failure::new(REFUSED, error);
    let standing = runtime.block_on(look(&calls, &planned)).map_err(refused)?;
    planned.warnings.extend(standing.notes);
    let earlier = standing.handover.filter(|earlier| goes_on(earlier, &looked));
    if let Some(earlier) = &earlier {
        planned = make(args, &document, earlier)?;
    }
    runtime.block_on(check_claims(&calls, &planned)).map_err(refused)?;
    let unknown = runtime.block_on(unknown_kinds(&calls, &planned)).map_err(refused)?;
    planned.leave_out(&unknown);
    let made = runtime.block_on(fill_secret(args, &calls, &planned))?;
    if !args.json {
        tell(&planned, &looked);
    }
    let fenced = match &earlier {
        Some(earlier) => {
            eprintln!(
                "tidelock: an earlier run has brought it up with the data of {}: going on with that",
                earlier.at
            );
            Vec::new()
        }
        None => {
            let fenced = fence(&access, &volumes, &options, false)?;
            planned = make(args, &document, &handover(args, &fenced))?;
            planned.leave_out(&unknown);
            fenced
        }
    };
    // It is nothing that was planned, and a report does not show its key.
    let mut whole = planned.clone();
    whole.objects.splice(0..0, made);
    let patience = Some(args.wait).filter(|wait| !wait.is_zero());
    let applied = runtime.block_on(carry_out(&calls, &whole, patience));
    let applied = applied.map_err(|error| Failure::new(FAILED, error))?;
    let phases = Phases::of(&fenced, &applied);
    if args.json {
        let (rto_ms, phases) = (Some(phases.sum()), Some(phases));
        let (fenced, rpo_ms) = (&*fenced, rpo_ms(&fenced));
        output::json(&Report { plan: &planned, fenced, applied: Some(&applied), rpo_ms, rto_ms, phases })?;
    } else {
        done(&planned, &fenced, &applied, phases);
    }
    verdict(&planned.workload, &applied)
}

/// The Secret that volumes are filled with, if it is to be made. In another namespace there has to be one: the points are another tenant's.
async fn fill_secret(args: &Args, calls: &ApplyApi, plan: &Plan) -> Result<Option<Value>, Failure> {
    let name = tidelock_injector::Config::default().restore_secret;
    if let Some(directory) = &args.fill_identity {
        return Ok(Some(secret(directory, &name, &plan.to)?));
    }
    let needed = plan.from != plan.to && !plan.volumes.is_empty();
    if !needed {
        return Ok(None);
    }
    let found = calls.read("Secret", &plan.to, &name).await;
    if found.map_err(|error| Failure::new(REFUSED, error))?.is_some() {
        return Ok(None);
    }
    Err(Failure::new(
        REFUSED,
        anyhow::anyhow!(
            "namespace {} has no Secret {name} to fill volumes of tenant {} with: name a directory with --fill-identity",
            plan.to,
            plan.from
        ),
    ))
}

pub(crate) fn verdict(workload: &str, applied: &Applied) -> Result<(), Failure> {
    if applied.ready != Some(false) {
        return Ok(());
    }
    let waiting = match applied.waiting.is_empty() {
        true => String::new(),
        false => format!(" ({})", applied.waiting.join("; ")),
    };
    Err(Failure::new(
        FAILED,
        anyhow::anyhow!(
            "{workload} is not ready in time{waiting}; run the same command again to go on waiting"
        ),
    ))
}

/// The first fences the sidecar of all, and its point is one that the others have.
pub(crate) fn fence(
    access: &Access,
    volumes: &[VolumeName],
    options: &PromoteOptions,
    dry_run: bool,
) -> Result<Vec<FenceReport>, Failure> {
    let mut reports: Vec<FenceReport> = Vec::new();
    for volume in volumes {
        let at = reports.first().map_or_else(|| options.at.clone(), FenceReport::at);
        let options = PromoteOptions { at, ..options.clone() };
        let report = fence_without_copy(access, volume, &options, dry_run);
        reports.push(report.map_err(Failure::failover)?);
    }
    Ok(reports)
}

/// Whether an earlier run has handed the volumes over to a writer that has come since.
fn goes_on(earlier: &Handover, looked: &[FenceReport]) -> bool {
    let current = looked.iter().filter(|report| !report.resumed).map(|report| report.old_epoch).max();
    // The first epoch is nobody's promotion.
    earlier.epoch.is_some_and(|epoch| epoch > 1 && Some(epoch) == current)
}

fn handover(args: &Args, fenced: &[FenceReport]) -> Handover {
    let time_ns = fenced.iter().map(|report| report.point.time_ns).max().unwrap_or_default();
    let time = UNIX_EPOCH + Duration::from_nanos(time_ns);
    Handover {
        at: humantime::format_rfc3339_nanos(time).to_string(),
        epoch: fenced.iter().map(|report| report.epoch).max(),
        receiver: args.receiver_there.clone(),
    }
}

fn make(args: &Args, document: &Document, handover: &Handover) -> Result<Plan, Failure> {
    let mapping = args.elsewhere.mapping(&args.namespace_map);
    plan(document, &mapping, handover).map_err(|error| Failure::new(REFUSED, error))
}

/// The objects on standard output, for whoever wants to apply them; the rest beside it.
fn show(args: &Args, plan: &Plan, looked: &[FenceReport]) -> Result<(), Failure> {
    if args.json {
        let rpo_ms = rpo_ms(looked);
        let report = Report { plan, fenced: looked, applied: None, rpo_ms, rto_ms: None, phases: None };
        return Ok(output::json(&report)?);
    }
    for object in [&plan.namespace].into_iter().chain(&plan.objects) {
        output::print(&format!("---\n{}", serde_json::to_string_pretty(object)?));
    }
    tell(plan, looked);
    tell_kinds(plan);
    eprintln!("Nothing was changed.");
    Ok(())
}

/// Without asking nobody knows whether they are there.
pub(crate) fn tell_kinds(plan: &Plan) {
    for (version, kind) in plan.custom_kinds() {
        eprintln!("  note: the cluster there has to know {kind} of {version}; otherwise these are left out");
    }
}

fn rpo_ms(fenced: &[FenceReport]) -> f64 {
    fenced.iter().map(|report| report.rpo_ms).fold(0.0, f64::max)
}

fn tell(plan: &Plan, looked: &[FenceReport]) {
    eprintln!("{} of namespace {} comes up in namespace {}:", plan.workload, plan.from, plan.to);
    for report in looked {
        eprintln!("{}, RPO {}", handed(report), output::duration(report.rpo_ms));
    }
    let labels = plan.namespace["metadata"]["labels"].as_object().into_iter().flatten();
    let labels: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") };
    eprintln!("  namespace {}, made with {labels} if it is not there", plan.to);
    eprintln!("  {} objects", plan.objects.len());
    plan.warnings.iter().for_each(|warning| eprintln!("  note: {warning}"));
}

/// A volume and its point, for people.
pub(crate) fn handed(report: &FenceReport) -> String {
    let epoch = match report.resumed {
        true => format!("{}, which an earlier run has raised", report.epoch),
        false => format!("{} → {}", report.old_epoch, report.epoch),
    };
    format!("  volume {} at {} ({}), epoch {epoch}", report.volume, report.point.id, report.point.time)
}

fn done(plan: &Plan, fenced: &[FenceReport], applied: &Applied, phases: Phases) {
    let ready = match applied.ready {
        Some(true) => "ready",
        Some(false) => "not ready yet",
        None => "not waited for",
    };
    let made = if applied.namespace_created { ", which was made" } else { "" };
    let rpo = match fenced.is_empty() {
        true => "as an earlier run has said".to_owned(),
        false => output::duration(rpo_ms(fenced)),
    };
    output::facts(&[
        ("applied", format!("{} objects in namespace {}{made}", applied.objects, plan.to)),
        ("workload", format!("{}: {ready}", plan.workload)),
        ("RPO", rpo),
        (
            "RTO",
            format!(
                "{} (fence {}, apply {}, fill and start {})",
                output::duration(phases.sum()),
                output::duration(phases.fence_ms),
                output::duration(phases.apply_ms),
                output::duration(phases.ready_ms)
            ),
        ),
    ]);
}
