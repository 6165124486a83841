//! The connection's side: what comes in, and how both sides agree on a tree.

use std::time::Instant;

use tidelock_proto::{
    ChunkId, Epoch, FileId, PointId, Tree, TreeDigest,
    limits::{CHUNK_MAX_BYTES, RESEND_MAX},
    wire::{
        self, PROTOCOL_VERSION, decode_ops, digest_from_wire,
        messages::{
            Ack, HaveReply, Hello, Manifest, Open, OpenKind, Resend, ToReceiverKind, ToSidecar,
            ToSidecarKind, WantManifest, Welcome,
        },
        point_id_from_wire,
    },
};

use super::{End, Phase, Session};
use crate::{
    limits,
    ship::{AgreedTree, Frame, SessionError, ShipEvent},
};

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
            raise_epoch: self.config.raise_epoch,
            import: self.config.import,
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
        (self.deadline, self.greeting, self.reset, self.left) = (None, None, None, None);
        self.lose_question();
        self.resent = None;
        if self.end.is_none() {
            self.events.push(ShipEvent::Disconnected { reason });
        }
    }

    /// There will never be a stream, for this reason.
    pub fn handle_hopeless(&mut self, reason: String) {
        self.on_end(End::Denied(reason));
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
            (ToSidecarKind::Pages(pages), Phase::Open) => self.on_pages(pages),
            (ToSidecarKind::Leave(_), Phase::Open) => {
                self.events.push(ShipEvent::Leave);
                Ok(())
            }
            (ToSidecarKind::Resend(resend), Phase::Open) => {
                self.events.push(ShipEvent::Resend(read_resend(&resend)?));
                Ok(())
            }
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
        // No tree, not even its root: the receiver's newest point is damaged, and the volume is sent as a whole.
        let empty = tree.get(FileId::ROOT).is_none() && tree.totals().inodes == 0;
        if !empty {
            tree.seal()?;
        }
        let (last, tree) = (*last, std::mem::take(tree));
        if tree.digest() != last.1 {
            return Err(SessionError::Digest);
        }
        self.agree(Some(last), if empty { AgreedTree::Empty } else { AgreedTree::Manifest(*tree) });
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
}

/// The chunks that are wanted again.
fn read_resend(resend: &Resend) -> Result<Vec<(ChunkId, u32)>, SessionError> {
    let (ids, rest) = resend.ids.as_chunks::<32>();
    let right = rest.is_empty() && ids.len() == resend.lens.len() && ids.len() <= RESEND_MAX;
    if !right || resend.lens.iter().any(|len| *len as usize > CHUNK_MAX_BYTES) {
        return Err(SessionError::Unexpected("list of chunks"));
    }
    Ok(ids.iter().map(|id| ChunkId(*id)).zip(resend.lens.iter().copied()).collect())
}
