//! A session driven by hand: a peer that says anything, a disk that becomes durable when told, a clock that stands still.

mod endings;
mod harness;
mod refusals;

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;
use prost::Message;
use tidelock_proto::{
    ChunkKey, FileId, Op, Seq, TreeDigest,
    chunk::{ChunkError, Codec},
    limits as wire_limits,
    point::{Consistency, Cut, Point},
    tree::{ChunkRef, Kind, Meta, Name, Piece, TreeError},
    wire::{
        WireError,
        messages::{self, Chunk, Have, Ops, ToReceiver, ToReceiverKind, WantManifest},
    },
};

use super::*;
use crate::store::{Commit, Record};
use harness::*;

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
fn pages_are_told_of_chunks_that_are_held_and_one_answer_after_the_other() {
    let mut receiver = Receiver::new();
    let ids = [ChunkId([1; 32]), ChunkId([2; 32])];
    receiver.store.0.insert(ids[0], 10_000);
    let want = messages::WantPages { ids: ids.map(|id| id.0).concat().into() };
    receiver.hear(ToReceiverKind::WantPages(want.clone()));
    let Some(ToSidecarKind::Pages(pages)) = receiver.sent.last() else { panic!("{:?}", receiver.sent) };
    let sums = tidelock_proto::chunk::page_sums(&receiver.key, &[7; 10_000]);
    assert_eq!(sums.len(), 3 * wire_limits::PAGE_SUM_BYTES);
    assert_eq!(pages.sums, [sums, Vec::new()]);

    let Ok(Decoded::Ready(frame)) = decode(ToReceiver { kind: Some(ToReceiverKind::WantPages(want)) }) else {
        panic!("it is a question")
    };
    receiver.session.handle_frame(receiver.now, frame, &receiver.store);
    assert!(!receiver.session.wants_input(), "answers pile up for somebody who does not read them");
    receiver.poll();
    assert!(receiver.session.wants_input());
}

#[test]
fn damaged_chunks_are_taken_again_and_no_others() {
    let (mut receiver, mut sidecar) = (Receiver::new(), Sidecar::new());
    let chunks = [&b"damaged"[..], b"damaged, and gone from the volume", b"whole"];
    let [(damaged, again), (gone, first), (whole, other)] = chunks.map(|content| sidecar.chunk(content));
    for chunk in [again.clone(), first, other.clone()] {
        receiver.hear(chunk);
    }
    receiver.hear(sidecar.ops(&[root()]));
    receiver.hear(sidecar.commit());
    receiver.sync();
    receiver.appended.clear();
    receiver.session.handle_resend(&[(damaged, 7), (gone, 0)]);
    receiver.poll();
    let asked = receiver.sent.last();
    assert!(
        matches!(asked, Some(ToSidecarKind::Resend(asked)) if asked.ids == [damaged.0, gone.0].concat() && asked.lens == [7, 0]),
        "{asked:?}"
    );
    for chunk in [other, again.clone(), again.clone()] {
        receiver.hear(chunk);
    }
    assert!(receiver.appended.is_empty());
    receiver.hear(ToReceiverKind::Resent(messages::Resent { found: 1 }));
    let written: Vec<ChunkId> = receiver
        .records()
        .map(|record| match record {
            Record::Chunk(chunk) => chunk.id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(written, [damaged], "once, at once, and not {whole}");
    receiver.sync();
    assert_eq!(receiver.acks().last(), Some(&(6, Some(1))));

    // With the answer the question is over.
    receiver.hear(again);
    receiver.wait(limits::CHUNK_HOLD);
    assert_eq!(receiver.records().count(), 1);
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

    let mut second =
        Receiver::of(Start { volume: volume(), epoch: Epoch(1), last, cut_ns: 100, tree, afresh: false });
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
fn a_session_that_begins_afresh_stores_one_point_upon_nothing_and_leaves_no_tree_before_that() {
    let last = PointId::new(Epoch(1), Seq(41));
    let start = || Start {
        volume: volume(),
        epoch: Epoch(1),
        last: Some(last),
        cut_ns: 0,
        tree: Tree::new(),
        afresh: true,
    };
    let (mut receiver, mut sidecar) = (Receiver::of(start()), Sidecar::new());
    receiver.hear(heartbeat(77));
    receiver.sync();
    assert_eq!(receiver.session.covered_ns(), 0, "what is damaged covers nothing");
    receiver.session.handle_lost();
    assert!(receiver.session.into_tree().is_none(), "an empty tree is not that of point 41");

    let mut receiver = Receiver::of(start());
    receiver.hear(ToReceiverKind::WantManifest(WantManifest {}));
    assert!(matches!(receiver.sent.last(), Some(ToSidecarKind::Manifest(part)) if part.last));
    sidecar.id = last;
    receiver.hear(sidecar.ops(&[root()]));
    receiver.hear(sidecar.commit());
    receiver.hear(sidecar.ops(&file(2, "a")));
    receiver.hear(sidecar.commit());
    receiver.sync();
    let parents: Vec<_> = receiver
        .records()
        .filter_map(|record| match record {
            Record::Commit(Commit { point, .. }) => Some((point.id.seq.0, point.parent)),
            _ => None,
        })
        .collect();
    assert_eq!(parents, [(42, None), (43, Some(PointId::new(Epoch(1), Seq(42))))]);
    receiver.session.handle_lost();
    assert!(
        receiver
            .session
            .into_tree()
            .is_some_and(|(last, tree)| last == Some(sidecar.id) && tree == sidecar.tree)
    );
}

#[test]
fn a_new_epoch_counts_from_one_upon_the_base() {
    let mut sidecar = Sidecar::new();
    sidecar.tree.apply(&root()).expect("applies");
    sidecar.tree.seal().expect("a tree");
    let base = PointId::new(Epoch(1), Seq(41));
    let start = Start {
        volume: volume(),
        epoch: Epoch(2),
        last: Some(base),
        cut_ns: 5,
        tree: sidecar.tree.clone(),
        afresh: false,
    };
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
