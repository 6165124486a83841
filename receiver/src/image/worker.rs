//! The thread of one image: when it steps, when it makes durable, when it tries again.

use std::{
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tidelock_proto::VolumeName;
use tokio::sync::oneshot;
use tracing::{debug, info, info_span, warn};

use super::{Given, ImageError, ImageState, follower::Follower};
use crate::{background, limits};

/// Somebody wants the image at the newest point.
pub(super) struct Question {
    /// It is to be given away.
    pub(super) release: bool,
    pub(super) reply: oneshot::Sender<Result<Given, ImageError>>,
}

/// What a thread and those who talk to it share.
#[derive(Default)]
pub(super) struct Slot {
    inbox: Mutex<Inbox>,
    came: Condvar,
    state: Mutex<ImageState>,
}

#[derive(Default)]
struct Inbox {
    nudged: bool,
    stop: bool,
    /// The thread waits for a nudge, and not only for questions.
    idle: bool,
    questions: Vec<Question>,
}

impl Slot {
    pub(super) fn nudge(&self) {
        let mut inbox = self.inbox.lock();
        inbox.nudged = true;
        if inbox.idle {
            self.came.notify_all();
        }
    }

    /// `false` if too many wait.
    pub(super) fn ask(&self, question: Question) -> bool {
        let mut inbox = self.inbox.lock();
        if inbox.questions.len() >= limits::IMAGE_QUESTIONS || inbox.stop {
            return false;
        }
        inbox.questions.push(question);
        self.came.notify_all();
        true
    }

    pub(super) fn stop(&self) {
        self.inbox.lock().stop = true;
        self.came.notify_all();
    }

    pub(super) fn state(&self) -> ImageState {
        self.state.lock().clone()
    }

    pub(super) fn set_state(&self, state: ImageState) {
        *self.state.lock() = state;
    }

    /// Waits for a question or the end, or if `idle` for a nudge, at most for `pause`. `None` at the end.
    fn wait(&self, pause: Duration, idle: bool) -> Option<Vec<Question>> {
        let mut inbox = self.inbox.lock();
        let until = Instant::now() + pause;
        inbox.idle = idle;
        while !inbox.stop && inbox.questions.is_empty() && !(idle && inbox.nudged) {
            if self.came.wait_until(&mut inbox, until).timed_out() {
                break;
            }
        }
        inbox.nudged = false;
        inbox.idle = false;
        (!inbox.stop).then(|| std::mem::take(&mut inbox.questions))
    }
}

pub(super) fn spawn(
    follower: Follower,
    volume: VolumeName,
    slot: Arc<Slot>,
) -> Result<JoinHandle<()>, String> {
    let worker = Worker { follower, slot, retry: limits::IMAGE_RETRY, settled: Instant::now() };
    let run = move || {
        let _span = info_span!("image", %volume).entered();
        worker.run();
    };
    background::spawn("image", run).map_err(|error| error.to_string())
}

struct Worker {
    follower: Follower,
    slot: Arc<Slot>,
    /// The pause after the next failure.
    retry: Duration,
    /// When everything was durable last.
    settled: Instant,
}

impl Worker {
    fn run(mut self) {
        let mut pause = (Duration::ZERO, false);
        while let Some(questions) = self.slot.wait(pause.0, pause.1) {
            pause = match self.turn(questions) {
                Ok(pause) => pause,
                // What was interrupted has not failed.
                Err(_) if self.follower.is_stopping() => break,
                Err(error) => self.fail(&error),
            };
        }
        if let Err(error) = self.follower.settle() {
            debug!(error = error.line(), "image not made durable at the end");
        }
    }

    /// Brings the image as far as there are points, and answers. Tells how long to rest, and whether a nudge ends that.
    fn turn(&mut self, questions: Vec<Question>) -> Result<(Duration, bool), ImageError> {
        let mut stepped = false;
        if self.follower.point().is_none() && !self.follower.is_given() {
            if self.slot.state() == ImageState::Absent {
                self.slot.set_state(ImageState::Building);
            }
            if !self.follower.open()? {
                self.slot.set_state(ImageState::Absent);
                return Ok((limits::IMAGE_IDLE, true));
            }
            self.settled = Instant::now();
            info!(point = ?self.follower.point(), "image follows");
        }
        loop {
            self.told();
            let more = self.follower.advance()?;
            stepped |= more;
            // Somebody waits: all the way. Otherwise what comes next rests with what comes after it.
            if !more || questions.is_empty() {
                break;
            }
        }
        self.told();
        self.retry = limits::IMAGE_RETRY;
        for Question { release, reply } in questions {
            // Whoever asked may have left.
            let _ = reply.send(answer(&mut self.follower, release));
            self.told();
        }
        if !self.follower.is_dirty() {
            self.settled = Instant::now();
        } else if self.settled.elapsed() >= limits::IMAGE_SYNC_PAUSE {
            self.follower.settle()?;
            self.settled = Instant::now();
        }
        Ok(match (stepped, self.follower.is_dirty()) {
            (true, _) => (limits::IMAGE_STEP_PAUSE, false),
            (false, true) => (limits::IMAGE_SYNC_PAUSE.saturating_sub(self.settled.elapsed()), true),
            (false, false) => (limits::IMAGE_IDLE, true),
        })
    }

    fn told(&self) {
        let state = self.follower.point().map_or(ImageState::Absent, ImageState::Following);
        self.slot.set_state(state);
    }

    fn fail(&mut self, error: &ImageError) -> (Duration, bool) {
        let reason = error.line();
        if self.slot.state() != ImageState::Failed(reason.clone()) {
            warn!(reason, "image-failed: replication goes on without it");
        }
        self.follower.close();
        self.slot.set_state(ImageState::Failed(reason));
        let pause = self.retry;
        self.retry = (self.retry * 2).min(limits::IMAGE_RETRY_MAX);
        (pause, false)
    }
}

/// Tells where an image that was brought to the newest point is, or gives it away.
pub(super) fn answer(follower: &mut Follower, release: bool) -> Result<Given, ImageError> {
    if let Some(given) = follower.given_before()? {
        return Ok(given);
    }
    if release { follower.release() } else { follower.show() }
}
