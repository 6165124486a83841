//! Real processes are stopped, and run on whatever happens to whoever stopped them.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsString,
    fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    PauseConfig, PauseError, PauseTarget, Pauser, SelectError,
    processes::{self, Threads},
    watch,
};

const SOON: Duration = Duration::from_secs(20);
/// Whose tree the re-executed test is to pause, again and again.
const STOPPER_OF: &str = "TIDELOCK_TEST_STOPPER_OF";
/// After how many processes it is killed.
const KILLED_AFTER: &str = "TIDELOCK_TEST_STOPPER_KILLED_AFTER";

/// Not a test: what [`watchdog_command`] runs.
#[test]
fn watchdog_process() {
    let stdin = std::io::stdin();
    if rustix::net::sockopt::socket_type(&stdin) == Ok(rustix::net::SocketType::SEQPACKET) {
        watch(stdin).unwrap();
    }
}

/// Not a test: a sidecar that does nothing but pause, until it is killed. Its limit is not what ends the pause.
#[test]
fn stopper_process() {
    if let Ok(pid) = std::env::var(STOPPER_OF) {
        Pauser::new(config(pid.parse().unwrap(), Duration::from_secs(10))).unwrap().begin().unwrap();
    }
}

fn this_test(name: &str) -> Vec<OsString> {
    let program = std::env::current_exe().unwrap().into_os_string();
    let name = format!("pause::tests::{name}").into();
    vec![program, "--exact".into(), name, "--nocapture".into(), "--test-threads=1".into()]
}

fn config(pid: i32, limit: Duration) -> PauseConfig {
    let targets = vec![PauseTarget::Process(pid)];
    PauseConfig { limit, targets, watchdog: this_test("watchdog_process") }
}

/// A tree of processes that is gone when the test is.
struct Application(Child);

impl Application {
    fn start(script: &str, count: usize) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).process_group(0);
        let app = Self(command.spawn().unwrap());
        until("the whole application runs", || app.tree().len() >= count);
        app
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }

    /// All of its processes, by their group.
    fn tree(&self) -> Vec<i32> {
        let group = |pid| rustix::process::getpgid(Pid::from_raw(pid)).ok();
        let mine = |pid: &i32| group(*pid) == Pid::from_raw(self.pid());
        processes::all().unwrap().into_iter().map(|seen| seen.pid).filter(mine).collect()
    }

    fn stopped(&self) -> usize {
        self.tree().into_iter().filter(|pid| processes::threads(*pid) == Threads::Stopped).count()
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(Pid::from_raw(self.pid()).unwrap(), Signal::KILL);
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < SOON, "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(500));
    }
    began.elapsed()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[test]
fn a_tree_that_forks_all_the_time_is_stopped_whole_and_runs_on() {
    // Each generation starts the next one and ends.
    let dir = tempfile::tempdir().unwrap();
    let count = dir.path().join("count");
    let script =
        format!("for i in 1 2 3; do (while :; do (echo >>'{}'); done) & done; wait", count.display());
    let app = Application::start(&script, 4);
    let length = || fs::metadata(&count).map_or(0, |meta| meta.len());
    let mut pauser = Pauser::new(config(app.pid(), Duration::from_secs(4))).unwrap();
    pauser.probe().unwrap();
    for _ in 0..20 {
        let before = length();
        until("it writes", || length() > before);
        pauser.begin().unwrap();
        let (stopped, there, written) = (app.stopped(), app.tree().len(), length());
        assert_eq!(stopped, there, "somebody runs");
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!((length(), app.tree().len()), (written, there), "somebody wrote or forked");
        assert!(matches!(pauser.begin(), Err(PauseError::Busy)));
        assert!(pauser.end().unwrap() >= Duration::from_millis(2));
        assert!(pauser.end().is_none());
    }
    until("everybody runs on", || app.stopped() == 0);
}

#[test]
fn who_was_stopped_by_somebody_else_stays_stopped() {
    let app = Application::start("sleep 1000 & sleep 1001 & wait", 3);
    let other = *app.tree().last().unwrap();
    signal(other, Signal::STOP);
    until("it has stopped", || app.stopped() == 1);
    let mut pauser = Pauser::new(config(app.pid(), Duration::from_secs(4))).unwrap();
    pauser.begin().unwrap();
    assert_eq!(app.stopped(), 3);
    pauser.end();
    until("the others run on", || app.stopped() == 1);
    assert_eq!(processes::threads(other), Threads::Stopped);
}

#[test]
fn a_pause_that_nobody_ends_is_ended_by_the_watchdog_within_its_limit() {
    let app = Application::start("sleep 1000 & sleep 1001 & wait", 3);
    let limit = Duration::from_millis(400);
    let mut pauser = Pauser::new(config(app.pid(), limit)).unwrap();
    pauser.probe().unwrap();
    let began = Instant::now();
    pauser.begin().unwrap();
    assert_eq!(app.stopped(), 3);
    until("everybody runs on", || app.stopped() == 0);
    let took = began.elapsed();
    assert!(took >= pauser.budget(), "ended after {took:?}");
    // The rest is for a busy machine.
    assert!(took < limit + Duration::from_millis(250), "ended after {took:?}");
    // A sidecar that is late may stop somebody after that: not for long.
    app.tree().into_iter().for_each(|pid| signal(pid, Signal::STOP));
    until("everybody runs on again", || app.stopped() == 0);
    // However late it is, the pause was as long as the application stood still.
    until("it is late", || began.elapsed() > limit * 2);
    let paused = pauser.end().unwrap();
    assert!(paused >= pauser.budget() && paused <= took, "{paused:?} of {took:?}");
    // What the watchdog said of that pause is not taken for another.
    pauser.begin().unwrap();
    assert!(pauser.end().unwrap() < limit / 2);
}

#[test]
fn a_dead_watchdog_is_replaced_and_without_one_nobody_is_stopped() {
    let app = Application::start("sleep 1000 & wait", 2);
    let mut asked = config(app.pid(), Duration::from_secs(4));
    let mut pauser = Pauser::new(asked.clone()).unwrap();
    pauser.probe().unwrap();
    signal(pauser.watchdog_id().unwrap().try_into().unwrap(), Signal::KILL);
    // The one that is dead may not have been noticed, then there is no pause.
    until("a pause begins", || pauser.begin().is_ok());
    assert_eq!(app.stopped(), 2);
    pauser.end();
    until("everybody runs on", || app.stopped() == 0);

    asked.watchdog = vec!["/bin/true".into()];
    let mut pauser = Pauser::new(asked).unwrap();
    assert!(matches!(pauser.probe(), Err(PauseError::Watchdog(_))));
    assert!(matches!(pauser.begin(), Err(PauseError::Watchdog(_))));
    assert_eq!(app.stopped(), 0);
}

/// The stopper is killed after each number of processes it stops, from the first to the last: everybody runs on.
#[test]
fn whenever_the_stopper_is_killed_everybody_runs_on() {
    let children = 12;
    let app = Application::start(
        &format!("i=0; while [ $i -lt {children} ]; do sleep 1000 & i=$((i+1)); done; wait"),
        children + 1,
    );
    let mut slowest = Duration::ZERO;
    for stopped in 1..=children + 1 {
        let mut command = this_test("stopper_process").into_iter();
        let mut stopper = Command::new(command.next().unwrap());
        stopper.args(command).stdin(Stdio::null()).stdout(Stdio::null());
        stopper.env(STOPPER_OF, app.pid().to_string()).env(KILLED_AFTER, stopped.to_string());
        let status = stopper.status().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
        slowest = slowest.max(until("everybody runs on", || app.stopped() == 0));
    }
    println!("at most {slowest:?} until everybody ran");
    assert!(slowest < Duration::from_millis(500), "{slowest:?} until everybody ran");
}

/// Ends the stopper in the middle of its work, as a SIGKILL from outside would.
pub(super) fn after_stopping(count: usize) {
    if std::env::var(KILLED_AFTER).is_ok_and(|at| at == count.to_string()) {
        signal(std::process::id().try_into().unwrap(), Signal::KILL);
    }
}

#[test]
fn a_pid_file_means_the_process_that_wrote_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let start = |path: PathBuf| {
        let targets = vec![PauseTarget::PidFile(path)];
        Pauser::new(PauseConfig {
            limit: Duration::from_secs(4),
            targets,
            watchdog: this_test("watchdog_process"),
        })
    };
    let mut pauser = start(file.clone()).unwrap();
    assert!(matches!(pauser.probe(), Err(PauseError::Select(SelectError::PidFile { .. }))));
    let app = Application::start("sleep 1000 & wait", 2);
    fs::write(&file, format!("{}\nmore", app.pid())).unwrap();
    pauser.begin().unwrap();
    assert_eq!(app.stopped(), 2);
    pauser.end();
    // The file is older than whoever has the id now.
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
    assert!(matches!(pauser.begin(), Err(PauseError::Select(SelectError::Stale { .. }))));
    fs::write(&file, "no number").unwrap();
    assert!(matches!(pauser.begin(), Err(PauseError::Select(SelectError::PidFile { .. }))));
}

#[test]
fn who_has_ended_is_not_taken_for_another_and_a_machine_is_not_a_pod() {
    let app = Application::start("sleep 1000 & wait", 2);
    let mut pauser = Pauser::new(config(app.pid(), Duration::from_secs(4))).unwrap();
    drop(app);
    assert!(matches!(pauser.begin(), Err(PauseError::Select(SelectError::Ended(_)))));
    assert!(matches!(
        Pauser::new(config(i32::MAX, Duration::from_secs(4))),
        Err(SelectError::NoSuchProcess(i32::MAX))
    ));
    let pod = PauseConfig { targets: Vec::new(), ..config(1, Duration::from_secs(4)) };
    if fs::read_link("/proc/self/ns/pid").unwrap().as_os_str() == "pid:[4026531836]" {
        assert!(matches!(Pauser::new(pod), Err(SelectError::WholeMachine)));
    }
}
