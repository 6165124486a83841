//! `tidelock failover`: a workload is brought up in another cluster or namespace, from what was recorded of it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tidelock_cluster::{
    api::{ApplyApi, connect_to},
    failover::{Applied, carry_out},
    identity::OBJECTS_VOLUME,
};
use tidelock_failover::{Access, At, FenceReport, PromoteOptions, VolumePath, cat, fence_without_copy};
use tidelock_manifests::{Document, Handover, Key, Mapping, Plan, Set, file_name, plan};
use tidelock_proto::VolumeName;

use super::{
    exit::{FAILED, Failure, REFUSED},
    output,
    restore::Accept,
    source::Source,
};

/// The longest record of a workload, in bytes.
const DOCUMENT_MAX_BYTES: u64 = 64 << 20;

/// Bring a workload up elsewhere: fence its old writer, apply its objects, and have its volumes filled with a point
///
/// The objects are those that were recorded at that point. The cluster that the kubeconfig names must have an injector, which
/// fills the volumes before the application starts. It needs nothing from the failed site. An interrupted failover is completed
/// by the same command.
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
    /// A storage class is called otherwise there
    #[arg(long, value_name = "OLD=NEW", value_parser = pair)]
    storage_class_map: Vec<(String, String)>,
    /// Images that begin so begin otherwise there
    #[arg(long, value_name = "OLD=NEW", value_parser = pair)]
    image_map: Vec<(String, String)>,
    /// A field is otherwise there: KIND/NAME:/path/to/field=VALUE
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<Set>,
    /// The receiver that pods there use, if their injector does not tell them
    #[arg(long, value_name = "HOST:PORT")]
    receiver_there: Option<String>,
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
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("write OLD=NEW")?;
    if old.is_empty() || new.is_empty() {
        return Err("write OLD=NEW".to_owned());
    }
    Ok((old.to_owned(), new.to_owned()))
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let access = args.source.open()?;
    let options = PromoteOptions {
        at: args.at.clone(),
        accept_fuzzy: args.accept.contains(&Accept::Fuzzy),
        accept_unverified: args.accept.contains(&Accept::Unverified),
        ..PromoteOptions::default()
    };
    let document = find(&access, args, &options)?;
    let looked = fence(&access, &document, &options, true)?;
    let planned = make(args, &document, &looked)?;
    if args.dry_run {
        return show(args, &planned, &looked);
    }
    // Who cannot reach the cluster there fences nobody.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(connect_to(args.context.clone()));
    let calls = ApplyApi::new(client.map_err(|error| Failure::new(REFUSED, error))?);
    if !args.json {
        tell(&planned, &looked);
    }
    let fenced = fence(&access, &document, &options, false)?;
    let planned = make(args, &document, &fenced)?;
    let patience = Some(args.wait).filter(|wait| !wait.is_zero());
    let applied = runtime.block_on(carry_out(&calls, &planned, patience));
    let applied = applied.map_err(|error| Failure::new(FAILED, error))?;
    if args.json {
        output::json(&Report { plan: &planned, fenced: &fenced, applied: Some(&applied) })?;
    } else {
        done(&planned, &fenced, &applied);
    }
    match applied.ready {
        Some(false) => {
            Err(Failure::new(FAILED, anyhow::anyhow!("{} is not ready in time", planned.workload)))
        }
        _ => Ok(()),
    }
}

/// The record that was in force at the point: first whatever names the volumes, then that of their point's time.
fn find(access: &Access, args: &Args, options: &PromoteOptions) -> Result<Document, Failure> {
    let about = match &args.at {
        at @ (At::Time(_) | At::Ago(_)) => at.clone(),
        At::Latest | At::Point(_) | At::Tag(_) => At::Latest,
    };
    let near = read(access, args, &about)?;
    let Some(first) = near.volumes.first() else { return Ok(near) };
    let looked = fence_without_copy(access, &first.volume, options, true).map_err(Failure::failover)?;
    read(access, args, &At::Time(looked.point.time_ns))
}

fn read(access: &Access, args: &Args, at: &At) -> Result<Document, Failure> {
    let volume = VolumeName::new(&args.namespace, OBJECTS_VOLUME).map_err(Failure::usage)?;
    let path = VolumePath::parse(file_name(&args.workload).as_bytes()).map_err(Failure::usage)?;
    let mut text = Vec::new();
    cat(access, &volume, at, &path, 0..DOCUMENT_MAX_BYTES, &mut text).map_err(Failure::failover)?;
    Document::parse(&text).map_err(|error| Failure::new(FAILED, error))
}

/// The first fences the sidecar of all, and its point is one that the others have.
fn fence(
    access: &Access,
    document: &Document,
    options: &PromoteOptions,
    dry_run: bool,
) -> Result<Vec<FenceReport>, Failure> {
    let mut reports: Vec<FenceReport> = Vec::new();
    for one in &document.volumes {
        let at = reports.first().map_or_else(|| options.at.clone(), FenceReport::at);
        let options = PromoteOptions { at, ..options.clone() };
        let report = fence_without_copy(access, &one.volume, &options, dry_run);
        reports.push(report.map_err(Failure::failover)?);
    }
    Ok(reports)
}

fn make(args: &Args, document: &Document, fenced: &[FenceReport]) -> Result<Plan, Failure> {
    let map = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<BTreeMap<_, _>>();
    let mapping = Mapping {
        namespaces: map(&args.namespace_map),
        storage_classes: map(&args.storage_class_map),
        images: map(&args.image_map),
        sets: args.set.clone(),
    };
    let time_ns = fenced.iter().map(|report| report.point.time_ns).max().unwrap_or_default();
    let time = std::time::UNIX_EPOCH + Duration::from_nanos(time_ns);
    let handover = Handover {
        at: humantime::format_rfc3339_nanos(time).to_string(),
        epoch: fenced.iter().map(|report| report.epoch).max(),
        receiver: args.receiver_there.clone(),
    };
    plan(document, &mapping, &handover).map_err(|error| Failure::new(REFUSED, error))
}

/// The objects on standard output, for whoever wants to apply them; the rest beside it.
fn show(args: &Args, plan: &Plan, looked: &[FenceReport]) -> Result<(), Failure> {
    if args.json {
        return Ok(output::json(&Report { plan, fenced: looked, applied: None })?);
    }
    for object in &plan.objects {
        output::print(&format!("---\n{}", serde_json::to_string_pretty(object)?));
    }
    tell(plan, looked);
    eprintln!("Nothing was changed.");
    Ok(())
}

fn tell(plan: &Plan, looked: &[FenceReport]) {
    eprintln!("{} of namespace {} comes up in namespace {}:", plan.workload, plan.from, plan.to);
    for report in looked {
        eprintln!(
            "  volume {} at {} ({}), epoch {} → {}, RPO {}",
            report.volume,
            report.point.id,
            report.point.time,
            report.old_epoch,
            report.epoch,
            output::duration(report.rpo_ms)
        );
    }
    eprintln!("  {} objects", plan.objects.len());
    plan.warnings.iter().for_each(|warning| eprintln!("  note: {warning}"));
}

fn done(plan: &Plan, fenced: &[FenceReport], applied: &Applied) {
    let rpo = fenced.iter().map(|report| report.rpo_ms).fold(0.0, f64::max);
    let rto = fenced.iter().map(|report| report.took_ms).sum::<f64>() + applied.took_ms;
    let ready = match applied.ready {
        Some(true) => "ready",
        Some(false) => "not ready yet",
        None => "not waited for",
    };
    output::facts(&[
        ("applied", format!("{} objects in namespace {}", applied.objects, plan.to)),
        ("workload", format!("{}: {ready}", plan.workload)),
        ("RPO", output::duration(rpo)),
        ("RTO", output::duration(rto)),
    ]);
}
