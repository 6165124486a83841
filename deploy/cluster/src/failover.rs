//! A plan carried out: everything applied in its order, and the workload waited for.
//!
//! Applying is idempotent, so a failover that was interrupted is run again. Nothing is deleted, whatever happens.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tidelock_manifests::{Key, Plan};
use tokio::time::sleep;
use tracing::info;

use crate::{
    api::{ApiError, ApplyCalls},
    limits,
};

/// What was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Applied {
    /// Objects that were applied.
    pub objects: usize,
    /// Whether the workload was ready in time; nothing if it was not waited for.
    pub ready: Option<bool>,
    /// How long it took, in milliseconds.
    pub took_ms: f64,
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
    /// The workload cannot be looked at.
    #[error("whether the workload is ready cannot be told: {0}")]
    NotSeen(ApiError),
}

/// Applies what is planned, then waits until the workload is ready, for at most `patience`.
pub async fn carry_out(
    calls: &impl ApplyCalls,
    plan: &Plan,
    patience: Option<Duration>,
) -> Result<Applied, ApplyError> {
    let begun = Instant::now();
    for object in &plan.objects {
        let named = Key::of(object).map_or_else(|| "an object".to_owned(), |key| key.to_string());
        let applied = calls.apply(object).await;
        applied.map_err(|source| ApplyError::NotApplied { object: named.clone(), source })?;
        info!(object = %named, namespace = %plan.to, "applied");
    }
    let workload = plan.objects.iter().find_map(|object| {
        let key = Key::of(object)?;
        (key.to_string() == plan.workload).then_some(key)
    });
    let mut ready = None;
    if let (Some(patience), Some(key)) = (patience, workload) {
        ready = Some(false);
        while begun.elapsed() < patience && ready == Some(false) {
            let found = calls.read(&key.kind, &plan.to, &key.name).await.map_err(ApplyError::NotSeen)?;
            ready = Some(found.is_some_and(|object| is_ready(&object)));
            if ready == Some(false) {
                sleep(limits::READY_LOOK_EVERY).await;
            }
        }
    }
    Ok(Applied { objects: plan.objects.len(), ready, took_ms: begun.elapsed().as_secs_f64() * 1e3 })
}

/// All replicas of what is wanted now are ready; the controller has seen what is wanted now.
fn is_ready(object: &Value) -> bool {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let (spec, status) = (&object["spec"], &object["status"]);
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let seen = match object["metadata"]["generation"].as_i64() {
        Some(generation) => number(&status["observedGeneration"]) >= generation,
        None => !status["observedGeneration"].is_null(),
    };
    seen && number(&status["readyReplicas"]) >= wanted && number(&status["updatedReplicas"]) >= wanted
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use serde_json::json;

    use super::*;

    /// Takes objects, and says that a workload is ready when it is looked at for the third time.
    #[derive(Default)]
    struct Shelf {
        taken: Mutex<Vec<String>>,
        looks: Mutex<usize>,
        refuses: Option<&'static str>,
    }

    impl ApplyCalls for Shelf {
        async fn apply(&self, object: &Value) -> Result<(), ApiError> {
            let key = Key::of(object).expect("a key").to_string();
            if self.refuses == Some(&key) {
                return Err(ApiError::Conflict("no".to_owned()));
            }
            self.taken.lock().expect("not poisoned").push(key);
            Ok(())
        }

        async fn read(&self, _: &str, _: &str, _: &str) -> Result<Option<Value>, ApiError> {
            let mut looks = self.looks.lock().expect("not poisoned");
            *looks += 1;
            let ready = if *looks < 3 { 0 } else { 1 };
            let status = json!({"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": 1});
            Ok(Some(json!({"spec": {"replicas": 1}, "status": status})))
        }
    }

    fn plan() -> Plan {
        let object = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name}});
        Plan {
            workload: "statefulset/orders".to_owned(),
            from: "shop".to_owned(),
            to: "shop".to_owned(),
            objects: vec![object("Secret", "password"), object("StatefulSet", "orders")],
            volumes: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    #[tokio::test]
    async fn objects_are_applied_in_order_and_the_workload_is_waited_for() {
        let shelf = Shelf::default();
        let done = carry_out(&shelf, &plan(), Some(Duration::from_secs(60))).await.expect("done");
        assert_eq!((done.objects, done.ready), (2, Some(true)));
        assert_eq!(*shelf.taken.lock().expect("not poisoned"), ["secret/password", "statefulset/orders"]);
        assert_eq!(*shelf.looks.lock().expect("not poisoned"), 3);
    }

    #[tokio::test]
    async fn what_is_refused_stops_it_before_what_needs_it() {
        let shelf = Shelf { refuses: Some("secret/password"), ..Shelf::default() };
        let failed = carry_out(&shelf, &plan(), None).await.expect_err("refused");
        assert!(failed.to_string().contains("secret/password"), "{failed}");
        assert!(shelf.taken.lock().expect("not poisoned").is_empty());
    }

    #[test]
    fn old_replicas_and_old_news_are_not_ready() {
        let object = |ready: i64, updated: i64, observed: i64| {
            json!({"metadata": {"generation": 2}, "spec": {"replicas": 2},
                "status": {"observedGeneration": observed, "readyReplicas": ready, "updatedReplicas": updated}})
        };
        assert!(is_ready(&object(2, 2, 2)));
        for not in [object(1, 2, 2), object(2, 1, 2), object(2, 2, 1), json!({})] {
            assert!(!is_ready(&not), "{not}");
        }
    }
}
