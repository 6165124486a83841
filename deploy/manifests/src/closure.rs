//! Which objects belong to a workload.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    BELONGS, NOT_RECORDED,
    object::{Key, Selector, items, texts},
    rule::{Found, Rule, owners},
};

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Secrets, too.
    pub secrets: bool,
    /// Kinds beyond [`KINDS`](crate::KINDS).
    pub rules: Vec<Rule>,
}

impl Default for Scope {
    fn default() -> Self {
        Self { secrets: true, rules: Vec::new() }
    }
}

impl Scope {
    fn rule(&self, key: &Key) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.qualified() == key.kind)
    }
}

/// What belongs to a workload.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Closure<'a> {
    /// Its objects, sorted by kind and name; none if the workload is not there.
    pub objects: Vec<&'a Value>,
    /// What belongs to it and is left out.
    pub excluded: BTreeSet<Excluded>,
    /// Its custom resources, and their place elsewhere.
    pub custom: BTreeMap<Key, Place>,
}

/// When a custom resource is applied elsewhere, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Before the workload.
    Before,
    /// After it, because it names it.
    After,
    /// Never: it made the workload, and who looks after it there would write over what is applied.
    Maker,
    /// Never: it is in no namespace, and of others, too.
    ClusterWide,
}

/// An object that belongs to the workload and is left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Excluded {
    /// Which.
    pub key: Key,
    /// Why.
    pub why: &'static str,
}

/// What belongs to a workload. `objects` may hold anything of one namespace, and of kinds that are in none.
pub fn closure<'a>(objects: &'a [Value], workload: &Key, scope: &Scope) -> Closure<'a> {
    let known: BTreeMap<Key, &Value> =
        objects.iter().filter_map(|object| Some((Key::of(object)?, object))).collect();
    let Some(&own) = known.get(workload) else { return Closure::default() };
    let mut found: BTreeMap<Key, &Value> = BTreeMap::new();
    let mut excluded = BTreeMap::new();
    let mut queue = vec![workload.clone()];
    queue.extend(selecting(&known, workload));
    while !queue.is_empty() {
        while let Some(key) = queue.pop() {
            let Some(&object) = known.get(&key).filter(|_| !found.contains_key(&key)) else { continue };
            if let Some(why) = left_out(object, scope.secrets) {
                excluded.insert(key, why);
                continue;
            }
            queue.extend(referred(object));
            queue.extend(scope.rule(&key).into_iter().flat_map(|rule| rule.taken(object)));
            if key.kind == "ServiceAccount" {
                queue.extend(bindings(&known, &key.name));
            }
            if key == *workload {
                queue.extend(claims(&known, object));
            }
            found.insert(key, object);
        }
        // What was found may be what others belong to.
        let so_far = Found { objects: &found, workload: own };
        let new = known.iter().filter(|(key, _)| !found.contains_key(key) && !excluded.contains_key(key));
        let related = new
            .filter(|(key, object)| scope.rule(key).is_some_and(|rule| rule.relates(key, object, &so_far)));
        queue.extend(related.map(|(key, _)| key.clone()));
    }
    Closure {
        custom: places(&found, workload, scope),
        objects: found.into_values().collect(),
        excluded: excluded.into_iter().map(|(key, why)| Excluded { key, why }).collect(),
    }
}

fn places(found: &BTreeMap<Key, &Value>, workload: &Key, scope: &Scope) -> BTreeMap<Key, Place> {
    let makers = makers(found, workload);
    let place = |(key, object): (&Key, &&Value)| {
        let rule = scope.rule(key)?;
        let place = match rule {
            rule if !rule.namespaced => Place::ClusterWide,
            _ if makers.contains(key) => Place::Maker,
            rule if rule.names(object, workload) => Place::After,
            _ => Place::Before,
        };
        Some((key.clone(), place))
    };
    found.iter().filter_map(place).collect()
}

/// The owners of a workload, and theirs.
fn makers(found: &BTreeMap<Key, &Value>, workload: &Key) -> BTreeSet<Key> {
    let mut makers = BTreeSet::new();
    let mut queue = vec![workload.clone()];
    while let Some(key) = queue.pop() {
        let above = found.get(&key).into_iter().flat_map(|object| owners(object));
        queue.extend(above.filter(|owner| makers.insert(owner.clone())));
    }
    makers
}

fn left_out(object: &Value, secrets: bool) -> Option<&'static str> {
    let secret = object["kind"] == "Secret";
    if secret && object["type"] == "kubernetes.io/service-account-token" {
        return Some("tokens are of one cluster");
    }
    if secret && !secrets {
        return Some("secrets are not recorded");
    }
    (texts(&object["metadata"]["labels"]).get(NOT_RECORDED) == Some(&"true")).then_some("its label says so")
}

/// What an object refers to, of the same namespace.
fn referred(object: &Value) -> Vec<Key> {
    match object["kind"].as_str() {
        Some("StatefulSet" | "Deployment") => of_workload(object),
        Some("ServiceAccount") => {
            let named = items(&object["imagePullSecrets"]).filter_map(|one| one["name"].as_str());
            named.map(|name| Key::new("Secret", name)).collect()
        }
        Some("RoleBinding") if object["roleRef"]["kind"] == "Role" => {
            object["roleRef"]["name"].as_str().map(|name| Key::new("Role", name)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

fn of_workload(object: &Value) -> Vec<Key> {
    let pod = &object["spec"]["template"]["spec"];
    let mut keys = Vec::new();
    let mut add = |kind: &str, name: &Value| keys.extend(name.as_str().map(|name| Key::new(kind, name)));
    add("Service", &object["spec"]["serviceName"]);
    add("ServiceAccount", &pod["serviceAccountName"]);
    for secret in items(&pod["imagePullSecrets"]) {
        add("Secret", &secret["name"]);
    }
    for volume in items(&pod["volumes"]) {
        add("Secret", &volume["secret"]["secretName"]);
        add("ConfigMap", &volume["configMap"]["name"]);
        add("PersistentVolumeClaim", &volume["persistentVolumeClaim"]["claimName"]);
        for source in items(&volume["projected"]["sources"]) {
            add("Secret", &source["secret"]["name"]);
            add("ConfigMap", &source["configMap"]["name"]);
        }
    }
    for container in items(&pod["containers"]).chain(items(&pod["initContainers"])) {
        for one in items(&container["env"]) {
            add("Secret", &one["valueFrom"]["secretKeyRef"]["name"]);
            add("ConfigMap", &one["valueFrom"]["configMapKeyRef"]["name"]);
        }
        for one in items(&container["envFrom"]) {
            add("Secret", &one["secretRef"]["name"]);
            add("ConfigMap", &one["configMapRef"]["name"]);
        }
    }
    keys
}

/// What selects the workload's pods, scales it, or says that it belongs to it.
fn selecting(known: &BTreeMap<Key, &Value>, workload: &Key) -> Vec<Key> {
    let label = format!("{}.{}", workload.kind.to_ascii_lowercase(), workload.name);
    let labels = texts(&known[workload]["spec"]["template"]["metadata"]["labels"]);
    let selects = |key: &Key, object: &Value| match key.kind.as_str() {
        "Service" => {
            let selector = texts(&object["spec"]["selector"]);
            !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        }
        "PodDisruptionBudget" => Selector::of(&object["spec"]["selector"]).takes(&labels),
        "HorizontalPodAutoscaler" => {
            let target = &object["spec"]["scaleTargetRef"];
            target["kind"] == workload.kind && target["name"] == workload.name
        }
        _ => false,
    };
    let belongs = |object: &Value| texts(&object["metadata"]["labels"]).get(BELONGS) == Some(&label.as_str());
    let never = |key: &Key| matches!(key.kind.as_str(), "Pod" | "ReplicaSet" | "StatefulSet" | "Deployment");
    // What is in no namespace may mean a workload of the same name in another one.
    let here = |object: &Value| object["metadata"]["namespace"].is_string();
    let all = known
        .iter()
        .filter(|(key, object)| selects(key, object) || (belongs(object) && here(object) && !never(key)));
    all.map(|(key, _)| key.clone()).collect()
}

/// Bindings of roles to a service account.
fn bindings(known: &BTreeMap<Key, &Value>, account: &str) -> Vec<Key> {
    let binds = |object: &Value| {
        let here = |subject: &Value| {
            let namespace = &subject["namespace"];
            namespace.is_null() || *namespace == object["metadata"]["namespace"]
        };
        let mut subjects = items(&object["subjects"]);
        subjects.any(|one| one["kind"] == "ServiceAccount" && one["name"] == account && here(one))
    };
    let all = known.iter().filter(|(key, object)| key.kind == "RoleBinding" && binds(object));
    all.map(|(key, _)| key.clone()).collect()
}

/// The claims that a StatefulSet has made of its templates: `TEMPLATE-NAME-ORDINAL`.
fn claims(known: &BTreeMap<Key, &Value>, object: &Value) -> Vec<Key> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let templates = items(&object["spec"]["volumeClaimTemplates"]);
    let templates = templates.filter_map(|template| template["metadata"]["name"].as_str());
    let prefixes: Vec<String> = templates.map(|template| format!("{template}-{name}-")).collect();
    let made = |key: &Key| {
        let ordinal = prefixes.iter().find_map(|prefix| key.name.strip_prefix(prefix.as_str()));
        ordinal.is_some_and(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    known.keys().filter(|key| key.kind == "PersistentVolumeClaim" && made(key)).cloned().collect()
}

#[cfg(test)]
#[path = "closure_tests.rs"]
mod tests;
