//! Waiting for a workload: until all of its pods are ready, or until none is left.

use std::time::{Duration, Instant};

use serde_json::Value;
use tidelock_manifests::Key;
use tokio::time::sleep;

use crate::{
    api::{ApiError, ApplyCalls},
    limits,
};

/// How the wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// As it was wanted.
    Ready,
    /// Not in time; what the pods say.
    Not(Vec<String>),
}

/// Waits until a workload is ready.
pub async fn wait(
    calls: &impl ApplyCalls,
    workload: &Key,
    namespace: &str,
    patience: Duration,
) -> Result<Waited, ApiError> {
    let begun = Instant::now();
    loop {
        let found = calls.read(&workload.kind, namespace, &workload.name).await?;
        if found.as_ref().is_some_and(is_ready) {
            return Ok(Waited::Ready);
        }
        if begun.elapsed() >= patience {
            let selector = found.as_ref().and_then(selector);
            let pods = match selector {
                Some(selector) => calls.pods(namespace, &selector).await?,
                None => Vec::new(),
            };
            return Ok(Waited::Not(pods.iter().flat_map(troubles).collect()));
        }
        sleep(limits::READY_LOOK_EVERY).await;
    }
}

/// Waits until a workload that was told to have no pods has none.
pub async fn wait_for_rest(
    calls: &impl ApplyCalls,
    workload: &Value,
    namespace: &str,
    patience: Duration,
) -> Result<Waited, ApiError> {
    let begun = Instant::now();
    // Without a selector nobody could have made pods.
    let Some(selector) = selector(workload) else { return Ok(Waited::Ready) };
    loop {
        let pods = calls.pods(namespace, &selector).await?;
        if pods.is_empty() {
            return Ok(Waited::Ready);
        }
        if begun.elapsed() >= patience {
            let name = |pod: &Value| {
                format!("{} is still there", pod["metadata"]["name"].as_str().unwrap_or("a pod"))
            };
            return Ok(Waited::Not(pods.iter().map(name).collect()));
        }
        sleep(limits::READY_LOOK_EVERY).await;
    }
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

/// A workload's selector as a query writes it; nothing if it has none.
fn selector(workload: &Value) -> Option<String> {
    let labels = workload["spec"]["selector"]["matchLabels"].as_object();
    let terms: Vec<String> =
        labels?.iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    (!terms.is_empty()).then(|| terms.join(","))
}

/// What keeps a pod from being ready, as its status says it.
pub(crate) fn troubles(pod: &Value) -> Vec<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or("a pod");
    let status = &pod["status"];
    let mut found = Vec::new();
    let statuses = ["initContainerStatuses", "containerStatuses"].map(|list| status[list].as_array());
    for one in statuses.into_iter().flatten().flatten() {
        let container = one["name"].as_str().unwrap_or("a container");
        let last = &one["lastState"]["terminated"];
        let message = [&one["state"]["waiting"]["message"], &last["message"], &last["reason"]];
        let message = message.into_iter().find_map(Value::as_str).unwrap_or_default().trim();
        if let Some(reason) =
            one["state"]["waiting"]["reason"].as_str().filter(|reason| *reason != "PodInitializing")
        {
            found.push(format!("{name}, {container}: {reason} {message}").trim_end().to_owned());
        } else if let Some(code) = one["state"]["terminated"]["exitCode"].as_i64().filter(|code| *code != 0) {
            let said = one["state"]["terminated"]["message"].as_str().unwrap_or_default().trim();
            found.push(format!("{name}, {container}: ended with {code} {said}").trim_end().to_owned());
        } else if one["state"]["running"].is_object() && one["ready"] == false && one["started"] == true {
            found.push(format!("{name}, {container}: runs and is not ready"));
        }
    }
    let unscheduled = status["conditions"].as_array().into_iter().flatten();
    let unscheduled = unscheduled.filter(|one| one["type"] == "PodScheduled" && one["status"] == "False");
    found.extend(
        unscheduled.map(|one| format!("{name}: {}", one["message"].as_str().unwrap_or("not scheduled"))),
    );
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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

    #[test]
    fn what_a_pod_waits_for_is_said_in_its_own_words() {
        let pod = |status: Value| json!({"metadata": {"name": "orders-0"}, "status": status});
        let looping = json!({"name": "tidelock-restore", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"message": "tidelock: volume shop/x is not there\n"}}});
        let unready = json!({"name": "db", "ready": false, "started": true, "state": {"running": {}}});
        let later = json!({"name": "db", "state": {"waiting": {"reason": "PodInitializing"}}});
        let pending =
            json!({"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"});
        for (status, said) in [
            (
                json!({"initContainerStatuses": [looping], "containerStatuses": [later]}),
                vec!["orders-0, tidelock-restore: CrashLoopBackOff tidelock: volume shop/x is not there"],
            ),
            (json!({"containerStatuses": [unready]}), vec!["orders-0, db: runs and is not ready"]),
            (
                json!({"containerStatuses": [{"name": "copy-0", "state": {"terminated": {"exitCode": 2, "message": "no"}}}]}),
                vec!["orders-0, copy-0: ended with 2 no"],
            ),
            (json!({"conditions": [pending]}), vec!["orders-0: 0/3 nodes are available"]),
            (json!({"containerStatuses": [{"name": "db", "ready": true, "state": {"running": {}}}]}), vec![]),
        ] {
            assert_eq!(troubles(&pod(status)), said);
        }
    }

    #[test]
    fn a_selector_is_a_query() {
        let labels = json!({"spec": {"selector": {"matchLabels": {"app": "orders", "tier": "db"}}}});
        assert_eq!(selector(&labels).as_deref(), Some("app=orders,tier=db"));
        assert_eq!(selector(&json!({})), None);
    }
}
