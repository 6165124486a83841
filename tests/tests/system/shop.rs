//! The namespace `shop` with a PostgreSQL, as its API server writes it.

use serde_json::{Value, json};
use tidelock_manifests::Scope;

/// Its objects, and the namespace itself.
pub(crate) fn namespace() -> Vec<Value> {
    let object = |version: &str, kind: &str, name: &str, rest: Value| {
        let mut object = json!({
            "apiVersion": version,
            "kind": kind,
            "metadata": {
                "name": name, "namespace": "shop", "uid": format!("0f3c-{kind}-{name}"), "resourceVersion": "4711",
                "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 2,
                "managedFields": [{"manager": "helm", "operation": "Apply", "apiVersion": version}],
            },
        });
        object.as_object_mut().expect("a map").extend(rest.as_object().expect("a map").clone());
        object
    };
    let labels = json!({"app": "orders"});
    let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": "10Gi"}}});
    let mut bound = claim.clone();
    bound["volumeName"] = json!("pvc-0f3c");
    let restricted = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let pod = json!({
        "serviceAccountName": "orders",
        "terminationGracePeriodSeconds": 60,
        "securityContext": {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999, "runAsNonRoot": true,
            "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "postgres", "image": "registry.example.org/postgres:15",
            "securityContext": restricted,
            "env": [{"name": "POSTGRES_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "orders", "key": "password"}}}],
            "volumeMounts": [
                {"name": "data", "mountPath": "/var/lib/postgresql/data"},
                {"name": "settings", "mountPath": "/etc/postgresql", "readOnly": true},
            ],
        }],
        "volumes": [{"name": "settings", "configMap": {"name": "orders", "defaultMode": 420}}],
    });
    let service = json!({"type": "ClusterIP", "clusterIP": "10.96.1.7", "clusterIPs": ["10.96.1.7"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
        "sessionAffinity": "None", "selector": labels,
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP", "targetPort": 5432}]});
    vec![
        object(
            "apps/v1",
            "StatefulSet",
            "orders",
            json!({
                "spec": {
                    "replicas": 1, "serviceName": "orders", "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                    "volumeClaimTemplates": [{"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                        "metadata": {"name": "data", "creationTimestamp": null}, "spec": claim, "status": {"phase": "Pending"}}],
                },
                "status": {"replicas": 1, "readyReplicas": 1, "observedGeneration": 2},
            }),
        ),
        object("v1", "Service", "orders", json!({"spec": service, "status": {"loadBalancer": {}}})),
        object("v1", "Secret", "orders", json!({"type": "Opaque", "data": {"password": "c2VjcmV0"}})),
        object("v1", "ConfigMap", "orders", json!({"data": {"postgresql.conf": "max_connections = 50\n"}})),
        object("v1", "ServiceAccount", "orders", json!({})),
        object(
            "v1",
            "PersistentVolumeClaim",
            "data-orders-0",
            json!({"spec": bound,
            "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}}}),
        ),
        object(
            "policy/v1",
            "PodDisruptionBudget",
            "orders",
            json!({"spec": {"maxUnavailable": 0, "selector": {"matchLabels": labels}}}),
        ),
        object("v1", "Secret", "of-others", json!({"type": "Opaque", "data": {"key": "eA=="}})),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "uid": "0f3c", "labels": {
            "kubernetes.io/metadata.name": "shop", "tidelock.dev/inject": "true",
            "pod-security.kubernetes.io/enforce": "restricted", "team": "orders"}}}),
    ]
}

/// A custom resource of the shop, of a kind that not every cluster has, and one that is not the shop's.
pub(crate) fn certificates() -> [Value; 2] {
    let certificate = |name: &str, secret: &str| {
        json!({"apiVersion": "cert-manager.io/v1", "kind": "Certificate",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("0f3c-{name}"), "finalizers": ["x"]},
            "spec": {"secretName": secret, "dnsNames": ["orders.example.org"]}, "status": {"revision": 3}})
    };
    [certificate("orders", "orders"), certificate("of-others", "of-others")]
}

/// How whoever runs the cluster says that such resources belong: as the recorder takes it.
pub(crate) fn rule() -> String {
    json!({"group": "cert-manager.io", "version": "v1", "kind": "Certificate", "plural": "certificates",
        "names": [{"field": "/spec/secretName", "kind": "Secret"}]})
    .to_string()
}

/// With that rule.
pub(crate) fn scope() -> Scope {
    Scope { rules: vec![rule().parse().expect("a rule")], ..Scope::default() }
}
