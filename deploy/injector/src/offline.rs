//! The same decision on files: pods, and the templates in what makes pods.
//!
//! The webhook only ever changes pods. On files there are no pods yet, so templates are changed instead. A StatefulSet's
//! claims have names that end with their pod's, which is known only when it runs; there the name is made by a variable.
//! The result is the same volume either way, so it does not matter which of the two a pod went through.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    config::Config,
    decide::{Namespace, decide},
    names::POD_VARIABLE,
    reason::{Note, Reason},
    yaml::{self, YamlError},
};

/// What files do not say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The namespace of what names none.
    pub namespace: String,
    /// Labels of namespaces that are not in the input.
    pub labels: BTreeMap<String, String>,
}

/// What became of a text.
#[derive(Debug)]
pub struct Injected {
    /// The text: documents that were not changed are as they were, byte for byte.
    pub text: String,
    /// What was found, in order.
    pub reports: Vec<Report>,
}

/// What became of one pod or template.
#[derive(Debug)]
pub struct Report {
    /// `KIND NAMESPACE/NAME`.
    pub subject: String,
    /// What was added, in words; empty if nothing was.
    pub added: Vec<String>,
    /// What was noted.
    pub notes: Vec<Note>,
}

/// A document that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("document {number}: {source}")]
pub struct DocumentError {
    /// Counted from 1.
    pub number: usize,
    /// Why.
    pub source: YamlError,
}

/// Adds sidecars to all pods and templates of a text that ask for it.
pub fn inject(text: &str, options: &Options, config: &Config) -> Result<Injected, DocumentError> {
    let read = |(index, raw)| match yaml::read(raw) {
        Ok(value) => Ok((raw, value)),
        Err(source) => Err(DocumentError { number: index + 1, source }),
    };
    let mut documents: Vec<(&str, Option<Value>)> =
        yaml::documents(text).enumerate().map(read).collect::<Result<_, _>>()?;
    let mut namespaces = BTreeMap::new();
    for (_, value) in &documents {
        value.iter().for_each(|value| collect_namespaces(value, &mut namespaces));
    }
    let mut work = Work { options, config, namespaces, reports: Vec::new() };
    let mut out = String::with_capacity(text.len());
    for (raw, value) in &mut documents {
        let Some(value) = value else {
            out.push_str(raw);
            continue;
        };
        if work.object(value) {
            if raw.starts_with("---") {
                out.push_str("---\n");
            }
            out.push_str(&yaml::write(value));
        } else {
            out.push_str(raw);
        }
    }
    Ok(Injected { text: out, reports: work.reports })
}

fn collect_namespaces(object: &Value, found: &mut BTreeMap<String, BTreeMap<String, String>>) {
    if let Some(items) = list_items(object) {
        items.iter().for_each(|item| collect_namespaces(item, found));
    } else if object["kind"] == "Namespace" && object["apiVersion"] == "v1" {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        found.insert(name, texts(&object["metadata"]["labels"]));
    }
}

fn list_items(object: &Value) -> Option<&Vec<Value>> {
    let is_list = object["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    object["items"].as_array().filter(|_| is_list)
}

fn texts(map: &Value) -> BTreeMap<String, String> {
    BTreeMap::deserialize(map).unwrap_or_default()
}

/// Where in an object of this kind a pod is described.
fn template(api_version: &str, kind: &str) -> Option<&'static str> {
    match (api_version, kind) {
        ("v1", "Pod") => Some(""),
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job")
        | ("v1", "ReplicationController") => Some("/spec/template"),
        ("batch/v1", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

struct Work<'a> {
    options: &'a Options,
    config: &'a Config,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    reports: Vec<Report>,
}

impl Work<'_> {
    /// Whether the object was changed.
    fn object(&mut self, object: &mut Value) -> bool {
        if list_items(object).is_some() {
            let items = object["items"].as_array_mut().into_iter().flatten();
            // Every one of them has its turn.
            return items.fold(false, |changed, item| self.object(item) | changed);
        }
        let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (word("apiVersion"), word("kind"));
        let Some(place) = template(&api_version, &kind) else { return false };
        let metadata = &object["metadata"];
        let name =
            metadata["name"].as_str().or_else(|| metadata["generateName"].as_str()).unwrap_or_default();
        let namespace = metadata["namespace"].as_str().unwrap_or(&self.options.namespace).to_owned();
        let subject = format!("{kind} {namespace}/{name}");
        let claims = object["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
        let Some(pod) = object.pointer_mut(place) else { return false };
        let (added, notes) = self.pod(pod, &namespace, &claims);
        let changed = !added.is_empty();
        self.reports.push(Report { subject, added, notes });
        changed
    }

    fn pod(&self, pod: &mut Value, namespace: &str, claims: &[Value]) -> (Vec<String>, Vec<Note>) {
        let mut seen = pod.clone();
        add_claims(&mut seen, claims);
        let typed = match Pod::deserialize(&seen) {
            Ok(typed) => typed,
            Err(error) => return (Vec::new(), vec![Note::skip(Reason::UnreadablePod, error.to_string())]),
        };
        let labels = self.namespaces.get(namespace).unwrap_or(&self.options.labels).clone();
        let outcome = decide(&typed, &Namespace { name: namespace.to_owned(), labels }, self.config);
        let Some(plan) = outcome.plan else { return (Vec::new(), outcome.notes) };
        json_patch::patch(pod, &plan.patch(pod)).expect("the patch was made for this pod");
        (plan.describe(), outcome.notes)
    }
}

/// The volumes that a StatefulSet's pods get of its claim templates, which beat those of the same name.
fn add_claims(pod: &mut Value, claims: &[Value]) {
    if claims.is_empty() || !pod["spec"].is_object() {
        return;
    }
    let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    for claim in claims {
        let Some(name) = claim["metadata"]["name"].as_str() else { continue };
        volumes.retain(|volume| volume["name"] != name);
        let source = json!({"claimName": format!("{name}-$({POD_VARIABLE})")});
        volumes.push(json!({"name": name, "persistentVolumeClaim": source}));
    }
    pod["spec"]["volumes"] = volumes.into();
}
