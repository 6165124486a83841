//! A workload on trial: in a namespace of its own, which goes afterwards, and out of which nothing of it reaches.
//!
//! ```text
//! pods of the namespace ◀──▶ each other       an application of several pods has to find itself
//!                       ───▶ DNS of kube-system, and nothing else: no database of production, no mail, no queue
//! fill pods             ───▶ any address, UDP, the receiver's port
//! ```
//! Names are resolved because without them the pods do not find each other. The price is that a name can carry a little
//! out; who minds has to deny it in the cluster. The pods that fill the volumes need the receiver and are others than the application's,
//! because a policy knows pods and not their containers.
//!
//! Left out is what would act outside: names and addresses of Services (all of them are of type ClusterIP and lose their annotations,
//! by which DNS records and load balancers are made), ports of the node, autoscalers, and whatever kind this program does not know.

use serde_json::{Value, json};

use crate::{
    document::Document,
    mapping::Mapping,
    object::{Key, items},
    plan::{FILLED_WITH, Handover, Plan, PlanError, plan},
};

/// The label of a namespace that is somebody's trial, and of which workload: `NAMESPACE.KIND.NAME`.
pub const SCRATCH: &str = "tidelock.dev/trial-of";
/// The label of pods that work for Tidelock; what they do.
pub const JOB: &str = "tidelock.dev/job";
/// Pods that fill volumes.
pub const FILL: &str = "fill";
/// The longest name of a namespace, and value of a label.
const NAME_MAX_BYTES: usize = 63;
/// Kinds that are tried. What is left out acts on other objects, or is not known.
const TRIED: [&str; 9] = [
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "Role",
    "RoleBinding",
    "PersistentVolumeClaim",
    "Service",
    "StatefulSet",
    "Deployment",
];
/// Of a Service's spec: what reaches beyond the cluster's own network.
const OUTWARD: [&str; 6] = [
    "type",
    "externalTrafficPolicy",
    "allocateLoadBalancerNodePorts",
    "loadBalancerClass",
    "loadBalancerSourceRanges",
    "externalName",
];

/// What is applied for a trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// What isolates it.
    pub policies: Vec<Value>,
    /// The claims that are filled first.
    pub claims: Vec<Value>,
    /// The rest, in order; its namespace is the trial's.
    pub plan: Plan,
}

/// The name of a workload's trial namespace: always the same, so that what a trial left behind is found by the next.
pub fn trial_namespace(namespace: &str, workload: &Key) -> String {
    let kind = if workload.kind == "Deployment" { "deploy" } else { "sts" };
    short(&format!("tidelock-test-{namespace}-{kind}-{}", workload.name.replace('.', "-")))
}

/// The value of [`SCRATCH`] on it.
pub fn trial_of(namespace: &str, workload: &Key) -> String {
    short(&format!("{namespace}.{}.{}", workload.kind.to_ascii_lowercase(), workload.name))
}

/// A long name is cut and told from others by what it says (FNV-1a).
fn short(name: &str) -> String {
    if name.len() <= NAME_MAX_BYTES {
        return name.to_owned();
    }
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = format!("{hash:016x}");
    format!("{}-{hash}", &name[..NAME_MAX_BYTES - 1 - hash.len()])
}

/// Plans a trial of a workload. Pods get no sidecar there: what they write is nobody's.
pub fn trial(document: &Document, mapping: &Mapping, receiver_port: u16) -> Result<Trial, PlanError> {
    let workload = Key { kind: document.kind.kind().to_owned(), name: document.name.clone() };
    let name = trial_namespace(&document.namespace, &workload);
    let mut mapping = mapping.clone();
    mapping.namespaces.insert(document.namespace.clone(), name.clone());
    let handover = Handover { at: String::new(), epoch: None, receiver: None };
    let mut plan = plan(document, &mapping, &handover)?;
    plan.namespace["metadata"]["labels"][SCRATCH] = trial_of(&document.namespace, &workload).into();
    // The pods are those of the workload and not protected, whatever the namespace's label was.
    plan.namespace["metadata"]["labels"]["tidelock.dev/inject"] = "false".into();
    let mut claims = Vec::new();
    let mut objects = Vec::new();
    for mut object in std::mem::take(&mut plan.objects) {
        let Some(key) = Key::of(&object) else { return Err(PlanError::BadObject) };
        if !TRIED.contains(&key.kind.as_str()) || object["spec"]["type"] == "ExternalName" {
            plan.warnings.push(format!("{key} is not tried: it would act outside"));
            continue;
        }
        match key.kind.as_str() {
            "PersistentVolumeClaim" => {
                forget(&mut object, "/metadata/annotations", |key| key == FILLED_WITH);
                claims.push(object);
                continue;
            }
            "Service" => inward(&mut object),
            "StatefulSet" | "Deployment" => tried(&mut object, &key, &mut plan.warnings)?,
            _ => {}
        }
        objects.push(object);
    }
    plan.objects = objects;
    plan.warnings
        .push("whether the network there enforces NetworkPolicies cannot be seen from here".to_owned());
    Ok(Trial { policies: policies(&name, receiver_port), claims, plan })
}

fn inward(service: &mut Value) {
    forget(service, "/spec", |key| OUTWARD.contains(&key));
    if let Some(meta) = service.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("annotations");
    }
}

fn tried(object: &mut Value, key: &Key, warnings: &mut Vec<String>) -> Result<(), PlanError> {
    let Some(template) = object.pointer_mut("/spec/template") else { return Err(PlanError::BadObject) };
    if template["spec"]["hostNetwork"] == true {
        return Err(PlanError::NotIsolated(key.to_string()));
    }
    for volume in items(&template["spec"]["volumes"]).filter(|volume| volume["hostPath"].is_object()) {
        let name = volume["name"].as_str().unwrap_or_default();
        warnings
            .push(format!("volume {name} of {key} is a directory of the node, which the trial uses, too"));
    }
    forget(template, "/metadata/annotations", |key| key.starts_with("tidelock.dev/"));
    template["metadata"]["labels"]["tidelock.dev/inject"] = "false".into();
    for list in ["containers", "initContainers"] {
        // Looking by index would leave nulls behind.
        let containers = template.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        let ports = containers.into_iter().flatten().filter_map(|one| one.get_mut("ports")?.as_array_mut());
        for port in ports.flatten() {
            forget(port, "", |key| key == "hostPort" || key == "hostIP");
        }
    }
    Ok(())
}

/// Takes away the keys of a map for which it is so.
fn forget(object: &mut Value, pointer: &str, is_so: impl Fn(&str) -> bool) {
    if let Some(map) = object.pointer_mut(pointer).and_then(Value::as_object_mut) {
        map.retain(|key, _| !is_so(key));
    }
}

fn policies(namespace: &str, receiver_port: u16) -> Vec<Value> {
    let policy = |name: &str, spec: Value| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    };
    let port = |protocol: &str, port: u16| json!({"protocol": protocol, "port": port});
    let dns = json!({
        "to": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }],
        "ports": [port("UDP", 53), port("TCP", 53)],
    });
    let among_themselves = json!([{"podSelector": {}}]);
    let isolated = json!({
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": among_themselves}],
        "egress": [{"to": among_themselves}, dns],
    });
    let fill = json!({
        "podSelector": {"matchLabels": {JOB: FILL}},
        "policyTypes": ["Egress"],
        "egress": [{"ports": [port("UDP", receiver_port)]}],
    });
    vec![policy("tidelock-isolated", isolated), policy("tidelock-fill", fill)]
}

#[cfg(test)]
#[path = "scratch_tests.rs"]
mod tests;
