//! An object without what only its cluster can say of it.

use serde_json::{Map, Value};

/// What stays of `metadata`.
const METADATA: [&str; 4] = ["name", "namespace", "labels", "annotations"];
/// Annotations by which clusters remember what they did.
const ANNOTATIONS: [&str; 9] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deployment.kubernetes.io/",
    "pv.kubernetes.io/",
    "volume.kubernetes.io/",
    "volume.beta.kubernetes.io/storage-provisioner",
    "autoscaling.alpha.kubernetes.io/",
    "control-plane.alpha.kubernetes.io/",
    "tidelock.dev/status",
    "tidelock.dev/injected-by",
];
/// What a cluster allots to a Service.
const SERVICE: [&str; 7] = [
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "healthCheckNodePort",
    "loadBalancerIP",
    "externalIPs",
];
/// What binds a claim to a volume that is there.
const CLAIM: [&str; 4] = ["volumeName", "dataSource", "dataSourceRef", "volumeAttributesClassName"];

/// Takes away identity, state, and what was allotted; what was asked for stays.
pub fn sanitise(object: &Value) -> Value {
    let mut object = object.clone();
    remove(&mut object, "", &["status"]);
    clean_metadata(&mut object);
    match object["kind"].as_str() {
        Some("Service") => clean_service(&mut object),
        Some("PersistentVolumeClaim") => remove(&mut object, "/spec", &CLAIM),
        // Tokens of the old cluster.
        Some("ServiceAccount") => remove(&mut object, "", &["secrets"]),
        Some("StatefulSet" | "Deployment") => clean_workload(&mut object),
        _ => {}
    }
    object
}

fn clean_metadata(object: &mut Value) {
    let Some(meta) = object.pointer_mut("/metadata").and_then(Value::as_object_mut) else { return };
    meta.retain(|key, _| METADATA.contains(&key.as_str()));
    if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !ANNOTATIONS.iter().any(|known| key.starts_with(known)));
    }
    meta.retain(|_, value| !value.as_object().is_some_and(Map::is_empty));
}

fn clean_service(service: &mut Value) {
    // Headless is a wish, an address is not.
    let headless = service["spec"]["clusterIP"] == "None";
    remove(service, "/spec", &SERVICE);
    if let Some(spec) = service.pointer_mut("/spec").and_then(Value::as_object_mut).filter(|_| headless) {
        spec.insert("clusterIP".to_owned(), "None".into());
    }
    for port in list(service, "/spec/ports") {
        remove(port, "", &["nodePort"]);
    }
}

fn clean_workload(object: &mut Value) {
    if let Some(template) = object.pointer_mut("/spec/template") {
        clean_metadata(template);
        remove(template, "/spec", &["nodeName"]);
    }
    for claim in list(object, "/spec/volumeClaimTemplates") {
        clean_metadata(claim);
        remove(claim, "", &["status"]);
        remove(claim, "/spec", &CLAIM);
    }
}

fn list<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

fn remove(value: &mut Value, pointer: &str, keys: &[&str]) {
    if let Some(map) = value.pointer_mut(pointer).and_then(Value::as_object_mut) {
        map.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cluster_made(object: &Value) -> Value {
        let mut object = object.clone();
        let meta = json!({"uid": "1", "resourceVersion": "2", "generation": 3, "managedFields": [],
            "creationTimestamp": "2026-01-01T00:00:00Z", "ownerReferences": [{"kind": "X", "name": "x"}],
            "finalizers": ["kubernetes.io/pvc-protection"], "selfLink": "/x"});
        for (key, value) in meta.as_object().expect("a map") {
            object["metadata"][key] = value.clone();
        }
        object["status"] = json!({"phase": "Bound", "replicas": 1});
        object
    }

    #[test]
    fn what_a_cluster_says_of_an_object_goes_and_what_was_asked_for_stays() {
        let wanted = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "namespace": "shop", "labels": {"x": "y"}, "annotations": {"mine": "1"}},
            "data": {"status": "kept", "nodeName": "kept"}});
        let mut made = cluster_made(&wanted);
        made["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] = json!("{}");
        assert_eq!(sanitise(&made), wanted);
        assert_eq!(sanitise(&wanted), wanted, "twice is once");
    }

    #[test]
    fn addresses_go_and_headless_stays() {
        let spec = |ip: &str| {
            json!({"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "type": "NodePort",
                "selector": {"a": "b"}, "ports": [{"port": 1, "nodePort": 30001}]})
        };
        let service =
            |ip: &str| sanitise(&json!({"kind": "Service", "metadata": {"name": "a"}, "spec": spec(ip)}));
        let plain = json!({"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 1}]});
        assert_eq!(service("10.0.0.1")["spec"], plain);
        let mut headless = plain;
        headless["clusterIP"] = json!("None");
        assert_eq!(service("None")["spec"], headless);
    }

    #[test]
    fn claims_are_bound_to_nothing() {
        let claim = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "a",
            "annotations": {"pv.kubernetes.io/bind-completed": "yes", "volume.kubernetes.io/selected-node": "n"}},
            "spec": {"volumeName": "pv-1", "accessModes": ["ReadWriteOnce"]}});
        let wanted = json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "a"},
            "spec": {"accessModes": ["ReadWriteOnce"]}});
        assert_eq!(sanitise(&cluster_made(&claim)), wanted);
    }

    #[test]
    fn nothing_strange_is_taken_apart() {
        for strange in
            [json!(null), json!([]), json!("x"), json!({"kind": "Service", "spec": 1, "metadata": []})]
        {
            assert_eq!(sanitise(&strange), strange);
        }
    }
}
