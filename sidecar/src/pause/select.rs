//! Which processes are the application's.
//!
//! In a pod whose containers share their process namespace: all of them, but for this program (other sidecars of the pod among
//! them, which could otherwise stop each other for good), what it started, and the namespace's first process. That one is the
//! pause container, which writes nothing; the kernel lets nobody inside the namespace stop it.
//!
//! On a machine all processes would be the whole machine, so there the application must be named: by a process or a
//! pid file, whose descendants it means. A descendant that was detached from its parents (a daemon that forked twice) is missed.
//! To select by open files would miss whoever opens one a moment later, and needs the right to trace every process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use super::{
    PauseTarget,
    processes::{self, Seen},
};

/// The inode of the machine's own process namespace, fixed by the kernel.
const MACHINE_NAMESPACE: &str = "pid:[4026531836]";
/// Ticks of a second in `/proc`, fixed by the kernel's interface.
const TICKS_PER_SECOND: u64 = 100;
/// How far clocks may disagree on which came first, a pid file or its process.
const PID_FILE_SLACK: Duration = Duration::from_secs(2);

/// Why no process can be selected.
#[derive(Debug, Error)]
pub enum SelectError {
    /// Outside a pod the application must be named.
    #[error(
        "--escalate pause and --on-fence stop would stop every process of this machine: name the application with --pause-process PID or \
         --pause-process PIDFILE, or run in a pod with shareProcessNamespace: true"
    )]
    WholeMachine,
    /// A process that is named does not exist.
    #[error("--pause-process {0}: there is no such process")]
    NoSuchProcess(i32),
    /// A process that was named has ended.
    #[error("process {0} has ended; a pid file survives restarts of the application")]
    Ended(i32),
    /// The pid file cannot be read, or has no process id in its first line.
    #[error("pid file {}: {source}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The id in the pid file belongs to a process that is younger than the file, or to none.
    #[error("pid file {} names process {pid}, which is not the one that wrote it", path.display())]
    Stale {
        /// The file.
        path: PathBuf,
        /// The id in it.
        pid: i32,
    },
    /// There is nobody to stop.
    #[error(
        "no other process is in sight: set shareProcessNamespace: true in the pod, or start the application"
    )]
    Nobody,
    /// `/proc` cannot be read.
    #[error("cannot read /proc: {0}")]
    Proc(#[from] io::Error),
}

/// The processes to stop.
#[derive(Debug)]
pub(super) enum Selection {
    Pod,
    Trees(Vec<Root>),
}

#[derive(Debug)]
pub(super) enum Root {
    Process { pid: i32, started: u64 },
    PidFile(PathBuf),
}

impl Selection {
    /// Checks what was asked for.
    pub(super) fn new(targets: &[PauseTarget]) -> Result<Self, SelectError> {
        if targets.is_empty() {
            let here = fs::read_link("/proc/self/ns/pid")?;
            return if here.as_os_str() == MACHINE_NAMESPACE {
                Err(SelectError::WholeMachine)
            } else {
                Ok(Self::Pod)
            };
        }
        let root = |target: &PauseTarget| match target {
            PauseTarget::PidFile(path) => Ok(Root::PidFile(path.clone())),
            PauseTarget::Process(pid) => processes::look(*pid)
                .map(|seen| Root::Process { pid: *pid, started: seen.started })
                .ok_or(SelectError::NoSuchProcess(*pid)),
        };
        targets.iter().map(root).collect::<Result<_, _>>().map(Self::Trees)
    }

    /// Who is to be stopped now, parents before their children as far as ids tell.
    pub(super) fn processes(&self) -> Result<Vec<Seen>, SelectError> {
        let all = processes::all()?;
        let me = std::process::id().cast_signed();
        let roots = match self {
            // Orphans are adopted by the first process, all others come from outside.
            Self::Pod => {
                all.iter().filter(|seen| seen.parent <= 1 && seen.pid != 1).map(|seen| seen.pid).collect()
            }
            Self::Trees(roots) => roots.iter().map(|root| root.pid(&all)).collect::<Result<Vec<_>, _>>()?,
        };
        let trees = descendants(&all, roots, me);
        let ours = |seen: &Seen| seen.name.starts_with(super::watchdog::NAME_PREFIX);
        let chosen: Vec<Seen> =
            all.into_iter().filter(|seen| trees.contains(&seen.pid) && !ours(seen)).collect();
        if chosen.is_empty() { Err(SelectError::Nobody) } else { Ok(chosen) }
    }
}

impl Root {
    fn pid(&self, all: &[Seen]) -> Result<i32, SelectError> {
        match self {
            Self::Process { pid, started } => {
                let same = |seen: &Seen| seen.pid == *pid && seen.started == *started;
                if all.iter().any(same) { Ok(*pid) } else { Err(SelectError::Ended(*pid)) }
            }
            Self::PidFile(path) => {
                let failed = |source| SelectError::PidFile { path: path.clone(), source };
                let written = fs::metadata(path).and_then(|meta| meta.modified()).map_err(failed)?;
                let text = fs::read_to_string(path).map_err(failed)?;
                let pid = text.lines().next().and_then(|line| line.trim().parse().ok());
                let pid: i32 =
                    pid.ok_or_else(|| failed(io::Error::other("no process id in its first line")))?;
                let wrote_it = |seen: &&Seen| seen.pid == pid && started_at(seen) <= written + PID_FILE_SLACK;
                match all.iter().find(wrote_it) {
                    Some(_) => Ok(pid),
                    None => Err(SelectError::Stale { path: path.clone(), pid }),
                }
            }
        }
    }
}

/// When a process started, by the wall clock.
fn started_at(seen: &Seen) -> SystemTime {
    let clock = |id| Duration::try_from(clock_gettime(id)).unwrap_or_default();
    let since_boot = Duration::from_millis(seen.started * 1000 / TICKS_PER_SECOND);
    UNIX_EPOCH + clock(ClockId::Realtime).saturating_sub(clock(ClockId::Boottime)) + since_boot
}

/// The ids of these processes and of all that descend from them, but for what descends through `except`.
fn descendants(all: &[Seen], roots: Vec<i32>, except: i32) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for seen in all {
        children.entry(seen.parent).or_default().push(seen.pid);
    }
    let mut found = BTreeSet::new();
    let mut waiting = roots;
    while let Some(pid) = waiting.pop() {
        if pid != except && found.insert(pid) {
            waiting.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}
