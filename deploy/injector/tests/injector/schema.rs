//! What the API server's own schema says of pods after the patch: `kubernetes-validate --strict`, for the oldest version with
//! sidecars that are on by default, and a new one.

use std::{fs, process::Command};

use proptest::strategy::{Strategy, ValueTree};
use serde_json::Value;

use crate::{
    shapes,
    world::{ask, injected, patched, pod_with, request},
};

const PODS: usize = 60;
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

fn has_validator() -> bool {
    let there =
        Command::new("kubernetes-validate").arg("--version").output().is_ok_and(|out| out.status.success());
    let required = std::env::var_os("CI").is_some();
    assert!(there || !required, "kubernetes-validate is not installed: tests/run installs it");
    there
}

/// What the validator complains of, if it does.
fn faults(pods: &[Value], version: &str) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pods.yaml");
    let text: String = pods.iter().map(|pod| format!("---\n{pod}\n")).collect();
    fs::write(&file, text).unwrap();
    let mut command = Command::new("kubernetes-validate");
    let out = command.args(["-k", version, "--strict", "--no-warn"]).arg(&file).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (!out.status.success()).then_some(said)
}

#[test]
fn the_api_servers_schema_takes_what_comes_out() {
    if !has_validator() {
        eprintln!("skipped: kubernetes-validate is not installed");
        return;
    }
    let mut runner = shapes::runner();
    let mut pods: Vec<Value> = vec![
        injected(&pod_with(&[("tracker", "exact"), ("restore", "if-empty")]), &["allow-exact"]),
        injected(&pod_with(&[("sidecar-cpu-limit", "1"), ("log-level", "info")]), &[]),
    ];
    while pods.len() < PODS {
        let pod = shapes::pods().new_tree(&mut runner).unwrap().current();
        let answer = ask(&request(&pod), &["inject"]);
        if answer.injected {
            pods.push(patched(&pod, &answer));
        }
    }
    for version in VERSIONS {
        assert_eq!(faults(&pods, version), None, "{version}");
    }
    // The validator looks at the last of them, too.
    pods.last_mut().unwrap()["spec"]["initContainers"][0]["restart"] = "Always".into();
    assert!(faults(&pods, VERSIONS[1]).is_some());
}
