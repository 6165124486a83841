//! A workload comes up elsewhere from what was recorded of it: its objects are valid there, and its data starts.
//!
//! No API server takes part: the objects are printed instead of applied, and what the injector adds to the pod is run by
//! the test, as the kubelet would.

use std::{fs, process::Command};

use serde_json::{Value, json};
use tidelock_manifests::{Document, Scope, file_name};
use tidelock_tests::{
    needs::{Need, met},
    pg::Pg,
    process,
    site::{Receiver, Site},
    wait::{self, SOON},
};

use crate::{cluster::documents, shop};

const OBJECTS: &str = "shop/kubernetes_objects";
const DATA: &str = "shop/data-orders-0";

fn points(site: &Site, receiver: &Receiver, volume: &str) -> usize {
    let out = process::output(&mut site.operator_command(receiver, &["points", volume, "--all"]));
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    listed.get("points").unwrap_or(&listed).as_array().map_or(0, Vec::len)
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
    let document =
        Document::record(&shop::namespace(), "shop", &workload, &Scope::default()).expect("it is there");
    fs::write(site.path("new.json"), document.to_text()).expect("writable");
    fs::rename(site.path("new.json"), objects.join(file_name(&workload))).expect("writable");
    let mut recorder = site.sidecar(&receiver, &objects).volume(OBJECTS).start();
    wait::until_true("the record is there", SOON, || points(&site, &receiver, OBJECTS) > 0);
    let mut sidecar = site.sidecar(&receiver, &site.path("data")).volume(DATA).start();
    pg.connect().batch_execute("insert into orders select generate_series(1, 1000)").expect("written");
    sidecar.caught_up(2 * SOON);

    // By the name of the workload, from the receiver alone.
    let shown = site.operator(&receiver, &["status", "sts/orders", "--namespace", "shop"]);
    let volumes: Vec<&Value> = shown.as_array().expect("a list").iter().map(|one| &one["volume"]).collect();
    assert_eq!(volumes, [&json!(DATA)]);
    let listed =
        site.operator(&receiver, &["points", "statefulset/orders", "--namespace", "shop", "--newest", "3"]);
    let known = site.operator(&receiver, &["points", DATA, "--newest", "3"]);
    assert_eq!((&listed[0]["volume"], &listed[0]["points"]), (&json!(DATA), &known));
    let table = site
        .tidelock([
            "points",
            "sts/orders",
            "--namespace",
            "shop",
            "--receiver",
            &receiver.listen,
            "--identity",
        ])
        .arg(site.path("operator.id"))
        .output()
        .expect("it runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.starts_with("VOLUME ") && table.contains("shop/data-orders-0  1."), "{table}");
    let unknown = process::output(&mut site.operator_command(&receiver, &["status", "sts/orders"]));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(64) && said.contains("--namespace"), "{said}");

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
        "Namespace",
        "ServiceAccount",
        "Secret",
        "ConfigMap",
        "PersistentVolumeClaim",
        "Service",
        "PodDisruptionBudget",
        "StatefulSet",
    ];
    assert_eq!(order, expected);
    let labels = json!({"tidelock.dev/inject": "true", "pod-security.kubernetes.io/enforce": "restricted"});
    assert_eq!(all[0]["metadata"], json!({"name": "shop-dr", "labels": labels}));
    for one in &all[1..] {
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
