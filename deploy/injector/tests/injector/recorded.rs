//! Reviews that an API server (1.36) really sent.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use tidelock_injector::{ReviewError, review};

use crate::world::{ask, config, patched, reasons, response, sidecar};

fn recorded(name: &str) -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(format!("admissionreview-{name}.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_pod_of_a_statefulset_is_protected() {
    let request = recorded("create-statefulset-pod");
    let pod = &request["request"]["object"];
    let answer = ask(&request, &["inject"]);
    let said = response(&answer);
    assert_eq!((&said["uid"], &said["allowed"]), (&request["request"]["uid"], &json!(true)));
    assert_eq!(said["auditAnnotations"]["outcome"], "injected");
    let after = patched(pod, &answer);
    let sidecar = sidecar(&after);
    assert_eq!(sidecar["args"][0], "sidecar");
    assert_eq!(sidecar["args"][1], "--volume=t1/data-db-1=/data");
    assert_eq!(sidecar["volumeMounts"][0], json!({"name": "data", "mountPath": "/data", "readOnly": true}));
    // The application is root, with what the runtime gives: the sidecar needs one thing of it.
    assert_eq!(sidecar["securityContext"]["runAsUser"], 0);
    assert_eq!(sidecar["securityContext"]["capabilities"], json!({"add": ["DAC_OVERRIDE"], "drop": ["ALL"]}));
    // Everything else is what it was.
    let mut before = after.clone();
    before["metadata"].as_object_mut().unwrap().remove("annotations");
    before["spec"].as_object_mut().unwrap().remove("initContainers");
    before["spec"]["volumes"].as_array_mut().unwrap().pop();
    assert_eq!(&before, pod);
}

#[test]
fn the_label_of_a_namespace_is_not_in_a_review() {
    let answer = ask(&recorded("create-statefulset-pod"), &[]);
    assert!(!answer.injected);
    assert_eq!(reasons(&answer), ["not-asked"]);
    assert_eq!(response(&answer)["warnings"], Value::Null, "who did not ask is not bothered");
}

#[test]
fn a_dry_run_is_answered_as_the_real_one() {
    let [dry, real] = ["create-dry-run", "create-pod"].map(recorded);
    assert_eq!((&dry["request"]["dryRun"], &real["request"]["dryRun"]), (&json!(true), &json!(false)));
    for request in [&dry, &real] {
        let answer = ask(request, &["inject"]);
        assert_eq!(reasons(&answer), ["no-writable-pvc"]);
        let warnings = &response(&answer)["warnings"];
        assert!(
            warnings[0].as_str().unwrap().starts_with("tidelock: not injected (no-writable-pvc): "),
            "{warnings}"
        );
    }
    let pod = recorded("create-statefulset-pod");
    let mut dry = pod.clone();
    dry["request"]["dryRun"] = json!(true);
    assert_eq!(ask(&dry, &["inject"]).body, ask(&pod, &["inject"]).body);
}

#[test]
fn only_the_creation_of_pods_is_looked_at() {
    let good = recorded("create-statefulset-pod");
    let changes: [(&str, Value); 3] = [
        ("operation", json!("UPDATE")),
        ("subResource", json!("ephemeralcontainers")),
        ("kind", json!({"group": "apps", "version": "v1", "kind": "Deployment"})),
    ];
    for (field, value) in changes {
        let mut other = good.clone();
        other["request"][field] = value;
        let answer = ask(&other, &["inject"]);
        assert_eq!((answer.injected, reasons(&answer)), (false, vec!["not-a-pod"]), "{field}");
        assert_eq!(response(&answer)["allowed"], true);
    }
}

#[test]
fn what_is_no_review_is_an_error_and_a_broken_pod_is_admitted() {
    let none = BTreeMap::new();
    assert!(matches!(review(b"{}", &none, &config()), Err(ReviewError::Json(_))));
    let mut old = recorded("create-pod");
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let old = serde_json::to_vec(&old).unwrap();
    assert!(matches!(review(&old, &none, &config()), Err(ReviewError::Version { .. })));
    let mut broken = recorded("create-pod");
    broken["request"]["object"]["spec"]["containers"] = json!("none");
    let answer = ask(&broken, &["inject"]);
    assert_eq!(reasons(&answer), ["unreadable-pod"]);
    assert_eq!(response(&answer)["allowed"], true);
}
