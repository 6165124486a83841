//! A workload is tried, fails over to another cluster when its own is lost, and comes home: the programs as they are run, with a real
//! PostgreSQL, against clusters that only keep objects ([`crate::cluster`]).

use std::{collections::BTreeMap, fs, process::Output};

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
    cluster::{Cluster, kubeconfig},
    shop,
};

const OBJECTS: &str = "shop/kubernetes_objects";
const DATA: &str = "shop/data-orders-0";

/// Two clusters and a receiver.
struct Story {
    site: Site,
    receiver: Receiver,
    home: Cluster,
    standby: Cluster,
}

impl Story {
    /// The shop runs at home; the standby has only what its people put there.
    fn begin() -> Self {
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
    fn record(&self) -> Sidecar {
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

    /// A command of whoever looks after both.
    fn tidelock(&self, arguments: &[&str]) -> Output {
        let config = self.site.path("kubeconfig");
        kubeconfig(&config, &[("home", &self.home), ("standby", &self.standby)]);
        let mut command = self.site.operator_command(&self.receiver, arguments);
        process::output(command.env("KUBECONFIG", config).env_remove("KUBERNETES_SERVICE_HOST"))
    }

    /// One that succeeds.
    fn report(&self, arguments: &[&str]) -> Value {
        let out = self.tidelock(arguments);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&out.stdout).unwrap_or_else(|error| panic!("{error}: {out:?}"))
    }

    fn status(&self) -> Value {
        self.report(&["status", DATA])[0].clone()
    }
}

fn database(cluster: &Cluster) -> Pg {
    cluster.pg("shop", "orders-0", "data-orders-0")
}

fn execute(cluster: &Cluster, sql: &str) {
    database(cluster).connect().batch_execute(sql).expect("written");
}

/// How many rows of each origin there are.
fn rows(cluster: &Cluster) -> BTreeMap<String, i64> {
    let mut client = database(cluster).connect();
    let rows = client.query("select origin, count(*) from orders group by origin", &[]).expect("it answers");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn counted(counts: &[(&str, i64)]) -> BTreeMap<String, i64> {
    counts.iter().map(|(origin, count)| ((*origin).to_owned(), *count)).collect()
}

/// Waits until the pod has its socket and PostgreSQL answers.
fn wait_for(cluster: &Cluster) {
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
    if !met(&[Need::PostgreSql]) {
        return;
    }
    let mut story = Story::begin();
    story.home.start();
    wait_for(&story.home);
    execute(&story.home, "create table orders (origin text, id int)");
    execute(&story.home, "insert into orders select 'home', generate_series(1, 1000)");
    let mut recorder = story.record();
    story.home.caught_up("shop", "orders-0");

    // Tried at the standby, while it runs at home.
    story.standby.start();
    let reader = story.site.path("reader.id");
    let reader = reader.to_str().expect("UTF-8");
    let common = ["sts/orders", "--namespace", "shop", "--context", "standby", "--fill-identity", reader];
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
}
