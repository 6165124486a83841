//! A workload comes up elsewhere from what was recorded of it: its objects are valid there, and its data starts.
//!
//! No API server takes part: the objects are printed instead of applied, and what the injector adds to the pod is run by
//! the test, as the kubelet would.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use tidelock_manifests::{Document, file_name};
use tidelock_tests::{
    needs::{Need, met},
    pg::Pg,
    process,
    site::{Receiver, Site},
    wait::{self, SOON},
};

const OBJECTS: &str = "shop/kubernetes_objects";
const DATA: &str = "shop/data-orders-0";

/// The namespace as its API server writes it.
fn namespace() -> Vec<Value> {
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
    ]
}

fn points(site: &Site, receiver: &Receiver, volume: &str) -> usize {
    let out = process::output(&mut site.operator_command(receiver, &["points", volume, "--all"]));
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    listed.get("points").unwrap_or(&listed).as_array().map_or(0, Vec::len)
}

fn documents(yaml: &Path) -> Vec<Value> {
    let script =
        "import json,sys,yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let text = process::run(Command::new("python3").args(["-c", script]).arg(yaml));
    serde_json::from_str(&text).expect("JSON")
}

fn named<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|one| one["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn rows(pg: &Pg) -> i64 {
    pg.connect().query_one("select count(*) from orders", &[]).expect("it answers").get(0)
}

#[test]
fn a_protected_postgresql_comes_up_in_another_namespace() {
    if !met(&[Need::PostgreSql, Need::Program("kubernetes-validate")]) {
        return;
    }
    let site = Site::new();
    let mut pg = Pg::init(&site.path("data"), &site.path("run"));
    pg.start();
    pg.connect().batch_execute("create table orders (id int)").expect("made");
    let mut receiver = site.receiver();
    // Who is lost says nothing.
    receiver.process.allow("fell silent");

    // What the recorder writes, and a sidecar that takes it to the journal.
    let objects = site.new_dir("objects");
    let workload = "sts/orders".parse().expect("a workload");
    let document = Document::record(&namespace(), "shop", &workload, true).expect("it is there");
    fs::write(site.path("new.json"), document.to_text()).expect("writable");
    fs::rename(site.path("new.json"), objects.join(file_name(&workload))).expect("writable");
    let mut recorder = site.sidecar(&receiver, &objects).volume(OBJECTS).start();
    wait::until_true("the record is there", SOON, || points(&site, &receiver, OBJECTS) > 0);
    let mut sidecar = site.sidecar(&receiver, &site.path("data")).volume(DATA).start();
    pg.connect().batch_execute("insert into orders select generate_series(1, 1000)").expect("written");
    sidecar.caught_up(2 * SOON);

    // The site is lost.
    pg.kill();
    sidecar.process.kill();
    recorder.process.kill();
    let mut arguments =
        vec!["failover", "sts/orders", "--namespace", "shop", "--namespace-map", "shop=shop-dr"];
    arguments.extend(["--storage-class-map", "fast=ssd", "--receiver-there", &receiver.listen]);
    arguments.extend(["--image-map", "registry.example.org/=mirror.example.org/"]);
    arguments.extend(["--set", "service/orders:/metadata/annotations={\"zone\":\"b\"}"]);
    let command = |more: &[&str]| {
        let mut command = site.tidelock(arguments.iter().chain(more).copied());
        command.args(["--receiver", &receiver.listen, "--identity"]).arg(site.path("operator.id"));
        command.env("KUBECONFIG", "/nowhere").env_remove("KUBERNETES_SERVICE_HOST");
        process::output(&mut command)
    };
    // Without a cluster to go to nobody is fenced.
    let refused = command(&[]);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("no way to a Kubernetes API"), "{said}");
    assert_eq!(site.operator(&receiver, &["status", DATA])[0]["epoch"], 1);

    let planned = command(&["--dry-run"]);
    assert!(planned.status.success(), "{}", String::from_utf8_lossy(&planned.stderr));
    let file = site.path("objects.yaml");
    fs::write(&file, &planned.stdout).expect("writable");
    for version in ["1.29", "1.37"] {
        let mut validate = Command::new("kubernetes-validate");
        validate.args(["-k", version, "--strict", "--quiet"]).arg(&file);
        let out = process::output(&mut validate);
        assert!(out.status.success(), "{version}: {out:?}");
    }
    let all = documents(&file);
    let order: Vec<&str> = all.iter().filter_map(|one| one["kind"].as_str()).collect();
    let expected = [
        "ServiceAccount",
        "Secret",
        "ConfigMap",
        "PersistentVolumeClaim",
        "Service",
        "PodDisruptionBudget",
        "StatefulSet",
    ];
    assert_eq!(order, expected);
    for one in &all {
        assert_eq!(one["metadata"]["namespace"], "shop-dr");
        assert!(one["metadata"]["uid"].is_null() && one["status"].is_null());
    }
    assert_eq!(named(&all, "Secret")["data"]["password"], "c2VjcmV0");
    assert_eq!(named(&all, "Service")["spec"]["clusterIP"], Value::Null);
    assert_eq!(named(&all, "Service")["metadata"]["annotations"]["zone"], "b");
    let claim = &named(&all, "PersistentVolumeClaim")["spec"];
    assert_eq!((&claim["storageClassName"], &claim["volumeName"]), (&json!("ssd"), &Value::Null));

    // What the injector there adds, run as the kubelet runs it.
    let injected = process::output(site.tidelock(["inject", "-f"]).arg(&file));
    fs::write(site.path("injected.yaml"), &injected.stdout).expect("writable");
    let all = documents(&site.path("injected.yaml"));
    let pod = &named(&all, "StatefulSet")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "mirror.example.org/postgres:15");
    let restore = &pod["initContainers"][0];
    assert_eq!(restore["name"], "tidelock-restore");
    let volume = site.new_dir("volume");
    let given = restore["args"].as_array().expect("arguments").iter().map(|one| {
        let one = one.as_str().expect("a text").replace("$(TIDELOCK_POD)", "orders-0");
        one.replace("/var/lib/postgresql/data", volume.to_str().expect("UTF-8"))
            .replace("/var/run/tidelock/identity", site.path("operator.id").to_str().expect("UTF-8"))
    });
    let given: Vec<String> = given.collect();
    assert_eq!(given[1], DATA);
    process::run(&mut site.tidelock(given.iter().map(String::as_str)));
    let mut there = Pg::at(&volume, &site.path("run-there"));
    there.start();
    assert_eq!(rows(&there), 1000);
    there.stop();
}
