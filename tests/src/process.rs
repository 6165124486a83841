//! Child processes that never outlive the test, and whose logs are part of what is tested.
//!
//! Every child gets SIGKILL when the thread that spawned it ends (`PR_SET_PDEATHSIG`), so a test that is itself killed
//! leaves nothing behind. Spawn from the test's own thread.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use crate::wait::{self, SOON};

/// A running child and its log.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    allowed: Vec<String>,
    judged: bool,
}

impl Process {
    /// Starts `command` with its output in the file `log`.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Self {
        let out = File::create(log).expect("the log file can be made");
        let err = out.try_clone().expect("a second handle of the log");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        die_with_parent(command);
        let child =
            command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Self { child, name: name.to_owned(), log: log.to_owned(), allowed: Vec::new(), judged: false }
    }

    /// Lines of the log that contain `text` may be warnings or errors.
    pub fn allow(&mut self, text: &str) -> &mut Self {
        self.allowed.push(text.to_owned());
        self
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child can be waited for")
    }

    /// Panics if it has ended.
    pub fn must_run(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended with {status}:\n{}", self.name, tail(&self.log(), 30));
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("end of {}", self.name);
        wait::until(&what, limit, || self.ended())
    }

    /// Power cut: SIGKILL, and gone on return.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by number.
    pub fn signal(&mut self, signal: i32) {
        self.must_run();
        let pid = i32::try_from(self.pid()).expect("a process id is positive");
        // SAFETY: plain system call; the child is not reaped yet, so the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "cannot signal {}", self.name);
    }

    /// Asks it to end with SIGTERM and waits.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait(SOON)
    }

    /// Lines of the log that say WARN or ERROR and are not allowed.
    pub fn complaints(&self) -> Vec<String> {
        let log = self.log();
        let loud = log.lines().filter(|line| {
            let mut words = line.split_ascii_whitespace();
            words.any(|word| matches!(word, "WARN" | "ERROR")) || line.contains("panicked at")
        });
        loud.filter(|line| !self.allowed.iter().any(|text| line.contains(text))).map(str::to_owned).collect()
    }

    /// Fails if the log holds a warning or an error that was not allowed.
    pub fn judge(&mut self) {
        self.judged = true;
        let complaints = self.complaints();
        assert!(complaints.is_empty(), "{} complained:\n{}", self.name, complaints.join("\n"));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- last lines of {} ({}):\n{}", self.name, self.log.display(), tail(&self.log(), 40));
        } else if !self.judged {
            self.judge();
        }
    }
}

/// Ties the life of the child to the thread that spawns it. Must be the last `pre_exec`: a later change of user clears
/// the tie.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl and getppid are async-signal-safe and touch no memory of ours.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

/// Runs to the end and returns stdout. Panics with everything it said if it fails.
pub fn run(command: &mut Command) -> String {
    let out = output(command);
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs to the end, whatever that is.
pub fn output(command: &mut Command) -> std::process::Output {
    command.stdin(Stdio::null());
    die_with_parent(command);
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// The last `lines` lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The process is dropped before the directory of its log.
    fn shell(script: &str) -> (Process, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let process = Process::spawn("sh", Command::new("sh").args(["-c", script]), &dir.path().join("log"));
        (process, dir)
    }

    #[test]
    fn a_warning_fails_the_test_unless_it_is_allowed() {
        let (mut process, _dir) =
            shell("echo '2026-01-01T00:00:00Z  WARN link: peer is away'; echo INFO WARNING");
        process.wait(SOON);
        assert_eq!(process.complaints().len(), 1);
        process.allow("peer is away").judge();
    }

    #[test]
    fn a_stopped_process_says_how_it_ended() {
        let (mut process, _dir) = shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done");
        wait::until_true("the trap is set", SOON, || process.log().contains("ready"));
        assert_eq!(process.stop().code(), Some(3));
    }
}
