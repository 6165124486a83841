//! What goes wrong on a workload's way to another cluster and home: the same command again brings it to the same end.

use serde_json::{Value, json};
use tidelock_tests::needs::{Need, met};

use crate::{
    cluster::Shelf,
    workload::{DATA, Story, counted, execute, rows, wait_for},
};

const REFUSED: i32 = 2;
const FAILED: i32 = 1;
/// More changes than any of these commands asks for.
const ATTEMPTS: usize = 60;

impl Story {
    /// Runs a command again and again until it succeeds; what it said each time that it did not.
    fn insist(&self, arguments: &[&str]) -> (Value, Vec<String>) {
        let mut said = Vec::new();
        while said.len() < ATTEMPTS {
            let out = self.tidelock(arguments);
            if out.status.success() {
                return (serde_json::from_slice(&out.stdout).expect("a report"), said);
            }
            said.push(String::from_utf8_lossy(&out.stderr).into_owned());
            assert_eq!(out.status.code(), Some(FAILED), "{said:?}");
        }
        panic!("{arguments:?} never succeeds: {said:#?}");
    }
}

/// Kind and name of what there is of the shop, without what its node made.
fn objects(shelf: &Shelf) -> Vec<String> {
    let own = |(resource, namespace, _): &(String, String, String)| namespace == "shop" && resource != "pods";
    shelf.with(|all| {
        all.keys().filter(|key| own(key)).map(|(kind, _, name)| format!("{kind}/{name}")).collect()
    })
}

#[test]
fn every_change_is_refused_once_and_the_same_commands_bring_it_there_and_home() {
    if !met(&[Need::PostgreSql]) {
        return;
    }
    let mut story = Story::begin();
    let mut recorder = story.open_shop();
    story.home.lose();
    recorder.process.kill();
    story.standby.start();
    story.standby.shelf.know("cert-manager.io/v1", "Certificate", "certificates");
    story.standby.shelf.refuse_each_once();
    let reader = story.reader();
    let failover =
        ["failover", "sts/orders", "--namespace", "shop", "--context", "standby", "--fill-identity", &reader];
    let (report, said) = story.insist(&failover);
    assert_eq!(report["applied"]["ready"], true, "{report}");
    // The namespace, the Secret that fills, and each of the eight objects.
    assert_eq!((said.len(), story.standby.shelf.refused()), (10, 10), "{said:#?}");
    assert!(said.iter().all(|one| one.contains("denied the request: not yet")), "{said:#?}");
    assert!(said.iter().all(|one| one.contains("run the same command again")), "{said:#?}");
    assert_eq!((&story.status()["epoch"], rows(&story.standby)), (&json!(2), counted(&[("home", 1000)])));
    let there = [
        "certificates/orders",
        "configmaps/orders",
        "persistentvolumeclaims/data-orders-0",
        "poddisruptionbudgets/orders",
        "secrets/orders",
        "secrets/tidelock-operator",
        "secrets/tidelock-sidecar",
        "serviceaccounts/orders",
        "services/orders",
        "statefulsets/orders",
    ];
    assert_eq!(objects(&story.standby.shelf), there);
    execute(&story.standby, "insert into orders select 'standby', generate_series(1, 500)");
    story.standby.caught_up("shop", "orders-0");

    story.home.start();
    wait_for(&story.home);
    for cluster in [&story.home, &story.standby] {
        cluster.shelf.refuse_each_once();
    }
    let failback =
        ["failback", "sts/orders", "--namespace", "shop", "--context", "home", "--from-context", "standby"];
    let (report, said) = story.insist(&failback);
    assert_eq!(report["applied"]["ready"], true, "{report}");
    assert_eq!(story.standby.shelf.refused(), 1, "its workload is ended, and nothing else");
    assert!(story.home.shelf.refused() >= 12 && said.len() > story.home.shelf.refused(), "{said:#?}");
    assert_eq!(story.status()["epoch"], 3);
    assert_eq!(rows(&story.home), counted(&[("home", 1000), ("standby", 500)]));
    story.home.caught_up("shop", "orders-0");
    let branches = story.report(&["branches", DATA]);
    let names: Vec<&Value> = branches.as_array().expect("a list").iter().map(|one| &one["branch"]).collect();
    assert_eq!(names, ["shop/data-orders-0-epoch-1"]);
    story.receiver.process.must_run();
}

#[test]
fn who_cannot_reach_a_cluster_fences_nobody_and_who_waited_too_short_waits_again() {
    if !met(&[Need::PostgreSql]) {
        return;
    }
    let mut story = Story::begin();
    let mut recorder = story.open_shop();
    story.home.lose();
    recorder.process.kill();
    let reader = story.reader();
    let failover =
        ["failover", "sts/orders", "--namespace", "shop", "--context", "standby", "--fill-identity", &reader];
    let unreachable = story.tidelock(&failover);
    assert_eq!(unreachable.status.code(), Some(REFUSED), "{unreachable:?}");
    assert_eq!(story.status()["epoch"], 1);

    // It takes objects, and has no room for pods.
    story.standby.start_without_nodes();
    let late = story.tidelock(&[&failover[..], &["--wait", "1s"]].concat());
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert_eq!(late.status.code(), Some(FAILED), "{said}");
    assert!(said.contains("not ready in time") && said.contains("run the same command again"), "{said}");
    assert_eq!(story.status()["epoch"], 2);
    story.standby.start();
    let report = story.report(&failover);
    assert_eq!(
        (&report["applied"]["ready"], &story.status()["epoch"]),
        (&json!(true), &json!(2)),
        "{report}"
    );
    assert_eq!(rows(&story.standby), counted(&[("home", 1000)]));
    story.standby.caught_up("shop", "orders-0");

    // On the way home the standby cannot be reached: nobody is ended, and nobody fenced.
    story.home.start();
    wait_for(&story.home);
    story.standby.lose();
    let failback =
        ["failback", "sts/orders", "--namespace", "shop", "--context", "home", "--from-context", "standby"];
    let unreachable = story.tidelock(&failback);
    assert_eq!(unreachable.status.code(), Some(FAILED), "{unreachable:?}");
    let at_home = story.home.shelf.get("statefulsets", "shop", "orders").expect("it is there");
    assert_eq!((&at_home["spec"]["replicas"], &story.status()["epoch"]), (&json!(1), &json!(2)));
    story.standby.start();
    wait_for(&story.standby);
    let report = story.report(&failback);
    assert_eq!(
        (&report["applied"]["ready"], &story.status()["epoch"]),
        (&json!(true), &json!(3)),
        "{report}"
    );
    assert_eq!(rows(&story.home), counted(&[("home", 1000)]));
}
