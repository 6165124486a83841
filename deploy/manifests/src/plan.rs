//! What is applied elsewhere, in which order, and what a person should know before.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};
use thiserror::Error;
use tidelock_proto::VolumeName;

use crate::{
    KINDS,
    closure::Place,
    document::Document,
    mapping::{Mapping, MappingError},
    object::{Key, items},
    sanitise::sanitise,
};

/// The annotation of a claim that says what it was made to be filled with.
pub const FILLED_WITH: &str = "tidelock.dev/filled-with";

/// How the pods there come to their data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The instant whose data they get, RFC 3339.
    pub at: String,
    /// The epoch that they write in, if the volumes were promoted.
    pub epoch: Option<u64>,
    /// The receiver, `HOST:PORT`, if pods do not know it by themselves.
    pub receiver: Option<String>,
}

impl Handover {
    /// What a claim says that is filled with a volume.
    pub fn mark(&self, volume: &VolumeName) -> String {
        self.epoch.map_or_else(|| volume.to_string(), |epoch| format!("{volume} for epoch {epoch}"))
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// `kind/name`.
    pub workload: String,
    /// Where it was.
    pub from: String,
    /// Where it will be.
    pub to: String,
    /// The namespace, which is made if it is not there.
    pub namespace: Value,
    /// What is applied, in this order.
    pub objects: Vec<Value>,
    /// The volumes that are filled, by claim.
    pub volumes: BTreeMap<String, VolumeName>,
    /// What a person should look at.
    pub warnings: Vec<String>,
}

/// Why there is no plan.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// What is recorded holds an object that makes no sense.
    #[error("the record holds an object without kind, API version or name")]
    BadObject,
    /// It would reach into another namespace.
    #[error("{0} is not of the namespace {1}")]
    Foreign(String, String),
    /// The workload itself is not there.
    #[error("the record does not hold {0}")]
    NoWorkload(String),
    /// A trial of it could not be kept apart.
    #[error(
        "the pods of {0} are in the node's network, which no NetworkPolicy isolates: it cannot be tried in a namespace of its own"
    )]
    NotIsolated(String),
    /// A field cannot be set.
    #[error(transparent)]
    Mapping(#[from] MappingError),
}

/// The order in which kinds are applied: what others refer to comes first, what starts pods last but what scales them.
const ORDER: [&str; 11] = [
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "Role",
    "RoleBinding",
    "PersistentVolumeClaim",
    "Service",
    "PodDisruptionBudget",
    "StatefulSet",
    "Deployment",
    "HorizontalPodAutoscaler",
];

/// Where among these a custom resource comes, or what is not known: what it needs is there, and no pod that may need it.
const CUSTOM: usize = 7;

impl Plan {
    /// The kinds of its objects that not every cluster has: API version and kind.
    pub fn custom_kinds(&self) -> BTreeSet<(String, String)> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kinds = self.objects.iter().map(|object| (word(&object["apiVersion"]), word(&object["kind"])));
        let own = |(version, kind): &(String, String)| {
            KINDS.iter().any(|known| known.0 == version && known.1 == kind)
        };
        kinds.filter(|kind| !own(kind)).collect()
    }

    /// Leaves out the objects of kinds that the cluster there does not know; says each.
    pub fn leave_out(&mut self, unknown: &BTreeSet<(String, String)>) -> Vec<String> {
        let mut told = Vec::new();
        self.objects.retain(|object| {
            let is = |(version, kind): &&(String, String)| {
                object["apiVersion"] == **version && object["kind"] == **kind
            };
            let Some((version, kind)) = unknown.iter().find(is) else { return true };
            let key = Key::of(object).map_or_else(String::new, |key| key.to_string());
            told.push(format!(
                "{key} is not applied: the cluster there does not know {kind} of {version}; install what brings it, and run the same \
                 command again"
            ));
            false
        });
        self.warnings.extend(told.iter().cloned());
        told
    }
}

/// Plans a workload's way from its record to another place.
pub fn plan(document: &Document, mapping: &Mapping, handover: &Handover) -> Result<Plan, PlanError> {
    let workload = Key { kind: document.kind.kind().to_owned(), name: document.name.clone() };
    let to = mapping.namespace(&document.namespace);
    let mut objects = Vec::new();
    let mut found = false;
    for object in &document.objects {
        // Whoever recorded it may have been another version.
        let mut object = sanitise(object);
        let key =
            Key::of(&object).filter(|_| object["apiVersion"].is_string()).ok_or(PlanError::BadObject)?;
        if matches!(place(document, &key), Some(Place::Maker | Place::ClusterWide)) {
            continue;
        }
        if object["metadata"]["namespace"] != document.namespace {
            return Err(PlanError::Foreign(key.to_string(), document.namespace.clone()));
        }
        mapping.apply(&mut object);
        if key == workload {
            found = true;
            hand_over(&mut object, document, mapping, handover);
        }
        if let Some(volume) = document.volumes.iter().find(|one| key.is_claim(&one.claim)) {
            mark(&mut object, &handover.mark(&volume.volume));
        }
        objects.push(object);
    }
    if !found {
        return Err(PlanError::NoWorkload(workload.to_string()));
    }
    mapping.set(&mut objects)?;
    objects.sort_by_cached_key(|object| {
        let key = Key::of(object);
        let known = key.as_ref().and_then(|key| match place(document, key) {
            Some(Place::After) => Some(ORDER.len()),
            _ => ORDER.iter().position(|known| *known == key.kind),
        });
        (known.unwrap_or(CUSTOM), key)
    });
    let volumes = document.volumes.iter().map(|one| (one.claim.clone(), one.volume.clone())).collect();
    let warnings = warnings(document, &objects, to);
    let (from, to) = (document.namespace.clone(), to.to_owned());
    let namespace = namespace(document, &to);
    Ok(Plan { workload: workload.to_string(), from, to, namespace, objects, volumes, warnings })
}

fn place(document: &Document, key: &Key) -> Option<Place> {
    document.custom.get(&key.to_string()).copied()
}

/// The namespace as it is made: its pods are injected and judged as they were. What else its labels say is for whoever
/// looks after that cluster.
fn namespace(document: &Document, name: &str) -> Value {
    let labels = document.namespace_labels.iter().filter(|(key, _)| is_taken_along(key));
    let labels: BTreeMap<&String, &String> = labels.collect();
    let mut namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    if !labels.is_empty() {
        namespace["metadata"]["labels"] = json!(labels);
    }
    namespace
}

fn is_taken_along(label: &str) -> bool {
    label == "tidelock.dev/inject" || label.starts_with("pod-security.kubernetes.io/")
}

/// Notes on a claim what it is filled with, so that one which holds something else is recognised.
fn mark(claim: &mut Value, mark: &str) {
    let Some(meta) = claim.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let annotations = meta.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(FILLED_WITH.to_owned(), mark.into());
    }
}

/// Asks the injector there for pods that fill their empty volumes with the point, and go on as the new writer.
fn hand_over(object: &mut Value, document: &Document, mapping: &Mapping, handover: &Handover) {
    let Some(template) = object.pointer_mut("/spec/template").and_then(Value::as_object_mut) else { return };
    let meta = template.entry("metadata").or_insert_with(|| json!({}));
    let mut put = |map: &str, key: &str, value: &str| {
        let Some(meta) = meta.as_object_mut() else { return };
        let map = meta.entry(map).or_insert_with(|| json!({}));
        if let Some(map) = map.as_object_mut() {
            map.insert(format!("tidelock.dev/{key}"), value.into());
        }
    };
    put("labels", "inject", "true");
    put("annotations", "restore", &handover.at);
    if mapping.namespace(&document.namespace) != document.namespace {
        // The volumes there have other names than those whose points they get.
        put("annotations", "restore-tenant", &document.namespace);
    } else if let Some(epoch) = handover.epoch {
        put("annotations", "epoch", &epoch.to_string());
    }
    if let Some(receiver) = &handover.receiver {
        put("annotations", "receiver", receiver);
    }
}

fn warnings(document: &Document, objects: &[Value], to: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    let other: Vec<&str> =
        document.namespace_labels.keys().map(String::as_str).filter(|key| !is_taken_along(key)).collect();
    if !other.is_empty() {
        warnings.push(format!(
            "labels of namespace {} stay behind: {}",
            document.namespace,
            other.join(", ")
        ));
    }
    for (object, why) in &document.left_out {
        warnings.push(format!("{object} was not recorded ({why}): it has to be there already"));
    }
    for (object, place) in &document.custom {
        match place {
            Place::Maker => warnings.push(format!(
                "{object} made the workload and is not applied: whoever looks after it there would write over what is applied"
            )),
            Place::ClusterWide => {
                warnings.push(format!("{object} is of the whole cluster and is not applied: it has to be there already"));
            }
            Place::Before | Place::After => {}
        }
    }
    for object in objects {
        let Some(key) = Key::of(object) else { continue };
        if document.namespace != to
            && document.custom.contains_key(&key.to_string())
            && says(object, &document.namespace)
        {
            warnings.push(format!(
                "{key} names the namespace {}, which is not changed there: see --set",
                document.namespace
            ));
        }
        if object["kind"] == "RoleBinding" && object["roleRef"]["kind"] == "ClusterRole" {
            let role = object["roleRef"]["name"].as_str().unwrap_or_default();
            warnings.push(format!("{key} refers to the ClusterRole {role}, which has to be there already"));
        }
        for class in classes(object) {
            warnings.push(format!("{key} asks for the storage class {class}"));
        }
        let address = format!(".{}.svc", document.namespace);
        if document.namespace != to && object["kind"] != "Secret" && mentions(object, &address) {
            warnings.push(format!("{key} names addresses in {address}, which are not changed"));
        }
    }
    warnings
}

fn classes(object: &Value) -> Vec<&str> {
    let of_claim = (object["kind"] == "PersistentVolumeClaim").then_some(object);
    let templates = items(&object["spec"]["volumeClaimTemplates"]);
    let claims = of_claim.into_iter().chain(templates);
    claims.filter_map(|claim| claim["spec"]["storageClassName"].as_str()).collect()
}

fn mentions(value: &Value, text: &str) -> bool {
    any_text(value, &|one| one.contains(text))
}

fn says(value: &Value, text: &str) -> bool {
    any_text(value, &|one| one == text)
}

fn any_text(value: &Value, is: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(one) => is(one),
        Value::Array(all) => all.iter().any(|one| any_text(one, is)),
        Value::Object(map) => map.values().any(|one| any_text(one, is)),
        _ => false,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
