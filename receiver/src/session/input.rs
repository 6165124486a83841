//! What each frame of a sidecar does to a session, once it is decoded and proven.

use bytes::{Bytes, BytesMut};
use tidelock_proto::{
    ChunkId, ChunkKey, Op, PointId, Seq,
    chunk::page_sums,
    point::{Cut, Point},
    tree::Piece,
    wire::messages::{HaveReply, Heartbeat, Pages, ToSidecarKind},
};

use super::{CheckedChunk, Holdings, Now, Session, SessionError, Stop};
use crate::store::{Commit, Record, StoreError};

impl Session {
    pub(super) fn want_manifest(&mut self) -> Result<(), Stop> {
        if self.counts.commits > 0 || self.ops.bytes > 0 {
            return Err(SessionError::LateManifest.into());
        }
        // Nothing is sent for a volume without points, where both sides begin with an empty tree.
        self.manifest_due = self.received.point.is_some();
        Ok(())
    }

    pub(super) fn answer_have(&mut self, ids: &[ChunkId], holdings: &impl Holdings) -> Result<(), Stop> {
        let mut held = vec![0u8; ids.len().div_ceil(8)];
        for (index, id) in ids.iter().enumerate() {
            if self.chunk_len(id, holdings)?.is_some() {
                holdings.on_told(id);
                held[index / 8] |= 1 << (index % 8);
            }
        }
        self.outbox.push_back(ToSidecarKind::HaveReply(HaveReply { held: held.into() }));
        Ok(())
    }

    /// A sidecar may ask about any chunk of its tenant whose id it knows, as it may refer to any.
    pub(super) fn answer_pages(&mut self, ids: &[ChunkId], holdings: &impl Holdings) {
        let key = ChunkKey::of_tenant(self.volume.tenant());
        let sums =
            |id| holdings.content(id).map_or_else(Bytes::new, |content| page_sums(&key, &content).into());
        self.outbox.push_back(ToSidecarKind::Pages(Pages { sums: ids.iter().map(sums).collect() }));
    }

    pub(super) fn take_chunk(
        &mut self,
        now: Now,
        chunk: CheckedChunk,
        holdings: &impl Holdings,
    ) -> Result<(), Stop> {
        self.received.chunks += 1;
        self.counts.chunks += 1;
        // A chunk that is held may still be on its way to the disk for an earlier frame of this session, so even a
        // duplicate is acknowledged by an append.
        self.staged.since.get_or_insert(now.instant);
        let held = self.chunk_len(&chunk.id, holdings)?.is_some();
        if held && !self.damaged.remove(&chunk.id) {
            self.counts.duplicates += 1;
            return Ok(());
        }
        self.pending.add_chunk(chunk.id, chunk.len);
        self.staged.bytes += chunk.payload.len();
        self.staged.chunks.push(chunk.id);
        let CheckedChunk { id, codec, len, payload } = chunk;
        self.staged.batch.push_chunk(self.volume.tenant(), id, codec, len, payload);
        Ok(())
    }

    pub(super) fn take_ops(
        &mut self,
        ops: &[Op],
        encoded: &Bytes,
        holdings: &impl Holdings,
    ) -> Result<(), Stop> {
        self.ops.add(encoded)?;
        for op in ops {
            self.check_references(op, holdings)?;
            self.tree.apply(op).map_err(SessionError::from)?;
        }
        Ok(())
    }

    pub(super) fn check_references(&self, op: &Op, holdings: &impl Holdings) -> Result<(), Stop> {
        let Op::Write { id: file, pieces, .. } = op else { return Ok(()) };
        for Piece { len, chunk } in pieces {
            let Some(reference) = chunk else { continue };
            let (file, chunk) = (*file, reference.id);
            let held = self.chunk_len(&chunk, holdings)?.ok_or(SessionError::MissingChunk { file, chunk })?;
            let end = u64::from(reference.at).saturating_add(*len);
            if end > u64::from(held) {
                return Err(SessionError::ShortChunk { file, chunk, end, len: held }.into());
            }
        }
        Ok(())
    }

    pub(super) fn commit(&mut self, now: Now, id: PointId, cut: Cut, tags: Vec<String>) -> Result<(), Stop> {
        if id.epoch != self.epoch {
            return Err(SessionError::Epoch { found: id.epoch, session: self.epoch }.into());
        }
        let expected = self.next_seq();
        // The volumes of a group share their numbers: one whose newest point is older than the others' leaves out those that
        // it missed, once, when both sides have agreed on a tree.
        let follows = if self.counts.commits == 0 { id.seq >= expected } else { id.seq == expected };
        if !follows {
            return Err(SessionError::Gap { found: id.seq, expected }.into());
        }
        self.tree.seal().map_err(SessionError::from)?;
        let digest = self.tree.digest();
        if digest != cut.digest {
            return Err(SessionError::Digest { seq: id.seq, found: digest, expected: cut.digest }.into());
        }
        self.coverage.cuts.push_back((id, cut.time_ns));
        self.counts.commits += 1;
        self.staged.since.get_or_insert(now.instant);
        self.staged.urgent = true;
        let ops = std::mem::take(&mut self.ops);
        self.staged.bytes += ops.bytes;
        let last = self.received.point.replace(id);
        let parent = last.filter(|_| !std::mem::take(&mut self.afresh));
        let point = Point { id, parent, cut, received_ns: now.wall_ns, tags };
        let ops = ops.parts.into_iter().map(BytesMut::freeze).collect();
        self.staged.batch.push(Record::Commit(Commit { volume: self.volume.clone(), point, ops }));
        Ok(())
    }

    pub(super) fn take_heartbeat(&mut self, heartbeat: Heartbeat) {
        // Before the first commit of a session that began afresh, "nothing has changed since" speaks of a point that is damaged.
        if let Some(point) = self.received.point
            && heartbeat.clean_at_ns > 0
            && !self.afresh
        {
            self.coverage.clean = Some((point, heartbeat.clean_at_ns));
            self.coverage.on_durable(self.pending.durable().point);
        }
        self.counts.heartbeats += 1;
        self.heartbeat = Some(heartbeat);
    }

    /// What was asked for again has come, or will not. Somebody waits for it.
    pub(super) fn take_resent(&mut self, now: Now) {
        self.damaged.clear();
        self.staged.since.get_or_insert(now.instant);
        self.staged.urgent = true;
    }

    pub(super) fn next_seq(&self) -> Seq {
        match self.received.point {
            Some(last) if last.epoch == self.epoch => last.seq.next(),
            _ => Seq(1),
        }
    }

    pub(super) fn chunk_len(
        &self,
        id: &ChunkId,
        holdings: &impl Holdings,
    ) -> Result<Option<u32>, StoreError> {
        holdings.count_on(id);
        match self.pending.chunk_len(id) {
            Some(len) => Ok(Some(len)),
            None => holdings.chunk_len(id),
        }
    }
}
