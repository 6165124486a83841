//! Where others ask something of the cutter: to name a point, or to say when all that was written is durable.
//!
//! "Now" is the volume's, so both are answered by a cut: one whose last drain began after the question was taken off the
//! desk. The cutter is woken for it, so an idle volume answers at once. What is outstanding is bounded ([`REQUESTS_MAX`]), and nobody
//! who asks can hold the cutter up.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use tidelock_proto::{PointId, point::Consistency};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::limits::REQUESTS_MAX;

/// How far a request has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No cut has answered it.
    Waiting,
    /// The point is committed in every volume, and not durable yet.
    Cut(Placed),
    /// The point is durable in every volume.
    Durable(Placed),
    /// The application was quiesced no longer when a quiet instant was found, and no other point was wanted.
    TooLate,
}

/// The point that answers a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) point: PointId,
    /// The least of what may be believed of it in any volume.
    pub(crate) consistency: Consistency,
}

/// Something that was asked. When it is dropped whoever asked is told that there will be no answer.
#[derive(Debug)]
pub(crate) struct Request {
    /// The name that the point is to have; without one, any point does that covers the moment of asking.
    pub(crate) tag: Option<String>,
    /// The application is quiesced as long as this says so.
    pub(crate) quiesced: Option<Arc<Quiesced>>,
    pub(super) progress: watch::Sender<Progress>,
    _slot: OwnedSemaphorePermit,
}

/// Too much was asked already.
#[derive(Debug, thiserror::Error)]
#[error("{REQUESTS_MAX} requests wait already")]
pub(crate) struct Busy;

/// See the module.
#[derive(Debug)]
pub(crate) struct Desk {
    asked: Mutex<Vec<Request>>,
    slots: Arc<Semaphore>,
    /// Readable when something was asked.
    waker: OwnedFd,
}

impl Desk {
    /// An empty desk. An error means that the system has no room for an eventfd.
    pub(crate) fn new() -> io::Result<Self> {
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { asked: Mutex::default(), slots: Arc::new(Semaphore::new(REQUESTS_MAX)), waker })
    }

    /// Asks. The answer's sender goes away when there will be no (further) answer.
    pub(crate) fn ask(
        &self,
        tag: Option<String>,
        quiesced: Option<Arc<Quiesced>>,
    ) -> Result<watch::Receiver<Progress>, Busy> {
        let slot = self.slots.clone().try_acquire_owned().map_err(|_| Busy)?;
        let (progress, answer) = watch::channel(Progress::Waiting);
        self.asked.lock().push(Request { tag, quiesced, progress, _slot: slot });
        // It can only fail when the counter is at its end, and then the cutter is being woken.
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
        Ok(answer)
    }

    /// Takes what was asked since the last call.
    pub(super) fn take(&self) -> Vec<Request> {
        let mut counter = [0; 8];
        // Nothing to read is the usual case.
        let _ = rustix::io::read(&self.waker, &mut counter);
        std::mem::take(&mut *self.asked.lock())
    }

    pub(super) fn waker(&self) -> BorrowedFd<'_> {
        self.waker.as_fd()
    }
}

/// Whether the application stands still: it does from when the quiesce hook has succeeded until one side closes this, and
/// the unquiesce hook begins only after that.
///
/// The cutter closes it when it commits, after its last drain; whoever quiesced closes it when the time is over. Whoever comes
/// first decides whether the cut is of a quiesced application, and both know.
#[derive(Debug)]
pub(crate) struct Quiesced {
    state: AtomicU8,
    /// What the point becomes if the time is over first: without the promise of `app`, or no point.
    pub(crate) or_crash: bool,
}

const STANDS: u8 = 0;
const CUT: u8 = 1;
const OVER: u8 = 2;

impl Quiesced {
    pub(crate) fn new(or_crash: bool) -> Self {
        Self { state: AtomicU8::new(STANDS), or_crash }
    }

    /// The cutter commits a cut whose drain began while the application stood still: returns whether it still does. Once.
    pub(super) fn cut(&self) -> bool {
        self.close(CUT)
    }

    /// The time is over: returns whether the cut came first.
    pub(crate) fn end(&self) -> bool {
        self.close(OVER);
        self.state.load(Ordering::Acquire) == CUT
    }

    fn close(&self, to: u8) -> bool {
        self.state.compare_exchange(STANDS, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}
