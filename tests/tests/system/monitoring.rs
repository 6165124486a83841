//! Alerts and the dashboard ask for metrics that there are: every program that exports some is run, and asked for them.

use std::{collections::BTreeSet, fs, sync::Arc};

use tidelock_tests::{
    http,
    https::Authority,
    needs::met,
    process,
    site::{Site, VOLUME},
    wait::{self, SOON},
};

use super::{chart, identities, webhook};

/// The names of samples, and those of families that have none yet.
fn names(page: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in page.lines() {
        match line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            Some((name, "counter")) if !name.ends_with("_total") => names.insert(format!("{name}_total")),
            Some((name, _)) => names.insert(name.to_owned()),
            None if line.starts_with('#') => false,
            None => names.insert(line.split(['{', ' ']).next().unwrap_or_default().to_owned()),
        };
    }
    names
}

fn page(http: &str) -> String {
    http::get(http, "/metrics").expect("it serves its metrics").1
}

/// Of a receiver, a sidecar and a rehearsal.
fn of_a_volume(site: &Site) -> Vec<String> {
    let volume = site.new_dir("volume");
    let receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    fs::write(volume.join("ledger"), "first").expect("writable");
    sidecar.settle(SOON);
    let (to, rehearsed) = (site.path("rehearsal"), site.path("drill.prom"));
    let to = to.to_str().expect("test paths are UTF-8");
    let mut drill = site.operator_command(&receiver, &["drill", VOLUME, "--to", to, "--every", "10ms"]);
    drill.args(["--rounds", "1", "--copy", "--no-record", "--run", "true", "--metrics"]).arg(&rehearsed);
    process::run(&mut drill);
    vec![page(&receiver.http), page(&sidecar.http), fs::read_to_string(rehearsed).expect("written")]
}

/// Of a webhook that has answered once, and of an injector that watches and has given an identity.
fn of_injectors(site: &Site) -> Vec<String> {
    let authority = Authority::new();
    authority.issue(&site.path("certificate"));
    let plain = webhook::Injector::start(site);
    let mut https = authority.connect(&plain.listen).expect("a handshake");
    // Asked by the path of a namespace that asks for nothing, so it is left alone and a note says why.
    let answer = https.post("/mutate/pod", &webhook::recorded()).expect("an answer");
    assert_eq!(answer.0, 200);
    let site = Site::new();
    let cluster = Arc::new(identities::Cluster::default());
    cluster.add("tidelock", "receiver-0", "receiver", None);
    let injector = identities::Injector::start(&site, &cluster);
    let store = site.path("store");
    let arguments = ["receiver", "--store", store.to_str().expect("UTF-8"), "--listen", "127.0.0.1:0"];
    let (mut receiver, identity) = identities::start(&site, &injector, "receiver-0", &arguments);
    wait::until_true("an identity is given", SOON, || {
        receiver.must_run();
        identity.join("tls.crt").exists()
    });
    vec![page(&plain.http), page(&injector.http)]
}

#[test]
fn alerts_and_the_dashboard_ask_for_metrics_that_are_exported_and_documented() {
    if !met(&[chart::HELM]) {
        return;
    }
    let site = Site::new();
    let pages = [of_a_volume(&site), of_injectors(&site)].concat();
    let exported: BTreeSet<String> = pages.iter().flat_map(|page| names(page)).collect();
    let documented = chart::documentation();
    for asked in chart::metrics_asked_for() {
        assert!(exported.contains(&asked), "{asked} is exported by nobody: {exported:#?}");
        assert!(documented.contains(&asked), "{asked} is not in the documentation");
    }
}
