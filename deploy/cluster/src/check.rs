//! Which pods that asked for protection have it: what the injector reports, for a person who asks now.
//!
//! Pods are judged by the function that decides on new ones. What only the injector's operator knows is assumed: that it has a
//! receiver, and leaves out no namespace but the cluster's own.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use tidelock_injector::{Config, Namespace, Protection, protection};

use crate::{
    api::{ApiError, CheckCalls},
    record::workload,
    watch::Owner,
};

/// How a pod that asked stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its sidecar runs.
    Protected,
    /// Its sidecar does not run yet.
    Starting,
    /// It is not protected.
    Unprotected,
}

/// A pod that asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Where it is.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// What it belongs to, `kind/name`; itself if that is nothing.
    pub owner: String,
    /// How it stands.
    pub state: State,
    /// Why it is not protected, as the injector's reasons say it.
    pub reason: Option<&'static str>,
    /// What to do about it.
    pub message: Option<String>,
}

/// Looks at the pods of a namespace, or of all: those that asked, by namespace and name.
pub async fn check(calls: &impl CheckCalls, namespace: Option<&str>) -> Result<Vec<Checked>, ApiError> {
    let labels = calls.labels(namespace).await?;
    let pods = calls.pods(namespace).await?;
    let config = Config { receiver: Some("assumed:1".to_owned()), ..Config::default() };
    let mut checked: Vec<Checked> = pods.iter().filter_map(|pod| judge(pod, &labels, &config)).collect();
    checked.sort_by(|one, other| (&one.namespace, &one.pod).cmp(&(&other.namespace, &other.pod)));
    Ok(checked)
}

fn judge(pod: &Pod, labels: &BTreeMap<String, BTreeMap<String, String>>, config: &Config) -> Option<Checked> {
    let meta = &pod.metadata;
    let name = meta.namespace.clone()?;
    let namespace = Namespace { labels: labels.get(&name).cloned().unwrap_or_default(), name };
    let (state, note) = match protection(pod, &namespace, config) {
        Protection::Protected => (State::Protected, None),
        Protection::Starting => (State::Starting, None),
        Protection::Unprotected(note) => (State::Unprotected, Some(note)),
        Protection::NotAsked | Protection::Nothing | Protection::Over => return None,
    };
    let owner = workload(meta).map_or_else(|| Owner::of(meta).to_string(), |key| key.to_string());
    Some(Checked {
        namespace: namespace.name,
        pod: meta.name.clone()?,
        owner,
        state,
        reason: note.as_ref().map(|note| note.reason.code()),
        message: note.map(|note| note.message),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    struct Shelf(Vec<Value>);

    impl CheckCalls for Shelf {
        async fn labels(
            &self,
            _: Option<&str>,
        ) -> Result<BTreeMap<String, BTreeMap<String, String>>, ApiError> {
            let asks = BTreeMap::from([("tidelock.dev/inject".to_owned(), "true".to_owned())]);
            Ok(BTreeMap::from([("shop".to_owned(), asks), ("other".to_owned(), BTreeMap::new())]))
        }

        async fn pods(&self, namespace: Option<&str>) -> Result<Vec<Pod>, ApiError> {
            let here = |pod: &&Value| namespace.is_none_or(|name| pod["metadata"]["namespace"] == name);
            let pods = self.0.iter().filter(here).cloned();
            Ok(pods.map(|pod| serde_json::from_value(pod).expect("a pod")).collect())
        }
    }

    fn pod(namespace: &str, name: &str, owner: &Value, user: &Value) -> Value {
        json!({
            "metadata": {"name": name, "namespace": namespace, "uid": name,
                "labels": {"pod-template-hash": "5d7c"}, "ownerReferences": owner},
            "spec": {
                "securityContext": user,
                "containers": [{"name": "db", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            },
        })
    }

    #[tokio::test]
    async fn each_pod_that_asked_is_there_with_its_reason() {
        let owner = |kind: &str, name: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true}]);
        let user = json!({"runAsUser": 999});
        let mut running = pod("shop", "orders-0", &owner("StatefulSet", "orders"), &user);
        running["spec"]["initContainers"] =
            json!([{"name": "tidelock", "restartPolicy": "Always", "args": ["sidecar"]}]);
        let mut starting = running.clone();
        starting["metadata"]["name"] = json!("orders-1");
        running["status"] = json!({"initContainerStatuses": [{"name": "tidelock", "image": "", "imageID": "",
            "ready": true, "restartCount": 0, "state": {"running": {}}}]});
        let shelf = Shelf(vec![
            pod("shop", "web-5d7c-x", &owner("ReplicaSet", "web-5d7c"), &json!({})),
            starting,
            running,
            pod("shop", "alone", &json!([]), &user),
            pod("other", "db-0", &owner("StatefulSet", "db"), &user),
        ]);
        let checked = check(&shelf, None).await.expect("looked");
        let told: Vec<_> =
            checked.iter().map(|one| (one.pod.as_str(), one.owner.as_str(), one.state, one.reason)).collect();
        let wanted = [
            ("alone", "pod/alone", State::Unprotected, Some("missed")),
            ("orders-0", "statefulset/orders", State::Protected, None),
            ("orders-1", "statefulset/orders", State::Starting, None),
            ("web-5d7c-x", "deployment/web", State::Unprotected, Some("unknown-user")),
        ];
        assert_eq!(told, wanted);
        assert!(check(&shelf, Some("other")).await.expect("looked").is_empty());
        let json = serde_json::to_value(&checked[0]).expect("JSON");
        assert_eq!((&json["state"], &json["namespace"]), (&json!("unprotected"), &json!("shop")));
    }
}
