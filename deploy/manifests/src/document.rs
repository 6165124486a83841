//! What is recorded of a workload: one JSON document, which says of itself which version it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use tidelock_proto::VolumeName;

use crate::{
    closure::{Closure, Place, Scope, closure},
    object::{Key, Workload, items, texts},
    sanitise::sanitise,
};

/// The version that is written. A reader takes no other: what a field means is the version's.
pub const DOCUMENT_VERSION: u32 = 1;

/// A workload and what belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`DOCUMENT_VERSION`].
    pub version: u32,
    /// Its namespace, which is the tenant.
    pub namespace: String,
    /// The labels of the namespace, without its name; empty if nobody looked.
    #[serde(default)]
    pub namespace_labels: BTreeMap<String, String>,
    /// Its kind.
    pub kind: Workload,
    /// Its name.
    pub name: String,
    /// Its claims as volumes.
    pub volumes: Vec<Volume>,
    /// For each image of its pods the digest that ran, as the nodes said it.
    pub images: BTreeMap<String, BTreeSet<String>>,
    /// What belongs to it and is not recorded, `kind/name`, and why.
    pub left_out: BTreeMap<String, String>,
    /// Which of the objects are custom resources, `kind.group/name`, and when they are applied.
    #[serde(default)]
    pub custom: BTreeMap<String, Place>,
    /// Itself and what belongs to it, sanitised, sorted by kind and name.
    pub objects: Vec<Value>,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub claim: String,
    /// The volume at the receiver.
    pub volume: VolumeName,
    /// Its storage class, if it says one.
    pub storage_class: Option<String>,
    /// What it asked for, or got if that is more.
    pub size: Option<String>,
}

/// Not a document.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not JSON, or something is missing.
    #[error("the record of the workload cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Written by another program.
    #[error("the record of the workload is of version {0}; this program reads {DOCUMENT_VERSION}")]
    Version(u64),
}

/// The name of a workload's file in the volume of its tenant.
pub fn file_name(workload: &Key) -> String {
    format!("{}.{}.json", workload.kind.to_ascii_lowercase(), workload.name)
}

impl Document {
    /// Of a workload, out of all objects of its namespace, and the namespace itself. None if it is not there.
    pub fn record(objects: &[Value], namespace: &str, workload: &Key, scope: &Scope) -> Option<Self> {
        let kind = Workload::of(&workload.kind)?;
        let Closure { objects: found, excluded, custom } = closure(objects, workload, scope);
        let volumes = found.iter().filter(|object| object["kind"] == "PersistentVolumeClaim");
        let volumes = volumes.filter_map(|claim| volume(claim, namespace)).collect();
        let left_out = excluded.iter().map(|one| (one.key.to_string(), one.why.to_owned())).collect();
        Some(Self {
            version: DOCUMENT_VERSION,
            namespace: namespace.to_owned(),
            namespace_labels: namespace_labels(objects, namespace),
            kind,
            name: workload.name.clone(),
            volumes,
            images: images(objects, found.iter().find(|one| Key::of(one).as_ref() == Some(workload))?),
            left_out,
            custom: custom.into_iter().map(|(key, place)| (key.to_string(), place)).collect(),
            objects: found.into_iter().map(sanitise).collect(),
        })
    }

    /// Reads what was written.
    pub fn parse(text: &[u8]) -> Result<Self, DocumentError> {
        let value: Value = serde_json::from_slice(text)?;
        match value["version"].as_u64() {
            Some(version) if version != u64::from(DOCUMENT_VERSION) => Err(DocumentError::Version(version)),
            _ => Ok(serde_json::from_value(value)?),
        }
    }

    /// As it is written: the same bytes for the same objects, so that nothing changes at the receiver unless something did.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).expect("JSON values serialise") + "\n"
    }
}

/// What people have said of the namespace; its name is the cluster's own label.
fn namespace_labels(objects: &[Value], namespace: &str) -> BTreeMap<String, String> {
    let own = |one: &&Value| one["kind"] == "Namespace" && one["metadata"]["name"] == namespace;
    let labels = objects.iter().find(own).map(|own| texts(&own["metadata"]["labels"])).unwrap_or_default();
    let said = labels.into_iter().filter(|(key, _)| *key != "kubernetes.io/metadata.name");
    said.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn volume(claim: &Value, namespace: &str) -> Option<Volume> {
    let name = claim["metadata"]["name"].as_str()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let spec = &claim["spec"];
    let asked = &spec["resources"]["requests"]["storage"];
    Some(Volume {
        claim: name.to_owned(),
        volume: VolumeName::new(namespace, name).ok()?,
        storage_class: text(&spec["storageClassName"]),
        size: text(&claim["status"]["capacity"]["storage"]).or_else(|| text(asked)),
    })
}

/// What the nodes said of the images of the workload's pods.
fn images(objects: &[Value], workload: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let labels = texts(&workload["spec"]["template"]["metadata"]["labels"]);
    let own = |pod: &&Value| {
        let of_pod = texts(&pod["metadata"]["labels"]);
        pod["kind"] == "Pod"
            && !labels.is_empty()
            && labels.iter().all(|(key, value)| of_pod.get(key) == Some(value))
    };
    let mut images: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pod in objects.iter().filter(own) {
        let status = &pod["status"];
        for one in items(&status["containerStatuses"]).chain(items(&status["initContainerStatuses"])) {
            let asked = items(&pod["spec"]["containers"]).chain(items(&pod["spec"]["initContainers"]));
            let mut asked = asked.filter(|container| container["name"] == one["name"]);
            let image = asked.next().and_then(|container| container["image"].as_str());
            if let (Some(image), Some(id)) = (image, one["imageID"].as_str())
                && id.contains("@sha256:")
            {
                images.entry(image.to_owned()).or_default().insert(id.to_owned());
            }
        }
    }
    images
}
