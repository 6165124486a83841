//! A sidecar's session without hands: frames, fsyncs and time go in; frames, appends and the end come out.
//!
//! ```text
//!          Welcome                 last of the peer's frames       all durable, all acknowledged
//! Hello ──────────▶ replicating ──────────────────────────▶ draining ──────────▶ Finished | Closing
//!                       │ anything wrong, a promotion, another writer
//!                       └──────────────────────────────────────────────────────▶ Denied | Fenced | Superseded
//! ```
//! The tree is changed as the operations arrive, so the work of a long commit is spread over its frames and its last
//! frame costs little. The price: a session that ends within a commit leaves a tree that is worth nothing, and the next
//! one loads the tree of the last durable point from the store. The log is told of a commit only as a whole.
//!
//! Chunks are kept back for a moment, so that a small commit and its chunks are one append and one fsync.

mod error;
mod frame;
mod input;
mod pending;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashSet, VecDeque},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use tidelock_proto::{
    ChunkId, Epoch, PointId, Tree, VolumeName,
    limits::{COMMIT_OPS_MAX_BYTES, OPS_FRAME_BYTES},
    wire::{
        self,
        messages::{self, Ack, Denied, Fenced, Heartbeat, Manifest, ToSidecar, ToSidecarKind},
    },
};

pub use error::SessionError;
pub use frame::{CheckedChunk, Decoded, Frame, UncheckedChunk, decode, decode_ids};
use pending::Pending;
pub use pending::{Position, Ticket};

use crate::{
    limits,
    store::{Batch, StoreError},
};

/// What a session may know of the store: the tenant's chunks that are durable, or will be before anything that is
/// appended from now on.
pub trait Holdings {
    /// The session counts on a chunk from now on: said before it is looked up.
    fn count_on(&self, _id: &ChunkId) {}
    /// The sidecar is told that the chunk is held.
    fn on_told(&self, _id: &ChunkId) {}
    /// The length of a chunk's content, if the tenant has it.
    fn chunk_len(&self, id: &ChunkId) -> Result<Option<u32>, StoreError>;
    /// The content of a chunk that is durable; `None` if it cannot be had. May read the disk.
    fn content(&self, _id: &ChunkId) -> Option<Bytes> {
        None
    }
}

/// An instant, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For intervals.
    pub instant: Instant,
    /// Wall clock, in nanoseconds since 1970.
    pub wall_ns: u64,
}

/// One write to the log. Without records it is durable as soon as everything appended before it is.
#[derive(Debug)]
pub struct Append {
    /// To be given to [`Session::handle_durable`].
    pub ticket: Ticket,
    /// What to write.
    pub batch: Batch,
}

/// How a session ended.
#[derive(Debug)]
pub enum Ending {
    /// The sidecar was done, and has been told that everything is durable.
    Finished,
    /// The receiver is shutting down; what is durable has been acknowledged.
    Closing,
    /// The sidecar broke the rules.
    Denied(SessionError),
    /// The store failed, which is not the sidecar's fault.
    Failed(StoreError),
    /// The volume was promoted to this epoch.
    Fenced(Epoch),
    /// Another stream took over; by the same sidecar if `reconnected`.
    Superseded {
        /// Whether it was the same instance.
        reconnected: bool,
    },
    /// A promotion is under way; what comes of it is for the driver to tell the sidecar.
    Paused,
    /// The stream is gone.
    Lost,
}

/// What a session begins with: the tree of the newest durable point that a commit of its epoch builds on.
///
/// **Afresh.** Where that point's tree cannot be had any more, because bytes that it rests on are damaged, both sides agree on the empty
/// tree instead. The first commit then holds the whole volume, and its point has no parent: opening it replays from nothing, so it
/// rests on no damaged byte. It is an instant of the volume by the same argument as any other: the sidecar has compared the volume with the tree that
/// was agreed on, whatever that was, up to a quiet instant, and the digest of the whole result is compared here before anything is written. Its
/// number is above the newest point's, damaged or not, so no number means two points. Until that commit is durable nothing has changed:
/// a session that ends before it leaves no tree behind, and the next one begins in the same way.
#[derive(Debug)]
pub struct Start {
    /// The volume.
    pub volume: VolumeName,
    /// The session's epoch.
    pub epoch: Epoch,
    /// That point, if the volume has any.
    pub last: Option<PointId>,
    /// When it was cut by the source's clock, in nanoseconds since 1970; 0 without a point.
    pub cut_ns: u64,
    /// Its tree, or an empty one.
    pub tree: Tree,
    /// The point is there and its tree is not: the tree is empty, and the first commit builds on nothing.
    pub afresh: bool,
}

/// Counts of a session, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Chunk frames.
    pub chunks: u64,
    /// Chunk frames whose chunk was held already.
    pub duplicates: u64,
    /// Commits taken.
    pub commits: u64,
    /// Heartbeats.
    pub heartbeats: u64,
}

/// One sidecar's stream for one volume.
#[derive(Debug)]
pub struct Session {
    volume: VolumeName,
    epoch: Epoch,
    tree: Tree,
    /// The tree is not that of the newest point, which is damaged, but an empty one: until the first commit.
    afresh: bool,
    /// The commit that the tree stands at; behind it only operations of the commit that is arriving.
    received: Position,
    ops: OpsParts,
    staged: Staged,
    pending: Pending,
    manifest_due: bool,
    outbox: VecDeque<ToSidecarKind>,
    ack_due: bool,
    /// Chunks that are damaged in the store and were asked for again: taken though they are held.
    damaged: HashSet<ChunkId>,
    last_word: Option<ToSidecarKind>,
    draining: Option<Ending>,
    ending: Option<Ending>,
    coverage: Coverage,
    heartbeat: Option<Heartbeat>,
    counts: Counts,
}

/// What the next append will hold.
#[derive(Debug, Default)]
struct Staged {
    batch: Batch,
    chunks: Vec<ChunkId>,
    bytes: usize,
    /// When the first of it came; `None` if nothing waits, not even for a confirmation.
    since: Option<Instant>,
    /// It holds a commit, so it must not wait.
    urgent: bool,
}

/// The operations of the commit that is arriving, as the log will keep them.
#[derive(Debug, Default)]
struct OpsParts {
    parts: Vec<BytesMut>,
    bytes: usize,
}

/// Why a frame cannot be handled.
enum Stop {
    Session(SessionError),
    Store(StoreError),
}

/// Which instant of the source is safe, by the source's clock.
#[derive(Debug, Default)]
struct Coverage {
    covered_ns: u64,
    /// Cut times of commits not yet durable.
    cuts: VecDeque<(PointId, u64)>,
    /// A heartbeat said that nothing had changed between this commit and this time.
    clean: Option<(PointId, u64)>,
}

impl Session {
    /// Begins by saying welcome.
    pub fn new(start: Start) -> Self {
        let Start { volume, epoch, last, cut_ns, tree, afresh } = start;
        assert!(!afresh || tree == Tree::new(), "who begins afresh begins with nothing");
        let welcome = messages::Welcome {
            epoch: epoch.0,
            last: last.map(wire::point_id_to_wire),
            digest: Bytes::copy_from_slice(&tree.digest().0),
        };
        Self {
            volume,
            epoch,
            tree,
            afresh,
            received: Position { chunks: 0, point: last },
            ops: OpsParts::default(),
            staged: Staged::default(),
            pending: Pending::new(last),
            manifest_due: false,
            outbox: VecDeque::from([ToSidecarKind::Welcome(welcome)]),
            ack_due: false,
            damaged: HashSet::new(),
            last_word: None,
            draining: None,
            ending: None,
            coverage: Coverage { covered_ns: cut_ns, ..Coverage::default() },
            heartbeat: None,
            counts: Counts::default(),
        }
    }

    /// Takes the next frame of the stream. Frames after the end are ignored.
    pub fn handle_frame(&mut self, now: Now, frame: Frame, holdings: &impl Holdings) {
        if self.ending.is_some() || self.draining.is_some() {
            return;
        }
        let handled = match frame {
            Frame::WantManifest => self.want_manifest(),
            Frame::Have(ids) => self.answer_have(&ids, holdings),
            Frame::WantPages(ids) => {
                self.answer_pages(&ids, holdings);
                Ok(())
            }
            Frame::Chunk(chunk) => self.take_chunk(now, chunk, holdings),
            Frame::Ops { ops, encoded } => self.take_ops(&ops, &encoded, holdings),
            Frame::Commit { id, cut, tags } => self.commit(now, id, cut, tags),
            Frame::Heartbeat(heartbeat) => {
                self.take_heartbeat(heartbeat);
                Ok(())
            }
            Frame::Resent(_) => {
                self.take_resent(now);
                Ok(())
            }
            // For whoever asked.
            Frame::Left(_) => Ok(()),
        };
        match handled {
            Ok(()) => {}
            Err(Stop::Session(error)) => self.handle_error(error),
            Err(Stop::Store(error)) => self.handle_refused(error),
        }
    }

    /// A frame could not be decoded or proven, or breaks a rule.
    pub fn handle_error(&mut self, error: SessionError) {
        let denied = Denied { reason: error.to_string(), retry: true };
        self.end(Ending::Denied(error), Some(ToSidecarKind::Denied(denied)));
    }

    /// The store refused an append.
    pub fn handle_refused(&mut self, error: StoreError) {
        match error {
            StoreError::Fenced { epoch, .. } => self.handle_fenced(epoch),
            error @ StoreError::Full { .. } => {
                let denied = Denied { reason: error.to_string(), retry: true };
                self.end(Ending::Failed(error), Some(ToSidecarKind::Denied(denied)));
            }
            error => {
                // What failed is for this side's log, not for the sidecar.
                let reason = "the receiver's store failed: see the receiver's log".to_owned();
                self.end(Ending::Failed(error), Some(ToSidecarKind::Denied(Denied { reason, retry: true })));
            }
        }
    }

    /// The append with this ticket is durable, and so is all before it.
    pub fn handle_durable(&mut self, ticket: Ticket) {
        if self.pending.on_durable(ticket) {
            self.ack_due = true;
            self.coverage.on_durable(self.pending.durable().point);
        }
        self.finish_draining();
    }

    /// A planned move: asks the sidecar to stop its application and take a last cut. [`Frame::Left`] answers.
    pub fn handle_leave(&mut self) {
        if self.ending.is_none() && self.draining.is_none() {
            self.outbox.push_back(ToSidecarKind::Leave(messages::Leave {}));
        }
    }

    /// Asks the sidecar for chunks that are damaged in the store, with the lengths of their contents, in bytes (0 where that is not
    /// known). [`Frame::Resent`] answers, and the next append behind it makes what came durable. At most
    /// [`tidelock_proto::limits::RESEND_MAX`].
    pub fn handle_resend(&mut self, damaged: &[(ChunkId, u32)]) {
        if self.ending.is_some() || self.draining.is_some() {
            return;
        }
        self.damaged = damaged.iter().map(|(id, _)| *id).collect();
        let ids = damaged.iter().flat_map(|(id, _)| id.0).collect::<Vec<u8>>().into();
        let lens = damaged.iter().map(|(_, len)| *len).collect();
        self.outbox.push_back(ToSidecarKind::Resend(messages::Resend { ids, lens }));
    }

    /// The volume was promoted: the last thing this writer hears.
    pub fn handle_fenced(&mut self, epoch: Epoch) {
        self.end(Ending::Fenced(epoch), Some(ToSidecarKind::Fenced(Fenced { epoch: epoch.0 })));
    }

    /// Another stream took over the volume.
    pub fn handle_superseded(&mut self, reconnected: bool) {
        let denied = (!reconnected).then(|| {
            let reason =
                "another sidecar took over this volume: make sure that only one runs for it".to_owned();
            ToSidecarKind::Denied(Denied { reason, retry: false })
        });
        self.end(Ending::Superseded { reconnected }, denied);
    }

    /// The sidecar finished its side of the stream: what it sent is still made durable and acknowledged.
    pub fn handle_finished(&mut self) {
        self.drain(Ending::Finished);
    }

    /// The receiver shuts down: as with [`Session::handle_finished`], but the sidecar shall come back.
    pub fn handle_closing(&mut self) {
        self.drain(Ending::Closing);
    }

    /// A promotion begins: nothing more is taken. The session ends without a word.
    pub fn handle_paused(&mut self) {
        self.end(Ending::Paused, None);
    }

    /// The stream is gone.
    pub fn handle_lost(&mut self) {
        self.end(Ending::Lost, None);
    }

    /// The next write to the log, if one is due. A commit is due at once; chunks when there are many of them or the first
    /// has waited for [`limits::CHUNK_HOLD`].
    pub fn poll_append(&mut self, now: Now) -> Option<Append> {
        let due = self.poll_timeout().is_some_and(|at| at <= now.instant);
        if self.ending.is_some() || !due {
            return None;
        }
        let staged = std::mem::take(&mut self.staged);
        let ticket = self.pending.append(self.received, staged.chunks, staged.bytes);
        Some(Append { ticket, batch: staged.batch })
    }

    /// When [`Session::poll_append`] has something, if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let since = self.staged.since?;
        let urgent =
            self.staged.urgent || self.staged.bytes >= limits::APPEND_BYTES || self.draining.is_some();
        Some(if urgent { since } else { since + limits::CHUNK_HOLD })
    }

    /// The next frame to send.
    pub fn poll_frame(&mut self) -> Option<ToSidecar> {
        let kind = self.outbox.pop_front().or_else(|| self.poll_ack()).or_else(|| self.last_word.take())?;
        Some(ToSidecar { kind: Some(kind) })
    }

    fn poll_ack(&mut self) -> Option<ToSidecarKind> {
        if !std::mem::take(&mut self.ack_due) {
            return None;
        }
        let Position { chunks, point } = self.pending.durable();
        Some(ToSidecarKind::Ack(Ack { chunks, point: point.map(wire::point_id_to_wire) }))
    }

    /// The frames of the manifest, once after it was asked for. They are to be sent before the next frame is handled.
    pub fn poll_manifest(&mut self) -> Option<impl Iterator<Item = ToSidecar>> {
        if !std::mem::take(&mut self.manifest_due) {
            return None;
        }
        let mut groups = wire::split_ops(self.tree.snapshot()).peekable();
        Some(std::iter::from_fn(move || {
            let ops = groups.next()?;
            let last = groups.peek().is_none();
            Some(ToSidecar { kind: Some(ToSidecarKind::Manifest(Manifest { ops, last })) })
        }))
    }

    /// How the session ended, after everything else was polled.
    pub fn poll_ending(&mut self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// Whether the next frame may be handled: not while more than [`limits::UNDURABLE_MAX_BYTES`] wait for their fsync,
    /// nor before the manifest is sent, nor before an answer about pages, which is far longer than its question, has been taken.
    pub fn wants_input(&self) -> bool {
        self.ending.is_none()
            && self.draining.is_none()
            && !self.manifest_due
            && !matches!(self.outbox.back(), Some(ToSidecarKind::Pages(_)))
            && self.pending.bytes() + self.staged.bytes < limits::UNDURABLE_MAX_BYTES
    }

    /// The newest instant, by the source's clock in nanoseconds since 1970, that the durable points cover; 0 if none.
    pub fn covered_ns(&self) -> u64 {
        self.coverage.covered_ns
    }

    /// The newest heartbeat.
    pub fn heartbeat(&self) -> Option<&Heartbeat> {
        self.heartbeat.as_ref()
    }

    /// What the sidecar is told to be durable.
    pub fn durable(&self) -> Position {
        self.pending.durable()
    }

    /// The tree as far as it has been received.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The newest commit taken, durable or not.
    pub fn received_point(&self) -> Option<PointId> {
        self.received.point
    }

    /// Length of the operations taken since the last commit, in bytes.
    pub fn uncommitted_bytes(&self) -> usize {
        self.ops.bytes
    }

    /// Whether no more input is taken, and the session ends when everything is durable.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Counts since the beginning.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The tree for the next session, if it is exactly that of the newest durable point.
    pub fn into_tree(self) -> Option<(Option<PointId>, Tree)> {
        let sound = !matches!(self.ending, Some(Ending::Denied(_) | Ending::Failed(_)))
            && self.ops.bytes == 0
            // The tree is not that of the point it stands at.
            && !self.afresh;
        let settled = self.pending.is_empty() && self.received.point == self.pending.durable().point;
        (sound && settled).then_some((self.received.point, self.tree))
    }

    fn drain(&mut self, ending: Ending) {
        if self.ending.is_none() && self.draining.is_none() {
            self.draining = Some(ending);
            self.finish_draining();
        }
    }

    fn finish_draining(&mut self) {
        if self.staged.since.is_some() || !self.pending.is_empty() {
            return;
        }
        let Some(ending) = self.draining.take() else { return };
        let last_word = matches!(ending, Ending::Closing).then(|| {
            let reason = "the receiver is shutting down".to_owned();
            ToSidecarKind::Denied(Denied { reason, retry: true })
        });
        self.end(ending, last_word);
    }

    fn end(&mut self, ending: Ending, last_word: Option<ToSidecarKind>) {
        if self.ending.is_none() {
            self.last_word = last_word;
            self.ending = Some(ending);
        }
    }
}

impl From<SessionError> for Stop {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl OpsParts {
    /// Adds an encoded `Ops` message. Two of them joined are one message, so small ones are.
    fn add(&mut self, encoded: &Bytes) -> Result<(), SessionError> {
        self.bytes += encoded.len();
        if self.bytes > COMMIT_OPS_MAX_BYTES {
            return Err(SessionError::CommitTooLong);
        }
        match self.parts.last_mut() {
            Some(last) if last.len() + encoded.len() <= OPS_FRAME_BYTES => last.extend_from_slice(encoded),
            _ => self.parts.push(encoded[..].into()),
        }
        Ok(())
    }
}

impl Coverage {
    fn on_durable(&mut self, point: Option<PointId>) {
        while let Some((id, cut_ns)) = self.cuts.front().copied()
            && Some(id) <= point
        {
            self.covered_ns = self.covered_ns.max(cut_ns);
            self.cuts.pop_front();
        }
        if let Some((id, clean_at_ns)) = self.clean
            && Some(id) <= point
        {
            self.covered_ns = self.covered_ns.max(clean_at_ns);
            self.clean = None;
        }
    }
}
