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

use std::time::Instant;

use tidelock_proto::{
    Epoch, Op, PointId, Seq, Tree, TreeDigest, VolumeName,
    point::Cut,
    wire::{
        self, PROTOCOL_VERSION, cut_to_wire, decode_ops, digest_from_wire,
        messages::{
            Ack, Commit, HaveReply, Heartbeat, Hello, Manifest, Open, OpenKind, ToReceiverKind, ToSidecar,
            ToSidecarKind, WantManifest, Welcome,
        },
        point_id_from_wire, point_id_to_wire,
    },
};

use super::{
    SessionError,
    chunks::ChunkQueue,
    events::{AgreedTree, Events, ShipEvent},
    frame::{Frame, encode_ops},
    records::{Record, RecordPos, RecordQueue},
};
use crate::{limits, pack::Packed};

/// Who ships what.
#[derive(Debug, Clone)]
pub struct SessionConfig {
    /// The volume.
    pub volume: VolumeName,
    /// The writer epoch this sidecar was given.
    pub epoch: Epoch,
    /// Random for each process: tells a reconnecting sidecar from another one.
    pub instance: u64,
    /// The name of the tracker in use, for the receiver's status.
    pub tracker: String,
    /// See [`limits::WINDOW_BYTES`].
    pub window_bytes: usize,
    /// See [`limits::COMMITS_MAX`].
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

    /// The end of the commit being built.
    pub fn handle_commit(&mut self, id: PointId, cut: Cut) {
        if self.accepting {
            assert_eq!(id, self.next_id(), "commits are numbered without gaps within the writer's epoch");
            self.given = Some(id);
            self.records.push_commit(id, cut, self.chunks.given());
        }
    }

    fn next_id(&self) -> PointId {
        let epoch = self.config.epoch;
        let before = self.given.filter(|given| given.epoch == epoch).map_or(Seq(0), |given| given.seq);
        PointId::new(epoch, before.next())
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

/// The connection's side: what comes in.
impl Session {
    /// A new stream is open. Nothing of an older one may be handled after this.
    pub fn handle_connected(&mut self, now: Instant) {
        let hello = Hello {
            version: PROTOCOL_VERSION,
            volume: self.config.volume.to_string(),
            epoch: self.config.epoch.0,
            instance: self.config.instance,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            tracker: self.config.tracker.clone(),
        };
        self.greeting = Some(Frame::Open(Open { kind: Some(OpenKind::Hello(hello)) }));
        self.phase = Phase::Greeting;
        self.deadline = Some(now + limits::WELCOME_TIMEOUT);
        self.reset = None;
        self.stream_finished = false;
    }

    /// The stream is gone.
    pub fn handle_disconnected(&mut self, reason: String) {
        self.phase = Phase::Away;
        (self.deadline, self.greeting, self.reset) = (None, None, None);
        if self.end.is_none() {
            self.events.push(ShipEvent::Disconnected { reason });
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.reset = Some("the receiver did not answer the greeting".to_owned());
        }
    }

    /// A frame from the receiver. After an error the stream must be given up, and the next one begins from the receiver's
    /// tree.
    pub fn handle_frame(&mut self, frame: ToSidecar) -> Result<(), SessionError> {
        let handled = match frame.kind {
            Some(ToSidecarKind::Fenced(fenced)) => {
                self.on_end(End::Fenced(Epoch(fenced.epoch)));
                Ok(())
            }
            Some(ToSidecarKind::Denied(denied)) => {
                self.on_denied(denied.reason, denied.retry);
                Ok(())
            }
            _ if self.end.is_some() || self.reset.is_some() => Ok(()),
            Some(kind) => self.on_frame(kind),
            None => Err(SessionError::Unexpected("empty message")),
        };
        if handled.is_err() {
            self.forget();
        }
        handled
    }

    fn on_frame(&mut self, kind: ToSidecarKind) -> Result<(), SessionError> {
        match (kind, &self.phase) {
            (ToSidecarKind::Welcome(welcome), Phase::Greeting) => self.on_welcome(&welcome),
            (ToSidecarKind::Manifest(part), Phase::Manifest { .. }) => self.on_manifest(part),
            (ToSidecarKind::HaveReply(reply), Phase::Open) => self.on_reply(&reply),
            (ToSidecarKind::Ack(ack), Phase::Open) => self.on_ack(&ack),
            _ => Err(SessionError::Unexpected("message at this time")),
        }
    }

    fn on_denied(&mut self, reason: String, retry: bool) {
        if !retry {
            let taken_over = reason.starts_with(wire::TAKEN_OVER);
            return self.on_end(if taken_over { End::Superseded } else { End::Denied(reason) });
        }
        // What was refused in an open session would be refused again.
        if !matches!(self.phase, Phase::Greeting) {
            self.forget();
        }
        self.reset = Some(format!("refused by the receiver: {reason}"));
    }

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

    fn on_welcome(&mut self, welcome: &Welcome) -> Result<(), SessionError> {
        if welcome.epoch != self.config.epoch.0 {
            return Err(SessionError::Unexpected("epoch"));
        }
        let last = match welcome.last {
            Some(point) => Some((point_id_from_wire(Some(point))?, digest_from_wire(&welcome.digest)?)),
            None => None,
        };
        self.deadline = None;
        if self.holds(last) {
            self.resume(last);
            return Ok(());
        }
        self.forget();
        match last {
            None => self.agree(None, AgreedTree::Empty),
            Some(last) => {
                self.greeting = Some(Frame::of(ToReceiverKind::WantManifest(WantManifest {})));
                self.phase = Phase::Manifest { last, tree: Box::new(Tree::new()) };
            }
        }
        Ok(())
    }

    /// Whether everything after this point is kept.
    fn holds(&self, last: Option<(PointId, TreeDigest)>) -> bool {
        let given = last.is_some_and(|(point, digest)| self.records.digest_of(point) == Some(digest));
        let known = given || self.base == Some(last);
        known && self.records.whole_after(last.map(|(point, _)| point))
    }

    fn resume(&mut self, last: Option<(PointId, TreeDigest)>) {
        if let Some((point, _)) = last {
            self.on_durable(point, false);
        }
        self.chunks.rewind();
        self.records.rewind();
        self.phase = Phase::Open;
        self.events.push(ShipEvent::Agreed { last: last.map(|(point, _)| point), tree: AgreedTree::Resumed });
        self.check_finished();
    }

    fn on_manifest(&mut self, part: Manifest) -> Result<(), SessionError> {
        let Phase::Manifest { last, tree } = &mut self.phase else {
            return Err(SessionError::Unexpected("manifest"));
        };
        for op in decode_ops(part.ops)? {
            tree.apply(&op)?;
        }
        if !part.last {
            return Ok(());
        }
        tree.seal()?;
        let (last, tree) = (*last, std::mem::take(tree));
        if tree.digest() != last.1 {
            return Err(SessionError::Digest);
        }
        self.agree(Some(last), AgreedTree::Manifest(*tree));
        Ok(())
    }

    fn agree(&mut self, last: Option<(PointId, TreeDigest)>, tree: AgreedTree) {
        self.base = Some(last);
        self.given = last.map(|(point, _)| point);
        self.phase = Phase::Open;
        self.events.push(ShipEvent::Agreed { last: last.map(|(point, _)| point), tree });
    }

    fn on_reply(&mut self, reply: &HaveReply) -> Result<(), SessionError> {
        self.chunks.on_reply(&reply.held)?;
        self.check_window();
        Ok(())
    }

    fn on_ack(&mut self, ack: &Ack) -> Result<(), SessionError> {
        self.chunks.on_acknowledged(ack.chunks)?;
        if let Some(point) = ack.point {
            let point = point_id_from_wire(Some(point))?;
            let repeated = self.base.flatten().is_some_and(|(base, _)| base == point);
            if !repeated && !self.on_durable(point, true) {
                return Err(SessionError::Unexpected("acknowledgement of a point that was not sent"));
            }
        }
        self.check_window();
        self.check_finished();
        Ok(())
    }

    /// Returns whether the point is one of the kept ones.
    fn on_durable(&mut self, point: PointId, sent_only: bool) -> bool {
        let digest = self.records.digest_of(point);
        let (Some(digest), Some(covered)) = (digest, self.records.on_durable(point, sent_only)) else {
            return false;
        };
        self.chunks.on_covered(covered.chunks);
        self.base = Some(Some((point, digest)));
        self.durable = Some((point, covered.time_ns));
        self.events.push(ShipEvent::Acked { point });
        self.check_window();
        true
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
        self.base = None;
        self.accepting = false;
        self.finishing = false;
        self.check_window();
    }
}

/// The connection's side: what is to be done.
impl Session {
    /// The next frame to send. To be called until there is none, after anything was handled.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Frame> {
        if self.end.is_some() || self.reset.is_some() {
            return None;
        }
        if let Some(frame) = self.greeting.take() {
            return Some(frame);
        }
        if !matches!(self.phase, Phase::Open) {
            return None;
        }
        if let Some(beat) = self.next_heartbeat(now) {
            return Some(Frame::of(ToReceiverKind::Heartbeat(beat)));
        }
        if let Some(have) = self.chunks.next_question() {
            return Some(Frame::of(ToReceiverKind::Have(have)));
        }
        if let Some(frame) = self.next_record() {
            return Some(frame);
        }
        self.chunks.next_chunk().map(|chunk| Frame::of(ToReceiverKind::Chunk(chunk)))
    }

    fn next_record(&mut self) -> Option<Frame> {
        let frame = match self.records.next(self.chunks.sent())? {
            Record::Ops(frame) => Frame::Encoded(frame.clone()),
            Record::Commit(id, cut) => Frame::of(ToReceiverKind::Commit(Commit {
                id: Some(point_id_to_wire(*id)),
                cut: Some(cut_to_wire(cut)),
            })),
            Record::Gone => unreachable!("a session is not resumed across a gap"),
        };
        self.records.shed();
        self.check_window();
        Some(frame)
    }

    /// A heartbeat speaks of the commits given before it, so it waits for them; after a while it goes without its claim.
    fn next_heartbeat(&mut self, now: Instant) -> Option<Heartbeat> {
        let (_, after, since) = self.heartbeat.as_ref()?;
        let (in_place, stale) = (self.records.sent() >= *after, now >= *since + limits::HEARTBEAT_WAIT_MAX);
        let (mut beat, ..) = self.heartbeat.take_if(|_| in_place || stale)?;
        if !in_place {
            beat.clean_at_ns = 0;
        }
        Some(beat)
    }

    /// When to call [`Session::handle_timeout`], and then [`Session::poll_transmit`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let open = matches!(self.phase, Phase::Open);
        let beat =
            self.heartbeat.as_ref().filter(|_| open).map(|(.., since)| *since + limits::HEARTBEAT_WAIT_MAX);
        self.deadline.into_iter().chain(beat).min()
    }

    /// Why the stream is to be given up, if it is; a new one may be tried.
    pub fn poll_reset(&mut self) -> Option<String> {
        self.reset.take()
    }

    /// Whether to finish the stream now; true once a stream.
    pub fn poll_finish(&mut self) -> bool {
        let due = self.finishing && matches!(self.phase, Phase::Open) && !self.stream_finished;
        let finish = due && self.records.commits_sent();
        self.stream_finished |= finish;
        finish
    }

    /// Why there will be no further session, once that is so.
    pub fn poll_end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Whether both sides have agreed on a tree and changes flow.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// The newest point that became durable through this process, and the time of its cut in nanoseconds since 1970.
    pub fn durable(&self) -> Option<(PointId, u64)> {
        self.durable
    }
}
