//! The end of the application on this side: stopped for a planned move, ended by a fence.
//!
//! ```text
//! Leave ─▶ everybody stands still ─▶ a cut begun after that ─▶ durable everywhere ─▶ Left ─▶ fenced ─▶ everybody is ended
//!                     └──────────── anything else, or the time is over ─────────────────────▶ everybody runs on
//! ```
//! # Why a planned move loses nothing
//!
//! What the application acknowledged it wrote before it stood still: every thread of it is seen stopped on its way out of the
//! kernel ([`crate::pause`]), so its calls have returned and their events are queued. The cut is one whose drain began after
//! that and found nothing, so it holds all of it ([`super`]). Its point is named in `Left` once it is durable in every
//! volume, and the receiver raises the epoch only if that still is the newest point. Nobody who stood still runs again before
//! the receiver's time for it is over ([`LEAVE_WITHIN`] counts from before the question, and is half of [`LEAVE_HOLD`]), unless the
//! receiver has said that nothing came of it.
//!
//! Whoever is not in the selection and writes on shows himself: nothing may change for [`LEAVE_QUIET`] after the cut, nor until the
//! receiver has stopped the session. If the raised epoch is made
//! durable and the connection is lost before this side hears of it, the application runs again when the time is over,
//! until the next connection says that it is fenced: what it wrote meanwhile is on this side alone.
//!
//! [`LEAVE_WITHIN`]: tidelock_proto::limits::LEAVE_WITHIN

use std::time::Instant;

use thiserror::Error;
use tidelock_proto::PointId;

use crate::{
    limits::LEAVE_QUIET,
    pause::{PauseError, Pauser},
};

/// Why the application does not stand still for a planned move.
#[derive(Debug, Error)]
pub(super) enum LeaveError {
    #[error(
        "the sidecar was not told whom to stop: start it with --on-fence stop, or stop the application, wait for `tidelock \
         checkpoint --wait`, and promote"
    )]
    Unable,
    #[error("the application was not stopped: {0}")]
    Pause(#[from] PauseError),
}

/// Who stops the application, and how far that is.
pub(crate) struct Departure {
    stopper: Option<Pauser>,
    held: Option<Held>,
}

struct Held {
    until: Instant,
    /// The point that holds everything, and when it was cut.
    point: Option<(PointId, Instant)>,
    /// A later one was cut.
    changed: bool,
}

/// How far a planned move is.
pub(super) enum Stand {
    /// There is none, or no cut yet.
    Waits,
    /// The application stands still, and this point holds all it wrote.
    Still(PointId),
    /// Somebody else writes.
    Changed,
    /// The time is over.
    Over,
}

impl Departure {
    /// `stopper` holds on for [`LEAVE_HOLD`](tidelock_proto::limits::LEAVE_HOLD), if there is one.
    pub(crate) fn new(stopper: Option<Pauser>) -> Self {
        Self { stopper, held: None }
    }

    /// Whether there is somebody to stop the application.
    pub(super) fn is_able(&self) -> bool {
        self.stopper.is_some()
    }

    /// Stops everybody who does not stand still already. Returns whether that begins now.
    pub(super) fn hold(&mut self) -> Result<bool, LeaveError> {
        let stopper = self.stopper.as_mut().ok_or(LeaveError::Unable)?;
        if self.held.is_some() {
            return Ok(false);
        }
        // From before the first is stopped, as the watchdog counts.
        let until = Instant::now() + stopper.budget();
        stopper.begin()?;
        self.held = Some(Held { until, point: None, changed: false });
        Ok(true)
    }

    pub(super) fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    /// A drain that began while everybody stood still found nothing; all it stands for is in this point.
    pub(super) fn on_cut(&mut self, point: PointId, now: Instant) {
        if let Some(held) = &mut self.held {
            let (first, _) = *held.point.get_or_insert((point, now));
            held.changed |= first != point;
        }
    }

    pub(super) fn stand(&self, now: Instant) -> Stand {
        match &self.held {
            Some(held) if held.changed => Stand::Changed,
            Some(held) if now >= held.until => Stand::Over,
            Some(Held { point: Some((point, since)), .. }) if now >= *since + LEAVE_QUIET => {
                Stand::Still(*point)
            }
            _ => Stand::Waits,
        }
    }

    /// Everybody runs on.
    pub(super) fn release(&mut self) {
        if self.held.take().is_some()
            && let Some(stood) = self.stopper.as_mut().and_then(Pauser::end)
        {
            tracing::warn!(?stood, "nothing came of a planned move; the application runs on");
        }
    }

    /// This writer is fenced: ends everybody, if that was asked for.
    pub(super) fn end_application(&mut self) {
        let Some(stopper) = &mut self.stopper else { return };
        self.held = None;
        match stopper.kill() {
            Ok(processes) => tracing::warn!(processes, "fenced; the application was ended"),
            Err(error) => tracing::error!(%error, "fenced, and the application was not ended: end it"),
        }
    }
}
