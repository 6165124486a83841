//! A plan carried out: everything applied in its order, and the workload waited for.
//!
//! Applying is idempotent, so a failover that was interrupted is run again. Nothing is deleted, whatever happens, and nothing is
//! filled twice: a claim that is there already keeps what it holds, so one that was not made for this very handover ends the
//! failover before anybody is fenced.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tidelock_manifests::{FILLED_WITH, Handover, Key, Plan};
use tracing::info;

use crate::{
    api::{ApiError, ApplyCalls},
    ready::{self, Waited},
};

/// What is there before anything is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The namespace is there.
    pub namespace: bool,
    /// The handover by which an earlier run has brought the workload up there, if one has.
    pub handover: Option<Handover>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Applied {
    /// The namespace was not there before.
    pub namespace_created: bool,
    /// Objects that were applied.
    pub objects: usize,
    /// Whether the workload was ready in time; nothing if it was not waited for.
    pub ready: Option<bool>,
    /// What its pods were waiting for when the time was over.
    pub waiting: Vec<String>,
    /// Applying all of it, in milliseconds.
    pub apply_ms: f64,
    /// Until the workload was ready: its volumes filled, the application started; in milliseconds.
    pub ready_ms: f64,
}

/// Why it stopped.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// An object was not taken.
    #[error("{object} was not applied: {source}; run the same command again, and it goes on from there")]
    NotApplied {
        /// `kind/name`.
        object: String,
        /// What the API said.
        source: ApiError,
    },
    /// Something there cannot be looked at.
    #[error("{object} cannot be looked at: {source}")]
    NotSeen {
        /// `kind/name`.
        object: String,
        /// What the API said.
        source: ApiError,
    },
    /// A claim holds something else.
    #[error(
        "claim {claim} is in namespace {namespace} already and was not made for this: the application would start on what it \
         holds; remove it there, or, if it is of an earlier primary, bring the workload there with `tidelock failback`"
    )]
    Occupied {
        /// Its name.
        claim: String,
        /// Its namespace.
        namespace: String,
    },
}

/// Looks at what is there, before anybody is fenced. With a handover of an earlier run the plan is to be made anew, by it.
pub async fn look(calls: &impl ApplyCalls, plan: &Plan) -> Result<Standing, ApplyError> {
    let name = |object: &str| {
        let object = object.to_owned();
        move |source| ApplyError::NotSeen { object, source }
    };
    let there = calls.namespace(&plan.to).await.map_err(name(&format!("namespace {}", plan.to)))?;
    let Some(there) = there else {
        return Ok(Standing { namespace: false, handover: None, notes: Vec::new() });
    };
    let mut handover = None;
    if let Some(key) = plan.objects.iter().filter_map(Key::of).find(|key| key.to_string() == plan.workload) {
        let found = calls.read(&key.kind, &plan.to, &key.name).await.map_err(name(&plan.workload))?;
        handover = found.as_ref().and_then(handed_over);
    }
    Ok(Standing { namespace: true, handover, notes: differences(&plan.namespace, &there) })
}

/// Refuses claims that are there and were not made for this plan.
pub async fn check_claims(calls: &impl ApplyCalls, plan: &Plan) -> Result<(), ApplyError> {
    for object in &plan.objects {
        let (kind, name) = ("PersistentVolumeClaim", object["metadata"]["name"].as_str().unwrap_or_default());
        if object["kind"] != kind || !plan.volumes.contains_key(name) {
            continue;
        }
        let found = calls.read(kind, &plan.to, name).await;
        let found =
            found.map_err(|source| ApplyError::NotSeen { object: format!("claim {name}"), source })?;
        let mark = |claim: &Value| claim["metadata"]["annotations"][FILLED_WITH].clone();
        if found.is_some_and(|found| mark(&found) != mark(object)) {
            return Err(ApplyError::Occupied { claim: name.to_owned(), namespace: plan.to.clone() });
        }
    }
    Ok(())
}

/// The kinds of a plan that the cluster there does not know, API version and kind: what is applied is known beforehand.
pub async fn unknown_kinds(
    calls: &impl ApplyCalls,
    plan: &Plan,
) -> Result<BTreeSet<(String, String)>, ApplyError> {
    let mut unknown = BTreeSet::new();
    for (version, kind) in plan.custom_kinds() {
        let known = calls.kinds(&version).await;
        let known = known.map_err(|source| ApplyError::NotSeen { object: version.clone(), source })?;
        if !known.contains(&kind) {
            unknown.insert((version, kind));
        }
    }
    Ok(unknown)
}

/// What a workload's template says of how its pods come to their data.
pub fn handed_over(workload: &Value) -> Option<Handover> {
    let annotations = &workload["spec"]["template"]["metadata"]["annotations"];
    let text = |name: &str| annotations[format!("tidelock.dev/{name}")].as_str().map(str::to_owned);
    let epoch = text("epoch").and_then(|epoch| epoch.parse().ok());
    Some(Handover { at: text("restore")?, epoch, receiver: text("receiver") })
}

/// Labels that the namespace would have if it were made now.
fn differences(planned: &Value, there: &Value) -> Vec<String> {
    let labels = planned["metadata"]["labels"].as_object().into_iter().flatten();
    let other = labels.filter(|(key, value)| there["metadata"]["labels"][key.as_str()] != **value);
    let name = there["metadata"]["name"].as_str().unwrap_or_default();
    let told = |(key, value): (&String, &Value)| {
        format!(
            "namespace {name} is there without the label {key}={}, which the old one had",
            value.as_str().unwrap_or_default()
        )
    };
    other.map(told).collect()
}

/// Applies what is planned, then waits until the workload is ready, for at most `patience`.
pub async fn carry_out(
    calls: &impl ApplyCalls,
    plan: &Plan,
    patience: Option<Duration>,
) -> Result<Applied, ApplyError> {
    let begun = Instant::now();
    let namespace_created = create_namespace(calls, plan).await?;
    for object in &plan.objects {
        let named = Key::of(object).map_or_else(|| "an object".to_owned(), |key| key.to_string());
        let applied = calls.apply(object).await;
        applied.map_err(|source| ApplyError::NotApplied { object: named.clone(), source })?;
        info!(object = %named, namespace = %plan.to, "applied");
    }
    let apply_ms = begun.elapsed().as_secs_f64() * 1e3;
    let workload = plan.objects.iter().filter_map(Key::of).find(|key| key.to_string() == plan.workload);
    let begun = Instant::now();
    let (mut ready, mut waiting) = (None, Vec::new());
    if let (Some(patience), Some(key)) = (patience, workload) {
        let seen = ready::wait(calls, &key, &plan.to, patience).await;
        let seen = seen.map_err(|source| ApplyError::NotSeen { object: plan.workload.clone(), source })?;
        ready = Some(seen == Waited::Ready);
        if let Waited::Not(reasons) = seen {
            waiting = reasons;
        }
    }
    let ready_ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(Applied { namespace_created, objects: plan.objects.len(), ready, waiting, apply_ms, ready_ms })
}

/// Makes the namespace unless it is there; tells whether it did.
pub(crate) async fn create_namespace(calls: &impl ApplyCalls, plan: &Plan) -> Result<bool, ApplyError> {
    let object = || format!("namespace {}", plan.to);
    let there = calls.namespace(&plan.to).await;
    if there.map_err(|source| ApplyError::NotSeen { object: object(), source })?.is_some() {
        return Ok(false);
    }
    match calls.create_namespace(&plan.namespace).await {
        Ok(()) => Ok(true),
        Err(ApiError::Conflict(_)) => Ok(false),
        Err(source) => Err(ApplyError::NotApplied { object: object(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::shelf::Shelf;

    fn plan() -> Plan {
        let object =
            |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name, "namespace": "shop"}});
        let mut claim = object("PersistentVolumeClaim", "data-orders-0");
        claim["metadata"]["annotations"] = json!({FILLED_WITH: "shop/data-orders-0 for epoch 2"});
        let mut set = object("StatefulSet", "orders");
        set["spec"] = json!({"replicas": 1, "template": {"metadata": {"annotations":
            {"tidelock.dev/restore": "2026-01-31T12:30:00Z", "tidelock.dev/epoch": "2"}}}});
        let volume = "shop/data-orders-0".parse().expect("a name");
        Plan {
            workload: "statefulset/orders".to_owned(),
            from: "shop".to_owned(),
            to: "shop".to_owned(),
            namespace: json!({"metadata": {"name": "shop", "labels": {"a": "b"}}}),
            objects: vec![object("Secret", "password"), claim, set],
            volumes: BTreeMap::from([("data-orders-0".to_owned(), volume)]),
            warnings: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_namespace_is_made_objects_are_applied_in_order_and_the_workload_is_waited_for() {
        let shelf = Shelf::default();
        let done = carry_out(&shelf, &plan(), Some(Duration::from_secs(60))).await.expect("done");
        assert_eq!((done.namespace_created, done.objects, done.ready), (true, 3, Some(true)));
        let wanted = [
            "create namespace shop",
            "apply secret/password",
            "apply persistentvolumeclaim/data-orders-0",
            "apply statefulset/orders",
        ];
        assert_eq!(shelf.done(), wanted);
        // Again: nothing is made twice.
        let again = carry_out(&shelf, &plan(), None).await.expect("done");
        assert_eq!((again.namespace_created, again.ready), (false, None));
    }

    #[tokio::test]
    async fn what_is_refused_stops_it_before_what_needs_it() {
        let shelf = Shelf::default();
        shelf.refuse("secret/password");
        let failed = carry_out(&shelf, &plan(), None).await.expect_err("refused");
        assert!(failed.to_string().contains("secret/password"), "{failed}");
        assert_eq!(shelf.done(), ["create namespace shop"]);
    }

    #[tokio::test]
    async fn a_claim_that_holds_something_else_is_refused_and_an_own_one_is_not() {
        let shelf = Shelf::default();
        assert!(!look(&shelf, &plan()).await.expect("seen").namespace);
        check_claims(&shelf, &plan()).await.expect("nothing is there");
        carry_out(&shelf, &plan(), None).await.expect("done");
        check_claims(&shelf, &plan()).await.expect("they are this plan's");
        let mut other = plan();
        other.objects[1]["metadata"]["annotations"][FILLED_WITH] = json!("shop/data-orders-0 for epoch 4");
        let refused = check_claims(&shelf, &other).await.expect_err("of an earlier failover");
        assert!(refused.to_string().contains("tidelock failback"), "{refused}");
        // A claim that is not to be filled may be there.
        other.volumes.clear();
        check_claims(&shelf, &other).await.expect("it is nobody's");
    }

    #[tokio::test]
    async fn an_earlier_run_is_recognised_and_a_namespace_of_others_is_told_of() {
        let shelf = Shelf::default();
        shelf.put(json!({"kind": "Namespace", "metadata": {"name": "shop"}}));
        let standing = look(&shelf, &plan()).await.expect("seen");
        assert_eq!((standing.namespace, &standing.handover), (true, &None));
        assert!(standing.notes[0].contains("a=b"), "{:?}", standing.notes);
        carry_out(&shelf, &plan(), None).await.expect("done");
        let handover = look(&shelf, &plan()).await.expect("seen").handover.expect("it is there");
        assert_eq!((handover.at.as_str(), handover.epoch), ("2026-01-31T12:30:00Z", Some(2)));
    }

    #[tokio::test]
    async fn kinds_that_are_not_there_are_known_before_anything_is_done() {
        let shelf = Shelf::default();
        shelf.know("cert-manager.io/v1", "Certificate");
        let mut plan = plan();
        for (version, kind) in [
            ("cert-manager.io/v1", "Certificate"),
            ("cert-manager.io/v1", "Issuer"),
            ("other.org/v1", "Certificate"),
        ] {
            plan.objects.insert(
                0,
                json!({"apiVersion": version, "kind": kind, "metadata": {"name": "a", "namespace": "shop"}}),
            );
        }
        // What the tests here have without a version is known anyway.
        plan.objects.iter_mut().filter(|one| one["apiVersion"].is_null()).for_each(|one| {
            let version = if one["kind"] == "StatefulSet" { "apps/v1" } else { "v1" };
            one["apiVersion"] = json!(version);
        });
        let unknown = unknown_kinds(&shelf, &plan).await.expect("seen");
        let pair = |version: &str, kind: &str| (version.to_owned(), kind.to_owned());
        assert_eq!(
            unknown,
            [pair("cert-manager.io/v1", "Issuer"), pair("other.org/v1", "Certificate")].into()
        );
        assert_eq!(shelf.done(), Vec::<String>::new());
    }
}
