//! A receiver and a cutter as simple as they can be, and a lossy link between them.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use tidelock_proto::{
    ChunkId, ChunkKey, Epoch, FileId, Op, PointId, Seq, Tree, TreeDigest,
    chunk::Codec,
    point::{Consistency, Cut},
    tree::{ChunkRef, Kind, Meta, Name, Piece},
    wire::{
        PROTOCOL_VERSION, chunk_from_wire, cut_from_wire, decode_ops, messages::*, point_id_from_wire,
        point_id_to_wire, split_ops,
    },
};

use crate::{
    pack::Packed,
    ship::{AgreedTree, Frame, Session, SessionConfig, ShipEvent},
};

pub(super) const EPOCH: Epoch = Epoch(3);

pub(super) fn config() -> SessionConfig {
    SessionConfig {
        volume: "t/v".parse().expect("a name"),
        epoch: EPOCH,
        raise_epoch: false,
        import: false,
        instance: 77,
        tracker: "exact".to_owned(),
        window_bytes: 64 << 10,
        commits_max: 8,
    }
}

pub(super) fn packed(n: u64, bytes: usize) -> Packed {
    let content: Vec<u8> = n.to_le_bytes().into_iter().cycle().take(bytes).collect();
    Packed {
        id: ChunkKey::of_tenant("t").id(&content),
        codec: Codec::Raw,
        len: bytes as u32,
        payload: content.into(),
    }
}

/// What a receiver must be, with every fsync under the test's control.
#[derive(Default)]
pub(super) struct Receiver {
    pub(super) tree: Tree,
    pub(super) last: Option<PointId>,
    pub(super) chunks: HashSet<ChunkId>,
    pub(super) history: Vec<(PointId, TreeDigest)>,
    pub(super) beats: Vec<Heartbeat>,
    /// Ids whose acknowledgement reached the sidecar.
    acked: HashSet<ChunkId>,
    stream: Stream,
    /// What is to be sent to the sidecar; an acknowledgement with the ids it acknowledges.
    pub(super) out: VecDeque<(ToSidecar, Vec<ChunkId>)>,
}

/// What is forgotten with the stream.
#[derive(Default)]
struct Stream {
    arrived: Vec<ChunkId>,
    frames: u64,
    ops: Vec<Op>,
    commits: Vec<(PointId, Cut, Vec<Op>)>,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self { tree: Tree::new(), ..Self::default() }
    }

    pub(super) fn handle(&mut self, frame: &Frame) {
        let bytes = frame.encode_to_vec();
        if let Frame::Open(_) = frame {
            let Some(OpenKind::Hello(hello)) = Open::decode(&*bytes).expect("an Open").kind else {
                panic!("no hello")
            };
            assert_eq!((hello.version, hello.epoch), (PROTOCOL_VERSION, EPOCH.0));
            let digest = self.last.map_or(Bytes::new(), |_| Bytes::copy_from_slice(&self.tree.digest().0));
            let last = self.last.map(point_id_to_wire);
            return self.send(ToSidecarKind::Welcome(Welcome { epoch: hello.epoch, last, digest }));
        }
        match ToReceiver::decode(&*bytes).expect("a message").kind.expect("a kind") {
            ToReceiverKind::WantManifest(_) => self.send_manifest(),
            ToReceiverKind::Have(have) => self.answer(&have.ids),
            ToReceiverKind::Chunk(chunk) => {
                let (id, ..) = chunk_from_wire(chunk).expect("a chunk");
                assert!(!self.acked.contains(&id), "an acknowledged chunk came again");
                self.stream.arrived.push(id);
                self.stream.frames += 1;
            }
            ToReceiverKind::Ops(ops) => self.stream.ops.extend(decode_ops(ops.ops).expect("operations")),
            ToReceiverKind::Commit(commit) => {
                let id = point_id_from_wire(commit.id).expect("an id");
                let cut = cut_from_wire(commit.cut).expect("a cut");
                self.stream.commits.push((id, cut, std::mem::take(&mut self.stream.ops)));
            }
            ToReceiverKind::Heartbeat(beat) => self.beats.push(beat),
            ToReceiverKind::Left(_) | ToReceiverKind::Resent(_) => panic!("nobody asked"),
            ToReceiverKind::WantPages(want) => {
                // Not what they are, but one for each.
                let sums = want.ids.chunks(32).map(Bytes::copy_from_slice).collect();
                self.send(ToSidecarKind::Pages(Pages { sums }));
            }
        }
    }

    fn has(&self, id: &ChunkId) -> bool {
        self.chunks.contains(id) || self.stream.arrived.contains(id)
    }

    fn answer(&mut self, ids: &Bytes) {
        let mut held = vec![0; ids.len().div_ceil(32 * 8)];
        for (n, id) in ids.chunks(32).enumerate() {
            let has = self.has(&ChunkId::from_slice(id).expect("32 bytes"));
            held[n / 8] |= u8::from(has) << (n % 8);
        }
        self.send(ToSidecarKind::HaveReply(HaveReply { held: held.into() }));
    }

    fn send_manifest(&mut self) {
        let groups: Vec<_> = split_ops(self.tree.snapshot()).collect();
        for ops in groups {
            self.send(ToSidecarKind::Manifest(Manifest { ops, last: false }));
        }
        self.send(ToSidecarKind::Manifest(Manifest { ops: Vec::new(), last: true }));
    }

    pub(super) fn send(&mut self, kind: ToSidecarKind) {
        self.out.push_back((ToSidecar { kind: Some(kind) }, Vec::new()));
    }

    /// Makes everything durable that arrived, and acknowledges it.
    pub(super) fn fsync(&mut self) {
        if self.stream.arrived.is_empty() && self.stream.commits.is_empty() {
            return;
        }
        let arrived = std::mem::take(&mut self.stream.arrived);
        self.chunks.extend(&arrived);
        for (id, cut, ops) in std::mem::take(&mut self.stream.commits) {
            self.take_in(id, &cut, &ops);
        }
        let point = self.last.filter(|last| last.epoch == EPOCH).map(point_id_to_wire);
        let ack = Ack { chunks: self.stream.frames, point };
        self.out.push_back((ToSidecar { kind: Some(ToSidecarKind::Ack(ack)) }, arrived));
    }

    fn take_in(&mut self, id: PointId, cut: &Cut, ops: &[Op]) {
        let before = self.last.filter(|last| last.epoch == EPOCH).map_or(Seq(0), |last| last.seq);
        assert_eq!(id, PointId::new(EPOCH, before.next()), "a commit out of order");
        for op in ops {
            if let Op::Write { pieces, .. } = op {
                assert!(
                    pieces.iter().flat_map(|piece| piece.chunk).all(|chunk| self.has(&chunk.id)),
                    "chunk missing"
                );
            }
            self.tree.apply(op).expect("operations fit the tree");
        }
        self.tree.seal().expect("a tree");
        assert_eq!(self.tree.digest(), cut.digest, "another tree");
        self.last = Some(id);
        self.history.push((id, cut.digest));
    }

    /// The stream ends. What arrived is lost, or becomes durable without anybody hearing of it.
    pub(super) fn disconnect(&mut self, durable: bool) {
        if durable {
            self.fsync();
        }
        self.stream = Stream::default();
        self.out.clear();
    }

    /// The next message to the sidecar.
    pub(super) fn next(&mut self) -> Option<ToSidecar> {
        let (message, acked) = self.out.pop_front()?;
        self.acked.extend(acked);
        Some(message)
    }
}

/// A cutter that writes unique pages to one file.
pub(super) struct Cutter {
    pub(super) tree: Option<Tree>,
    pub(super) last: Option<PointId>,
    pub(super) given: BTreeMap<PointId, TreeDigest>,
    pub(super) resyncs: usize,
    pub(super) events: Vec<&'static str>,
    ops: Vec<Op>,
    pub(super) pages: u64,
}

pub(super) struct Pair {
    pub(super) session: Session,
    pub(super) receiver: Receiver,
    pub(super) cutter: Cutter,
    /// On their way to the receiver.
    pub(super) wire: VecDeque<Frame>,
    pub(super) now: Instant,
    pub(super) connected: bool,
}

impl Pair {
    pub(super) fn new() -> Self {
        let cutter = Cutter {
            tree: None,
            last: None,
            given: BTreeMap::new(),
            resyncs: 0,
            events: Vec::new(),
            ops: Vec::new(),
            pages: 0,
        };
        Self {
            session: Session::new(config()),
            receiver: Receiver::new(),
            cutter,
            wire: VecDeque::new(),
            now: Instant::now(),
            connected: false,
        }
    }

    /// Connected, agreed, and the cutter knows.
    pub(super) fn agreed() -> Self {
        let mut pair = Self::new();
        pair.connect();
        pair.settle();
        pair
    }

    pub(super) fn connect(&mut self) {
        if !self.connected {
            self.connected = true;
            self.session.handle_connected(self.now);
        }
    }

    pub(super) fn disconnect(&mut self, durable: bool) {
        if self.connected {
            self.connected = false;
            self.wire.clear();
            self.receiver.disconnect(durable);
            self.session.handle_disconnected("cut by the test".to_owned());
        }
    }

    /// Carries up to `n` frames to the receiver.
    pub(super) fn deliver(&mut self, n: usize) -> bool {
        self.now += Duration::from_millis(1);
        while self.connected
            && let Some(frame) = self.session.poll_transmit(self.now)
        {
            self.wire.push_back(frame);
        }
        let n = n.min(self.wire.len());
        for frame in self.wire.drain(..n) {
            self.receiver.handle(&frame);
        }
        n > 0
    }

    /// Carries up to `n` messages to the sidecar.
    pub(super) fn answer(&mut self, n: usize) -> bool {
        let mut any = false;
        for _ in 0..n {
            let Some(message) = self.receiver.next() else { break };
            self.session.handle_frame(message).expect("an honest receiver");
            any = true;
        }
        if self.session.poll_reset().is_some() {
            self.disconnect(false);
        }
        any
    }

    /// The cutter hears what happened.
    pub(super) fn listen(&mut self) {
        for event in self.session.take_events() {
            let (name, agreed) = match event {
                ShipEvent::Agreed { tree: AgreedTree::Resumed, .. } => ("resumed", None),
                ShipEvent::Agreed { last, tree: AgreedTree::Empty } => ("empty", Some((last, Tree::new()))),
                ShipEvent::Agreed { last, tree: AgreedTree::Manifest(tree) } => {
                    ("manifest", Some((last, tree)))
                }
                ShipEvent::Acked { .. } => ("acked", None),
                ShipEvent::Disconnected { .. } => ("disconnected", None),
                ShipEvent::WindowOpen => ("window open", None),
                ShipEvent::Leave => ("leave", None),
                ShipEvent::Resend(_) => ("resend", None),
                ShipEvent::Fenced { .. } => ("fenced", None),
                ShipEvent::Superseded => ("superseded", None),
                ShipEvent::Denied { .. } => ("denied", None),
                ShipEvent::Finished => ("finished", None),
            };
            self.cutter.events.push(name);
            if let Some((last, tree)) = agreed {
                assert!(
                    tree == self.receiver.tree,
                    "the cutter begins from another tree than the receiver has"
                );
                self.cutter.last = last;
                self.cutter.tree = Some(tree);
                self.cutter.ops.clear();
                self.cutter.resyncs += 1;
            }
        }
    }

    /// Writes a page: its chunk is given at once, its operation with the commit or before.
    pub(super) fn write(&mut self, ask: bool) {
        let Some(tree) = &mut self.cutter.tree else { return };
        if tree.get(FileId::ROOT).is_none() {
            let name = Name::new(b"file").expect("a name");
            self.cutter.ops.extend([
                Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() },
                Op::Create { id: FileId(2), kind: Kind::File, meta: Meta::default() },
                Op::Link { dir: FileId::ROOT, name, id: FileId(2) },
            ]);
            self.cutter.ops.iter().for_each(|op| tree.apply(op).expect("applies"));
        }
        self.cutter.pages += 1;
        let chunk = packed(self.cutter.pages, 4096);
        let piece = Piece { len: 4096, chunk: Some(ChunkRef { id: chunk.id, at: 0 }) };
        self.session.handle_chunk(chunk, ask);
        let op = Op::Write { id: FileId(2), offset: self.cutter.pages % 50 * 4096, pieces: vec![piece] };
        tree.apply(&op).expect("applies");
        self.cutter.ops.push(op);
    }

    /// Changes that take much room in operations and none in chunks.
    pub(super) fn label(&mut self, bytes: usize) {
        let tree = self.cutter.tree.as_mut().expect("agreed");
        let xattrs = [(b"user.label".to_vec(), vec![7; bytes])].into();
        let op = Op::SetXattrs { id: FileId(2), xattrs };
        tree.apply(&op).expect("applies");
        self.cutter.ops.push(op);
    }

    pub(super) fn give_ops(&mut self) {
        self.session.handle_ops(std::mem::take(&mut self.cutter.ops));
    }

    pub(super) fn commit(&mut self) {
        if self.cutter.tree.as_ref().is_none_or(|tree| tree.get(FileId::ROOT).is_none()) {
            self.write(false);
        }
        self.give_ops();
        let Some(tree) = &mut self.cutter.tree else { return };
        tree.seal().expect("a tree");
        let before = self.cutter.last.filter(|last| last.epoch == EPOCH).map_or(Seq(0), |last| last.seq);
        let id = PointId::new(EPOCH, before.next());
        let cut = cut(tree.digest());
        self.cutter.given.insert(id, cut.digest);
        self.cutter.last = Some(id);
        self.session.handle_commit(id, cut, Vec::new());
    }

    /// Runs until nothing moves.
    pub(super) fn settle(&mut self) {
        loop {
            let delivered = self.deliver(usize::MAX);
            self.receiver.fsync();
            let answered = self.answer(usize::MAX);
            self.listen();
            if !delivered && !answered {
                return;
            }
        }
    }

    pub(super) fn heard(&self, name: &str) -> usize {
        self.cutter.events.iter().filter(|event| **event == name).count()
    }
}

pub(super) fn cut(digest: TreeDigest) -> Cut {
    Cut {
        time_ns: 5,
        consistency: Consistency::Crash,
        tracker: "exact".to_owned(),
        conditions: Vec::new(),
        rounds: 1,
        how: tidelock_proto::point::How::Optimistic,
        group: Vec::new(),
        digest,
    }
}
