//! Kinds beyond those that every workload has: custom resources, and how they belong to a workload.
//!
//! ```text
//! labels, selects, names, annotations, owns, owned      any one of these is enough: it belongs
//! takes                                                 what belongs with it, once it does
//! ```
//! Nobody can see from a kind what its fields mean, so whoever runs the cluster says it. A rule without a relation records only what has
//! the label [`BELONGS`](crate::BELONGS), or what another rule takes along.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::{
    KINDS,
    object::{Key, Selector, items, qualified, texts},
};

/// Kinds that are never taken along: they are workloads of their own, or made by one.
const NEVER_TAKEN: [&str; 4] = ["Pod", "ReplicaSet", "StatefulSet", "Deployment"];

/// One kind, and how its objects belong to a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// `cert-manager.io`.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// `Certificate`.
    pub kind: String,
    /// `certificates`.
    pub plural: String,
    /// Whether its objects are in namespaces. Those that are not are recorded for reference and never applied.
    #[serde(default = "yes")]
    pub namespaced: bool,
    /// Labels which, all of them, it has as the workload's pods have them.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Label selectors of its which take something that belongs; of kind `Pod`, the workload's pods.
    #[serde(default)]
    pub selects: Vec<Field>,
    /// Fields of its that name something that belongs.
    #[serde(default)]
    pub names: Vec<Field>,
    /// Annotations of something that belongs, which have its name.
    #[serde(default)]
    pub annotations: Vec<String>,
    /// It owns something that belongs.
    #[serde(default)]
    pub owns: bool,
    /// Something that belongs owns it.
    #[serde(default)]
    pub owned: bool,
    /// Fields of its that name what belongs with it.
    #[serde(default)]
    pub takes: Vec<Field>,
}

/// A field of an object, and the kind of what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Field {
    /// Where it is: `/spec/issuerRef/name`; `*` is each item of a list. Beside a last `name`, a `kind` and a `namespace` have to fit.
    pub field: String,
    /// `Secret`, or with its group `Issuer.cert-manager.io`.
    pub kind: String,
}

/// Not a rule.
#[derive(Debug, Error)]
pub enum RuleError {
    /// Not JSON, or something is missing.
    #[error("not a rule for custom resources: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// It has no group, or something that is no name.
    #[error("{rule}: {what}")]
    Senseless {
        /// `certificates.cert-manager.io`.
        rule: String,
        /// What makes no sense.
        what: &'static str,
    },
}

fn yes() -> bool {
    true
}

impl FromStr for Rule {
    type Err = RuleError;

    /// As JSON.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rule: Self = serde_json::from_str(text)?;
        match rule.fault() {
            Some(what) => Err(RuleError::Senseless { rule: format!("{}.{}", rule.plural, rule.group), what }),
            None => Ok(rule),
        }
    }
}

/// What belongs so far, for what may belong to it.
pub(crate) struct Found<'a> {
    pub(crate) objects: &'a BTreeMap<Key, &'a Value>,
    /// The workload itself.
    pub(crate) workload: &'a Value,
}

impl Rule {
    /// `cert-manager.io/v1`.
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// The kind as keys have it.
    pub fn qualified(&self) -> String {
        qualified(&self.api_version(), &self.kind)
    }

    fn fault(&self) -> Option<&'static str> {
        let of = |text: &str, other: &[u8]| {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || other.contains(&byte);
            !text.is_empty() && text.bytes().all(letter)
        };
        let fields = [&self.selects, &self.names, &self.takes].into_iter().flatten();
        let keys = self.labels.iter().chain(&self.annotations);
        let related = !self.labels.is_empty()
            || !self.selects.is_empty()
            || !self.names.is_empty()
            || !self.takes.is_empty()
            || self.owned;
        let known = |(version, kind, _): &(&str, &str, &str)| {
            *kind == self.kind && version.split_once('/').is_some_and(|(group, _)| group == self.group)
        };
        if !of(&self.group, b".-")
            || !of(&self.version, b"")
            || !of(&self.kind, b"")
            || !of(&self.plural, b"")
        {
            Some(
                "group, version, kind and plural have to be names of the API; what has no group is recorded anyway",
            )
        } else if KINDS.iter().any(known) {
            Some("this kind is recorded anyway")
        } else if fields.clone().any(|one| !one.field.starts_with('/') || !of(&one.kind, b".-")) {
            Some("write fields as field: /path/to/it and kind: Kind or Kind.group")
        } else if keys.clone().any(|key| !of(key, b"./_-")) {
            Some("labels and annotations are keys")
        } else if self.takes.iter().any(|one| NEVER_TAKEN.contains(&one.kind.as_str())) {
            Some("workloads and their pods are not taken along")
        } else if !self.namespaced && related {
            Some(
                "what is in no namespace belongs by annotations, by owns, or because another rule takes it, and takes nothing along: other \
                 relations would reach into other namespaces",
            )
        } else {
            None
        }
    }

    /// Whether an object of this kind belongs to what was found.
    pub(crate) fn relates(&self, key: &Key, object: &Value, found: &Found<'_>) -> bool {
        self.by_labels(object, found)
            || self.selects.iter().any(|one| selects(object, one, found))
            || self.names.iter().any(|one| named(object, one).any(|key| found.objects.contains_key(&key)))
            || self.annotations.iter().any(|name| found.objects.values().any(|one| says(one, name, key)))
            || (self.owns && found.objects.values().any(|one| owners(one).any(|owner| owner == *key)))
            || (self.owned && owners(object).any(|owner| found.objects.contains_key(&owner)))
    }

    /// What belongs with it.
    pub(crate) fn taken(&self, object: &Value) -> impl Iterator<Item = Key> {
        self.takes.iter().flat_map(|one| named(object, one))
    }

    /// Whether it names this object.
    pub(crate) fn names(&self, object: &Value, key: &Key) -> bool {
        self.names.iter().any(|one| named(object, one).any(|other| other == *key))
    }

    fn by_labels(&self, object: &Value, found: &Found<'_>) -> bool {
        let (own, pods) = (texts(&object["metadata"]["labels"]), labels_of_pods(found.workload));
        let equal =
            |key: &String| own.contains_key(key.as_str()) && own.get(key.as_str()) == pods.get(key.as_str());
        !self.labels.is_empty() && self.labels.iter().all(equal)
    }
}

/// The keys of an object's owners.
pub(crate) fn owners(object: &Value) -> impl Iterator<Item = Key> {
    items(&object["metadata"]["ownerReferences"]).filter_map(|owner| {
        let kind = qualified(owner["apiVersion"].as_str()?, owner["kind"].as_str()?);
        Some(Key::new(&kind, owner["name"].as_str()?))
    })
}

fn labels_of_pods(workload: &Value) -> BTreeMap<&str, &str> {
    texts(&workload["spec"]["template"]["metadata"]["labels"])
}

/// Whether an annotation of an object, or of the pods it makes, is the name.
fn says(object: &Value, annotation: &str, key: &Key) -> bool {
    let metas = [&object["metadata"], &object["spec"]["template"]["metadata"]];
    metas.iter().any(|meta| meta["annotations"][annotation] == *key.name)
}

/// Whether a selector takes something that was found. One that says nothing takes none: it would take everything.
fn selects(object: &Value, field: &Field, found: &Found<'_>) -> bool {
    let takes = |selector: &Value, labels: &BTreeMap<&str, &str>| {
        if selector["matchLabels"].is_object() || selector["matchExpressions"].is_array() {
            return Selector::of(selector).takes(labels);
        }
        let plain = texts(selector);
        !plain.is_empty() && plain.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let any =
        |labels: &BTreeMap<&str, &str>| at(object, &field.field).iter().any(|(_, one)| takes(one, labels));
    if field.kind == "Pod" {
        return any(&labels_of_pods(found.workload));
    }
    let mut others = found.objects.iter().filter(|(key, _)| key.kind == field.kind);
    others.any(|(_, one)| any(&texts(&one["metadata"]["labels"])))
}

/// What a field names. Who says of what is named that it is of another kind, or in another namespace, means another object.
fn named(object: &Value, field: &Field) -> impl Iterator<Item = Key> {
    let whole = field.field.ends_with("/name");
    let plain = field.kind.split_once('.').map_or(field.kind.as_str(), |(kind, _)| kind);
    let own = &object["metadata"]["namespace"];
    let meant = |holder: &Value| {
        let (kind, namespace) = (&holder["kind"], &holder["namespace"]);
        !whole || ((kind.is_null() || *kind == *plain) && (namespace.is_null() || namespace == own))
    };
    let all = at(object, &field.field).into_iter().filter(|(holder, _)| meant(holder));
    let keys: Vec<Key> = all.filter_map(|(_, name)| Some(Key::new(&field.kind, name.as_str()?))).collect();
    keys.into_iter()
}

/// What is at a place, each with what holds it.
fn at<'a>(object: &'a Value, path: &str) -> Vec<(&'a Value, &'a Value)> {
    let mut found = vec![(object, object)];
    for step in path.split('/').skip(1) {
        let name = step.replace("~1", "/").replace("~0", "~");
        let next = found.into_iter().flat_map(|(_, value)| -> Vec<_> {
            match step {
                "*" => items(value).map(|item| (value, item)).collect(),
                _ => value.get(&name).map(|one| (value, one)).into_iter().collect(),
            }
        });
        found = next.collect();
    }
    found
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
