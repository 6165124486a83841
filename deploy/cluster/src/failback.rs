//! The way back: a workload that was brought up elsewhere returns to where its old volumes are, and only what differs moves.
//!
//! ```text
//! home:     at rest ─▶ keep ─▶ copy ──────────────────────────▶ difference ─▶ apply ─▶ ready
//! standby:  runs ─────────────────────▶ at rest ─▶ fence
//!                                       └────────── the application stands still ──────────┘
//! ```
//! *Keep*: what the old primary wrote and nobody else has becomes a branch of each volume. *Copy*: its volumes are made equal to the newest
//! point while the standby still works; what is equal is read and not fetched. Then the standby's pods end, each sidecar after its
//! application and with a last cut, the epoch rises upon that cut, and the *difference* since the copy is written. The objects at home
//! are applied last, so nothing starts on a volume that is not whole.
//!
//! Every step can be repeated, and whatever fails before the fence leaves the standby the primary. What a step needs to know of an
//! earlier run is in the clusters and at the receiver: a branch that was kept has its name, an epoch that was raised has no writer
//! yet, a workload that is home says in its template by which epoch.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tidelock_failover::{
    Access, FailoverError, FenceReport, PromoteOptions, VolumeReport, branches, fence_without_copy, status,
};
use tidelock_manifests::{Document, Handover, Key, Mapping, Plan, PlanError, plan};
use tidelock_proto::{PointId, VolumeName, ids::VolumeNameError};
use tokio::task::{JoinError, spawn_blocking};

use crate::{
    api::{ApiError, ApplyCalls},
    failover::{Applied, ApplyError, carry_out, create_namespace, handed_over, unknown_kinds},
    jobs::{self, Body, BodyError, JobError, Work, Worker, bodies},
    ready::{Waited, wait_for_rest},
};

/// What is to come back, and how.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What was recorded of the workload.
    pub document: Document,
    /// Its volumes that the receiver has points of.
    pub volumes: Vec<VolumeName>,
    /// What is called otherwise at home; namespaces are not.
    pub mapping: Mapping,
    /// What Jobs are made with.
    pub worker: Worker,
    /// What pods at home are told to replicate to, if their injector does not.
    pub receiver: Option<String>,
    /// The epoch that the old primary at home wrote in, if its workload does not say it.
    pub home_epoch: Option<u64>,
    /// Whether what it left is kept.
    pub keep: bool,
    /// What may be promoted.
    pub options: PromoteOptions,
    /// How long pods may take to end, and how long to be ready.
    pub patience: Duration,
}

/// What will be done, as far as the receiver knows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Planned {
    /// The volumes as they are now.
    pub volumes: Vec<VolumeReport>,
    /// What the old primary left, by volume: the branch that keeps it.
    pub branches: BTreeMap<String, String>,
    /// The epoch of the old primary at home.
    pub home_epoch: u64,
    /// Jobs that keep and copy, in order; those of one kind run beside each other.
    pub jobs: Vec<Value>,
    /// What is applied then.
    pub plan: Plan,
}

/// How long each step took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Phases {
    /// Keeping what the old primary left.
    pub keep_ms: f64,
    /// Copying while the standby works.
    pub copy_ms: f64,
    /// The end of the standby's pods: from here on nobody serves.
    pub rest_ms: f64,
    /// Raising the epoch.
    pub fence_ms: f64,
    /// Writing what came since the copy.
    pub difference_ms: f64,
    /// Applying the objects.
    pub apply_ms: f64,
    /// Until the workload was ready.
    pub ready_ms: f64,
}

impl Phases {
    /// For how long nobody served, in milliseconds.
    pub fn down_ms(self) -> f64 {
        self.rest_ms + self.fence_ms + self.difference_ms + self.apply_ms + self.ready_ms
    }
}

/// A workload that is home.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What was planned.
    pub planned: Planned,
    /// An earlier run had brought it home; it was applied again and waited for.
    pub already: bool,
    /// What was fenced.
    pub fenced: Vec<FenceReport>,
    /// What was applied.
    pub applied: Applied,
    /// How long it took.
    pub phases: Phases,
}

/// What is going on, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The workload at home ends.
    HomeRests,
    /// What is left there is kept.
    Keep,
    /// Volumes are copied.
    Copy,
    /// The standby's workload ends.
    StandbyRests,
    /// The epoch rises.
    Fence,
    /// The rest is copied.
    Difference,
    /// Objects are applied.
    Apply,
    /// What a pod says.
    Told(String),
}

/// Why it stopped.
#[derive(Debug, Error)]
pub enum FailbackError {
    /// There is nothing to bring back.
    #[error("{0} has no volume that the receiver has points of")]
    NoVolumes(String),
    /// It writes at home.
    #[error("the volumes are in epoch {epoch}, which {workload} at home writes in: it never left")]
    NeverLeft {
        /// `kind/name`.
        workload: String,
        /// Their epoch.
        epoch: u64,
    },
    /// Nobody says where the primary is.
    #[error(
        "volume {0} has a writer: name the cluster that it runs in with --from-context, so that its application is ended in order"
    )]
    Writer(String),
    /// Pods do not end.
    #[error("{workload} does not end: {}", .said.join("; "))]
    NotAtRest {
        /// `kind/name`, and where.
        workload: String,
        /// What is still there.
        said: Vec<String>,
    },
    /// It failed when the standby had been ended, and nobody was fenced.
    #[error("{source}; nobody was fenced, and the standby was told to have {replicas} pods again")]
    BeforeFence {
        /// Why.
        source: Box<FailbackError>,
        /// How many.
        replicas: i64,
    },
    /// A call.
    #[error("{object}: {source}")]
    Api {
        /// What it was about.
        object: String,
        /// What the API said.
        source: ApiError,
    },
    /// A branch would have no name.
    #[error(
        "the branch of {volume} has no name that can be one ({source}): keep it with `tidelock seed --branch`, and run this with --no-branch"
    )]
    BranchName {
        /// The volume.
        volume: VolumeName,
        /// Why not.
        source: VolumeNameError,
    },
    /// The receiver.
    #[error(transparent)]
    Failover(#[from] FailoverError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The Jobs cannot be made.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// A Job.
    #[error("{0}; run the same command again, and it goes on from there")]
    Job(#[from] JobError),
    /// What is applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// This process.
    #[error("{0}")]
    Task(#[from] JoinError),
}

impl FailbackError {
    /// Nothing was done, for safety.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NeverLeft { .. } | Self::Writer(_) | Self::NoVolumes(_) | Self::Plan(_) | Self::Body(_) => {
                true
            }
            Self::Failover(error) => error.is_refusal(),
            _ => false,
        }
    }
}

/// Says what will be done. Asks the receiver alone.
pub fn look(access: &Access, wish: &Wish) -> Result<Planned, FailbackError> {
    let volumes = volumes(access, &wish.volumes)?;
    let current = epoch(&volumes).ok_or_else(|| FailbackError::NoVolumes(wish.document.name.clone()))?;
    let home_epoch = wish.home_epoch.unwrap_or_else(|| (current - 1).max(1));
    let branches = names_of_branches(wish, home_epoch)?;
    let next = if volumes.iter().all(|volume| volume.promoted) { current } else { current + 1 };
    let time_ns = volumes.iter().filter_map(|volume| volume.last.as_ref()).map(|last| last.time_ns).max();
    let plan = make(wish, time_ns.unwrap_or_default(), next)?;
    let mut jobs = Vec::new();
    for body in bodies(&wish.document, workload_of(&plan)?, &wish.worker)? {
        for work in [Work::Keep { epoch: home_epoch, branches: &branches }, Work::Copy(&BTreeMap::new())] {
            jobs.extend(job(wish, &body, &work));
        }
    }
    jobs.sort_by_key(|job| job["metadata"]["labels"][tidelock_manifests::JOB] != "keep");
    let branches = branches.iter().map(|(volume, branch)| (volume.to_string(), branch.to_string())).collect();
    Ok(Planned { volumes, branches, home_epoch, jobs, plan })
}

/// Brings it back. Without a `standby` nobody must write the volumes any more.
pub async fn failback<H: ApplyCalls, S: ApplyCalls>(
    home: &H,
    standby: Option<&S>,
    access: &Arc<Access>,
    wish: &Wish,
    say: &mut dyn FnMut(Step),
) -> Result<Report, FailbackError> {
    let mut wish = wish.clone();
    let key = Key::of(workload_of(&blocking(access, &wish, look).await?.plan)?)
        .ok_or(FailbackError::Plan(PlanError::BadObject))?;
    let namespace = wish.document.namespace.clone();
    let at_home = read(home, &key, &namespace).await?;
    let handed = at_home.as_ref().and_then(handed_over);
    if at_home.is_some() {
        wish.home_epoch = Some(handed.as_ref().and_then(|handed| handed.epoch).unwrap_or(1));
    }
    let mut planned = blocking(access, &wish, look).await?;
    let unknown = unknown_kinds(home, &planned.plan).await?;
    for told in planned.plan.leave_out(&unknown) {
        say(Step::Told(told));
    }
    let current = epoch(&planned.volumes).unwrap_or(1);
    let fenced_before = planned.volumes.iter().all(|volume| volume.promoted);
    // Objects are applied last: what says this epoch has its data, also if its sidecar has not been heard of yet.
    if at_home.is_some() && wish.home_epoch == Some(current) {
        let Some(handed) = handed.filter(|_| current > 1) else {
            return Err(FailbackError::NeverLeft { workload: key.to_string(), epoch: current });
        };
        return again(home, &wish, planned, &handed, &unknown, say).await;
    }
    if standby.is_none()
        && let Some(written) = planned.volumes.iter().find(|volume| volume.connected == Some(true))
    {
        return Err(FailbackError::Writer(written.volume.clone()));
    }
    // Who cannot reach it would find out when the copy is done.
    if let Some(standby) = standby {
        read(standby, &key, &namespace).await?;
    }

    let mut phases = Phases::default();
    if at_home.is_some() {
        say(Step::HomeRests);
        end(home, &key, &namespace, wish.patience, "at home").await?;
    }
    let begun = Instant::now();
    let existing = claims(home, &wish, &planned.plan).await?;
    let made = bodies(&wish.document, workload_of(&planned.plan)?, &wish.worker)?;
    if wish.keep {
        say(Step::Keep);
        keep(home, access, &wish, &made, &existing, say).await?;
    }
    phases.keep_ms = millis(begun);
    if !fenced_before {
        let begun = Instant::now();
        say(Step::Copy);
        work(home, &wish, &made, &Work::Copy(&BTreeMap::new()), say).await?;
        phases.copy_ms = millis(begun);
    }
    let begun = Instant::now();
    let mut replicas = None;
    if let Some(standby) = standby
        && let Some(found) = read(standby, &key, &namespace).await?
    {
        say(Step::StandbyRests);
        replicas = found["spec"]["replicas"].as_i64().filter(|replicas| *replicas > 0);
        end(standby, &key, &namespace, wish.patience, "at the standby").await?;
    }
    phases.rest_ms = millis(begun);
    say(Step::Fence);
    let fenced = match blocking(access, &wish, fence).await {
        Ok(fenced) => fenced,
        Err(error) => return Err(back(standby, &key, &namespace, replicas, error).await),
    };
    phases.fence_ms = fenced.iter().map(|report| report.took_ms).sum();
    let begun = Instant::now();
    say(Step::Difference);
    let points = points(&fenced);
    work(home, &wish, &made, &Work::Copy(&points), say).await?;
    phases.difference_ms = millis(begun);
    say(Step::Apply);
    let time_ns = fenced.iter().map(|report| report.point.time_ns).max().unwrap_or_default();
    let next = fenced.iter().map(|report| report.epoch).max().unwrap_or(current);
    let mut plan = make(&wish, time_ns, next)?;
    plan.leave_out(&unknown);
    let applied = carry_out(home, &plan, Some(wish.patience)).await?;
    (phases.apply_ms, phases.ready_ms) = (applied.apply_ms, applied.ready_ms);
    let copied: Vec<Value> = made.iter().filter_map(|body| job(&wish, body, &Work::Copy(&points))).collect();
    jobs::remove(home, &planned.jobs).await?;
    jobs::remove(home, &copied).await?;
    Ok(Report { planned: Planned { plan, ..planned }, already: false, fenced, applied, phases })
}

/// It is home since an earlier run, which may not have seen it ready.
async fn again(
    home: &impl ApplyCalls,
    wish: &Wish,
    planned: Planned,
    handed: &Handover,
    unknown: &BTreeSet<(String, String)>,
    say: &mut dyn FnMut(Step),
) -> Result<Report, FailbackError> {
    say(Step::Apply);
    let mut plan = plan(&wish.document, &wish.mapping, handed)?;
    plan.leave_out(unknown);
    let applied = carry_out(home, &plan, Some(wish.patience)).await?;
    let phases = Phases { apply_ms: applied.apply_ms, ready_ms: applied.ready_ms, ..Phases::default() };
    Ok(Report { planned: Planned { plan, ..planned }, already: true, fenced: Vec::new(), applied, phases })
}

/// Ends a workload's pods and waits until none is left.
async fn end(
    calls: &impl ApplyCalls,
    key: &Key,
    namespace: &str,
    patience: Duration,
    place: &str,
) -> Result<(), FailbackError> {
    let named = || format!("{key} {place}");
    let api = |source| FailbackError::Api { object: named(), source };
    calls.scale(&key.kind, namespace, &key.name, 0).await.map_err(api)?;
    let Some(found) = calls.read(&key.kind, namespace, &key.name).await.map_err(api)? else { return Ok(()) };
    match wait_for_rest(calls, &found, namespace, patience).await.map_err(api)? {
        Waited::Ready => Ok(()),
        Waited::Not(said) => Err(FailbackError::NotAtRest { workload: named(), said }),
    }
}

/// The standby goes on, because nobody took its place.
async fn back(
    standby: Option<&impl ApplyCalls>,
    key: &Key,
    namespace: &str,
    replicas: Option<i64>,
    error: FailbackError,
) -> FailbackError {
    let (Some(standby), Some(replicas)) = (standby, replicas) else { return error };
    match standby.scale(&key.kind, namespace, &key.name, replicas).await {
        Ok(()) => FailbackError::BeforeFence { source: Box::new(error), replicas },
        Err(_) => error,
    }
}

/// Makes the claims that are not there; tells those that were.
async fn claims(home: &impl ApplyCalls, wish: &Wish, plan: &Plan) -> Result<Vec<String>, FailbackError> {
    create_namespace(home, plan).await?;
    let mut existing = Vec::new();
    for claim in plan.objects.iter().filter(|object| object["kind"] == "PersistentVolumeClaim") {
        let name = claim["metadata"]["name"].as_str().unwrap_or_default();
        let api = |source| FailbackError::Api { object: format!("claim {name}"), source };
        match home.read("PersistentVolumeClaim", &wish.document.namespace, name).await.map_err(api)? {
            Some(_) => existing.push(name.to_owned()),
            None => home.apply(claim).await.map_err(api)?,
        }
    }
    Ok(existing)
}

/// Keeps what was not kept by an earlier run, of claims that were there before.
async fn keep(
    home: &impl ApplyCalls,
    access: &Arc<Access>,
    wish: &Wish,
    made: &[Body],
    existing: &[String],
    say: &mut dyn FnMut(Step),
) -> Result<(), FailbackError> {
    let epoch = wish.home_epoch.unwrap_or(1);
    let mut wanted = names_of_branches(wish, epoch)?;
    let kept = blocking(access, wish, |access, wish| kept(access, &wish.volumes)).await?;
    wanted.retain(|volume, branch| {
        existing.iter().any(|claim| claim == volume.name()) && !kept.contains(branch)
    });
    work(home, wish, made, &Work::Keep { epoch, branches: &wanted }, say).await
}

/// Branches that have the directory as it was found; one that has not was interrupted.
fn kept(access: &Access, volumes: &[VolumeName]) -> Result<Vec<VolumeName>, FailbackError> {
    let mut found = Vec::new();
    for volume in volumes {
        let all = branches(access, volume)?;
        let whole = all
            .iter()
            .filter(|branch| branch.last.tags.iter().any(|tag| tag.starts_with("old primary of epoch ")));
        found.extend(whole.filter_map(|branch| branch.branch.parse().ok()));
    }
    Ok(found)
}

async fn work(
    home: &impl ApplyCalls,
    wish: &Wish,
    made: &[Body],
    work: &Work<'_>,
    say: &mut dyn FnMut(Step),
) -> Result<(), FailbackError> {
    let all: Vec<Value> = made.iter().filter_map(|body| job(wish, body, work)).collect();
    Ok(jobs::run(home, &all, &mut |told| say(Step::Told(told.to_owned()))).await?)
}

fn job(wish: &Wish, body: &Body, work: &Work<'_>) -> Option<Value> {
    body.job(&wish.document.name, &wish.document.namespace, work, &wish.worker.receiver)
}

/// The first fences the sidecar of all, and its point is one that the others have.
fn fence(access: &Access, wish: &Wish) -> Result<Vec<FenceReport>, FailbackError> {
    let mut reports: Vec<FenceReport> = Vec::new();
    for volume in &wish.volumes {
        let at = reports.first().map_or_else(|| wish.options.at.clone(), FenceReport::at);
        let options = PromoteOptions { at, ..wish.options.clone() };
        reports.push(fence_without_copy(access, volume, &options, false)?);
    }
    Ok(reports)
}

fn points(fenced: &[FenceReport]) -> BTreeMap<VolumeName, PointId> {
    let point = |report: &FenceReport| Some((report.volume.parse().ok()?, report.point.id.parse().ok()?));
    fenced.iter().filter_map(point).collect()
}

fn volumes(access: &Access, names: &[VolumeName]) -> Result<Vec<VolumeReport>, FailbackError> {
    let mut found = Vec::new();
    for name in names {
        found.extend(status(access, Some(name))?);
    }
    Ok(found)
}

fn epoch(volumes: &[VolumeReport]) -> Option<u64> {
    volumes.iter().map(|volume| volume.epoch).max()
}

fn names_of_branches(wish: &Wish, epoch: u64) -> Result<BTreeMap<VolumeName, VolumeName>, FailbackError> {
    let volumes = wish.volumes.iter().filter(|_| wish.keep);
    let name = |volume: &VolumeName| {
        let branch = VolumeName::new(volume.tenant(), &format!("{}-epoch-{epoch}", volume.name()));
        let branch = branch.map_err(|source| FailbackError::BranchName { volume: volume.clone(), source })?;
        Ok((volume.clone(), branch))
    };
    volumes.map(name).collect()
}

fn make(wish: &Wish, time_ns: u64, epoch: u64) -> Result<Plan, FailbackError> {
    let time = std::time::UNIX_EPOCH + Duration::from_nanos(time_ns);
    let at = humantime::format_rfc3339_nanos(time).to_string();
    let handover = Handover { at, epoch: Some(epoch), receiver: wish.receiver.clone() };
    Ok(plan(&wish.document, &wish.mapping, &handover)?)
}

fn workload_of(plan: &Plan) -> Result<&Value, FailbackError> {
    let is = |object: &&Value| Key::of(object).is_some_and(|key| key.to_string() == plan.workload);
    plan.objects.iter().find(is).ok_or_else(|| PlanError::NoWorkload(plan.workload.clone()).into())
}

async fn read(calls: &impl ApplyCalls, key: &Key, namespace: &str) -> Result<Option<Value>, FailbackError> {
    let found = calls.read(&key.kind, namespace, &key.name).await;
    found.map_err(|source| FailbackError::Api { object: key.to_string(), source })
}

/// The receiver is asked by calls that block.
async fn blocking<T: Send + 'static>(
    access: &Arc<Access>,
    wish: &Wish,
    ask: impl FnOnce(&Access, &Wish) -> Result<T, FailbackError> + Send + 'static,
) -> Result<T, FailbackError> {
    let (access, wish) = (access.clone(), wish.clone());
    spawn_blocking(move || ask(&access, &wish)).await?
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
