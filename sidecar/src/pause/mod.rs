//! Pausing the application, for a cut that finds no quiet instant by itself.
//!
//! `SIGSTOP` for the application's processes, the last rounds of capture, `SIGCONT`. What must hold, whatever fails:
//!
//! 1. *Nobody stays stopped.* Before a process is stopped its pidfd lies in the queue of a second process, the
//!    [watchdog](watch()), which resumes it when the sidecar's end of the queue closes (it was killed) or the time is over (it
//!    hangs, or its disk does). The kernel closes that end only after the last thread of the sidecar can stop nothing more.
//! 2. *Nobody else is signalled.* All signals go through pidfds, opened between two equal looks at pid and start time.
//! 3. *Who was stopped before stays stopped.*
//! 4. *Stopped means stopped.* `SIGSTOP` returns before it acts; the pause has begun when every thread of every selected process
//!    is seen in state T and a further look finds no new process. A process that is forking finishes before it stops.
//! 5. *The bound.* A pause ends by itself, in the cutter between two reads after three quarters of its limit, and in the
//!    watchdog, which runs before others where it may, after nine tenths; its length is to whichever came first. Pauses
//!    take at most a tenth of the time, less while they fail.
//!
//! # Why a point that was cut in a pause is an instant of the volume
//!
//! Because the pause proves nothing. A cut is taken by the rule of [`crate::cut`] alone, that a drain begun after the last read
//! found nothing, and no step of that argument asks who runs. Stopping only makes such a drain likely. So whoever writes on while
//! everybody is thought to stand still is announced and costs another round, or the pause, and never a wrong point. In particular:
//!
//! - *System calls in flight.* A thread stops on its way out of the kernel, so in state T its call has returned and its event
//!   is queued; a thread that waits for a disk is in state D, and 4 waits for it.
//! - *io_uring.* Its workers and its polling thread are threads of the process. They finish the request they are at
//!   and stop (seen on Linux 6.18), and 4 waits for them, too. What completes without a thread (direct I/O, by interrupt) is announced at
//!   the latest with the completion that the program sees after the pause: until then it is in flight.
//! - *Direct I/O and other DMA.* A device goes on with what it was given. What it writes to the volume's disk belongs to a write
//!   that has not returned, and what it writes into mapped pages of a file is like a store, below.
//! - *Stores through a mapping.* A stopped thread stores nothing. What it stored before is announced where exact ranges are; with
//!   inotify alone a pause changes nothing about what that cannot see.
//! - *Work of the kernel's own.* Writeback, journal commits and allocation change no byte that a program could read. A loop
//!   device, an NFS server or a process that was not selected are other writers, and announced like any.
//!
//! # The price
//!
//! Parents see `SIGCHLD` for stopped children and shells may report a job; open connections stall for the length of a
//! pause. If the kernel kills sidecar and watchdog in one blow (an out-of-memory kill of their whole cgroup in mid-pause),
//! nobody resumes the application: give the sidecar the memory it asks for.

mod escalation;
mod link;
mod policy;
mod processes;
mod select;
mod stop;
#[cfg(test)]
mod tests;
mod watchdog;

use std::{ffi::OsString, path::PathBuf, time::Duration};

pub(crate) use escalation::{Escalation, Means, Waiting};
pub use select::SelectError;
pub use stop::PauseError;
pub(crate) use stop::Pauser;
pub use watchdog::watch;

/// What is done about a cut that does not converge within its deadline.
#[derive(Debug, Clone, Default)]
pub enum Escalate {
    /// It is tried on.
    #[default]
    Optimistic,
    /// The application is paused for the last rounds.
    Pause(PauseConfig),
    /// The application's own hooks bring it to rest for it.
    Hooks,
}

/// How the application is paused.
#[derive(Debug, Clone)]
pub struct PauseConfig {
    /// The longest a pause may last.
    pub limit: Duration,
    /// Processes that are stopped, each with all its descendants; none means all of the pod.
    pub targets: Vec<PauseTarget>,
    /// The command that runs [`watch()`] on its standard input: a program that can be started, and its arguments.
    pub watchdog: Vec<OsString>,
}

/// A process whose tree is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseTarget {
    /// The process that has this id when the sidecar starts.
    Process(i32),
    /// The process whose id is the first line of this file, read before every pause.
    PidFile(PathBuf),
}
