//! What breaks the rules ends the session, and leaves nothing behind.

use super::*;

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
