//! Pods, and what becomes of them.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tidelock_injector::{Answer, Config, review};

/// An injector with a receiver.
pub(crate) fn config() -> Config {
    Config {
        receiver: Some("standby.example.org:9900".to_owned()),
        own_namespace: Some("tidelock".to_owned()),
        ..Config::default()
    }
}

/// Labels `tidelock.dev/NAME: "true"`.
pub(crate) fn labels(names: &[&str]) -> BTreeMap<String, String> {
    names.iter().map(|name| (format!("tidelock.dev/{name}"), "true".to_owned())).collect()
}

/// A review of the creation of a pod in namespace `shop`.
pub(crate) fn request(pod: &Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "842cc06a-e216-4046-85ad-7aff4e650f87",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "object": pod,
            "dryRun": false,
        }
    })
}

/// The answer to a request, in a namespace with these labels.
pub(crate) fn ask(request: &Value, names: &[&str]) -> Answer {
    review(&serde_json::to_vec(request).unwrap(), &labels(names), &config()).unwrap()
}

/// The response in an answer.
pub(crate) fn response(answer: &Answer) -> Value {
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(
        (&body["apiVersion"], &body["kind"]),
        (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
    );
    body["response"].clone()
}

/// The pod as the answer's patch makes it.
pub(crate) fn patched(pod: &Value, answer: &Answer) -> Value {
    let response = response(answer);
    let Some(patch) = response["patch"].as_str() else { return pod.clone() };
    assert_eq!(response["patchType"], "JSONPatch");
    let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

/// A pod after one pass, in a namespace that asks.
pub(crate) fn injected(pod: &Value, names: &[&str]) -> Value {
    let answer = ask(&request(pod), names);
    assert!(answer.injected, "{:?}", answer.notes);
    patched(pod, &answer)
}

/// The reasons in an answer's notes.
pub(crate) fn reasons(answer: &Answer) -> Vec<&'static str> {
    answer.notes.iter().map(|note| note.reason.code()).collect()
}

/// A restricted pod with one claim.
pub(crate) fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "db-0", "namespace": "shop", "labels": {"tidelock.dev/inject": "true"}},
        "spec": {
            "securityContext": {
                "runAsUser": 999, "runAsGroup": 998, "fsGroup": 997, "runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"}
            },
            "containers": [{
                "name": "db",
                "image": "postgres:15",
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}]
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}]
        }
    })
}

/// The same with annotations `tidelock.dev/NAME`.
pub(crate) fn pod_with(annotations: &[(&str, &str)]) -> Value {
    let mut pod = pod();
    for (name, text) in annotations {
        pod["metadata"]["annotations"][format!("tidelock.dev/{name}")] = json!(text);
    }
    pod
}

/// The container of this name, of either kind.
pub(crate) fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    let lists = ["containers", "initContainers"].map(|list| pod["spec"][list].as_array());
    lists.into_iter().flatten().flatten().find(|container| container["name"] == name)
}

/// The sidecar of a pod that has one.
pub(crate) fn sidecar(pod: &Value) -> &Value {
    container(pod, "tidelock").expect("a sidecar")
}

/// The arguments of a container.
pub(crate) fn arguments(container: &Value) -> Vec<&str> {
    container["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
