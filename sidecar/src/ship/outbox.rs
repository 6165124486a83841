//! The cutter's end of the session: a lock held for moments, a wake-up each way.
//!
//! The session is shared under a mutex rather than fed by a channel, so that the window is exact, nothing is buffered twice,
//! and a commit is one short wake-up away from the network. The price is that the cutter waits while a frame is handled:
//! microseconds, and milliseconds only for a manifest, when it has nothing to do anyway.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, eventfd};
use tidelock_proto::{
    ChunkId, Op, PointId,
    point::Cut,
    wire::{
        messages::{Heartbeat, Left, Resent},
        point_id_to_wire,
    },
};
use tokio::sync::Notify;

use super::{
    events::ShipEvent,
    session::{Session, SessionConfig},
};
use crate::{limits, pack::Packed};

/// Where the cutter puts what is to be shipped. Never blocks but for [`Outbox::pages`]; for one thread.
pub struct Outbox {
    shared: Arc<Shared>,
}

/// The other end, for [`super::run`].
pub struct ShipEnd {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    session: Mutex<Session>,
    /// Wakes the cutter where it waits for an answer.
    answered: Condvar,
    /// Wakes the connection.
    pub(super) wake: Notify,
    /// Wakes the cutter.
    waker: OwnedFd,
}

/// Both ends of a new session. An error means that the system has no room for an eventfd.
pub fn outbox(config: SessionConfig) -> io::Result<(Outbox, ShipEnd)> {
    let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let session = Mutex::new(Session::new(config));
    let shared = Shared { session, answered: Condvar::new(), wake: Notify::new(), waker };
    let shared = Arc::new(shared);
    Ok((Outbox { shared: shared.clone() }, ShipEnd { shared }))
}

impl Outbox {
    /// Whether to give nothing more until [`ShipEvent::WindowOpen`]. Giving more is possible (a commit must be
    /// completed), and costs memory.
    pub fn window_full(&self) -> bool {
        let full = self.shared.session.lock().window_full();
        if full {
            self.shared.wake.notify_one();
        }
        full
    }

    /// A chunk that operations given later refer to. `ask`: the receiver may have it already, so ask before sending.
    pub fn chunk(&self, packed: Packed, ask: bool) {
        self.give(false, |session| session.handle_chunk(packed, ask));
    }

    /// What the pages of these chunks are, in their order (see [`tidelock_proto::chunk::page_sums`]); a list may be empty. `None` if the
    /// receiver cannot be asked now. Waits for the answer.
    pub fn pages(&self, ids: Vec<ChunkId>) -> Option<Vec<Bytes>> {
        let by = Instant::now() + limits::PAGES_WITHIN;
        let mut session = self.shared.session.lock();
        session.handle_question(ids);
        self.shared.wake.notify_one();
        loop {
            if let Some(answer) = session.take_answer() {
                return answer;
            }
            if self.shared.answered.wait_until(&mut session, by).timed_out() {
                session.handle_impatience();
                self.shared.wake.notify_one();
                return None;
            }
        }
    }

    /// Operations of the commit being built, in order.
    pub fn ops(&self, ops: Vec<Op>) {
        self.give(false, |session| session.handle_ops(ops));
    }

    /// Ends the commit being built. `id` is the first of the epoch or follows the last commit; the first one after
    /// [`ShipEvent::Agreed`] may leave numbers out.
    pub fn commit(&self, id: PointId, cut: Cut, tags: Vec<String>) {
        self.give(true, |session| session.handle_commit(id, cut, tags));
    }

    /// The cutter's tree is lost: forgets all that was given, and begins a new session from the receiver's tree. What is
    /// given until the next [`ShipEvent::Agreed`] was taken is dropped.
    pub fn abandon(&self) {
        self.give(true, Session::handle_abandon);
    }

    /// A heartbeat, at least every second. The newest wins.
    pub fn heartbeat(&self, beat: Heartbeat) {
        self.give(true, |session| session.handle_heartbeat(Instant::now(), beat));
    }

    /// Answers [`ShipEvent::Leave`]: the point, which is durable, that holds everything the application wrote before it came to
    /// rest, where it stays for now; or why not, for people.
    pub fn left(&self, answer: Result<PointId, String>) {
        let left = match answer {
            Ok(point) => Left { point: Some(point_id_to_wire(point)), reason: String::new() },
            Err(reason) => Left { point: None, reason },
        };
        self.give(true, |session| session.handle_left(left));
    }

    /// Answers [`ShipEvent::Resend`], once those of the chunks were given that the volume still has: so many.
    pub fn resent(&self, found: u32) {
        self.give(true, |session| session.handle_resent(Resent { found }));
    }

    /// Nothing follows: [`ShipEvent::Finished`] comes when the last commit is durable. If the receiver's tree turns out
    /// to be another, [`ShipEvent::Agreed`] comes instead; then commit again and finish again.
    pub fn finish(&self) {
        self.give(true, Session::handle_finish);
    }

    /// What happened since the last call.
    pub fn events(&self) -> Vec<ShipEvent> {
        let mut counter = [0; 8];
        // Nothing to read is the usual case.
        let _ = rustix::io::read(&self.shared.waker, &mut counter);
        self.shared.session.lock().take_events()
    }

    /// Readable while [`Outbox::events`] has something.
    pub fn waker(&self) -> BorrowedFd<'_> {
        self.shared.waker.as_fd()
    }

    fn give(&self, wake: bool, give: impl FnOnce(&mut Session)) {
        let wake = self.shared.with(|session| {
            give(session);
            wake || session.unsent_bytes() >= limits::WAKE_BYTES
        });
        if wake {
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    /// Does something with the session, and wakes the cutter if that made an event.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Session) -> T) -> T {
        let mut session = self.session.lock();
        let had_events = session.has_events();
        let result = work(&mut session);
        let wake = session.has_events() && !had_events;
        if session.has_answer() {
            self.answered.notify_one();
        }
        drop(session);
        if wake {
            // It can only fail when the counter is at its end, and then the cutter is being woken.
            let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
        }
        result
    }
}
