//! The session against a model of a receiver, over a link that loses everything at any frame.
#![allow(clippy::unwrap_used)]

mod model;
mod quic;

use std::time::Duration;

use proptest::prelude::*;
use prost::Message;
use tidelock_proto::{
    Epoch, PointId, Seq, Tree,
    wire::{
        PROTOCOL_VERSION,
        messages::{
            Ack, Denied, Fenced, HaveReply, Heartbeat, Pages, Resend, Resent, ToReceiverKind, ToSidecar,
            ToSidecarKind,
        },
    },
};

use self::model::{EPOCH, Pair, packed};
use super::{End, Frame, SessionError, ShipEvent};
use crate::limits;

fn to_sidecar(kind: ToSidecarKind) -> ToSidecar {
    ToSidecar { kind: Some(kind) }
}

fn denied(reason: &str, retry: bool) -> ToSidecar {
    to_sidecar(ToSidecarKind::Denied(Denied { reason: reason.to_owned(), retry }))
}

fn chunks_on(wire: impl IntoIterator<Item = Frame>) -> usize {
    wire.into_iter()
        .filter(|frame| {
            matches!(frame, Frame::Message(message) if matches!(message.kind, Some(ToReceiverKind::Chunk(_))))
        })
        .count()
}

#[test]
fn a_new_volume_begins_empty_and_its_commits_arrive() {
    let mut pair = Pair::agreed();
    assert_eq!(pair.cutter.events, ["empty"]);
    for _ in 0..3 {
        pair.write(false);
        pair.commit();
    }
    pair.settle();
    assert_eq!(pair.receiver.history.len(), 3);
    assert_eq!(pair.session.window_bytes(), 0);
    assert_eq!(pair.session.durable(), Some((PointId::new(EPOCH, Seq(3)), 5)));
}

#[test]
fn chunks_that_the_receiver_lost_are_sent_again_and_then_it_is_said_how_many() {
    let mut pair = Pair::agreed();
    pair.write(false);
    pair.commit();
    pair.settle();
    let lost = packed(1, 4096);
    let ask = |lens: Vec<u32>| {
        let ids = lost.id.0.to_vec().into();
        to_sidecar(ToSidecarKind::Resend(Resend { ids, lens }))
    };
    pair.session.handle_frame(ask(vec![4096])).unwrap();
    let asked = pair.session.take_events();
    assert!(matches!(&asked[..], [ShipEvent::Resend(asked)] if asked[..] == [(lost.id, 4096)]), "{asked:?}");
    pair.session.handle_chunk(lost.clone(), false);
    pair.session.handle_resent(Resent { found: 1 });
    let sent: Vec<Frame> = std::iter::from_fn(|| pair.session.poll_transmit(pair.now)).collect();
    let kind = |frame: &Frame| match frame {
        Frame::Message(message) => message.kind.clone().unwrap(),
        other => panic!("{other:?}"),
    };
    let kinds: Vec<ToReceiverKind> = sent.iter().map(kind).collect();
    assert!(
        matches!(&kinds[..], [ToReceiverKind::Chunk(chunk), ToReceiverKind::Resent(Resent { found: 1 })] if chunk.id[..] == lost.id.0)
    );

    // Whoever asked on another connection has forgotten it.
    pair.session.handle_frame(ask(vec![0])).unwrap();
    pair.session.handle_resent(Resent { found: 0 });
    pair.disconnect(false);
    pair.connect();
    pair.settle();
    for wrong in [vec![], vec![1, 2], vec![u32::MAX]] {
        let mut pair = Pair::agreed();
        assert!(matches!(pair.session.handle_frame(ask(wrong)), Err(SessionError::Unexpected(_))));
    }
}

#[test]
fn the_hello_is_these_bytes() {
    let mut pair = Pair::new();
    pair.connect();
    let hello = pair.session.poll_transmit(pair.now).expect("a hello").encode_to_vec();
    let expected = [
        &[0x0a, 32, 0x08, PROTOCOL_VERSION as u8, 0x12, 3][..],
        b"t/v",
        &[0x18, 3, 0x21, 77, 0, 0, 0, 0, 0, 0, 0, 0x2a, 5],
        env!("CARGO_PKG_VERSION").as_bytes(),
        &[0x32, 5],
        b"exact",
    ];
    assert_eq!(hello, expected.concat());
}

#[test]
fn a_question_about_pages_is_answered_or_given_up_with_its_connection() {
    let mut pair = Pair::new();
    pair.session.handle_question(vec![packed(1, 8).id]);
    assert_eq!(pair.session.take_answer(), Some(None), "there is nobody to ask");
    let mut pair = Pair::agreed();
    let ids = vec![packed(1, 8).id, packed(2, 8).id];
    pair.session.handle_question(ids.clone());
    assert_eq!(pair.session.take_answer(), None);
    pair.settle();
    let answer = pair.session.take_answer().flatten().expect("an answer");
    assert_eq!(answer, ids.iter().map(|id| id.0.to_vec()).collect::<Vec<_>>());
    assert_eq!(pair.session.take_answer(), None, "it is answered once");

    pair.session.handle_question(ids.clone());
    while pair.session.poll_transmit(pair.now).is_some() {}
    pair.disconnect(false);
    assert_eq!(pair.session.take_answer(), Some(None));
    pair.connect();
    pair.settle();
    pair.session.handle_question(ids);
    while pair.session.poll_transmit(pair.now).is_some() {}
    pair.session.handle_impatience();
    assert!(pair.session.poll_reset().is_some(), "a late answer would be taken for one to another question");
    let unasked = to_sidecar(ToSidecarKind::Pages(Pages { sums: Vec::new() }));
    let mut pair = Pair::agreed();
    assert!(matches!(pair.session.handle_frame(unasked), Err(SessionError::Unexpected(_))));
}

#[test]
fn another_process_starts_from_the_manifest() {
    let mut pair = Pair::agreed();
    pair.commit();
    pair.settle();
    let receiver = std::mem::take(&mut pair.receiver);
    let mut pair = Pair { receiver, ..Pair::new() };
    pair.receiver.disconnect(false);
    pair.connect();
    pair.settle();
    assert_eq!(pair.cutter.events, ["manifest"]);
    pair.cutter.pages = 1000;
    pair.write(false);
    pair.commit();
    pair.settle();
    assert_eq!(pair.receiver.history.len(), 2);
}

#[test]
fn a_receiver_whose_newest_point_is_damaged_is_given_the_whole_tree_under_the_next_number() {
    for restarted in [false, true] {
        let mut pair = Pair::agreed();
        pair.commit();
        pair.settle();
        let last = pair.receiver.last.expect("a point");
        pair.disconnect(true);
        pair.receiver.tree = Tree::new();
        if restarted {
            let receiver = std::mem::take(&mut pair.receiver);
            pair = Pair { receiver, ..Pair::new() };
        }
        pair.cutter.events.clear();
        pair.connect();
        pair.settle();
        assert_eq!(pair.cutter.events.last().copied(), Some("empty"), "restarted: {restarted}");
        pair.cutter.pages = 1000;
        pair.commit();
        pair.settle();
        let next = PointId::new(last.epoch, last.seq.next());
        assert_eq!(pair.receiver.last, Some(next));
        assert_eq!(Some(&pair.receiver.tree), pair.cutter.tree.as_ref());
    }
}

#[test]
fn an_uncommitted_seed_survives_a_disconnect_without_sending_again_what_was_acknowledged() {
    let mut pair = Pair::agreed();
    for _ in 0..100 {
        pair.write(true);
        pair.give_ops();
        pair.settle();
    }
    pair.disconnect(false);
    pair.connect();
    pair.settle();
    assert_eq!((pair.heard("resumed"), pair.cutter.resyncs), (1, 1));
    pair.commit();
    pair.settle();
    assert_eq!(pair.receiver.history.len(), 1);
    assert_eq!(pair.receiver.chunks.len(), 100);
}

#[test]
fn a_point_that_became_durable_while_the_link_was_down_counts() {
    let mut pair = Pair::agreed();
    pair.commit();
    pair.write(false);
    pair.commit();
    pair.deliver(usize::MAX);
    pair.disconnect(true);
    pair.connect();
    pair.deliver(1);
    pair.answer(1);
    pair.listen();
    assert_eq!(pair.cutter.events, ["empty", "disconnected", "acked", "resumed"]);
    assert_eq!(pair.session.window_bytes(), 0);
}

#[test]
fn chunks_are_asked_about_in_batches_and_only_missing_ones_are_sent() {
    let mut pair = Pair::agreed();
    for page in 1..=limits::HAVE_BATCH_MIN as u64 * 2 {
        if page % 2 == 0 {
            pair.receiver.chunks.insert(packed(page, 4096).id);
        }
    }
    pair.write(true);
    pair.deliver(usize::MAX);
    for _ in 1..limits::HAVE_BATCH_MIN {
        pair.write(true);
    }
    pair.deliver(usize::MAX);
    assert_eq!(pair.receiver.out.len(), 1, "a short question waits for the reply to the one before");
    for _ in 0..limits::HAVE_BATCH_MIN {
        pair.write(true);
    }
    pair.commit();
    pair.deliver(usize::MAX);
    assert_eq!(pair.receiver.out.len(), 2, "a long one does not");
    let before = pair.session.window_bytes();
    pair.answer(2);
    assert!(pair.session.window_bytes() < before * 3 / 5, "what is held frees the window");
    pair.settle();
    assert_eq!(pair.receiver.history.len(), 1);
}

#[test]
fn a_chunk_given_twice_within_the_window_is_sent_once() {
    let mut pair = Pair::agreed();
    for _ in 0..3 {
        pair.session.handle_chunk(packed(9, 4096), false);
    }
    let frames = std::iter::from_fn(|| pair.session.poll_transmit(pair.now));
    assert_eq!(chunks_on(frames), 1);
}

#[test]
fn the_window_fills_and_opens() {
    let mut pair = Pair::agreed();
    let mut written = 0;
    while !pair.session.window_full() {
        pair.write(false);
        written += 1;
    }
    assert_eq!(written, (64 << 10) / (4096 + limits::ENTRY_BYTES) + 1);
    assert_eq!(pair.heard("window open"), 0);
    pair.settle();
    assert_eq!(pair.heard("window open"), 1);
    for _ in 0..8 {
        assert!(!pair.session.window_full());
        pair.commit();
    }
    assert!(pair.session.window_full(), "too many commits");
    pair.settle();
    assert_eq!(pair.heard("window open"), 2);
}

#[test]
fn operations_of_a_commit_that_is_being_built_do_not_fill_the_window_but_outgrow_a_resume() {
    let mut pair = Pair::agreed();
    pair.write(false);
    let labels = limits::OPEN_OPS_KEPT_MAX_BYTES / 200_000 + 1;
    for n in 1..=labels {
        pair.label(200_000);
        pair.give_ops();
        assert!(pair.session.window_full(), "it was not sent yet");
        pair.settle();
        if n == labels - 1 {
            pair.disconnect(false);
            pair.connect();
            pair.settle();
            assert_eq!(pair.heard("resumed"), 1, "all is kept until here");
        }
    }
    assert!(!pair.session.window_full(), "{} bytes", pair.session.window_bytes());
    pair.disconnect(false);
    pair.connect();
    pair.settle();
    assert_eq!(pair.heard("empty"), 2, "nothing to resume from");
    pair.commit();
    pair.settle();
    assert_eq!(pair.receiver.history.len(), 1);
}

#[test]
fn abandoning_begins_again_from_the_receivers_tree() {
    let mut pair = Pair::agreed();
    pair.commit();
    pair.settle();
    pair.write(false);
    pair.give_ops();
    pair.deliver(usize::MAX);
    pair.session.handle_abandon();
    assert_eq!(pair.session.window_bytes(), 0);
    pair.write(false);
    pair.commit();
    assert_eq!(pair.session.poll_transmit(pair.now), None, "what is given now is of a forgotten tree");
    assert!(pair.session.poll_reset().is_some());
    pair.disconnect(false);
    pair.connect();
    pair.settle();
    assert_eq!((pair.heard("manifest"), pair.receiver.history.len()), (1, 1));
    pair.write(false);
    pair.commit();
    pair.settle();
    assert_eq!(pair.receiver.history.len(), 2);
}

#[test]
fn a_refused_commit_leads_to_the_manifest_and_a_refused_greeting_does_not() {
    let mut pair = Pair::agreed();
    pair.commit();
    pair.settle();
    pair.write(false);
    pair.disconnect(false);
    pair.connect();
    pair.session.handle_frame(denied("the store is starting", true)).unwrap();
    assert_eq!(pair.session.poll_reset().as_deref(), Some("refused by the receiver: the store is starting"));
    pair.disconnect(false);
    pair.connect();
    pair.settle();
    assert_eq!((pair.heard("resumed"), pair.cutter.resyncs), (1, 1));
    pair.session.handle_frame(denied("the digest differs", true)).unwrap();
    assert!(pair.session.poll_reset().is_some());
    pair.disconnect(false);
    pair.connect();
    pair.settle();
    assert_eq!((pair.heard("resumed"), pair.heard("manifest")), (1, 1));
}

#[test]
fn final_words_are_final() {
    let fenced = to_sidecar(ToSidecarKind::Fenced(Fenced { epoch: 4 }));
    let taken_over = denied("another sidecar took over this volume", false);
    for (words, end, event) in [
        (fenced, End::Fenced(Epoch(4)), "fenced"),
        (taken_over, End::Superseded, "superseded"),
        (denied("not yours", false), End::Denied("not yours".to_owned()), "denied"),
    ] {
        let mut pair = Pair::agreed();
        pair.write(false);
        pair.commit();
        pair.session.handle_frame(words).unwrap();
        assert_eq!(pair.session.poll_end(), Some(&end));
        pair.listen();
        pair.write(false);
        pair.commit();
        pair.disconnect(false);
        pair.connect();
        assert_eq!(pair.session.poll_transmit(pair.now), None);
        pair.listen();
        assert_eq!(pair.cutter.events, ["empty", event]);
        assert_eq!(pair.session.window_bytes(), 0);
    }
}

#[test]
fn a_heartbeat_claims_nothing_of_commits_that_are_still_behind_it() {
    let beat = Heartbeat { clean_at_ns: 9, ..Heartbeat::default() };
    let mut pair = Pair::agreed();
    pair.receiver.beats.clear();
    pair.write(true);
    pair.commit();
    pair.session.handle_heartbeat(pair.now, beat.clone());
    pair.deliver(usize::MAX);
    assert!(pair.receiver.beats.is_empty(), "the commit waits for an answer");
    assert_eq!(
        pair.session.poll_timeout(),
        Some(pair.now - Duration::from_millis(1) + limits::HEARTBEAT_WAIT_MAX)
    );
    pair.now += limits::HEARTBEAT_WAIT_MAX;
    pair.deliver(usize::MAX);
    assert_eq!(pair.receiver.beats.pop().map(|beat| beat.clean_at_ns), Some(0));
    pair.session.handle_heartbeat(pair.now, beat);
    pair.settle();
    assert_eq!(pair.receiver.beats.pop().map(|beat| beat.clean_at_ns), Some(9));
    assert_eq!(pair.session.poll_timeout(), None);
}

#[test]
fn finishing_waits_for_the_last_commit() {
    let mut pair = Pair::agreed();
    pair.write(false);
    pair.commit();
    pair.write(false);
    pair.give_ops();
    pair.session.handle_finish();
    assert!(!pair.session.poll_finish(), "the commit was not sent");
    pair.disconnect(false);
    assert!(!pair.session.poll_finish());
    pair.connect();
    pair.deliver(usize::MAX);
    pair.answer(1);
    pair.deliver(usize::MAX);
    assert!(pair.session.poll_finish());
    assert!(!pair.session.poll_finish(), "once a stream");
    pair.settle();
    assert_eq!(pair.session.poll_end(), Some(&End::Finished));
    assert_eq!(pair.receiver.history.len(), 1);
}

#[test]
fn a_receiver_that_makes_no_sense_is_left_and_its_tree_taken() {
    let point = Some(tidelock_proto::wire::point_id_to_wire(PointId::new(EPOCH, Seq(9))));
    for nonsense in [
        ToSidecarKind::Ack(Ack { chunks: 99, point: None }),
        ToSidecarKind::Ack(Ack { chunks: 0, point }),
        ToSidecarKind::HaveReply(HaveReply { held: vec![1].into() }),
        ToSidecarKind::Manifest(Default::default()),
        ToSidecarKind::Welcome(Default::default()),
    ] {
        let mut pair = Pair::agreed();
        pair.commit();
        pair.settle();
        let result = pair.session.handle_frame(to_sidecar(nonsense));
        assert!(matches!(result, Err(SessionError::Unexpected(_))), "{result:?}");
        pair.disconnect(false);
        pair.connect();
        pair.settle();
        assert_eq!(pair.heard("manifest"), 1);
    }
}

#[test]
fn a_receiver_that_does_not_greet_is_left() {
    let mut pair = Pair::new();
    pair.connect();
    let deadline = pair.session.poll_timeout().expect("a deadline");
    assert_eq!(deadline, pair.now + limits::WELCOME_TIMEOUT);
    pair.session.handle_timeout(deadline);
    assert!(pair.session.poll_reset().is_some());
}

#[derive(Debug, Clone)]
enum Step {
    Write { ask: bool },
    GiveOps,
    Commit,
    Deliver(usize),
    Fsync,
    Answer(usize),
    Listen,
    Disconnect { durable: bool },
    Abandon,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => any::<bool>().prop_map(|ask| Step::Write { ask }),
        2 => Just(Step::GiveOps),
        4 => Just(Step::Commit),
        8 => (1usize..8).prop_map(Step::Deliver),
        3 => Just(Step::Fsync),
        8 => (1usize..4).prop_map(Step::Answer),
        4 => Just(Step::Listen),
        2 => any::<bool>().prop_map(|durable| Step::Disconnect { durable }),
        // Rare, since nothing can be said of the whole history after it.
        1 => prop_oneof![5 => Just(Step::Listen), 1 => Just(Step::Abandon)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_receiver_ends_with_exactly_the_committed_history(steps in proptest::collection::vec(step(), 0..400)) {
        let mut pair = Pair::new();
        let mut abandoned = false;
        for step in steps {
            pair.connect();
            match step {
                // As a cutter does: what fills the window waits.
                Step::Write { ask } if !pair.session.window_full() => pair.write(ask),
                Step::Commit if !pair.session.window_full() => pair.commit(),
                Step::Write { .. } | Step::Commit => {}
                Step::GiveOps => pair.give_ops(),
                Step::Deliver(n) => drop(pair.deliver(n)),
                Step::Fsync => pair.receiver.fsync(),
                Step::Answer(n) => drop(pair.answer(n)),
                Step::Listen => pair.listen(),
                Step::Disconnect { durable } => pair.disconnect(durable),
                Step::Abandon => {
                    abandoned = true;
                    pair.session.handle_abandon();
                    pair.answer(0);
                }
            }
            prop_assert!(pair.session.window_bytes() < model::config().window_bytes + 64 * 1024);
        }
        pair.connect();
        pair.settle();
        pair.commit();
        pair.settle();
        prop_assert_eq!(Some(&pair.receiver.tree), pair.cutter.tree.as_ref());
        prop_assert_eq!(pair.receiver.last, pair.cutter.last);
        prop_assert_eq!(pair.session.window_bytes(), 0);
        for (point, digest) in &pair.receiver.history {
            prop_assert_eq!(pair.cutter.given.get(point), Some(digest));
        }
        if !abandoned {
            prop_assert_eq!(pair.cutter.resyncs, 1, "a disconnect alone never costs a resync");
            prop_assert_eq!(pair.receiver.history.len(), pair.cutter.given.len());
        }
    }
}
