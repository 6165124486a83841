//! A session driven by hand: a peer that says anything, a disk that becomes durable when told, a clock that stands still.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;
use prost::Message;
use tidelock_proto::{
    ChunkKey, FileId, TreeDigest,
    chunk::{ChunkError, Codec},
    limits as wire_limits,
    point::Consistency,
    tree::{ChunkRef, Kind, Meta, Name, TreeError},
    wire::{
        WireError,
        messages::{self, Chunk, Have, Ops, ToReceiver, ToReceiverKind, WantManifest},
    },
};

use super::*;

/// A receiver of one session: what it appended, and up to where that is durable.
struct Receiver {
    session: Session,
    key: ChunkKey,
    now: Now,
    store: Chunks,
    appended: Vec<(Ticket, Vec<Record>)>,
    /// Chunk frames and commits heard so far, at the last append, and on disk.
    heard: (u64, Option<u64>),
    written: (u64, Option<u64>),
    synced: (u64, Option<u64>),
    sent: Vec<ToSidecarKind>,
}

#[derive(Default)]
struct Chunks(HashMap<ChunkId, u32>);

impl Holdings for Chunks {
    fn chunk_len(&self, id: &ChunkId) -> Result<Option<u32>, StoreError> {
        Ok(self.0.get(id).copied())
    }
}

/// A sidecar that keeps a tree of its own.
struct Sidecar {
    tree: Tree,
    key: ChunkKey,
    id: PointId,
}

impl Receiver {
    fn new() -> Self {
        Self::of(Start { volume: volume(), epoch: Epoch(1), last: None, cut_ns: 0, tree: Tree::new() })
    }

    fn of(start: Start) -> Self {
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
    fn hear(&mut self, kind: ToReceiverKind) {
        match &kind {
            ToReceiverKind::Chunk(_) => self.heard.0 += 1,
            ToReceiverKind::Commit(commit) => self.heard.1 = commit.id.map(|id| id.seq),
            _ => {}
        }
        self.hear_message(ToReceiver { kind: Some(kind) });
    }

    fn hear_message(&mut self, message: ToReceiver) {
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

    fn poll(&mut self) {
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
    fn wait(&mut self, time: Duration) {
        self.now.instant += time;
        self.poll();
    }

    /// Everything appended so far becomes durable.
    fn sync(&mut self) {
        if let Some((ticket, _)) = self.appended.last() {
            self.synced = self.written;
            self.session.handle_durable(*ticket);
        }
        self.poll();
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.appended.iter().flat_map(|(_, records)| records)
    }

    fn acks(&self) -> Vec<(u64, Option<u64>)> {
        self.sent
            .iter()
            .filter_map(|kind| match kind {
                ToSidecarKind::Ack(ack) => Some((ack.chunks, ack.point.map(|point| point.seq))),
                _ => None,
            })
            .collect()
    }

    /// The session was ended for this reason, and the peer told so with the last frame.
    fn denied(&mut self) -> SessionError {
        let last = self.sent.last();
        assert!(matches!(last, Some(ToSidecarKind::Denied(Denied { retry: true, .. }))), "told {last:?}");
        match self.session.ending.take() {
            Some(Ending::Denied(error)) => error,
            other => panic!("the session was not denied: {other:?}"),
        }
    }
}

impl Sidecar {
    fn new() -> Self {
        Self { tree: Tree::new(), key: ChunkKey::of_tenant("acme"), id: PointId::new(Epoch(1), Seq(0)) }
    }

    fn ops(&mut self, ops: &[Op]) -> ToReceiverKind {
        for op in ops {
            self.tree.apply(op).expect("applies");
        }
        wire_ops(ops)
    }

    fn commit(&mut self) -> ToReceiverKind {
        self.tree.seal().expect("a tree");
        self.id.seq = self.id.seq.next();
        self.commit_as(self.id, self.tree.digest())
    }

    fn commit_as(&self, id: PointId, digest: TreeDigest) -> ToReceiverKind {
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

    fn chunk(&self, content: &[u8]) -> (ChunkId, ToReceiverKind) {
        let id = self.key.id(content);
        let payload = Bytes::copy_from_slice(content);
        (id, ToReceiverKind::Chunk(wire::chunk_to_wire(id, Codec::Raw, content.len() as u32, payload)))
    }
}

fn decode_parts(parts: &[Bytes]) -> Vec<Op> {
    let decode = |part: &Bytes| wire::decode_ops(Ops::decode(&part[..]).expect("a message").ops);
    parts.iter().flat_map(|part| decode(part).expect("operations")).collect()
}

fn wire_ops(ops: &[Op]) -> ToReceiverKind {
    ToReceiverKind::Ops(Ops { ops: ops.iter().map(wire::encode_op).collect() })
}

fn volume() -> VolumeName {
    "acme/pg".parse().expect("a name")
}

fn root() -> Op {
    Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() }
}

fn file(id: u64, name: &str) -> [Op; 2] {
    let name = Name::new(name.as_bytes()).expect("name");
    [
        Op::Create { id: FileId(id), kind: Kind::File, meta: Meta::default() },
        Op::Link { dir: FileId::ROOT, name, id: FileId(id) },
    ]
}

fn write(id: u64, chunk: ChunkId, at: u32, len: u64) -> Op {
    let pieces = vec![Piece { len, chunk: Some(ChunkRef { id: chunk, at }) }];
    Op::Write { id: FileId(id), offset: 0, pieces }
}

fn heartbeat(clean_at_ns: u64) -> ToReceiverKind {
    ToReceiverKind::Heartbeat(Heartbeat { clean_at_ns, ..Heartbeat::default() })
}

#[test]
fn a_commit_is_acknowledged_only_when_it_is_durable() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    assert!(matches!(&receiver.sent[..], [ToSidecarKind::Welcome(welcome)] if welcome.last.is_none()));
    let (id, chunk) = sidecar.chunk(b"page");
    receiver.hear(chunk);
    receiver.hear(sidecar.ops(&[root()]));
    let [create, link] = file(2, "a");
    receiver.hear(sidecar.ops(&[create, link, write(2, id, 0, 4)]));
    assert!(receiver.appended.is_empty(), "nothing of a commit is written before its end");
    receiver.hear(sidecar.commit());
    let records: Vec<_> = receiver.records().collect();
    assert!(
        matches!(&records[..], [Record::Chunk(chunk), Record::Commit(Commit { ops, point: Point { parent: None, received_ns: 1_000, .. }, .. })]
            if chunk.id == id && decode_parts(ops).len() == 4)
    );
    assert_eq!(receiver.appended.len(), 1, "a commit and its chunks are one append");
    assert_eq!(receiver.acks(), []);
    assert_eq!(receiver.session.covered_ns(), 0);
    receiver.sync();
    assert_eq!(receiver.acks(), [(1, Some(1))]);
    assert_eq!(receiver.session.covered_ns(), 100);
}

#[test]
fn commits_are_pipelined_and_acknowledged_in_order() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(sidecar.ops(&[root()]));
    for _ in 0..5 {
        receiver.hear(sidecar.commit());
    }
    let tickets: Vec<Ticket> = receiver.appended.iter().map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [1, 2, 3, 4, 5].map(Ticket));
    for ticket in [Ticket(2), Ticket(1), Ticket(4), Ticket(5)] {
        receiver.session.handle_durable(ticket);
        receiver.poll();
    }
    assert_eq!(receiver.acks(), [(0, Some(2)), (0, Some(4)), (0, Some(5))]);
}

#[test]
fn chunks_wait_for_their_commit_but_not_for_long() {
    let (mut receiver, sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(sidecar.chunk(b"one").1);
    receiver.wait(limits::CHUNK_HOLD / 2);
    receiver.hear(sidecar.chunk(b"two").1);
    assert!(receiver.appended.is_empty());
    receiver.wait(limits::CHUNK_HOLD / 2);
    assert_eq!(receiver.appended.len(), 1);
    receiver.sync();
    assert_eq!(receiver.acks(), [(2, None)], "chunks are acknowledged without any commit");
    let big = vec![7; wire_limits::CHUNK_MAX_BYTES];
    for n in 0..limits::APPEND_BYTES / big.len() {
        let content = [&big[8..], &n.to_le_bytes()[..]].concat();
        receiver.hear(sidecar.chunk(&content).1);
    }
    assert_eq!(receiver.appended.len(), 2, "many chunks do not wait");
}

#[test]
fn a_chunk_that_is_held_is_counted_and_not_written_again() {
    let (mut receiver, sidecar) = (Receiver::new(), Sidecar::new());
    for _ in 0..3 {
        receiver.hear(sidecar.chunk(b"same").1);
    }
    receiver.wait(limits::CHUNK_HOLD);
    assert_eq!(receiver.records().count(), 1);
    receiver.sync();
    receiver.hear(sidecar.chunk(b"same").1);
    receiver.wait(limits::CHUNK_HOLD);
    assert!(receiver.appended[1].1.is_empty(), "an append without records asks whether the chunk is durable");
    assert_eq!(receiver.acks(), [(3, None)]);
    receiver.sync();
    assert_eq!(receiver.acks(), [(3, None), (4, None)]);
    assert_eq!(receiver.session.counts().duplicates, 3);
}

#[test]
fn have_is_answered_bit_by_bit_lowest_first() {
    let (mut receiver, sidecar) = (Receiver::new(), Sidecar::new());
    let (staged, chunk) = sidecar.chunk(b"staged");
    receiver.hear(chunk);
    let (stored, unknown) = (sidecar.key.id(b"stored"), sidecar.key.id(b"unknown"));
    receiver.store.0.insert(stored, 6);
    let mut ids = vec![unknown; 11];
    (ids[0], ids[9]) = (stored, staged);
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
    receiver.hear(ToReceiverKind::Have(Have { ids: bytes.into() }));
    let Some(ToSidecarKind::HaveReply(reply)) = receiver.sent.last() else { panic!("{:?}", receiver.sent) };
    assert_eq!(reply.held[..], [0b1, 0b10]);
}

#[test]
fn a_batch_of_have_is_bounded_and_whole() {
    for len in [0, 31, 33, 32 * (wire_limits::HAVE_BATCH_MAX + 1)] {
        let mut receiver = Receiver::new();
        receiver.hear(ToReceiverKind::Have(Have { ids: vec![0; len].into() }));
        assert!(matches!(receiver.denied(), SessionError::Wire(_)), "{len} bytes were accepted");
    }
}

#[test]
fn the_manifest_is_the_tree_of_the_last_point() {
    let (mut sidecar, mut first) = (Sidecar::new(), Receiver::new());
    first.hear(sidecar.ops(&[root()]));
    first.hear(sidecar.ops(&file(2, "a")));
    first.hear(sidecar.commit());
    first.sync();
    let (last, tree) = first.session.into_tree().expect("settled");
    assert_eq!(last, Some(sidecar.id));

    let mut second = Receiver::of(Start { volume: volume(), epoch: Epoch(1), last, cut_ns: 100, tree });
    second.hear(ToReceiverKind::WantManifest(WantManifest {}));
    let mut tree = Tree::new();
    let mut finished = false;
    for kind in &second.sent[1..] {
        let ToSidecarKind::Manifest(part) = kind else { panic!("{kind:?}") };
        assert!(!finished, "nothing follows the last part");
        finished = part.last;
        for op in wire::decode_ops(part.ops.clone()).expect("operations") {
            tree.apply(&op).expect("applies");
        }
    }
    assert!(finished);
    assert_eq!(tree, sidecar.tree);
    let ToSidecarKind::Welcome(welcome) = &second.sent[0] else { panic!("{:?}", second.sent) };
    assert_eq!(welcome.digest[..], tree.digest().0);
    assert_eq!(second.session.covered_ns(), 100);

    second.hear(sidecar.commit());
    second.hear(ToReceiverKind::WantManifest(WantManifest {}));
    assert_eq!(second.denied(), SessionError::LateManifest);
}

#[test]
fn a_volume_without_points_has_no_manifest() {
    let mut receiver = Receiver::new();
    receiver.hear(ToReceiverKind::WantManifest(WantManifest {}));
    assert_eq!(receiver.sent.len(), 1);
}

#[test]
fn a_new_epoch_counts_from_one_upon_the_base() {
    let mut sidecar = Sidecar::new();
    sidecar.tree.apply(&root()).expect("applies");
    sidecar.tree.seal().expect("a tree");
    let base = PointId::new(Epoch(1), Seq(41));
    let start =
        Start { volume: volume(), epoch: Epoch(2), last: Some(base), cut_ns: 5, tree: sidecar.tree.clone() };
    let mut receiver = Receiver::of(start);
    sidecar.id = PointId::new(Epoch(2), Seq(0));
    receiver.hear(sidecar.commit());
    let records: Vec<_> = receiver.records().collect();
    assert!(
        matches!(records[..], [Record::Commit(Commit { point, .. })] if point.id == sidecar.id && point.parent == Some(base))
    );
    receiver.hear(sidecar.commit_as(PointId::new(Epoch(1), Seq(42)), sidecar.tree.digest()));
    assert_eq!(receiver.denied(), SessionError::Epoch { found: Epoch(1), session: Epoch(2) });
}

#[test]
fn a_gap_in_the_numbers_ends_the_session_but_where_it_begins() {
    for (first, seq) in [(1, 0), (1, 1), (1, 3), (7, 7), (7, 9), (7, 6)] {
        let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
        receiver.hear(sidecar.ops(&[root()]));
        let _ = sidecar.commit();
        receiver.hear(sidecar.commit_as(PointId::new(Epoch(1), Seq(first)), sidecar.tree.digest()));
        receiver.hear(sidecar.commit_as(PointId::new(Epoch(1), Seq(seq)), sidecar.tree.digest()));
        match receiver.denied() {
            SessionError::Gap { found, expected } => {
                assert_eq!((found, expected), (Seq(seq), Seq(first + 1)));
            }
            error => assert_eq!((seq, error), (0, SessionError::Wire(WireError::Bad("point")))),
        }
        assert!(receiver.records().count() <= 1);
    }
}

#[test]
fn another_digest_ends_the_session_and_its_tree() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(sidecar.ops(&[root()]));
    receiver.hear(sidecar.commit());
    receiver.sync();
    let before = sidecar.tree.digest();
    receiver.hear(sidecar.ops(&file(2, "a")));
    receiver.hear(sidecar.commit_as(PointId::new(Epoch(1), Seq(2)), before));
    let found = sidecar.tree.digest();
    assert_eq!(receiver.denied(), SessionError::Digest { seq: Seq(2), found, expected: before });
    assert_eq!(receiver.records().count(), 1, "the commit is not written");
    receiver.session.ending = Some(Ending::Denied(SessionError::LateManifest));
    assert!(receiver.session.into_tree().is_none(), "a tree that took half a commit is not used again");
}

#[test]
fn a_session_lost_within_a_commit_leaves_no_tree() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(sidecar.ops(&[root()]));
    receiver.session.handle_lost();
    assert!(receiver.session.into_tree().is_none());

    let mut receiver = Receiver::new();
    receiver.hear(wire_ops(&[root()]));
    receiver.hear(sidecar.commit());
    receiver.session.handle_lost();
    assert!(receiver.session.into_tree().is_none(), "the commit is not known to be durable");
}

#[test]
fn operations_refer_only_to_bytes_that_are_held() {
    let sidecar = Sidecar::new();
    let (id, chunk) = sidecar.chunk(b"page");
    let [create, link] = file(2, "a");
    let ops = |write: Op| wire_ops(&[root(), create.clone(), link.clone(), write]);

    let mut receiver = Receiver::new();
    receiver.hear(ops(write(2, id, 0, 4)));
    assert_eq!(receiver.denied(), SessionError::MissingChunk { file: FileId(2), chunk: id });

    for (at, len, held) in [(0, 4, true), (3, 1, true), (1, 4, false), (4, 1, false), (u32::MAX, 1, false)] {
        let mut receiver = Receiver::new();
        receiver.hear(chunk.clone());
        receiver.hear(ops(write(2, id, at, len)));
        if held {
            assert!(receiver.session.ending.is_none());
        } else {
            assert!(matches!(receiver.denied(), SessionError::ShortChunk { len: 4, .. }));
        }
    }
}

#[test]
fn chunks_that_lie_are_refused() {
    let sidecar = Sidecar::new();
    let id = sidecar.key.id(b"page");
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compresses");
    let lies = [
        (wire::chunk_to_wire(id, Codec::Raw, 4, Bytes::from_static(b"pagf")), ChunkError::Id(id)),
        (wire::chunk_to_wire(id, Codec::Raw, 5, Bytes::from_static(b"page")), ChunkError::Payload(5)),
        (wire::chunk_to_wire(id, Codec::Raw, 3, Bytes::from_static(b"page")), ChunkError::Payload(3)),
        (wire::chunk_to_wire(id, Codec::Zstd, 4096, bomb.into()), ChunkError::Payload(4096)),
    ];
    for (chunk, error) in lies {
        let mut receiver = Receiver::new();
        receiver.hear(ToReceiverKind::Chunk(chunk));
        assert_eq!(receiver.denied(), SessionError::Chunk(error));
    }
    let foreign = ChunkKey::of_tenant("evil").id(b"page");
    let mut receiver = Receiver::new();
    let payload = Bytes::from_static(b"page");
    receiver.hear(ToReceiverKind::Chunk(wire::chunk_to_wire(foreign, Codec::Raw, 4, payload)));
    assert_eq!(receiver.denied(), SessionError::Chunk(ChunkError::Id(foreign)));
}

#[test]
fn messages_beyond_the_rules_are_refused() {
    let too_long = wire::chunk_to_wire(ChunkId([1; 32]), Codec::Raw, 1 << 20, Bytes::new());
    let short_id = Chunk { id: Bytes::from_static(b"short"), ..too_long.clone() };
    let unknown_codec = Chunk { codec: 9, len: 1, ..too_long.clone() };
    let no_cut =
        messages::Commit { id: Some(messages::PointId { epoch: 1, seq: 1 }), cut: None, tags: Vec::new() };
    let talkative = Heartbeat { state: "x".repeat(wire_limits::TEXT_MAX_BYTES + 1), ..Heartbeat::default() };
    for kind in [
        ToReceiverKind::Chunk(too_long),
        ToReceiverKind::Chunk(short_id),
        ToReceiverKind::Chunk(unknown_codec),
        ToReceiverKind::Commit(no_cut),
        ToReceiverKind::Heartbeat(talkative),
    ] {
        let mut receiver = Receiver::new();
        receiver.hear(kind.clone());
        assert!(matches!(receiver.denied(), SessionError::Wire(_)), "{kind:?} was accepted");
    }
    let mut receiver = Receiver::new();
    receiver.hear_message(ToReceiver { kind: None });
    assert_eq!(receiver.denied(), SessionError::Wire(WireError::Missing("kind")));
}

#[test]
fn names_that_leave_the_root_are_refused() {
    for bad in [&b".."[..], b".", b"a/b", b"/etc", b"nul\0"] {
        // The encoder cannot make such a name, so a good one of the same length is replaced in the bytes.
        let good = vec![b'q'; bad.len()];
        let link = Op::Link { dir: FileId::ROOT, name: Name::new(&good).expect("name"), id: FileId(2) };
        let mut bytes = ToReceiver { kind: Some(wire_ops(&[link])) }.encode_to_vec();
        let at = bytes.windows(good.len()).position(|window| window == good).expect("the name");
        bytes[at..at + bad.len()].copy_from_slice(bad);
        let mut receiver = Receiver::new();
        receiver.hear_message(ToReceiver::decode(&bytes[..]).expect("well-formed"));
        assert_eq!(receiver.denied(), SessionError::Wire(WireError::Bad("entry name")), "{bad:?}");
    }
}

#[test]
fn operations_that_do_not_fit_the_tree_end_the_session() {
    let mut receiver = Receiver::new();
    receiver.hear(wire_ops(&file(2, "a")));
    assert_eq!(receiver.denied(), SessionError::Tree(TreeError::Root));

    let (mut receiver, sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(sidecar.commit_as(PointId::new(Epoch(1), Seq(1)), Tree::new().digest()));
    assert_eq!(receiver.denied(), SessionError::Tree(TreeError::Root), "a commit without a root");
}

#[test]
fn the_operations_of_one_commit_are_bounded_in_bytes() {
    let mut receiver = Receiver::new();
    let part = COMMIT_OPS_MAX_BYTES / 2;
    // Real operations of this size would take gigabytes as a tree; only their length counts here.
    let zeros = Bytes::from(vec![0; part]);
    let ops = |len| Frame::Ops { ops: Vec::new(), encoded: zeros.slice(..len) };
    receiver.session.handle_frame(receiver.now, ops(part), &receiver.store);
    receiver.session.handle_frame(receiver.now, ops(part), &receiver.store);
    assert!(receiver.session.ending.is_none());
    receiver.session.handle_frame(receiver.now, ops(1), &receiver.store);
    receiver.poll();
    assert_eq!(receiver.denied(), SessionError::CommitTooLong);
}

#[test]
fn a_slow_disk_stops_the_input_not_the_acknowledgements() {
    let (mut receiver, sidecar) = (Receiver::new(), Sidecar::new());
    let mut n = 0u64;
    while receiver.session.wants_input() {
        let mut content = vec![0; wire_limits::CHUNK_MAX_BYTES];
        content[..8].copy_from_slice(&n.to_le_bytes());
        receiver.hear(sidecar.chunk(&content).1);
        n += 1;
        assert!(n < 1000, "the input never stops");
    }
    assert_eq!(n as usize, limits::UNDURABLE_MAX_BYTES / wire_limits::CHUNK_MAX_BYTES);
    receiver.sync();
    assert!(receiver.session.wants_input());
    assert_eq!(receiver.acks(), [(n, None)]);
}

#[test]
fn a_clean_heartbeat_covers_only_what_is_durable() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(heartbeat(50));
    assert_eq!(receiver.session.covered_ns(), 0, "without a point nothing is covered");
    receiver.hear(sidecar.ops(&[root()]));
    receiver.hear(sidecar.commit());
    receiver.hear(heartbeat(500));
    assert_eq!(receiver.session.covered_ns(), 0);
    receiver.sync();
    assert_eq!(receiver.session.covered_ns(), 500);
    receiver.hear(heartbeat(700));
    assert_eq!(receiver.session.covered_ns(), 700, "an idle volume needs no commit");
    receiver.hear(heartbeat(0));
    assert_eq!(receiver.session.covered_ns(), 700);
}

#[test]
fn a_fenced_writer_hears_of_it_last() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(sidecar.ops(&[root()]));
    receiver.hear(sidecar.commit());
    receiver.session.handle_fenced(Epoch(2));
    receiver.poll();
    assert_eq!(receiver.sent.last(), Some(&ToSidecarKind::Fenced(Fenced { epoch: 2 })));
    let sent = receiver.sent.len();
    receiver.hear(sidecar.commit());
    assert_eq!((receiver.sent.len(), receiver.records().count()), (sent, 1), "nothing is taken any more");
    assert!(matches!(receiver.session.poll_ending(), Some(Ending::Fenced(Epoch(2)))));
}

#[test]
fn another_writer_is_named_and_a_reconnect_is_silent() {
    let mut receiver = Receiver::new();
    receiver.session.handle_superseded(false);
    receiver.poll();
    assert!(matches!(receiver.sent.last(), Some(ToSidecarKind::Denied(Denied { retry: false, .. }))));
    let mut receiver = Receiver::new();
    receiver.session.handle_superseded(true);
    receiver.poll();
    assert_eq!(receiver.sent.len(), 1);
}

#[test]
fn closing_acknowledges_everything_first() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    receiver.hear(sidecar.ops(&[root()]));
    receiver.hear(sidecar.commit());
    receiver.hear(sidecar.chunk(b"late").1);
    receiver.session.handle_finished();
    receiver.poll();
    assert!(receiver.session.poll_ending().is_none());
    receiver.sync();
    assert_eq!(receiver.acks(), [(1, Some(1))]);
    assert!(matches!(receiver.session.poll_ending(), Some(Ending::Finished)));

    let mut receiver = Receiver::new();
    receiver.hear(sidecar.chunk(b"chunk").1);
    receiver.session.handle_closing();
    receiver.poll();
    receiver.sync();
    assert!(matches!(
        &receiver.sent[1..],
        [ToSidecarKind::Ack(Ack { chunks: 1, .. }), ToSidecarKind::Denied(Denied { retry: true, .. })]
    ));
}

proptest! {
    /// Whatever a peer sends and whenever the disk syncs: no acknowledgement is ahead of the disk, none goes back, and
    /// what was committed is a prefix without gaps.
    #[test]
    fn acknowledgements_never_pass_the_disk(steps in proptest::collection::vec(0u8..8, 1..80)) {
        let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
        receiver.hear(sidecar.ops(&[root()]));
        let (mut next_chunk, mut next_file) = (0u64, 2);
        for step in steps {
            match step {
                0 | 1 => {
                    next_chunk += u64::from(step);
                    receiver.hear(sidecar.chunk(&next_chunk.to_le_bytes()).1);
                }
                2 => {
                    receiver.hear(sidecar.ops(&file(next_file, &format!("f{next_file}"))));
                    next_file += 1;
                }
                3 | 4 => receiver.hear(sidecar.commit()),
                5 => receiver.wait(limits::CHUNK_HOLD),
                6 => receiver.hear(heartbeat(1)),
                _ => receiver.sync(),
            }
            let acks = receiver.acks();
            prop_assert!(acks.is_sorted());
            prop_assert!(acks.last().is_none_or(|last| *last == receiver.synced));
            prop_assert!(receiver.session.ending.is_none());
        }
        let seqs: Vec<u64> = receiver.records().filter_map(|record| match record {
            Record::Commit(commit) => Some(commit.point.id.seq.0),
            _ => None,
        }).collect();
        prop_assert_eq!(seqs, (1..=sidecar.id.seq.0).collect::<Vec<_>>());
    }
}
