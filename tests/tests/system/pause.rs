//! Pausing the application: it makes a busy volume quiet, within its bound, and never outlives its sidecar.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use tidelock_tests::{
    process::Process,
    procfs,
    site::{Site, Tracker},
    wait::{self, SOON},
};

/// A file that takes a while to compare and changes all the time, written by processes that come and go.
const NEVER_QUIET: &str =
    "head -c 64M /dev/zero >big; echo ready; while :; do echo x | dd of=big conv=notrunc 2>/dev/null; done";

fn busy_application(site: &Site, volume: &Path) -> Process {
    start_application(site, volume, NEVER_QUIET)
}

fn start_application(site: &Site, volume: &Path, script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(volume);
    let app = Process::spawn("application", &mut command, &site.path("application.log"));
    wait::until_true("the application works", SOON, || app.log().contains("ready"));
    app
}

#[test]
fn an_application_runs_on_when_its_sidecar_is_killed_in_a_pause() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let app = busy_application(&site, &volume);
    let mut receiver = site.receiver();
    receiver.process.allow("another sidecar took over").allow("fell silent");
    let plan = site.sidecar(&receiver, &volume).tracker(Tracker::Inotify).arg("--escalate=pause");
    // Long enough that it is not the limit which ends the pause.
    let plan = plan.arg("--cut-deadline=10ms").arg("--pause-limit=5s");
    let plan = plan.arg(&format!("--pause-process={}", app.pid()));
    let (mut slowest, mut hits) = (Duration::ZERO, 0);
    while hits < 3 {
        let mut sidecar = plan.start();
        // A watchdog that is held back proves that the sidecar left the application stopped.
        let dog = wait::until("a pause that the kill can hit", SOON, || {
            sidecar.process.must_run();
            let both = [sidecar.process.pid(), *procfs::children(sidecar.process.pid()).first()?];
            (0..20_000).find(|_| procfs::is_stopped(app.pid()))?;
            both.iter().for_each(|&pid| procfs::signal(pid, libc::SIGSTOP));
            wait::until_true("both are held", SOON, || both.iter().all(|&pid| procfs::is_stopped(pid)));
            if procfs::is_stopped(app.pid()) {
                sidecar.process.kill();
                // A thread of it may have ended the pause before it was held, too.
                hits += u32::from(procfs::is_stopped(app.pid()));
                return Some(both[1]);
            }
            both.iter().for_each(|&pid| procfs::signal(pid, libc::SIGCONT));
            None
        });
        procfs::signal(dog, libc::SIGCONT);
        let began = Instant::now();
        wait::until_true("the application runs on", SOON, || !procfs::is_stopped(app.pid()));
        slowest = slowest.max(began.elapsed());
    }
    println!("at most {slowest:?} until the application ran on");
    assert!(slowest < Duration::from_millis(500), "{slowest:?} until the application ran on");
}

#[test]
fn what_is_never_quiet_is_cut_in_pauses_and_says_so() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut app = busy_application(&site, &volume);
    let receiver = site.receiver();
    let (pid_file, trace) = (site.path("app.pid"), site.path("cuts"));
    let plan = site.sidecar(&receiver, &volume).tracker(Tracker::Inotify).arg("--escalate=pause");
    let plan = plan.arg("--cut-deadline=100ms").arg("--pause-limit=2s");
    let plan = plan.arg("--trace-cuts").arg(trace.to_str().expect("UTF-8"));
    let mut sidecar = plan.arg("--pause-process").arg(pid_file.to_str().expect("UTF-8")).start();
    let unavailable = |sidecar: &tidelock_tests::site::Sidecar| {
        sidecar
            .status()
            .is_some_and(|status| status["volumes"][0]["conditions"]["pause-unavailable"].is_string())
    };
    wait::until_true("status says that nobody can be paused", SOON, || unavailable(&sidecar));
    fs::write(&pid_file, app.pid().to_string()).expect("writable");
    wait::until_true("the condition heals", SOON, || !unavailable(&sidecar));

    wait::until_true("pauses", SOON, || {
        sidecar.process.must_run();
        sidecar.metric("tidelock_pauses_total") >= 4.0
    });
    app.kill();
    sidecar.settle(SOON);
    sidecar.process.stop();
    let points = site.points(&receiver);
    let paused = points.iter().filter(|point| point["how"] == "pause").count();
    let cuts = tidelock_tests::cuts::read(&trace);
    println!(
        "{paused} of {} points in pauses, {} pauses in all",
        points.len(),
        cuts.iter().filter(|cut| !cut.paused.is_zero()).count()
    );
    assert!(paused >= 2, "{paused} points were taken in a pause");
    assert_eq!(paused, cuts.iter().filter(|cut| cut.id.is_some() && !cut.paused.is_zero()).count());
    assert!(cuts.iter().all(|cut| cut.paused < Duration::from_secs(2)), "a pause was too long: {cuts:?}");
}

/// The same, but at rest while a file asks for it; it answers with another.
const AT_REST_ON_DEMAND: &str = "head -c 64M /dev/zero >big; echo ready
    while :; do
        if [ -e ../hold ]; then echo >../held; while [ -e ../hold ]; do sleep 0.01; done; rm ../held; fi
        echo x | dd of=big conv=notrunc 2>/dev/null
    done";

#[test]
fn what_is_never_quiet_is_cut_while_its_hooks_keep_it_at_rest() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut app = start_application(&site, &volume, AT_REST_ON_DEMAND);
    let receiver = site.receiver();
    let (hold, held) = (site.path("hold"), site.path("held"));
    let quiesce = format!("touch {}; while [ ! -e {} ]; do sleep 0.01; done", hold.display(), held.display());
    let plan = site.sidecar(&receiver, &volume).tracker(Tracker::Inotify).arg("--escalate=hooks");
    let plan = plan.arg("--cut-deadline=100ms").arg("--quiesce-hook").arg(&quiesce);
    let mut sidecar = plan.arg("--unquiesce-hook").arg(&format!("rm {}", hold.display())).start();
    wait::until_true("the first point", SOON, || !sidecar.acks().is_empty());
    wait::until_true("points at rest", SOON, || {
        sidecar.process.must_run();
        site.points(&receiver).iter().filter(|point| point["how"] == "hooks").count() >= 2
    });
    wait::until_true("the application runs on", SOON, || !held.exists());
    app.kill();
    sidecar.settle(SOON);
    sidecar.process.stop();
    let points = site.points(&receiver);
    assert!(points.iter().all(|point| (point["how"] == "hooks") == (point["consistency"] == "app")));
}

#[test]
fn a_pause_that_does_not_suffice_is_ended_in_time_and_counted() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let app = busy_application(&site, &volume);
    let receiver = site.receiver();
    let trace = site.path("cuts");
    let plan = site.sidecar(&receiver, &volume).tracker(Tracker::Inotify).arg("--escalate=pause");
    // No time to stop anybody and read as much.
    let plan = plan.arg("--cut-deadline=10ms").arg("--pause-limit=20ms");
    let plan = plan.arg("--trace-cuts").arg(trace.to_str().expect("UTF-8"));
    let sidecar = plan.arg(&format!("--pause-process={}", app.pid())).start();
    wait::until_true("the condition", SOON, || {
        sidecar
            .status()
            .is_some_and(|status| status["volumes"][0]["conditions"]["pause-too-short"].is_string())
    });
    wait::until_true("the application runs", SOON, || !procfs::is_stopped(app.pid()));
    assert!(tidelock_tests::cuts::read(&trace).iter().all(|cut| cut.paused < Duration::from_millis(200)));
}
