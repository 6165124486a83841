//! The sidecar's side of a stream, without sockets or clocks.
//!
//! ```text
//!            connected            Welcome: our tree
//!   Away ──────────────▶ Greeting ─────────────────▶ Open
//!    ▲                      │ Welcome: another tree   ▲
//!    │ disconnected         ▼                         │ last part
//!    └────────────────── Manifest ────────────────────┘
//! ```
//! The session outlives its connections. What was given and is not acknowledged is kept, and whatever tree the next
//! connection begins with decides what becomes of it: if the receiver is at a point that this side gave or began with,
//! what follows is sent again; else everything is forgotten and the cutter starts from the receiver's tree.
//!
//! What the cutter gives between such a decision and the moment it hears of it belongs to the forgotten tree, and is
//! dropped. The cutter hears by [`Session::take_events`], so that call is the border.
//!
//! A chunk that was acknowledged or answered as held is not sent again after a reconnect. Should the receiver have lost it
//! meanwhile, it refuses the commit, and the session begins again from the receiver's tree.

mod incoming;
mod outgoing;
mod pages;

use std::time::Instant;

use tidelock_proto::{
    Epoch, Op, PointId, Seq, Tree, TreeDigest, VolumeName,
    point::Cut,
    wire::messages::{Heartbeat, Left, Resent},
};

use super::{
    chunks::{ChunkPos, ChunkQueue},
    events::{Events, ShipEvent},
    frame::{Frame, encode_ops},
    records::{RecordPos, RecordQueue},
};
use crate::pack::Packed;

/// Who ships what.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The volume.
    pub volume: VolumeName,
    /// The writer epoch this sidecar was given.
    pub epoch: Epoch,
    /// See [`crate::Config::raise_epoch`].
    pub raise_epoch: bool,
    /// See [`crate::import`].
    pub import: bool,
    /// Random for each process: tells a reconnecting sidecar from another one.
    pub instance: u64,
    /// The name of the tracker in use, for the receiver's status.
    pub tracker: String,
    /// See [`crate::limits::WINDOW_BYTES`].
    pub window_bytes: usize,
    /// See [`crate::limits::COMMITS_MAX`].
    pub commits_max: usize,
}

/// Why there will be no further session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything until [`Session::handle_finish`] is durable.
    Finished,
    /// A newer epoch has another writer.
    Fenced(Epoch),
    /// Another sidecar of the same epoch took over.
    Superseded,
    /// The receiver will not have this sidecar.
    Denied(String),
}

#[derive(Default)]
enum Phase {
    #[default]
    Away,
    Greeting,
    Manifest {
        last: (PointId, TreeDigest),
        tree: Box<Tree>,
    },
    Open,
}

/// See the module.
pub struct Session {
    config: SessionConfig,
    phase: Phase,
    /// When the receiver must have said `Welcome`.
    deadline: Option<Instant>,
    /// A frame of the greeting that is to be sent.
    greeting: Option<Frame>,
    /// The newest durable point of the cutter's tree, or none for an empty volume; unknown before the first session.
    base: Option<Option<(PointId, TreeDigest)>>,
    /// Whether what the cutter gives is of the agreed tree.
    accepting: bool,
    /// The last commit given, or the one that the agreed tree is of.
    given: Option<PointId>,
    /// The connection must be given up, and why.
    reset: Option<String>,
    chunks: ChunkQueue,
    records: RecordQueue,
    heartbeat: Option<(Heartbeat, RecordPos, Instant)>,
    /// The answer to the question of this connection.
    left: Option<Left>,
    question: pages::Question,
    /// The answer to another one, and behind which chunks it goes.
    resent: Option<(Resent, ChunkPos)>,
    /// Whether someone waits for the window to open.
    full: bool,
    finishing: bool,
    stream_finished: bool,
    /// The newest durable point and the time of its cut, if a commit of this process is.
    durable: Option<(PointId, u64)>,
    end: Option<End>,
    events: Events,
}

/// The cutter's side.
impl Session {
    /// A session that is not connected and holds nothing.
    pub fn new(config: SessionConfig) -> Self {
        Self {
            config,
            phase: Phase::Away,
            deadline: None,
            greeting: None,
            base: None,
            accepting: false,
            given: None,
            reset: None,
            chunks: ChunkQueue::default(),
            records: RecordQueue::default(),
            heartbeat: None,
            left: None,
            question: pages::Question::Idle,
            resent: None,
            full: false,
            finishing: false,
            stream_finished: false,
            durable: None,
            end: None,
            events: Events::default(),
        }
    }

    /// Whether the cutter should stop giving until [`ShipEvent::WindowOpen`].
    pub fn window_full(&mut self) -> bool {
        self.full = self.window_bytes() >= self.config.window_bytes
            || self.records.commits() >= self.config.commits_max;
        self.full
    }

    /// What counts against the window, in bytes: chunks that are not acknowledged, operations that are not sent, and those
    /// of commits that are not acknowledged.
    pub fn window_bytes(&self) -> usize {
        self.chunks.bytes() + self.records.bytes()
    }

    /// The part of the window that was not sent yet, in bytes.
    pub fn unsent_bytes(&self) -> usize {
        self.chunks.unsent_bytes() + self.records.unsent_bytes()
    }

    /// A chunk that later operations refer to. With `ask`, the receiver may have it already.
    pub fn handle_chunk(&mut self, packed: Packed, ask: bool) {
        if self.accepting {
            self.chunks.push(packed, ask);
        }
    }

    /// Operations of the commit being built.
    pub fn handle_ops(&mut self, ops: Vec<Op>) {
        if self.accepting {
            encode_ops(ops).for_each(|frame| self.records.push_ops(frame, self.chunks.given()));
        }
    }

    /// The end of the commit being built, and names for its point.
    pub fn handle_commit(&mut self, id: PointId, cut: Cut, tags: Vec<String>) {
        if self.accepting {
            assert!(self.follows(id), "commits are numbered upwards within the writer's epoch");
            self.given = Some(id);
            self.records.push_commit(id, cut, tags, self.chunks.given());
        }
    }

    /// A commit's number is the next one. Only the first after both sides agreed on a tree may leave numbers out.
    fn follows(&self, id: PointId) -> bool {
        let before = self.given.filter(|given| given.epoch == id.epoch).map_or(Seq(0), |given| given.seq);
        let agreed = self.base.flatten().map(|(point, _)| point) == self.given && self.records.commits() == 0;
        id.epoch == self.config.epoch && (id.seq == before.next() || (agreed && id.seq > before))
    }

    /// The cutter lost its tree: the next session begins from the receiver's. Does nothing if the cutter has yet to hear
    /// of another tree anyway.
    pub fn handle_abandon(&mut self) {
        if !self.accepting {
            return;
        }
        self.forget();
        if !matches!(self.phase, Phase::Away) {
            self.reset = Some("the sidecar begins again from the receiver's tree".to_owned());
        }
    }

    /// Replaces a heartbeat that was not sent yet.
    pub fn handle_heartbeat(&mut self, now: Instant, mut beat: Heartbeat) {
        if !self.accepting {
            // What it speaks of is not what the receiver will see.
            beat.clean_at_ns = 0;
        }
        let since = self.heartbeat.take().map_or(now, |(_, _, since)| since);
        self.heartbeat = Some((beat, self.records.given(), since));
    }

    /// Answers a planned move, if its connection still is.
    pub fn handle_left(&mut self, left: Left) {
        self.left = Some(left).filter(|_| self.is_open());
    }

    /// The chunks that were asked for again are given, if their connection still is.
    pub fn handle_resent(&mut self, resent: Resent) {
        self.resent = Some((resent, self.chunks.given())).filter(|_| self.is_open());
    }

    /// Nothing follows; what is not committed is forgotten. Dropped like everything else if the cutter has yet to hear of another tree.
    pub fn handle_finish(&mut self) {
        self.finishing = self.accepting;
        self.check_finished();
    }

    /// The events since the last call. From here on the cutter speaks of the tree that they name.
    pub fn take_events(&mut self) -> Vec<ShipEvent> {
        self.accepting |= self.events.untaken_tree();
        self.events.take()
    }

    /// Whether [`Session::take_events`] has something.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }
}

/// What both sides bring about.
impl Session {
    fn on_end(&mut self, end: End) {
        if self.end.is_some() {
            return;
        }
        self.forget();
        self.events.push(match &end {
            End::Finished => ShipEvent::Finished,
            End::Fenced(epoch) => ShipEvent::Fenced { epoch: *epoch },
            End::Superseded => ShipEvent::Superseded,
            End::Denied(reason) => ShipEvent::Denied { reason: reason.clone() },
        });
        self.end = Some(end);
    }

    fn check_window(&mut self) {
        let open = self.window_bytes() < self.config.window_bytes / 4 * 3
            && self.records.commits() < self.config.commits_max;
        if self.full && open {
            self.full = false;
            self.events.push(ShipEvent::WindowOpen);
        }
    }

    fn check_finished(&mut self) {
        if self.finishing && self.records.commits() == 0 {
            self.on_end(End::Finished);
        }
    }

    /// Forgets everything that was given. The cutter begins anew when it hears of the next tree.
    fn forget(&mut self) {
        self.chunks.clear();
        self.records.clear();
        self.heartbeat = None;
        self.lose_question();
        self.base = None;
        self.accepting = false;
        self.finishing = false;
        self.check_window();
    }
}
