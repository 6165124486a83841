//! What an API server would say of objects, as far as their schema and Pod Security say it.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use tempfile::TempDir;
use tidelock_tests::process;

use crate::chart::pod_security;

/// The kinds of these objects, all of which are valid: against the schema of the oldest version and of a new one, and their pods
/// pass *restricted*. Schemas of kinds that not every cluster has are not known here.
pub(crate) fn kinds_that_are_valid(objects: &[Value]) -> BTreeSet<String> {
    let version = |object: &Value| object["apiVersion"].as_str().unwrap_or_default().to_owned();
    let own = |object: &&Value| {
        version(object).split_once('/').is_none_or(|(group, _)| !group.ends_with("manager.io"))
    };
    let known: Vec<&Value> = objects.iter().filter(own).collect();
    let dir = TempDir::new().expect("temporary directory");
    let file = dir.path().join("sent.yaml");
    let text: String = known.iter().map(|object| format!("---\n{object}\n")).collect();
    fs::write(&file, text).expect("writable");
    for version in ["1.29", "1.37"] {
        let mut validate = Command::new("kubernetes-validate");
        let out = process::output(validate.args(["-k", version, "--strict", "--quiet"]).arg(&file));
        assert!(out.status.success(), "{version}: {out:?}");
    }
    for object in &known {
        let template = &object["spec"]["template"];
        if template.is_object() {
            let faults = pod_security::restricted(template);
            assert!(faults.is_empty(), "{} {}: {faults:?}", object["kind"], object["metadata"]["name"]);
        }
    }
    known.iter().filter_map(|object| object["kind"].as_str().map(str::to_owned)).collect()
}
