//! The demo's processes: real children of this binary, which die with it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Signal, set_parent_process_death_signal};

/// A child process, killed when dropped.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts this binary with other arguments, its messages going to `log`.
    pub(crate) fn start<A: AsRef<OsStr>>(
        name: &'static str,
        args: impl IntoIterator<Item = A>,
        logs: &Path,
    ) -> anyhow::Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        // SAFETY: between fork and exec only this one system call is made.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = command.spawn().with_context(|| format!("cannot start the {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Ends the process at once, without a word to it.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Fails with the process's last words if it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            bail!(
                "the {} ended ({status}): {}",
                self.name,
                last.into_iter().rev().collect::<Vec<_>>().join(" | ")
            );
        }
        Ok(())
    }

    /// Waits until the process has written its port file; returns its lines.
    pub(crate) fn ports(&mut self, file: &Path) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.check()?;
            if let Ok(text) = std::fs::read_to_string(file) {
                return Ok(text.lines().map(str::to_owned).collect());
            }
            if Instant::now() > deadline {
                bail!("the {} did not start within 20 s", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Asks a process for its status on its HTTP address.
pub(crate) fn status(address: &str) -> anyhow::Result<serde_json::Value> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("no status in the answer")?.1;
    Ok(serde_json::from_str(body)?)
}
