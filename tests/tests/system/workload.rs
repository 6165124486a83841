//! A workload is tried, fails over to another cluster when its own is lost, and comes home: the programs as they are run, with a real
//! PostgreSQL, against clusters that only keep objects ([`crate::cluster`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Output,
};

use serde_json::{Value, json};
use tidelock_manifests::{Document, file_name};
use tidelock_tests::{
    needs::{Need, met},
    pg::Pg,
    process,
    site::{Receiver, Sidecar, Site},
    wait::{self, SOON},
};

use crate::{
    cluster::{Cluster, kinds_that_are_valid, kubeconfig},
    shop,
};

const OBJECTS: &str = "shop/kubernetes_objects";
pub(crate) const DATA: &str = "shop/data-orders-0";
const VALIDATE: Need = Need::Program("kubernetes-validate");

/// Two clusters and a receiver.
pub(crate) struct Story {
    pub(crate) site: Site,
    pub(crate) receiver: Receiver,
    pub(crate) home: Cluster,
    pub(crate) standby: Cluster,
}

impl Story {
    /// The shop runs at home; the standby has only what its people put there.
    pub(crate) fn begin() -> Self {
        let site = Site::new();
        let mut receiver = site.receiver();
        for expected in ["fell silent", "fenced", "promoted", "raised"] {
            receiver.process.allow(expected);
        }
        let home = Cluster::new(&site, "home", &receiver.listen);
        let standby = Cluster::new(&site, "standby", &receiver.listen);
        drop(Pg::init(&home.claim("shop", "data-orders-0"), &site.path("init")));
        shop::namespace().iter().for_each(|object| home.shelf.put(object));
        home.shelf.know("cert-manager.io/v1", "Certificate", "certificates");
        let sidecar = site.sidecar_identity(DATA);
        let operator = site.issue("operator", &["--tenant", "shop"], "shop-operator.id");
        for cluster in [&home, &standby] {
            cluster.put_identity("shop", "tidelock-sidecar", &sidecar);
        }
        home.put_identity("shop", "tidelock-operator", &operator);
        // At the standby volumes are filled with what whoever fails over brings along.
        site.issue("reader", &["--tenant", "shop", "--volume", "data-orders-0"], "reader.id");
        Self { site, receiver, home, standby }
    }

    /// What the recorder does at home.
    pub(crate) fn record(&self) -> Sidecar {
        let objects = self.site.new_dir("objects");
        let workload = "sts/orders".parse().expect("a workload");
        let all = [shop::namespace(), shop::certificates().into()].concat();
        let document = Document::record(&all, "shop", &workload, &shop::scope()).expect("it is there");
        fs::write(self.site.path("new.json"), document.to_text()).expect("writable");
        fs::rename(self.site.path("new.json"), objects.join(file_name(&workload))).expect("writable");
        let mut recorder = self.site.sidecar(&self.receiver, &objects).volume(OBJECTS).start();
        recorder.caught_up(SOON);
        recorder
    }

    /// The shop works at home, and all of it is replicated.
    pub(crate) fn open_shop(&mut self) -> Sidecar {
        self.home.start();
        wait_for(&self.home);
        execute(&self.home, "create table orders (origin text, id int)");
        execute(&self.home, "insert into orders select 'home', generate_series(1, 1000)");
        let recorder = self.record();
        self.home.caught_up("shop", "orders-0");
        recorder
    }

    /// Where the identity is that volumes at the standby are filled with.
    pub(crate) fn reader(&self) -> String {
        self.site.path("reader.id").to_str().expect("UTF-8").to_owned()
    }

    /// A command of whoever looks after both.
    pub(crate) fn tidelock(&self, arguments: &[&str]) -> Output {
        let config = self.site.path("kubeconfig");
        kubeconfig(&config, &[("home", &self.home), ("standby", &self.standby)]);
        let mut command = self.site.operator_command(&self.receiver, arguments);
        process::output(command.env("KUBECONFIG", config).env_remove("KUBERNETES_SERVICE_HOST"))
    }

    /// One that succeeds.
    pub(crate) fn report(&self, arguments: &[&str]) -> Value {
        let out = self.tidelock(arguments);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"))
    }

    pub(crate) fn status(&self) -> Value {
        self.report(&["status", DATA])[0].clone()
    }
}

fn database(cluster: &Cluster) -> Pg {
    cluster.pg("shop", "orders-0", "data-orders-0")
}

pub(crate) fn execute(cluster: &Cluster, sql: &str) {
    database(cluster).connect().batch_execute(sql).expect("written");
}

/// How many rows of each origin there are.
pub(crate) fn rows(cluster: &Cluster) -> BTreeMap<String, i64> {
    rows_of(&database(cluster))
}

fn rows_of(database: &Pg) -> BTreeMap<String, i64> {
    let mut client = database.connect();
    let rows = client.query("select origin, count(*) from orders group by origin", &[]).expect("it answers");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

pub(crate) fn counted(counts: &[(&str, i64)]) -> BTreeMap<String, i64> {
    counts.iter().map(|(origin, count)| ((*origin).to_owned(), *count)).collect()
}

/// Waits until the pod has its socket and PostgreSQL answers.
pub(crate) fn wait_for(cluster: &Cluster) {
    wait::until_true("the pod is ready", 2 * SOON, || {
        let set = cluster.shelf.get("statefulsets", "shop", "orders").unwrap_or_default();
        set["status"]["readyReplicas"] == 1
            && set["status"]["observedGeneration"] == set["metadata"]["generation"]
            && cluster
                .shelf
                .get("pods", "shop", "orders-0")
                .is_some_and(|pod| pod["status"]["phase"] == "Running")
    });
}

#[test]
fn a_postgresql_is_tried_fails_over_and_comes_home_with_all_that_was_written() {
    if !met(&[Need::PostgreSql, VALIDATE]) {
        return;
    }
    let mut story = Story::begin();
    let mut recorder = story.open_shop();

    // Tried at the standby, while it runs at home.
    story.standby.start();
    let reader = story.reader();
    let common = ["sts/orders", "--namespace", "shop", "--context", "standby", "--fill-identity", &reader];
    let tried =
        story.report(&[&["test"], &common[..], &["--receiver-there", &story.receiver.listen]].concat());
    assert_eq!(
        (&tried["trial"]["passed"], &tried["trial"]["outcome"]),
        (&json!(true), &json!("ready")),
        "{tried}"
    );
    assert_eq!(story.standby.shelf.get("namespaces", "", "tidelock-test-shop-sts-orders"), None);
    assert_eq!(story.standby.shelf.get("statefulsets", "tidelock-test-shop-sts-orders", "orders"), None);
    let point = tried["points"][0]["point"]["id"].as_str().expect("a point");
    let listed = story.report(&["points", DATA, "--all"]);
    let tags = listed.as_array().expect("a list").iter().find(|one| one["id"] == point).expect("it is kept")
        ["tags"]
        .clone();
    assert!(tags[0].as_str().is_some_and(|tag| tag.starts_with("verified at ")), "{tags}");
    assert_eq!(story.status()["epoch"], 1);

    // The site is lost.
    story.home.lose();
    recorder.process.kill();
    let failover = [&["failover"], &common[..]].concat();
    let mapped = [&["failover"], &common[..5], &["--namespace-map", "shop=shop-dr"]].concat();
    let refused = story.tidelock(&mapped);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("--fill-identity"), "{said}");
    assert_eq!(story.status()["epoch"], 1, "nobody is fenced");
    let report = story.report(&failover);
    assert_eq!(
        (&report["applied"]["ready"], &report["applied"]["namespace_created"]),
        (&json!(true), &json!(true))
    );
    assert_eq!((&report["fenced"][0]["old_epoch"], &report["fenced"][0]["epoch"]), (&json!(1), &json!(2)));
    assert!(report["rpo_ms"].is_f64() && report["rto_ms"].as_f64().is_some_and(|rto| rto > 0.0), "{report}");
    assert_eq!(rows(&story.standby), counted(&[("home", 1000)]));
    let kept = |resource: &str| story.standby.shelf.get(resource, "shop", "orders").expect(resource);
    assert_eq!(kept("secrets")["data"]["password"], "c2VjcmV0");
    assert_eq!(kept("configmaps")["data"]["postgresql.conf"], "max_connections = 50\n");
    assert_eq!(kept("services")["spec"]["clusterIP"], Value::Null);
    let namespace = story.standby.shelf.get("namespaces", "", "shop").expect("made");
    assert_eq!(namespace["metadata"]["labels"]["tidelock.dev/inject"], "true");
    // What the cluster there does not know was told of and left out.
    let told = report["warnings"].to_string();
    assert!(told.contains("does not know Certificate of cert-manager.io/v1"), "{told}");
    let certificate = |cluster: &Cluster| cluster.shelf.get("certificates", "shop", "orders");
    assert_eq!(certificate(&story.standby), None);
    story.standby.shelf.know("cert-manager.io/v1", "Certificate", "certificates");
    // It replicates from there, in the new epoch; the same command applies what is known now, and else changes nothing.
    story.standby.caught_up("shop", "orders-0");
    let uid = kept("statefulsets")["metadata"]["generation"].clone();
    let again = story.report(&failover);
    assert_eq!((&again["fenced"], &again["applied"]["ready"]), (&json!([]), &json!(true)));
    assert_eq!(
        (&kept("statefulsets")["metadata"]["generation"], &story.status()["epoch"]),
        (&uid, &json!(2))
    );
    let applied = certificate(&story.standby).expect("it is known now");
    assert_eq!((&applied["spec"]["secretName"], &applied["status"]), (&json!("orders"), &Value::Null));
    execute(&story.standby, "insert into orders select 'standby', generate_series(1, 500)");
    story.standby.caught_up("shop", "orders-0");

    // The site is back, and its pods with it: what they write is nobody's.
    story.home.start();
    wait_for(&story.home);
    execute(&story.home, "insert into orders select 'stranded', generate_series(1, 7)");
    let mut failback = vec!["failback", "sts/orders", "--namespace", "shop", "--context", "home"];
    let refused = story.tidelock(&failback);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("--from-context"), "{said}");
    failback.extend(["--from-context", "standby"]);
    let report = story.report(&failback);
    assert_eq!((&report["already"], &report["applied"]["ready"]), (&json!(false), &json!(true)), "{report}");
    assert_eq!((&report["fenced"][0]["old_epoch"], &report["fenced"][0]["epoch"]), (&json!(2), &json!(3)));
    assert_eq!(report["branches"][DATA], "shop/data-orders-0-epoch-1");
    assert_eq!(rows(&story.home), counted(&[("home", 1000), ("standby", 500)]));
    assert_eq!(story.standby.shelf.get("pods", "shop", "orders-0"), None);
    assert!(certificate(&story.home).is_some());
    story.home.caught_up("shop", "orders-0");
    assert_eq!(story.status()["epoch"], 3);
    // Only what differed came over the wire; what was stranded is kept.
    let branch = story.site.path("branch");
    story.site.restore_volume(&story.receiver, "shop/data-orders-0-epoch-1", "latest", &branch);
    let mut stranded = Pg::at(&branch, &story.site.path("branch-run"));
    stranded.start();
    let count = stranded.connect().query_one("select count(*) from orders where origin = 'stranded'", &[]);
    assert_eq!(count.expect("it answers").get::<_, i64>(0), 7);
    stranded.stop();
    // The same command again: it is home.
    let again = story.report(&failback);
    assert_eq!((&again["already"], &again["fenced"]), (&json!(true), &json!([])));
    assert_eq!(story.status()["epoch"], 3);

    // All that was sent to either is what an API server takes.
    let sent = [story.home.shelf.sent(), story.standby.shelf.sent()].concat();
    let kinds = kinds_that_are_valid(&sent);
    let wanted = [
        "ConfigMap",
        "Job",
        "Namespace",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Secret",
        "Service",
        "ServiceAccount",
        "StatefulSet",
    ];
    assert!(kinds.iter().eq(wanted), "{kinds:?}");
    let jobs = sent.iter().filter(|one| one["kind"] == "Job");
    let works = jobs.filter_map(|one| one["metadata"]["labels"]["tidelock.dev/job"].as_str());
    assert_eq!(Vec::from_iter(works.collect::<BTreeSet<_>>()), ["copy", "difference", "fill", "keep"]);
}

#[test]
fn with_another_namespace_class_image_and_field_it_comes_up_and_replicates_from_there() {
    if !met(&[Need::PostgreSql, VALIDATE]) {
        return;
    }
    let mut story = Story::begin();
    let mut recorder = story.open_shop();
    story.home.lose();
    recorder.process.kill();
    story.standby.start();
    story.standby.shelf.know("cert-manager.io/v1", "Certificate", "certificates");
    let own = story.site.sidecar_identity("shop-dr/data-orders-0");
    story.standby.put_identity("shop-dr", "tidelock-sidecar", &own);
    let reader = story.reader();
    let failover = [
        &[
            "failover",
            "sts/orders",
            "--namespace",
            "shop",
            "--context",
            "standby",
            "--fill-identity",
            &reader,
        ][..],
        &["--namespace-map", "shop=shop-dr", "--storage-class-map", "fast=ssd"],
        &["--image-map", "registry.example.org/=mirror.example.org/"],
        &["--set", "statefulset/orders:/spec/template/spec/terminationGracePeriodSeconds=90"],
        &["--set", "certificate.cert-manager.io/orders:/spec/dnsNames/0=orders.dr.example.org"],
    ]
    .concat();
    let report = story.report(&failover);
    assert_eq!((&report["applied"]["ready"], &report["to"]), (&json!(true), &json!("shop-dr")), "{report}");
    let kept =
        |resource: &str, name: &str| story.standby.shelf.get(resource, "shop-dr", name).expect(resource);
    assert_eq!(kept("secrets", "orders")["data"]["password"], "c2VjcmV0");
    assert_eq!(kept("configmaps", "orders")["data"]["postgresql.conf"], "max_connections = 50\n");
    assert_eq!(kept("services", "orders")["spec"]["selector"], json!({"app": "orders"}));
    assert_eq!(kept("certificates", "orders")["spec"]["dnsNames"], json!(["orders.dr.example.org"]));
    assert_eq!(kept("persistentvolumeclaims", "data-orders-0")["spec"]["storageClassName"], "ssd");
    let set = kept("statefulsets", "orders");
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"], "ssd");
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["image"], "mirror.example.org/postgres:15");
    assert_eq!(pod["terminationGracePeriodSeconds"], 90);
    for gone in ["statefulsets", "secrets", "services"] {
        assert_eq!(
            story.standby.shelf.get(gone, "shop", "orders"),
            None,
            "nothing of it is in the old namespace"
        );
    }
    // The data is there, the old writer is fenced, and the volume is a new one that replicates.
    let database = story.standby.pg("shop-dr", "orders-0", "data-orders-0");
    assert_eq!(rows_of(&database), counted(&[("home", 1000)]));
    assert_eq!(story.status()["epoch"], 2);
    database.connect().batch_execute("insert into orders values ('standby', 1)").expect("written");
    story.standby.caught_up("shop-dr", "orders-0");
    // The same command changes nothing, and takes nothing back.
    let generation = set["metadata"]["generation"].clone();
    story.report(&failover);
    assert_eq!(kept("statefulsets", "orders")["metadata"]["generation"], generation);
    assert_eq!(rows_of(&database), counted(&[("home", 1000), ("standby", 1)]));
    let kinds = kinds_that_are_valid(&story.standby.shelf.sent());
    assert!(kinds.contains("StatefulSet") && kinds.contains("Namespace"), "{kinds:?}");
}
