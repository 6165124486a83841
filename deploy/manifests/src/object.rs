//! Objects by name, and selectors.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// Groups of Kubernetes itself with a dot in their names.
const OWN_GROUPS: [&str; 2] = ["networking.k8s.io", "rbac.authorization.k8s.io"];

/// An object within its namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// `StatefulSet`; of a custom resource with its group, because two groups may use one word: `Certificate.cert-manager.io`.
    pub kind: String,
    /// `orders`.
    pub name: String,
}

impl Key {
    pub(crate) fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned() }
    }

    /// Whether it is the claim of this name.
    pub(crate) fn is_claim(&self, name: &str) -> bool {
        self.kind == "PersistentVolumeClaim" && self.name == name
    }

    /// Of an object; none if it has no kind or no name.
    pub fn of(object: &Value) -> Option<Self> {
        let kind = qualified(object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str()?);
        Some(Self::new(&kind, object["metadata"]["name"].as_str()?))
    }
}

/// A kind as [`Key`] has it. Groups without a dot are Kubernetes' own, as are two others whose kinds are known here.
pub(crate) fn qualified(version: &str, kind: &str) -> String {
    match version.split_once('/') {
        Some((group, _)) if group.contains('.') && !OWN_GROUPS.contains(&group) => format!("{kind}.{group}"),
        _ => kind.to_owned(),
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.to_ascii_lowercase(), self.name)
    }
}

/// What can be taken elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Workload {
    /// A StatefulSet.
    StatefulSet,
    /// A Deployment.
    Deployment,
}

impl Workload {
    /// As objects name it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::StatefulSet => "StatefulSet",
            Self::Deployment => "Deployment",
        }
    }

    /// Of an object's kind.
    pub fn of(kind: &str) -> Option<Self> {
        [Self::StatefulSet, Self::Deployment].into_iter().find(|one| one.kind() == kind)
    }
}

/// Not a workload.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no workload: write statefulset/NAME or deployment/NAME")]
pub struct KeyError(String);

impl FromStr for Key {
    type Err = KeyError;

    /// A workload: `statefulset/NAME`, `sts/NAME`, `deployment/NAME` or `deploy/NAME`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || KeyError(text.to_owned());
        let (kind, name) = text.split_once('/').ok_or_else(bad)?;
        let kind = match kind.to_ascii_lowercase().as_str() {
            "statefulset" | "statefulsets" | "sts" => Workload::StatefulSet,
            "deployment" | "deployments" | "deploy" => Workload::Deployment,
            _ => return Err(bad()),
        };
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if name.is_empty() || !name.bytes().all(letter) {
            return Err(bad());
        }
        Ok(Self::new(kind.kind(), name))
    }
}

/// Which pods are meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Selector<'a>(&'a Value);

impl<'a> Selector<'a> {
    /// `matchLabels` and `matchExpressions`.
    pub fn of(selector: &'a Value) -> Self {
        Self(selector)
    }

    /// Whether it takes these labels. One that says nothing, or what is not understood, takes none: it would take everything.
    pub fn takes(&self, labels: &BTreeMap<&str, &str>) -> bool {
        let plain = self.0["matchLabels"].as_object();
        let expressions = self.0["matchExpressions"].as_array();
        let some = plain.is_some_and(|map| !map.is_empty()) || expressions.is_some_and(|all| !all.is_empty());
        let equal = |(key, value): (&String, &Value)| labels.get(key.as_str()).copied() == value.as_str();
        some && plain.into_iter().flatten().all(equal)
            && expressions.into_iter().flatten().all(|one| fits(one, labels))
    }
}

fn fits(expression: &Value, labels: &BTreeMap<&str, &str>) -> bool {
    let Some(key) = expression["key"].as_str() else { return false };
    let value = labels.get(key);
    let within = || {
        let values = expression["values"].as_array();
        values.into_iter().flatten().any(|one| one.as_str() == value.copied() && value.is_some())
    };
    match expression["operator"].as_str() {
        Some("In") => within(),
        Some("NotIn") => !within(),
        Some("Exists") => value.is_some(),
        Some("DoesNotExist") => value.is_none(),
        _ => false,
    }
}

/// Texts of a map, such as labels.
pub(crate) fn texts(map: &Value) -> BTreeMap<&str, &str> {
    let all = map.as_object().into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
}

/// The items of a list; none if it is no list.
pub(crate) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn workloads_have_short_names_and_nothing_else_is_one() {
        for text in ["statefulset/a", "sts/a", "StatefulSet/a"] {
            assert_eq!(text.parse(), Ok(Key::new("StatefulSet", "a")), "{text}");
        }
        for text in ["a", "sts/", "sts/A", "pod/a", "sts/a/b", "sts/../a"] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_selector_takes_what_it_says_and_an_empty_one_nothing() {
        let labels = BTreeMap::from([("app", "db"), ("tier", "back")]);
        for (selector, takes) in [
            (json!({"matchLabels": {"app": "db"}}), true),
            (json!({"matchLabels": {"app": "db", "zone": "a"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "db"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "Like", "values": ["d*"]}]}), false),
            (json!({}), false),
            (Value::Null, false),
        ] {
            assert_eq!(Selector::of(&selector).takes(&labels), takes, "{selector}");
        }
    }
}
