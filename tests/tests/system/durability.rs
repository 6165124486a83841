//! What was acknowledged is there, whatever happens to the receiver.

use std::{collections::HashSet, process::Command, thread, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tidelock_tests::{
    process::Process,
    site::Site,
    wait::{self, SOON},
    witness::{Directory, check, counters, read_log},
};

const KILLS: usize = 12;
const RESTORES: usize = 10;

#[test]
fn every_acknowledged_point_survives_the_receiver_being_killed() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut rng = StdRng::seed_from_u64(5);
    let log = site.path("witness.log");
    let mut witness = Command::new(env!("CARGO_BIN_EXE_witness"));
    witness.arg("calls").arg(&volume).arg(&log).arg("100");
    let mut witness = Process::spawn("witness", &mut witness, &site.path("witness.out"));
    // From the first value on all counters are there, and the first cut comes later: none may be absent from any point.
    wait::until_true("the first value", SOON, || log.metadata().is_ok_and(|meta| meta.len() > 0));
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    // The link breaks at every kill: that is what the test does.
    sidecar.process.allow("not connected");

    for _ in 0..KILLS {
        // The moment of the kill is what is random here; nothing is waited for.
        thread::sleep(Duration::from_millis(rng.random_range(50..1500)));
        receiver.process.kill();
        receiver = site.receiver();
    }
    sidecar.settle(SOON);
    witness.kill();
    sidecar.settle(SOON);
    let acks = sidecar.acks();
    assert!(acks.len() > 20 * KILLS, "only {} points: not much of a test", acks.len());

    let listed = site.points(&receiver);
    let listed: HashSet<&str> =
        listed.iter().map(|point| point["id"].as_str().expect("points have an id")).collect();
    let lost: Vec<_> = acks.iter().filter(|ack| !listed.contains(ack.id.to_string().as_str())).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

    let log = read_log(&log).expect("readable");
    for (number, ack) in acks.choose_multiple(&mut rng, RESTORES).enumerate() {
        let to = site.path(&format!("restored-{number}"));
        site.restore(&receiver, &ack.id.to_string(), &to);
        let counters = counters(&Directory(&to)).unwrap_or_else(|reason| panic!("{}: {reason}", ack.id));
        let reading = check::Reading { id: ack.id, cut_ns: ack.cut_ns, counters };
        assert_eq!(check::violations(&[reading], &log), Vec::<String>::new());
    }
}
