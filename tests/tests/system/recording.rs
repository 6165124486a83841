//! The recorder as a process: what belongs to a protected pod is in the journal, as it was at each time.
//!
//! Its API only keeps objects ([`crate::cluster`]); injector, receiver and what is recorded are real.

use std::{fs, sync::Arc};

use serde_json::{Value, json};
use tidelock_manifests::Document;
use tidelock_tests::{
    process::{self, Process},
    site::Site,
    wait::{self, SOON},
};

use crate::{
    cluster::{Api, Shelf},
    identities::{self, Injector, address},
    shop,
};

const OBJECTS: &str = "shop/kubernetes_objects";

/// The record of the workload at a point.
fn record(site: &Site, receiver: &str, at: &str) -> Option<Document> {
    let mut command =
        site.tidelock(["cat", OBJECTS, "/statefulset.orders.json", "--receiver", receiver, "--at", at]);
    let out = process::output(command.arg("--identity").arg(site.path("op")));
    out.status.success().then(|| Document::parse(&out.stdout).expect("a document"))
}

fn setting(document: &Document) -> String {
    let map = document.objects.iter().find(|one| one["kind"] == "ConfigMap").expect("recorded");
    map["data"]["postgresql.conf"].as_str().expect("a text").to_owned()
}

#[test]
fn what_belongs_to_a_pod_is_recorded_with_every_change() {
    let (site, names) = (Site::new(), Arc::new(identities::Cluster::default()));
    names.add("tidelock", "receiver-0", "receiver", None);
    names.add("tidelock", "recorder-0", "recorder", None);
    let injector = Injector::start(&site, &names);
    wait::until_true("the injector is believed", SOON, || names.believed().is_some());
    names.operator(&site);
    let store = site.path("store");
    let store = store.to_str().expect("UTF-8");
    let arguments = ["receiver", "--store", store, "--listen", "127.0.0.1:0", "--keep", "all:forever"];
    let (mut receiver, _) = identities::start(&site, &injector, "receiver-0", &arguments);
    let listen = address(&site, &mut receiver);

    let shelf = Arc::new(Shelf::default());
    shop::namespace().iter().for_each(|object| shelf.put(object));
    shelf.know("cert-manager.io/v1", "Certificate", "certificates");
    shop::certificates().iter().for_each(|object| shelf.put(object));
    let status = json!({"state": "injected", "volumes": [{"name": "shop/data-orders-0"}]}).to_string();
    let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "orders", "uid": "1", "controller": true});
    shelf.put(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orders-0", "namespace": "shop",
        "labels": {"app": "orders"}, "annotations": {"tidelock.dev/status": status}, "ownerReferences": [owner]}}));
    let api = Api::serve(shelf.clone());
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "home",
        "clusters": [{"name": "home", "cluster": {"server": format!("http://{}", api.address)}}],
        "contexts": [{"name": "home", "context": {"cluster": "home", "user": "somebody"}}],
        "users": [{"name": "somebody", "user": {}}]});
    fs::write(site.path("kubeconfig"), config.to_string()).expect("writable");
    fs::write(site.path("recorder.token"), "token-recorder-0\n").expect("writable");
    let mut command = site.tidelock(["recorder", "--receiver", &listen, "--every", "100ms"]);
    command.args(["--identity-from", &injector.url]).arg("--to").arg(site.new_dir("recorder"));
    command.arg("--identity-authority").arg(site.path("certificate/ca.crt"));
    command.arg("--identity-token").arg(site.path("recorder.token"));
    command.arg(format!("--custom-resource={}", shop::rule()));
    command
        .arg(format!("--custom-resource={}", shop::rule().replace("cert-manager.io", "other.example.org")));
    command.env("KUBECONFIG", site.path("kubeconfig")).env_remove("KUBERNETES_SERVICE_HOST");
    let mut recorder = Process::spawn("recorder", &mut command, &site.path("recorder.log"));
    recorder.allow("waiting for the identity").allow("changed identity files not used");

    let first = wait::until("it is recorded", 2 * SOON, || {
        recorder.must_run();
        record(&site, &listen, "latest")
    });
    let kinds: Vec<&str> = first.objects.iter().filter_map(|one| one["kind"].as_str()).collect();
    let all = [
        "Certificate",
        "ConfigMap",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Secret",
        "Service",
        "ServiceAccount",
        "StatefulSet",
    ];
    assert_eq!(kinds, all);
    assert_eq!(first.namespace_labels["team"], "orders");
    assert!(first.objects.iter().all(|one| one["metadata"]["name"] != "of-others"));
    assert_eq!(setting(&first), "max_connections = 50\n");
    assert!(
        first.left_out.contains_key("anything of certificates.other.example.org"),
        "{:?}",
        first.left_out
    );
    let before = humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string();

    // What changes is recorded, and what was before is still known.
    for number in [60, 70] {
        let text = format!("max_connections = {number}\n");
        shelf.put(&json!({"kind": "ConfigMap", "metadata": {"name": "orders", "namespace": "shop"},
            "data": {"postgresql.conf": text}}));
        wait::until_true("the change is recorded", SOON, || {
            record(&site, &listen, "latest").is_some_and(|found| setting(&found) == text)
        });
    }
    let then = record(&site, &listen, &before).expect("it was there");
    assert_eq!(setting(&then), "max_connections = 50\n");
    // A workload that is gone is when its record is needed.
    shelf.with(|all| all.retain(|(_, namespace, _), _: &mut Value| namespace != "shop"));
    assert!(recorder.stop().success());
    assert_eq!(setting(&record(&site, &listen, "latest").expect("it stays")), "max_connections = 70\n");
    receiver.stop();
}
