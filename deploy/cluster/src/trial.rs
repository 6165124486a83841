//! A test failover in Kubernetes: a workload is brought up in a namespace of its own, beside the running replication, and everything
//! is removed again, whatever happened.
//!
//! The namespace has always the same name for a workload, and a label that says whose trial it is. So one that a killed run left behind is
//! found and removed by the next. The price is that a second trial of the same workload at the same time ends the first.
//!
//! The identity that fills the volumes is there while they are filled, and gone before the application starts.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tidelock_manifests::{Key, Plan, SCRATCH, Trial};
use tidelock_proto::{PointId, VolumeName};
use tokio::time::sleep;

use crate::{
    api::{ApiError, ApplyCalls},
    failover::{Applied, ApplyError, carry_out},
    jobs::{self, Body, JobError, Work},
    limits,
};

/// What is tried, and for how long.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What is applied.
    pub trial: Trial,
    /// The pods whose volumes are filled.
    pub bodies: Vec<Body>,
    /// With what.
    pub points: BTreeMap<VolumeName, PointId>,
    /// The Secret with the identity that fills, for the trial's namespace.
    pub secret: Value,
    /// The receiver, as pods there reach it.
    pub receiver: String,
    /// How long filling may take, and how long the workload until it is ready.
    pub patience: Duration,
}

/// How a trial went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The workload was ready in time.
    pub passed: bool,
    /// How it ended, in words.
    pub outcome: String,
    /// The namespace that was removed again.
    pub namespace: String,
    /// An earlier run had left it behind.
    pub found_left: bool,
    /// Filling the volumes, in milliseconds.
    pub fill_ms: f64,
    /// Applying objects, in milliseconds.
    pub apply_ms: f64,
    /// Until the workload was ready, in milliseconds.
    pub ready_ms: f64,
}

impl Report {
    /// What a failover would have taken, as far as this shows it.
    pub fn rto_ms(&self) -> f64 {
        self.fill_ms + self.apply_ms + self.ready_ms
    }
}

/// Why there is no result.
#[derive(Debug, Error)]
pub enum TrialError {
    /// It was told to stop.
    #[error("interrupted: the trial's namespace was removed")]
    Interrupted,
    /// A namespace of that name is somebody else's.
    #[error("namespace {0} is there and is no trial of this workload: nothing was done")]
    Foreign(String),
    /// It does not go.
    #[error(
        "namespace {0} is still being removed: see what holds it with `kubectl get namespace {0} -o yaml`"
    )]
    NotRemoved(String),
    /// A call.
    #[error("{object}: {source}")]
    Api {
        /// What it was about.
        object: String,
        /// What the API said.
        source: ApiError,
    },
    /// What is applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Tries the workload. Once `stop` resolves it ends early; the namespace is removed all the same.
pub async fn run(
    calls: &impl ApplyCalls,
    wish: &Wish,
    stop: impl Future<Output = ()>,
    tell: &mut dyn FnMut(&str),
) -> Result<Report, TrialError> {
    let name = &wish.trial.plan.to;
    let mut stop = pin!(stop);
    let found_left = tokio::select! {
        left = clear(calls, wish) => left?,
        () = stop.as_mut() => return Err(TrialError::Interrupted),
    };
    let tried = tokio::select! {
        tried = attempt(calls, wish, tell) => tried,
        () = stop.as_mut() => Err(TrialError::Interrupted),
    };
    remove(calls, name).await?;
    let mut report = tried?;
    report.found_left = found_left;
    Ok(report)
}

/// Removes what an earlier run has left; tells whether there was anything.
async fn clear(calls: &impl ApplyCalls, wish: &Wish) -> Result<bool, TrialError> {
    let planned = &wish.trial.plan.namespace;
    let name = &wish.trial.plan.to;
    let Some(found) = look(calls, name).await? else { return Ok(false) };
    let label = |namespace: &Value| namespace["metadata"]["labels"][SCRATCH].clone();
    if label(&found).is_null() || label(&found) != label(planned) {
        return Err(TrialError::Foreign(name.clone()));
    }
    remove(calls, name).await?;
    Ok(true)
}

async fn look(calls: &impl ApplyCalls, name: &str) -> Result<Option<Value>, TrialError> {
    let found = calls.namespace(name).await;
    found.map_err(|source| TrialError::Api { object: format!("namespace {name}"), source })
}

/// Removes the namespace and waits until it is gone.
async fn remove(calls: &impl ApplyCalls, name: &str) -> Result<(), TrialError> {
    let begun = Instant::now();
    let removed = calls.remove_namespace(name).await;
    removed.map_err(|source| TrialError::Api { object: format!("namespace {name}"), source })?;
    while look(calls, name).await?.is_some() {
        if begun.elapsed() >= limits::NAMESPACE_REMOVAL {
            return Err(TrialError::NotRemoved(name.to_owned()));
        }
        sleep(limits::READY_LOOK_EVERY).await;
    }
    Ok(())
}

/// The Job that fills the volumes of one pod.
pub fn fill(wish: &Wish, body: &Body) -> Option<Value> {
    let Plan { workload, to, .. } = &wish.trial.plan;
    let name = workload.split_once('/').map_or(workload.as_str(), |(_, name)| name);
    body.job(name, to, &Work::Fill(&wish.points), &wish.receiver)
}

async fn attempt(
    calls: &impl ApplyCalls,
    wish: &Wish,
    tell: &mut dyn FnMut(&str),
) -> Result<Report, TrialError> {
    let Trial { policies, claims, plan } = &wish.trial;
    let name = &plan.to;
    let api = |object: String| move |source| TrialError::Api { object, source };
    calls.create_namespace(&plan.namespace).await.map_err(api(format!("namespace {name}")))?;
    // Isolated before anything is in it.
    for object in policies.iter().chain([&wish.secret]).chain(claims) {
        let named = Key::of(object).map_or_else(String::new, |key| key.to_string());
        calls.apply(object).await.map_err(api(named))?;
    }
    let begun = Instant::now();
    let jobs: Vec<Value> = wish.bodies.iter().filter_map(|body| fill(wish, body)).collect();
    let filled = tokio::time::timeout(wish.patience, jobs::run(calls, &jobs, tell)).await;
    let fill_ms = millis(begun);
    let failed = |outcome: String| Report {
        passed: false,
        outcome,
        namespace: name.clone(),
        found_left: false,
        fill_ms,
        apply_ms: 0.0,
        ready_ms: 0.0,
    };
    match filled {
        Err(_) => return Ok(failed("the volumes were not filled in time".to_owned())),
        Ok(Err(error @ JobError::Failed { .. })) => return Ok(failed(error.to_string())),
        Ok(Err(JobError::Api { job, source })) => return Err(TrialError::Api { object: job, source }),
        Ok(Err(error @ JobError::Gone(_))) => return Ok(failed(error.to_string())),
        Ok(Ok(())) => {}
    }
    let secret = wish.secret["metadata"]["name"].as_str().unwrap_or_default();
    calls.remove("Secret", name, secret).await.map_err(api(format!("secret {secret}")))?;
    let applied: Applied = match carry_out(calls, plan, Some(wish.patience)).await {
        Ok(applied) => applied,
        // That an object is not taken is what a test is for.
        Err(error @ ApplyError::NotApplied { .. }) => return Ok(failed(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let passed = applied.ready == Some(true);
    let outcome = match passed {
        true => "ready".to_owned(),
        false => format!("not ready in time: {}", applied.waiting.join("; ")),
    };
    let (apply_ms, ready_ms) = (applied.apply_ms, applied.ready_ms);
    Ok(Report { passed, outcome, apply_ms, ready_ms, ..failed(String::new()) })
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::shelf::Shelf;
    use serde_json::json;

    fn wish() -> Wish {
        let object = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name, "namespace": "t"}, "spec": {"replicas": 1}});
        let plan = Plan {
            workload: "statefulset/orders".to_owned(),
            from: "shop".to_owned(),
            to: "t".to_owned(),
            namespace: json!({"kind": "Namespace", "metadata": {"name": "t", "labels": {SCRATCH: "shop.statefulset.orders"}}}),
            objects: vec![object("ConfigMap", "orders"), object("StatefulSet", "orders")],
            volumes: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let policies = vec![object("NetworkPolicy", "tidelock-isolated")];
        let trial = Trial { policies, claims: vec![object("PersistentVolumeClaim", "data-orders-0")], plan };
        Wish {
            trial,
            bodies: Vec::new(),
            points: BTreeMap::new(),
            secret: object("Secret", "tidelock-operator"),
            receiver: "r:9900".to_owned(),
            patience: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn it_is_isolated_first_and_removed_last() {
        let shelf = Shelf::default();
        let report = run(&shelf, &wish(), pending(), &mut |_| {}).await.expect("a result");
        assert!(report.passed && !report.found_left, "{report:?}");
        let wanted = [
            "create namespace t",
            "apply networkpolicy/tidelock-isolated",
            "apply secret/tidelock-operator",
            "apply persistentvolumeclaim/data-orders-0",
            "remove secret/tidelock-operator",
            "apply configmap/orders",
            "apply statefulset/orders",
            "remove namespace t",
        ];
        assert_eq!(shelf.done(), wanted);
    }

    #[tokio::test]
    async fn whatever_happens_it_is_removed() {
        let shelf = Shelf::default();
        shelf.refuse("configmap/orders");
        let report = run(&shelf, &wish(), pending(), &mut |_| {}).await.expect("a result");
        assert!(!report.passed && report.outcome.contains("configmap/orders"), "{report:?}");
        assert_eq!(shelf.done().last().map(String::as_str), Some("remove namespace t"));
        let shelf = Shelf::default();
        shelf.refuse("secret/tidelock-operator");
        assert!(run(&shelf, &wish(), pending(), &mut |_| {}).await.is_err());
        assert_eq!(shelf.done().last().map(String::as_str), Some("remove namespace t"));
    }

    #[tokio::test]
    async fn interrupted_it_is_removed_and_killed_the_next_run_removes_it() {
        let shelf = Shelf::default();
        // Ready when the workload is waited for.
        let mut stopping = wish();
        stopping.trial.plan.objects[1]["spec"]["replicas"] = json!(i64::MAX);
        let soon = sleep(Duration::from_millis(100));
        let stopped = run(&shelf, &stopping, soon, &mut |_| {}).await;
        assert!(matches!(stopped, Err(TrialError::Interrupted)), "{stopped:?}");
        assert_eq!(shelf.done().last().map(String::as_str), Some("remove namespace t"));
        let shelf = Shelf::default();
        shelf.put(wish().trial.plan.namespace);
        let report = run(&shelf, &wish(), pending(), &mut |_| {}).await.expect("a result");
        assert!(report.passed && report.found_left);
        assert_eq!(&shelf.done()[..2], ["remove namespace t", "create namespace t"]);
        let stopped = run(&Shelf::default(), &wish(), ready(()), &mut |_| {}).await;
        assert!(matches!(stopped, Err(TrialError::Interrupted)), "{stopped:?}");
    }

    #[tokio::test]
    async fn a_namespace_of_others_is_not_touched() {
        for labels in [json!({}), json!({SCRATCH: "shop.statefulset.other"})] {
            let shelf = Shelf::default();
            shelf.put(json!({"kind": "Namespace", "metadata": {"name": "t", "labels": labels}}));
            let refused = run(&shelf, &wish(), pending(), &mut |_| {}).await;
            assert!(matches!(refused, Err(TrialError::Foreign(_))), "{refused:?}");
            assert_eq!(shelf.done(), Vec::<String>::new());
        }
    }
}
