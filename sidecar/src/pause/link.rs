//! The sidecar's end of the queue to its watchdog.
//!
//! ```text
//! 1 deadline_ns u64   a pause begins; resume all that follow at this time (CLOCK_MONOTONIC)
//! 2 [pidfds]          these are about to be stopped
//! 3                   the pause is over and all are resumed
//! ```
//! and back, when that time was over first:
//! ```text
//! 4 deadline_ns u64 at_ns u64   all that were stopped in that pause were resumed at this time
//! ```
//! Messages keep their borders (`SOCK_SEQPACKET`). Once one is queued the watchdog will read it, whatever becomes of the
//! sidecar. Queueing never waits: a watchdog that does not read ends the pause instead.

use std::{
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    cmsg_space,
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, recv, sendmsg, socketpair,
    },
    time::{ClockId, clock_gettime},
};

use crate::limits::{WATCHDOG_BATCH, WATCHDOG_STARTS_WITHIN};

pub(super) const ARM: u8 = 1;
pub(super) const HOLD: u8 = 2;
pub(super) const DISARM: u8 = 3;
pub(super) const RESUMED: u8 = 4;
/// What the watchdog says once it listens.
pub(super) const HELLO: &[u8] = b"tidelock watchdog 1";

/// Now, by the clock that both processes share.
pub(super) fn monotonic() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

/// A message of [`RESUMED`].
pub(super) const RESUMED_BYTES: usize = 17;

pub(super) fn resumed_message(deadline: Duration, at: Duration) -> [u8; RESUMED_BYTES] {
    let mut message = [RESUMED; RESUMED_BYTES];
    message[1..9].copy_from_slice(&nanos(deadline).to_le_bytes());
    message[9..].copy_from_slice(&nanos(at).to_le_bytes());
    message
}

fn parse_resumed(message: &[u8; RESUMED_BYTES]) -> Option<(Duration, Duration)> {
    let [RESUMED, rest @ ..] = message else { return None };
    let (deadline, at) = rest.split_at(8);
    let time = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes).map(Duration::from_nanos);
    Some((time(deadline)?, time(at)?))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A running watchdog.
#[derive(Debug)]
pub(super) struct Link {
    child: Child,
    socket: OwnedFd,
}

impl Link {
    /// Starts a watchdog and waits until it listens.
    pub(super) fn start(command: &[OsString]) -> io::Result<Self> {
        let (program, arguments) = command.split_first().ok_or_else(|| io::Error::other("no command"))?;
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program);
        // Its own group: what is sent to the sidecar's group is not for it.
        command.args(arguments).process_group(0).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        // The only other end is the child's from here on: it sees when this process is gone.
        drop(command);
        let mut link = Self { child, socket };
        link.greet().inspect_err(|_| link.end())?;
        Ok(link)
    }

    fn greet(&self) -> io::Result<()> {
        let timeout = Timespec::try_from(WATCHDOG_STARTS_WITHIN).map_err(io::Error::other)?;
        poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))?;
        let mut said = [0; 64];
        let (len, _) = recv(&self.socket, &mut said, RecvFlags::DONTWAIT)?;
        if &said[..len] == HELLO { Ok(()) } else { Err(io::Error::other("it does not answer")) }
    }

    /// Whether it still runs.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// A pause begins that must be over at `deadline`.
    pub(super) fn arm(&self, deadline: Duration) -> io::Result<()> {
        let mut message = [ARM; 9];
        message[1..].copy_from_slice(&nanos(deadline).to_le_bytes());
        self.send(&message, &[])
    }

    /// These are about to be stopped.
    pub(super) fn hold(&self, pidfds: &[BorrowedFd<'_>]) -> io::Result<()> {
        pidfds.chunks(WATCHDOG_BATCH).try_for_each(|batch| self.send(&[HOLD], batch))
    }

    /// All are resumed.
    pub(super) fn disarm(&self) -> io::Result<()> {
        self.send(&[DISARM], &[])
    }

    /// When the watchdog ended the pause that had to be over at `deadline`, if it did.
    pub(super) fn resumed(&self, deadline: Duration) -> Option<Duration> {
        let mut first = None;
        let mut message = [0; RESUMED_BYTES];
        while let Ok((RESUMED_BYTES, _)) = recv(&self.socket, &mut message, RecvFlags::DONTWAIT) {
            let (of, at) = parse_resumed(&message)?;
            // One of an earlier pause may have come late.
            first = first.or((of == deadline).then_some(at));
        }
        first
    }

    fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(WATCHDOG_BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many processes for one message"));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.socket, &[io::IoSlice::new(message)], &mut control, flags)?;
        Ok(())
    }

    fn end(&mut self) {
        // Errors mean that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Nothing is stopped when this is dropped: see `Pauser`. A watchdog that was holding on would end by itself.
        self.end();
    }
}
