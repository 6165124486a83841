//! Test failovers of a database under load, ten of them: each is right, replication goes on, and nothing is left of any.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use tidelock_tests::{
    needs::{self, Need},
    pg::{
        Heartbeat, Load, Pg, books_balance,
        check::{Expected, check_copy},
        pgbench_init,
    },
    site::{Site, VOLUME},
    wait::{self, SOON},
};

const TESTS: usize = 10;
const SCALE: u32 = 1;
/// A database under load on a busy machine.
const SETTLE: Duration = Duration::from_secs(120);

#[test]
fn ten_test_failovers_under_load_leave_nothing_behind() {
    if !needs::met(&[Need::PostgreSql, Need::Root, Need::Program("setpriv")]) {
        return;
    }
    let site = Site::new();
    let data = site.path("data");
    let mut pg = Pg::init(&data, &site.path("run"));
    pg.start();
    pgbench_init(&pg, SCALE);
    let mut receiver = site.receiver();
    // Beside such a load a connection's last words can be lost.
    receiver.process.allow("disconnected peer=operator");
    let mut sidecar = site.sidecar(&receiver, &data).start();
    sidecar.caught_up(SETTLE);
    let heartbeat = Heartbeat::start(&pg, Duration::from_millis(2));
    let load = Load::start(&pg, 2, Duration::from_secs(600));
    wait::until_true("some commits", SOON, || heartbeat.acked().len() > 300);

    let sockets = site.new_dir("sockets");
    Pg::at(&site.path("unused"), &sockets);
    let (to, run) = (site.path("test"), books_balance(&sockets, SCALE));
    let to_text = to.to_str().expect("test paths are UTF-8");
    let before = (names(&site.path("")), mounts());
    let mut tested = BTreeSet::new();
    for number in 0..TESTS {
        let mut asked = vec!["test", VOLUME, "--to", to_text, "--run", &run];
        // Every other one is a copy instead of a mount, where there are mounts.
        asked.extend((number % 2 == 1).then_some("--copy"));
        let report = site.operator(&receiver, &asked);
        assert_eq!(report["passed"], true, "{number}: {report}");
        assert_eq!(report["work"].is_null(), number % 2 == 0 && Need::Fuse.lacking().is_none(), "{report}");
        tested.insert(report["point"]["id"].as_str().expect("an id").to_owned());
        assert_eq!((names(&site.path("")), mounts()), before, "{number} has left something");
    }
    assert_eq!(names(&sockets), BTreeSet::from(["log".to_owned()]), "a server has been left");
    assert_eq!(tested.len(), TESTS, "replication stood still: {tested:?}");

    // The volume is as it was but for the results.
    let status = site.operator(&receiver, &["status"]);
    assert_eq!(status.as_array().map(Vec::len), Some(1), "{status}");
    let status = &status[0];
    assert_eq!(
        (&status["epoch"], &status["promoted"], &status["connected"]),
        (&1.into(), &false.into(), &true.into())
    );
    assert_eq!((&status["last_test"]["passed"], &status["instants"]), (&true.into(), &serde_json::json!([])));
    let points = site.points(&receiver);
    let named = points.iter().filter(|point| point["tags"].as_array().is_some_and(|tags| !tags.is_empty()));
    let named: BTreeSet<String> =
        named.map(|point| point["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(named, tested);

    let point = sidecar.caught_up(SETTLE);
    let beats = heartbeat.stop();
    load.kill();
    pg.kill();
    let copy = site.path("copy");
    site.restore(&receiver, &point.id.to_string(), &copy);
    let expected = Expected { scale: SCALE, beats: &beats, cut_ns: point.cut_ns };
    assert_eq!(check_copy(&copy, &site.path("copy-run"), expected), Vec::<String>::new());
    sidecar.process.stop();
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("there").map(|entry| entry.expect("there").file_name());
    entries.map(|name| name.into_string().expect("UTF-8")).collect()
}

/// Mounts at such a place.
fn mounts() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("our own mounts");
    let ours = mounts.lines().filter(|line| line.contains("/test "));
    ours.map(str::to_owned).collect()
}
