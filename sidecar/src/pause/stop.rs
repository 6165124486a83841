//! One pause: everybody stops, and runs on.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, test_kill_process},
};
use thiserror::Error;

use super::{
    PauseConfig, SelectError,
    link::{self, Link},
    processes::{self, Seen, Threads},
    select::Selection,
};
use crate::limits::{PAUSE_PROCESSES_MAX, STOPPED_LOOK_EVERY};

/// Why there is no pause.
#[derive(Debug, Error)]
pub enum PauseError {
    /// Nobody can be selected.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// More processes than are stopped at once.
    #[error("{0} processes are more than the {PAUSE_PROCESSES_MAX} that are stopped at once")]
    TooMany(usize),
    /// The kernel does not allow it.
    #[error("process {pid} ({name}) may not be stopped: run the sidecar as the same user, or with CAP_KILL")]
    NotPermitted {
        /// Its id.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// There is no watchdog, so nobody is stopped.
    #[error("no watchdog: {0}")]
    Watchdog(io::Error),
    /// Somebody did not stop in time.
    #[error("process {pid} ({name}) did not stop in time")]
    NotStopped {
        /// Its id.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// The kernel has no room for what a pause needs.
    #[error("cannot hold on to a process: {0}")]
    System(#[from] io::Error),
    /// A pause is under way.
    #[error("another pause is under way")]
    Busy,
}

impl PauseError {
    /// Whether another attempt may well succeed although nothing has changed.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::NotStopped { .. } | Self::Busy)
    }

    /// Whether somebody may have stood still meanwhile.
    pub(super) fn has_stopped(&self) -> bool {
        !matches!(self, Self::Select(_) | Self::Busy | Self::TooMany(_))
    }
}

/// Who stops the application. Dropped, it lets everybody run.
pub(crate) struct Pauser {
    config: PauseConfig,
    selection: Selection,
    link: Option<Link>,
    pausing: Option<Pausing>,
}

/// A pause that is under way. Times are of the clock that is shared with the watchdog.
struct Pausing {
    began: Duration,
    /// When the watchdog ends it.
    deadline: Duration,
    stopped: Vec<OwnedFd>,
}

impl Pauser {
    /// Checks who is to be stopped; nothing is started yet.
    pub(crate) fn new(config: PauseConfig) -> Result<Self, SelectError> {
        let selection = Selection::new(&config.targets)?;
        Ok(Self { config, selection, link: None, pausing: None })
    }

    /// How long a pause may last before the cutter ends it: the rest of the limit is for a read that is under way.
    pub(crate) fn budget(&self) -> Duration {
        self.config.limit * 3 / 4
    }

    /// The id of the watchdog's process.
    #[cfg(test)]
    pub(super) fn watchdog_id(&self) -> Option<u32> {
        self.link.as_ref().map(Link::id)
    }

    /// Whether a pause could begin now. Stops nobody.
    pub(crate) fn probe(&mut self) -> Result<(), PauseError> {
        self.watchdog()?;
        for seen in self.selected()? {
            if let Some(pid) = Pid::from_raw(seen.pid)
                && test_kill_process(pid) == Err(Errno::PERM)
            {
                return Err(PauseError::NotPermitted { pid: seen.pid, name: seen.name });
            }
        }
        Ok(())
    }

    /// Stops everybody. On return every thread of every selected process is stopped; on an error nobody is.
    pub(crate) fn begin(&mut self) -> Result<(), PauseError> {
        if self.pausing.is_some() {
            return Err(PauseError::Busy);
        }
        self.watchdog()?;
        let by = Instant::now() + self.config.limit / 4;
        let began = link::monotonic();
        let deadline = began + self.config.limit * 9 / 10;
        self.pausing = Some(Pausing { began, deadline, stopped: Vec::new() });
        let stopped = self.stop_everybody(deadline, by);
        if stopped.is_err() {
            self.end();
        }
        stopped
    }

    /// Everybody runs on. Returns how long the pause was, if there was one: until now, or until the watchdog ended it.
    pub(crate) fn end(&mut self) -> Option<Duration> {
        let Pausing { began, deadline, stopped } = self.pausing.take()?;
        for pidfd in &stopped {
            // An error means that the process has ended.
            let _ = pidfd_send_signal(pidfd, Signal::CONT);
        }
        let now = link::monotonic();
        let before = self.link.as_ref().and_then(|link| link.resumed(deadline));
        let took = before.map_or(now, |before| before.min(now)).saturating_sub(began);
        if self.link.as_ref().is_none_or(|link| link.disarm().is_err()) {
            // It has ended, or will when its queue closes.
            self.link = None;
        }
        Some(took)
    }

    /// Ends every selected process, whoever stopped it. They stand still first, so that nobody starts another meanwhile. Returns how
    /// many there were.
    pub(crate) fn kill(&mut self) -> Result<usize, PauseError> {
        if self.pausing.is_none() {
            self.begin()?;
        }
        let killed = self.kill_selected();
        self.end();
        killed
    }

    fn kill_selected(&self) -> Result<usize, PauseError> {
        let mut killed = 0;
        for seen in self.selected()? {
            let Some(pid) = Pid::from_raw(seen.pid) else { continue };
            let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => pidfd,
                Err(Errno::SRCH) => continue,
                Err(errno) => return Err(PauseError::System(errno.into())),
            };
            if processes::look(seen.pid).is_none_or(|now| now.started != seen.started) {
                continue;
            }
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) => killed += 1,
                Err(Errno::SRCH) => {}
                Err(Errno::PERM) => {
                    return Err(PauseError::NotPermitted { pid: seen.pid, name: seen.name });
                }
                Err(errno) => return Err(PauseError::System(errno.into())),
            }
        }
        Ok(killed)
    }

    fn watchdog(&mut self) -> Result<&Link, PauseError> {
        if !self.link.as_mut().is_some_and(Link::runs) {
            self.link = None;
        }
        match &mut self.link {
            Some(link) => Ok(link),
            none => Ok(none.insert(Link::start(&self.config.watchdog).map_err(PauseError::Watchdog)?)),
        }
    }

    fn selected(&self) -> Result<Vec<Seen>, PauseError> {
        let seen = self.selection.processes()?;
        if seen.len() > PAUSE_PROCESSES_MAX { Err(PauseError::TooMany(seen.len())) } else { Ok(seen) }
    }

    /// Stops whoever runs, until a look finds nobody new.
    fn stop_everybody(&mut self, deadline: Duration, by: Instant) -> Result<(), PauseError> {
        let link = self.link.as_ref().ok_or_else(|| PauseError::Watchdog(io::Error::other("it is gone")))?;
        link.arm(deadline).map_err(PauseError::Watchdog)?;
        let mut known = BTreeSet::new();
        loop {
            let selected = self.selected()?;
            let news: Vec<Seen> =
                selected.iter().filter(|seen| known.insert((seen.pid, seen.started))).cloned().collect();
            if news.is_empty() {
                // A thread that began during the first look at its process is seen by this one.
                return wait_until_stopped(&selected, by);
            }
            let held: Vec<(Seen, OwnedFd)> =
                news.into_iter().filter_map(|seen| hold(seen).transpose()).collect::<Result<_, _>>()?;
            let link =
                self.link.as_ref().ok_or_else(|| PauseError::Watchdog(io::Error::other("it is gone")))?;
            let fds: Vec<_> = held.iter().map(|(_, pidfd)| pidfd.as_fd()).collect();
            link.hold(&fds).map_err(PauseError::Watchdog)?;
            let mut stopping = Vec::with_capacity(held.len());
            for (seen, pidfd) in held {
                match pidfd_send_signal(&pidfd, Signal::STOP) {
                    Ok(()) => {}
                    Err(Errno::SRCH) => continue,
                    Err(Errno::PERM) => {
                        return Err(PauseError::NotPermitted { pid: seen.pid, name: seen.name });
                    }
                    Err(errno) => return Err(PauseError::System(errno.into())),
                }
                if let Some(pausing) = &mut self.pausing {
                    pausing.stopped.push(pidfd);
                }
                stopping.push(seen);
                #[cfg(test)]
                super::tests::after_stopping(stopping.len());
            }
            wait_until_stopped(&stopping, by)?;
        }
    }
}

impl Drop for Pauser {
    fn drop(&mut self) {
        self.end();
    }
}

/// A pidfd of exactly this process; `None` if it is gone, or somebody else has stopped it.
fn hold(seen: Seen) -> Result<Option<(Seen, OwnedFd)>, PauseError> {
    let Some(pid) = Pid::from_raw(seen.pid) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(PauseError::System(errno.into())),
    };
    let same = processes::look(seen.pid).is_some_and(|now| now.started == seen.started);
    let runs = same && processes::threads(seen.pid) == Threads::Running;
    Ok(runs.then_some((seen, pidfd)))
}

fn wait_until_stopped(stopping: &[Seen], by: Instant) -> Result<(), PauseError> {
    for seen in stopping {
        while processes::threads(seen.pid) == Threads::Running {
            if Instant::now() >= by {
                return Err(PauseError::NotStopped { pid: seen.pid, name: seen.name.clone() });
            }
            std::thread::sleep(STOPPED_LOOK_EVERY);
        }
    }
    Ok(())
}
