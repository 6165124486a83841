//! A session and the sidecar before it, both driven by hand.

use super::*;

/// A receiver of one session: what it appended, and up to where that is durable.
pub(super) struct Receiver {
    pub(super) session: Session,
    pub(super) key: ChunkKey,
    pub(super) now: Now,
    pub(super) store: Chunks,
    pub(super) appended: Vec<(Ticket, Vec<Record>)>,
    /// Chunk frames and commits heard so far, at the last append, and on disk.
    pub(super) heard: (u64, Option<u64>),
    pub(super) written: (u64, Option<u64>),
    pub(super) synced: (u64, Option<u64>),
    pub(super) sent: Vec<ToSidecarKind>,
}

#[derive(Default)]
pub(super) struct Chunks(pub(super) HashMap<ChunkId, u32>);

impl Holdings for Chunks {
    fn chunk_len(&self, id: &ChunkId) -> Result<Option<u32>, StoreError> {
        Ok(self.0.get(id).copied())
    }

    fn content(&self, id: &ChunkId) -> Option<Bytes> {
        self.0.get(id).map(|len| vec![7; *len as usize].into())
    }
}

/// A sidecar that keeps a tree of its own.
pub(super) struct Sidecar {
    pub(super) tree: Tree,
    pub(super) key: ChunkKey,
    pub(super) id: PointId,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self::of(Start {
            volume: volume(),
            epoch: Epoch(1),
            last: None,
            cut_ns: 0,
            tree: Tree::new(),
            afresh: false,
        })
    }

    pub(super) fn of(start: Start) -> Self {
        let mut receiver = Self {
            session: Session::new(start),
            key: ChunkKey::of_tenant("acme"),
            now: Now { instant: Instant::now(), wall_ns: 1_000 },
            store: Chunks::default(),
            appended: Vec::new(),
            heard: (0, None),
            written: (0, None),
            synced: (0, None),
            sent: Vec::new(),
        };
        receiver.poll();
        receiver
    }

    /// Hears one message, as the driver would.
    pub(super) fn hear(&mut self, kind: ToReceiverKind) {
        match &kind {
            ToReceiverKind::Chunk(_) => self.heard.0 += 1,
            ToReceiverKind::Commit(commit) => self.heard.1 = commit.id.map(|id| id.seq),
            _ => {}
        }
        self.hear_message(ToReceiver { kind: Some(kind) });
    }

    pub(super) fn hear_message(&mut self, message: ToReceiver) {
        let frame = match decode(message) {
            Ok(Decoded::Ready(frame)) => Ok(frame),
            Ok(Decoded::Unchecked(chunk)) => chunk.check(&self.key).map_err(SessionError::from),
            Err(error) => Err(error.into()),
        };
        match frame {
            Ok(frame) => self.session.handle_frame(self.now, frame, &self.store),
            Err(error) => self.session.handle_error(error),
        }
        self.poll();
    }

    pub(super) fn poll(&mut self) {
        while let Some(append) = self.session.poll_append(self.now) {
            for record in &append.batch.records {
                if let Record::Chunk(chunk) = record {
                    self.store.0.insert(chunk.id, chunk.len);
                }
            }
            self.appended.push((append.ticket, append.batch.records));
            self.written = self.heard;
        }
        if let Some(manifest) = self.session.poll_manifest() {
            self.sent.extend(manifest.filter_map(|frame| frame.kind));
        }
        while let Some(frame) = self.session.poll_frame() {
            self.sent.extend(frame.kind);
        }
    }

    /// Time passes.
    pub(super) fn wait(&mut self, time: Duration) {
        self.now.instant += time;
        self.poll();
    }

    /// Everything appended so far becomes durable.
    pub(super) fn sync(&mut self) {
        if let Some((ticket, _)) = self.appended.last() {
            self.synced = self.written;
            self.session.handle_durable(*ticket);
        }
        self.poll();
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.appended.iter().flat_map(|(_, records)| records)
    }

    pub(super) fn acks(&self) -> Vec<(u64, Option<u64>)> {
        self.sent
            .iter()
            .filter_map(|kind| match kind {
                ToSidecarKind::Ack(ack) => Some((ack.chunks, ack.point.map(|point| point.seq))),
                _ => None,
            })
            .collect()
    }

    /// The session was ended for this reason, and the peer told so with the last frame.
    pub(super) fn denied(&mut self) -> SessionError {
        let last = self.sent.last();
        assert!(matches!(last, Some(ToSidecarKind::Denied(Denied { retry: true, .. }))), "told {last:?}");
        match self.session.ending.take() {
            Some(Ending::Denied(error)) => error,
            other => panic!("the session was not denied: {other:?}"),
        }
    }
}

impl Sidecar {
    pub(super) fn new() -> Self {
        Self { tree: Tree::new(), key: ChunkKey::of_tenant("acme"), id: PointId::new(Epoch(1), Seq(0)) }
    }

    pub(super) fn ops(&mut self, ops: &[Op]) -> ToReceiverKind {
        for op in ops {
            self.tree.apply(op).expect("applies");
        }
        wire_ops(ops)
    }

    pub(super) fn commit(&mut self) -> ToReceiverKind {
        self.tree.seal().expect("a tree");
        self.id.seq = self.id.seq.next();
        self.commit_as(self.id, self.tree.digest())
    }

    pub(super) fn commit_as(&self, id: PointId, digest: TreeDigest) -> ToReceiverKind {
        let cut = Cut {
            time_ns: 100 * id.seq.0,
            consistency: Consistency::Crash,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: tidelock_proto::point::How::Optimistic,
            group: Vec::new(),
            digest,
        };
        let (id, cut) = (wire::point_id_to_wire(id), wire::cut_to_wire(&cut));
        ToReceiverKind::Commit(messages::Commit { id: Some(id), cut: Some(cut), tags: Vec::new() })
    }

    pub(super) fn chunk(&self, content: &[u8]) -> (ChunkId, ToReceiverKind) {
        let id = self.key.id(content);
        let payload = Bytes::copy_from_slice(content);
        (id, ToReceiverKind::Chunk(wire::chunk_to_wire(id, Codec::Raw, content.len() as u32, payload)))
    }
}

pub(super) fn decode_parts(parts: &[Bytes]) -> Vec<Op> {
    let decode = |part: &Bytes| wire::decode_ops(Ops::decode(&part[..]).expect("a message").ops);
    parts.iter().flat_map(|part| decode(part).expect("operations")).collect()
}

pub(super) fn wire_ops(ops: &[Op]) -> ToReceiverKind {
    ToReceiverKind::Ops(Ops { ops: ops.iter().map(wire::encode_op).collect() })
}

pub(super) fn volume() -> VolumeName {
    "acme/pg".parse().expect("a name")
}

pub(super) fn root() -> Op {
    Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() }
}

pub(super) fn file(id: u64, name: &str) -> [Op; 2] {
    let name = Name::new(name.as_bytes()).expect("name");
    [
        Op::Create { id: FileId(id), kind: Kind::File, meta: Meta::default() },
        Op::Link { dir: FileId::ROOT, name, id: FileId(id) },
    ]
}

pub(super) fn write(id: u64, chunk: ChunkId, at: u32, len: u64) -> Op {
    let pieces = vec![Piece { len, chunk: Some(ChunkRef { id: chunk, at }) }];
    Op::Write { id: FileId(id), offset: 0, pieces }
}

pub(super) fn heartbeat(clean_at_ns: u64) -> ToReceiverKind {
    ToReceiverKind::Heartbeat(Heartbeat { clean_at_ns, ..Heartbeat::default() })
}
