//! A receiver, sidecars and an operator with identities of one authority, all as child processes of the built binary.
//!
//! This file is the only one of the tests that knows the command line.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    acks::{self, Ack},
    http,
    process::{self, Process},
    wait::{self, SOON},
};

/// The volume that tests with one volume protect.
pub const VOLUME: &str = "acme/data";

/// A temporary directory that the database's user may pass through.
pub fn scratch() -> TempDir {
    let dir = tempfile::Builder::new().prefix("tidelock-").tempdir().expect("temporary directory");
    let_others_pass(dir.path());
    dir
}

/// Lets every user into a directory of ours.
pub fn let_others_pass(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// The built binary: `TIDELOCK_BIN`, or `release/tidelock` of the target directory this test was built in.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TIDELOCK_BIN") {
        return path.into();
    }
    // .../target/release/deps/system-0123 → .../target/release/tidelock
    let test = std::env::current_exe().expect("our own path");
    let profile = test.ancestors().find(|dir| dir.ends_with("release") || dir.ends_with("debug"));
    let path = profile.expect("tests run in a target directory").join("tidelock");
    assert!(path.is_file(), "{} is not built: use tests/run, or set TIDELOCK_BIN", path.display());
    path
}

/// What a sidecar watches changes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracker {
    /// The best the machine has.
    Auto,
    /// Exact byte ranges from tracepoints.
    Exact,
    /// inotify alone.
    Inotify,
    /// The same from fanotify: points say `inotify`.
    Fanotify,
    /// Comparing the whole volume.
    Poll,
}

impl Tracker {
    /// The word on the command line and in points.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Exact => "exact",
            Self::Inotify | Self::Fanotify => "inotify",
            Self::Poll => "poll",
        }
    }
}

/// One authority, one store, and whatever runs on them. Processes are made before it is dropped.
pub struct Site {
    dir: TempDir,
    listen: std::sync::OnceLock<String>,
    logs: AtomicU32,
    environment: Vec<(&'static str, String)>,
}

impl Site {
    /// A fresh authority with identities for the receiver and an operator.
    pub fn new() -> Self {
        let site = Self {
            dir: scratch(),
            listen: std::sync::OnceLock::new(),
            logs: AtomicU32::new(0),
            environment: Vec::new(),
        };
        process::run(site.tidelock(["pki", "init"]).arg(site.path("pki")));
        site.issue("receiver", &["--ip", "127.0.0.1"], "receiver.id");
        site.issue("operator", &[], "operator.id");
        site
    }

    /// What every command finds in its environment from now on.
    pub fn set_environment(&mut self, environment: Vec<(&'static str, String)>) {
        self.environment = environment;
    }

    /// A path beneath the site's directory; nothing is made there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new directory beneath the site's directory.
    pub fn new_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("the directory can be made");
        path
    }

    /// The built binary with these arguments.
    pub fn tidelock<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env_remove("TIDELOCK_LOG")
            .env_remove("TIDELOCK_RECEIVER")
            .env_remove("TIDELOCK_IDENTITY")
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Issues an identity of `role` into the directory `name` of the site.
    pub fn issue(&self, role: &str, arguments: &[&str], name: &str) -> PathBuf {
        let out = self.path(name);
        let mut command = self.tidelock(["pki", "issue", role]);
        command.args(arguments).arg("--ca").arg(self.path("pki")).arg("--out").arg(&out);
        process::run(&mut command);
        out
    }

    /// The identity of a volume's sidecar, issued when first asked for.
    pub fn sidecar_identity(&self, volume: &str) -> PathBuf {
        let name = format!("{}.id", volume.replace('/', "-"));
        let (tenant, volume) = volume.split_once('/').expect("TENANT/NAME");
        if self.path(&name).exists() {
            return self.path(&name);
        }
        self.issue("sidecar", &["--tenant", tenant, "--volume", volume], &name)
    }

    /// The store's directory.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Starts the receiver; after the first time at the same address, so that sidecars find it again.
    pub fn receiver(&self) -> Receiver {
        self.try_receiver(&[])
    }

    /// Starts the receiver with more arguments.
    pub fn try_receiver(&self, more: &[&str]) -> Receiver {
        let (port_file, log) = self.files("receiver");
        let listen = self.listen.get().map_or("127.0.0.1:0", String::as_str);
        let mut command = self.tidelock(["receiver", "--listen", listen, "--http", "127.0.0.1:0", "--store"]);
        command.arg(self.store()).arg("--identity").arg(self.path("receiver.id"));
        command.arg("--port-file").arg(&port_file).args(more);
        if !more.contains(&"--keep") {
            // A test names the points it has seen, however long it takes.
            command.args(["--keep", "all:forever"]);
        }
        let mut process = Process::spawn("receiver", &mut command, &log);
        let lines = ports(&mut process, &port_file, 2);
        self.listen.get_or_init(|| lines[0].clone());
        Receiver { process, listen: lines[0].clone(), http: lines[1].clone() }
    }

    /// Starts another receiver, with the store `store` of the site, at this address of the place where this thread is.
    pub fn receiver_at(&self, store: &str, address: &str) -> Receiver {
        let identity = self.path(&format!("{store}.id"));
        if !identity.exists() {
            self.issue("receiver", &["--ip", address], &format!("{store}.id"));
        }
        let (port_file, log) = self.files("receiver");
        let listen = format!("{address}:0");
        let mut command =
            self.tidelock(["receiver", "--listen", &listen, "--http", "127.0.0.1:0", "--store"]);
        command.arg(self.path(store)).arg("--identity").arg(identity);
        command.args(["--keep", "all:forever"]).arg("--port-file").arg(&port_file);
        let mut process = Process::spawn("receiver", &mut command, &log);
        let lines = ports(&mut process, &port_file, 2);
        Receiver { process, listen: lines[0].clone(), http: lines[1].clone() }
    }

    /// A sidecar of [`VOLUME`] that is yet to be started.
    pub fn sidecar<'a>(&'a self, receiver: &Receiver, volume_dir: &Path) -> SidecarPlan<'a> {
        self.sidecar_at(&receiver.listen, volume_dir)
    }

    /// A sidecar of [`VOLUME`] that is to reach its receiver at this address.
    pub fn sidecar_at<'a>(&'a self, receiver: &str, volume_dir: &Path) -> SidecarPlan<'a> {
        SidecarPlan {
            site: self,
            receiver: receiver.to_owned(),
            volume: VOLUME.to_owned(),
            dir: volume_dir.to_owned(),
            identity: None,
            epoch: 1,
            tracker: Tracker::Auto,
            more: Vec::new(),
            without: Vec::new(),
            within: Vec::new(),
        }
    }

    /// Runs an operator's command against the receiver and returns its JSON.
    pub fn operator(&self, receiver: &Receiver, arguments: &[&str]) -> Value {
        json(&process::output(&mut self.operator_command(receiver, arguments)))
    }

    /// An operator's command against the receiver.
    pub fn operator_command(&self, receiver: &Receiver, arguments: &[&str]) -> Command {
        let mut command = self.tidelock(arguments.iter().copied());
        command.args(["--receiver", &receiver.listen, "--json", "--identity"]).arg(self.path("operator.id"));
        command
    }

    /// Restores a point of [`VOLUME`] into the new directory `to`.
    pub fn restore(&self, receiver: &Receiver, at: &str, to: &Path) -> Value {
        self.restore_volume(receiver, VOLUME, at, to)
    }

    /// Restores a point of a volume into the new directory `to`.
    pub fn restore_volume(&self, receiver: &Receiver, volume: &str, at: &str, to: &Path) -> Value {
        let to = to.to_str().expect("test paths are UTF-8");
        self.operator(receiver, &["restore", volume, "--at", at, "--to", to])
    }

    /// Promotes a point of [`VOLUME`] into the new directory `to`: whoever wrote until now is fenced. The receiver will warn of it.
    pub fn promote(&self, receiver: &mut Receiver, at: &str, to: &Path) -> Value {
        receiver.process.allow("promoted").allow("fenced");
        let to = to.to_str().expect("test paths are UTF-8");
        let report = self.operator(receiver, &["promote", VOLUME, "--at", at, "--to", to]);
        assert_eq!(report["point"]["id"], at, "another point was promoted: {report}");
        report
    }

    /// Restores a point straight from the store; the receiver must not run.
    pub fn restore_from_store(&self, at: &str, to: &Path) -> Value {
        let mut command = self.tidelock(["restore", VOLUME, "--json", "--at", at, "--store"]);
        command.arg(self.store()).arg("--to").arg(to);
        json(&process::output(&mut command))
    }

    /// Mounts a point of [`VOLUME`]; it is there on return, and what the command says of it.
    pub fn mount(&self, receiver: &Receiver, at: &str, dir: &Path, more: &[&str]) -> (Process, Value) {
        let dir = dir.to_str().expect("test paths are UTF-8");
        let mut command = self.operator_command(receiver, &["mount", VOLUME, "--at", at, dir]);
        self.mounted(command.args(more))
    }

    /// Runs a command that mounts, up to where it is mounted.
    pub fn mounted(&self, command: &mut Command) -> (Process, Value) {
        let (_, log) = self.files("mount");
        let mut process = Process::spawn("mount", command, &log);
        let report = wait::until("the point is mounted", SOON, || {
            let report = first_json(&process.log());
            if report.is_none() {
                process.must_run();
            }
            report
        });
        (process, report)
    }

    /// All points of [`VOLUME`], oldest first.
    pub fn points(&self, receiver: &Receiver) -> Vec<Value> {
        let listed = self.operator(receiver, &["points", VOLUME, "--all"]);
        let points = listed.get("points").unwrap_or(&listed);
        points.as_array().unwrap_or_else(|| panic!("not a list of points: {listed}")).clone()
    }

    fn files(&self, role: &str) -> (PathBuf, PathBuf) {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        (self.path(&format!("{role}-{number}.ports")), self.path(&format!("{role}-{number}.log")))
    }
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

/// A running receiver.
pub struct Receiver {
    /// The process.
    pub process: Process,
    /// Where sidecars and operators reach it.
    pub listen: String,
    /// Where health, metrics and status are.
    pub http: String,
}

/// How a sidecar is to be started.
#[derive(Clone)]
pub struct SidecarPlan<'a> {
    site: &'a Site,
    receiver: String,
    volume: String,
    dir: PathBuf,
    identity: Option<PathBuf>,
    epoch: u64,
    tracker: Tracker,
    more: Vec<String>,
    without: Vec<String>,
    within: Vec<String>,
}

impl SidecarPlan<'_> {
    /// Protects another volume than [`VOLUME`].
    pub fn volume(mut self, volume: &str) -> Self {
        volume.clone_into(&mut self.volume);
        self
    }

    /// Writes in this epoch instead of the first.
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// Watches with this tracker.
    pub fn tracker(mut self, tracker: Tracker) -> Self {
        self.tracker = tracker;
        self
    }

    /// Shows another identity than the volume's own.
    pub fn identity(mut self, dir: &Path) -> Self {
        self.identity = Some(dir.to_owned());
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: &str) -> Self {
        self.more.push(argument.to_owned());
        self
    }

    /// Leaves out event sources: tracepoints, or `inotify/modify`.
    pub fn without(mut self, sources: &[&str]) -> Self {
        self.without.extend(sources.iter().map(|&source| source.to_owned()));
        self
    }

    /// Runs it through another program, which must execute the rest of its arguments in its own place.
    pub fn within(mut self, program: &[&str]) -> Self {
        self.within = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Starts it and waits until it serves its status.
    pub fn start(&self) -> Sidecar {
        let (mut process, port_file, acks) = self.spawn();
        let http = ports(&mut process, &port_file, 1).remove(0);
        Sidecar { process, http, acks, dir: self.dir.clone() }
    }

    /// Starts it without expecting anything of it.
    pub fn start_blind(&self) -> Process {
        self.spawn().0
    }

    fn spawn(&self) -> (Process, PathBuf, PathBuf) {
        let (port_file, log) = self.site.files("sidecar");
        let acks = self.site.path(&format!("{}.acks", self.volume.replace('/', "-")));
        let identity = self.identity.clone().unwrap_or_else(|| self.site.sidecar_identity(&self.volume));
        let volume = format!("{}={}", self.volume, self.dir.display());
        let epoch = self.epoch.to_string();
        let mut command = self.site.tidelock(["sidecar", "--volume", &volume, "--receiver", &self.receiver]);
        command.args(["--epoch", &epoch, "--tracker", self.tracker.word(), "--http", "127.0.0.1:0"]);
        if self.tracker == Tracker::Fanotify {
            command.args(["--names", "fanotify"]);
        }
        command.arg("--identity").arg(identity).arg("--port-file").arg(&port_file);
        command.arg("--trace-acks").arg(&acks).args(&self.more);
        if let Some((program, arguments)) = self.within.split_first() {
            let mut outer = Command::new(program);
            outer.args(arguments).arg(command.get_program()).args(command.get_args());
            command = outer;
        }
        command.env("TIDELOCK_TEST_WITHOUT", self.without.join(","));
        let mut process = Process::spawn("sidecar", &mut command, &log);
        if !self.without.is_empty() {
            process.allow("event sources are left out");
        }
        (process, port_file, acks)
    }
}

/// A running sidecar.
pub struct Sidecar {
    /// The process.
    pub process: Process,
    /// Where health, metrics and status are.
    pub http: String,
    acks: PathBuf,
    dir: PathBuf,
}

impl Sidecar {
    /// Its status document; `None` if it does not answer.
    pub fn status(&self) -> Option<Value> {
        http::json(&self.http, "/status")
    }

    /// A sample of its metrics, summed over all labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = http::get(&self.http, "/metrics").expect("the sidecar serves its metrics");
        http::sample(&text, name).unwrap_or_else(|| panic!("no metric {name} in:\n{text}"))
    }

    /// All points acknowledged to this and earlier sidecars of the site, oldest first.
    pub fn acks(&self) -> Vec<Ack> {
        acks::read(&self.acks)
    }

    /// Waits until a point is durable that covers everything done before this call, and returns it. A marker file is
    /// rewritten in the volume, so that there is a change to cut.
    pub fn settle(&mut self, limit: Duration) -> Ack {
        fs::write(self.dir.join(".marker"), wait::now_ns().to_string()).expect("the volume is writable");
        self.caught_up(limit)
    }

    /// Waits until a point is durable that covers everything done before this call, and returns it. The sidecar is asked:
    /// times alone do not tell, because a cut whose drain began just before a write may have the write in it, and
    /// nothing is cut after it while nothing changes.
    pub fn caught_up(&mut self, limit: Duration) -> Ack {
        wait::until("a durable point that covers this moment", limit, || {
            self.process.must_run();
            let (code, answer) = http::post(&self.http, "/checkpoint", r#"{"wait_ms": 1000}"#)?;
            let answer: Value = serde_json::from_str(&answer).ok()?;
            let point = answer["point"].as_str().filter(|_| code == 200)?;
            self.acks().into_iter().rev().find(|ack| ack.id.to_string() == point)
        })
    }

    /// Waits until a point is durable whose cut is not before `time_ns`.
    pub fn covered(&mut self, time_ns: u64, limit: Duration) -> Ack {
        let what = "a durable point that covers this moment";
        wait::until(what, limit, || {
            self.process.must_run();
            self.acks().last().copied().filter(|ack| ack.cut_ns >= time_ns)
        })
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(status) = self.status()
        {
            eprintln!("--- status of the sidecar: {status}");
        }
    }
}

/// The first object in what a command has printed so far; what it logs may follow.
pub fn first_json(log: &str) -> Option<Value> {
    let begun = log.get(log.find('{')?..)?;
    serde_json::Deserializer::from_str(begun).into_iter().next()?.ok()
}

/// Parses what a command printed. Panics with all it said if it failed.
pub fn json(out: &Output) -> Value {
    let said = String::from_utf8_lossy(&out.stdout);
    let erred = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{}: {said}{erred}", out.status);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("not JSON ({error}): {said}{erred}"))
}

fn ports(process: &mut Process, file: &Path, lines: usize) -> Vec<String> {
    wait::until("the port file", SOON, || {
        process.must_run();
        let text = fs::read_to_string(file).ok()?;
        let found: Vec<String> = text.lines().map(str::to_owned).collect();
        (text.ends_with('\n') && found.len() >= lines).then_some(found)
    })
}
