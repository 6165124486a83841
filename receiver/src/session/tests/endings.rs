//! How a session ends, and what is said last.

use super::*;

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
