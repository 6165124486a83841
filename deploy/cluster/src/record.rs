//! What belongs to protected workloads, as files: one directory a namespace, one document a workload.
//!
//! A directory is a volume like any other, and a sidecar takes it to the journal. So a point in time has its manifests without
//! any notion of them at the receiver: they are what the volume held at that instant.
//!
//! Custom resources are listed by the rules of whoever runs the cluster. A kind that the cluster does not have is noted in each
//! document as left out.
//!
//! Objects are listed anew at every look and compared with what was written. The price is that what came and went between
//! two looks is not recorded. What cannot be listed is told of, and what was written before stays; nothing is ever removed,
//! because pods that are all gone are when the record is needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::api::PartialObjectMeta;
use thiserror::Error;
use tidelock_injector::STATUS;
use tidelock_manifests::{Document, Key, Rule, Scope, file_name};
use tidelock_proto::ids::check_part;
use tracing::{info, warn};

use crate::{
    api::{ApiError, RecorderCalls, kinds},
    limits,
};

/// Why nothing was recorded.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The pods cannot be listed.
    #[error("pods cannot be listed: {0}")]
    Pods(#[source] ApiError),
    /// A document cannot be written.
    #[error("{}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The workloads with protected pods, by namespace.
pub fn protected(pods: &[PartialObjectMeta<Pod>]) -> BTreeMap<String, BTreeSet<Key>> {
    let mut found: BTreeMap<String, BTreeSet<Key>> = BTreeMap::new();
    for pod in pods {
        let meta = &pod.metadata;
        let injected = meta.annotations.as_ref().is_some_and(|all| all.contains_key(STATUS));
        let namespace = meta.namespace.as_deref().filter(|name| check_part(name).is_ok());
        if let (true, Some(namespace), Some(workload)) = (injected, namespace, workload(meta)) {
            found.entry(namespace.to_owned()).or_default().insert(workload);
        }
    }
    found
}

/// The workload that made a pod. A ReplicaSet's name is its Deployment's, and a hash that the pod says.
pub(crate) fn workload(pod: &ObjectMeta) -> Option<Key> {
    let owners = pod.owner_references.iter().flatten();
    let owner = owners.into_iter().find(|owner| owner.controller == Some(true))?;
    let named = match owner.kind.as_str() {
        "StatefulSet" => format!("statefulset/{}", owner.name),
        "ReplicaSet" => {
            let hash = pod.labels.as_ref()?.get("pod-template-hash")?;
            format!("deployment/{}", owner.name.strip_suffix(&format!("-{hash}"))?)
        }
        _ => return None,
    };
    named.parse().ok()
}

/// Looks at everything once; tells the namespaces of which there are documents now, with their directories.
pub async fn look(
    calls: &impl RecorderCalls,
    directory: &Path,
    scope: &Scope,
    now: SystemTime,
) -> Result<BTreeMap<String, PathBuf>, RecordError> {
    let pods = calls.pods().await.map_err(RecordError::Pods)?;
    let mut written = BTreeMap::new();
    for (namespace, workloads) in protected(&pods) {
        let (objects, unknown) = match list(calls, &namespace, scope).await {
            Ok(listed) => listed,
            Err(error) => {
                warn!(%namespace, %error, "objects cannot be listed: what was recorded before stays");
                continue;
            }
        };
        let volume = directory.join(&namespace);
        for workload in workloads {
            let Some(mut document) = Document::record(&objects, &namespace, &workload, scope) else {
                warn!(%namespace, %workload, "a workload is not there whose pods are");
                continue;
            };
            for rule in &unknown {
                let all = format!("anything of {}.{}", rule.plural, rule.group);
                document.left_out.insert(all, format!("its cluster did not know {}", rule.api_version()));
            }
            let changed = put(directory, &volume.join(file_name(&workload)), &document.to_text())?;
            if changed {
                info!(%namespace, %workload, objects = document.objects.len(), "recorded");
            }
        }
        // A point now and then, so that retention thins these points as it does those of the data.
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let period = limits::RECORD_AT_LEAST_EVERY.as_secs();
        put(directory, &volume.join("recorded"), &format!("{}\n", since / period * period))?;
        written.insert(namespace, volume);
    }
    Ok(written)
}

/// The objects, and the rules whose kinds the cluster does not know. Who is not to record Secrets has no right to see them.
async fn list<'a>(
    calls: &impl RecorderCalls,
    namespace: &str,
    scope: &'a Scope,
) -> Result<(Vec<serde_json::Value>, Vec<&'a Rule>), ApiError> {
    let mut objects: Vec<_> = calls.namespace(namespace).await?.into_iter().collect();
    for kind in kinds().filter(|kind| scope.secrets || *kind != "Secret") {
        objects.extend(calls.objects(namespace, kind).await?);
    }
    let mut unknown = Vec::new();
    for rule in &scope.rules {
        match calls.custom(namespace, rule).await? {
            Some(found) => objects.extend(found),
            None => unknown.push(rule),
        }
    }
    Ok((objects, unknown))
}

/// Writes a file if it is another, whole or not at all; tells whether it was.
fn put(staging: &Path, path: &Path, text: &str) -> Result<bool, RecordError> {
    if fs::read(path).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(false);
    }
    let half = staging.join("half-written");
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(staging))?;
        fs::write(&half, text)?;
        fs::rename(&half, path)
    };
    write().map_err(|source| RecordError::Write { path: path.to_owned(), source })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(owner: &Value, labels: &Value, injected: bool) -> Value {
        let annotations = if injected { json!({STATUS: "{}"}) } else { json!({}) };
        json!({"metadata": {"name": "p", "namespace": "shop", "labels": labels, "annotations": annotations,
            "ownerReferences": [owner]}})
    }

    fn owner(kind: &str, name: &str) -> Value {
        json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true})
    }

    struct Shelf(Vec<Value>, Vec<Value>);

    impl RecorderCalls for Shelf {
        async fn pods(&self) -> Result<Vec<PartialObjectMeta<Pod>>, ApiError> {
            Ok(self.0.iter().map(|pod| serde_json::from_value(pod.clone()).expect("a pod")).collect())
        }

        async fn objects(&self, _: &str, kind: &str) -> Result<Vec<Value>, ApiError> {
            Ok(self.1.iter().filter(|object| object["kind"] == kind).cloned().collect())
        }

        async fn custom(&self, _: &str, rule: &Rule) -> Result<Option<Vec<Value>>, ApiError> {
            let found: Vec<_> = self.1.iter().filter(|one| one["kind"] == *rule.kind).cloned().collect();
            Ok((!found.is_empty()).then_some(found))
        }

        async fn namespace(&self, name: &str) -> Result<Option<Value>, ApiError> {
            Ok(Some(json!({"kind": "Namespace", "metadata": {"name": name, "labels": {"team": "a"}}})))
        }
    }

    #[test]
    fn the_workloads_of_protected_pods_are_found() {
        let hash = json!({"pod-template-hash": "5d7c"});
        let pods = [
            pod(&owner("StatefulSet", "orders"), &json!({}), true),
            pod(&owner("StatefulSet", "plain"), &json!({}), false),
            pod(&owner("ReplicaSet", "web-shop-5d7c"), &hash, true),
            pod(&owner("ReplicaSet", "alone"), &hash, true),
            pod(&owner("Job", "once"), &json!({}), true),
        ];
        let pods: Vec<_> =
            pods.iter().map(|pod| serde_json::from_value(pod.clone()).expect("a pod")).collect();
        let found = protected(&pods);
        let names: Vec<String> = found["shop"].iter().map(ToString::to_string).collect();
        assert_eq!(names, ["deployment/web-shop", "statefulset/orders"]);
    }

    #[tokio::test]
    async fn documents_are_written_when_something_changed_and_stay_when_all_is_gone() {
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "orders", "namespace": "shop", "uid": "1"}, "spec": {"replicas": 1}});
        let mut shelf = Shelf(vec![pod(&owner("StatefulSet", "orders"), &json!({}), true)], vec![set]);
        let dir = tempfile::tempdir().expect("temporary directory");
        let now = SystemTime::now();
        let file = dir.path().join("shop/statefulset.orders.json");
        let stamp = || fs::metadata(&file).expect("there").modified().expect("a time");
        let written = look(&shelf, dir.path(), &Scope::default(), now).await.expect("looked");
        assert_eq!(written["shop"], dir.path().join("shop"));
        let first = stamp();
        // What a cluster says of an object is no change.
        shelf.1[0]["metadata"]["resourceVersion"] = json!("2");
        look(&shelf, dir.path(), &Scope::default(), now).await.expect("looked");
        assert_eq!(stamp(), first);
        shelf.1[0]["spec"]["replicas"] = json!(2);
        look(&shelf, dir.path(), &Scope::default(), now).await.expect("looked");
        let text = fs::read(&file).expect("there");
        let document = Document::parse(&text).expect("a document");
        assert_eq!(document.objects[0]["spec"]["replicas"], 2);
        assert_eq!(document.namespace_labels["team"], "a");
        shelf.0.clear();
        shelf.1.clear();
        look(&shelf, dir.path(), &Scope::default(), now).await.expect("looked");
        assert_eq!(fs::read(&file).expect("there"), text);
    }

    #[tokio::test]
    async fn custom_resources_are_recorded_by_rule_and_a_kind_that_is_not_there_is_noted() {
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"template": {"metadata": {"labels": {"app": "orders"}}}}});
        let monitor = |name: &str, app: &str| {
            json!({"apiVersion": "m.example.org/v1", "kind": "Monitor", "metadata": {"name": name, "namespace": "shop"},
                "spec": {"selector": {"app": app}}, "status": {"seen": 1}})
        };
        let all = vec![set, monitor("orders", "orders"), monitor("web", "web")];
        let shelf = Shelf(vec![pod(&owner("StatefulSet", "orders"), &json!({}), true)], all);
        let rules = [
            json!({"group": "m.example.org", "version": "v1", "kind": "Monitor", "plural": "monitors",
                "selects": [{"field": "/spec/selector", "kind": "Pod"}]}),
            json!({"group": "n.example.org", "version": "v2", "kind": "Other", "plural": "others"}),
        ];
        let rules = rules.iter().map(|rule| rule.to_string().parse().expect("a rule")).collect();
        let dir = tempfile::tempdir().expect("temporary directory");
        let scope = Scope { secrets: true, rules };
        look(&shelf, dir.path(), &scope, SystemTime::now()).await.expect("looked");
        let text = fs::read(dir.path().join("shop/statefulset.orders.json")).expect("there");
        let document = Document::parse(&text).expect("a document");
        assert!(document.custom.keys().eq(["monitor.m.example.org/orders"]), "{:?}", document.custom);
        assert_eq!(document.objects[0]["status"], Value::Null);
        let left: Vec<_> = document.left_out.iter().map(|(what, why)| format!("{what}: {why}")).collect();
        assert_eq!(left, ["anything of others.n.example.org: its cluster did not know n.example.org/v2"]);
    }
}
