//! The process that resumes the application when the sidecar cannot.
//!
//! It knows nothing but pidfds and a deadline. When the deadline passes it resumes every process it holds, and says when it did, again and again
//! until the sidecar says that the pause is over, because a sidecar that was late may still stop one. When the sidecar's end closes it
//! resumes them once and ends: then nobody is left who could stop any.
//!
//! The bound on a pause is thus as good as the promise that this process runs when its time comes. It waits for nothing else, reads no
//! file, keeps its memory, and asks for real-time priority, with which the kernel takes a processor from whoever has it. That takes
//! `CAP_SYS_NICE`; without it the tenth of the limit between the deadline and the bound is for the scheduler.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    mm::{MlockAllFlags, mlockall},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send},
    process::{Signal, pidfd_send_signal, setpriority_process},
};

use super::link::{ARM, DISARM, HELLO, HOLD, monotonic, resumed_message};
use crate::limits::{WATCHDOG_BATCH, WATCHDOG_TICK};

/// How the names of this program's processes begin, so that none of them stops another.
pub(super) const NAME_PREFIX: &str = "tidelock";

/// Watches over one sidecar, which is at the other end of `socket`; returns when that is gone and all are resumed.
pub fn watch(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    stay_until_the_end();
    come_first();
    send(socket, HELLO, SendFlags::NOSIGNAL)?;
    let mut held: Vec<OwnedFd> = Vec::new();
    let mut deadline: Option<Duration> = None;
    let mut told = false;
    loop {
        let left = deadline.map(|at| at.saturating_sub(monotonic()));
        if let (Some(Duration::ZERO), Some(deadline)) = (left, deadline) {
            resume(&held);
            if !std::mem::replace(&mut told, true) {
                // A sidecar that cannot be told takes its own time for it, which is later.
                let message = resumed_message(deadline, monotonic());
                let _ = send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
        }
        let wait = left.map(|left| if left.is_zero() { WATCHDOG_TICK } else { left });
        match poll(
            &mut [PollFd::new(&socket, PollFlags::IN)],
            wait.and_then(|wait| Timespec::try_from(wait).ok()).as_ref(),
        ) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) | Err(_) => {}
        }
        let mut message = [0; 16];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(WATCHDOG_BATCH))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(socket, &mut [io::IoSliceMut::new(&mut message)], &mut control, flags);
        let bytes = match received {
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // A connection that breaks is one that ends.
            Ok(received) => received.bytes,
            Err(_) => 0,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                held.extend(fds);
            }
        }
        match message[..bytes] {
            [ARM, ref nanos @ ..] => {
                let nanos = nanos.try_into().map_or(0, u64::from_le_bytes);
                deadline = Some(Duration::from_nanos(nanos));
                told = false;
            }
            [HOLD] => {}
            [DISARM] => {
                held.clear();
                deadline = None;
            }
            // The end, or what no sidecar says: whichever it is, nobody stays stopped for it.
            _ => {
                resume(&held);
                return Ok(());
            }
        }
    }
}

fn resume(held: &[OwnedFd]) {
    for pidfd in held {
        // An error means that the process has ended.
        let _ = pidfd_send_signal(pidfd, Signal::CONT);
    }
}

/// Only the end of the sidecar ends its watchdog: signals that are meant for the sidecar may reach both.
fn stay_until_the_end() {
    let _ = rustix::thread::set_name(c"tidelock-dog");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: ignoring a signal installs no handler and touches no memory.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Asks to run before everybody else when its time comes; what is refused is done without.
fn come_first() {
    let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    let _ = setpriority_process(None, -20);
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure is only read.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
}
