//! What sidecars live through: commits, restarts, takeovers, shutdowns.

use tidelock_proto::{
    Epoch, PointId, Seq, Tree,
    wire::{
        self,
        messages::{
            Heartbeat, Hello, ReplyKind, RequestKind, StatusRequest, ToReceiverKind, ToSidecarKind,
            WantManifest,
        },
    },
};

use crate::harness::*;

const VOLUME: &str = "acme/pg";

#[tokio::test]
async fn acknowledged_points_survive_a_kill_and_the_next_session_goes_on_from_them() {
    let site = Site::new();
    let identity = site.sidecar(VOLUME);
    let mut source = Source::new("acme", 1);

    let receiver = site.start().await;
    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    let welcome = stream.welcome().await;
    assert_eq!((welcome.epoch, welcome.last), (1, None));
    for n in 0..20 {
        source.replicate(&mut stream, &format!("f{n}"), format!("content {n}").as_bytes()).await;
    }
    receiver.kill().await;

    let receiver = site.start().await;
    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 8)).await;
    let welcome = stream.welcome().await;
    assert_eq!(welcome.last, Some(wire::point_id_to_wire(source.id)));
    assert_eq!(welcome.digest[..], source.tree.digest().0);

    stream.say(ToReceiverKind::WantManifest(WantManifest {})).await;
    let mut tree = Tree::new();
    loop {
        let Some(ToSidecarKind::Manifest(part)) = stream.hear().await else { panic!("no manifest") };
        for op in wire::decode_ops(part.ops).unwrap() {
            tree.apply(&op).unwrap();
        }
        if part.last {
            break;
        }
    }
    assert_eq!(tree, source.tree);
    source.replicate(&mut stream, "after", b"the restart").await;
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_burst_of_commits_is_taken_without_waiting_for_acknowledgements() {
    let site = Site::new();
    let receiver = site.start().await;
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    for n in 0..200 {
        for frame in source.add_file(&format!("f{n}"), &[n as u8; 5000]) {
            stream.say(frame).await;
        }
    }
    let ack = stream.acked(source.id).await;
    assert_eq!(ack.chunks, 200);
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn large_chunks_and_small_ones_keep_their_order() {
    let site = Site::new();
    let receiver = site.start().await;
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    for n in 0..60usize {
        let len = if n.is_multiple_of(3) { 250_000 } else { 100 };
        let content: Vec<u8> = (0..len).map(|at| (at * 31 + n) as u8).collect();
        for frame in source.add_file(&format!("f{n}"), &content) {
            stream.say(frame).await;
        }
    }
    stream.acked(source.id).await;
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn finishing_the_stream_is_answered_when_everything_is_durable() {
    let site = Site::new();
    let receiver = site.start().await;
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    for frame in source.add_file("a", b"content") {
        stream.say(frame).await;
    }
    stream.say(source.chunk(b"a chunk without a commit").1).await;
    stream.writer.finish().await.unwrap();
    let mut chunks = 0;
    while let Some(frame) = stream.hear().await {
        let ToSidecarKind::Ack(ack) = frame else { panic!("{frame:?}") };
        (chunks, _) = (ack.chunks, ack.point.unwrap());
    }
    assert_eq!(chunks, 2);
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn whoever_comes_last_is_the_writer() {
    let site = Site::new();
    let receiver = site.start().await;
    let identity = site.sidecar(VOLUME);
    let mut source = Source::new("acme", 1);
    let mut first = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    first.welcome().await;
    source.replicate(&mut first, "a", b"first").await;

    let mut again = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    assert_eq!(again.welcome().await.last, Some(wire::point_id_to_wire(source.id)));
    assert_eq!(first.hear().await, None, "a reconnect ends the older stream silently");
    source.replicate(&mut again, "b", b"again").await;

    let mut other = receiver.sidecar(&identity, hello(VOLUME, 1, 8)).await;
    assert_eq!(other.welcome().await.last, Some(wire::point_id_to_wire(source.id)));
    let (reason, retry) = again.denied().await;
    assert!(!retry && reason.contains("another sidecar took over"), "{reason}");
    source.replicate(&mut other, "c", b"other").await;
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_lost_within_a_commit_begins_again_from_the_last_point() {
    let site = Site::new();
    let receiver = site.start().await;
    let identity = site.sidecar(VOLUME);
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    source.replicate(&mut stream, "a", b"whole").await;
    let before = source.clone();
    let frames = source.add_file("b", b"half");
    for frame in &frames[..2] {
        stream.say(frame.clone()).await;
    }
    stream.connection.close(0, "gone");

    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    assert_eq!(stream.welcome().await.digest[..], before.tree.digest().0);
    for frame in frames {
        stream.say(frame).await;
    }
    stream.acked(source.id).await;
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn shutting_down_acknowledges_what_was_sent_and_asks_to_come_back() {
    let site = Site::new();
    let mut receiver = site.start().await;
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    source.replicate(&mut stream, "a", b"content").await;
    assert!(receiver.get("/readyz").await.0);
    receiver.begin_stop();
    let (reason, retry) = stream.denied().await;
    assert!(retry && reason.contains("shutting down"), "{reason}");
    receiver.stop().await.unwrap();

    let receiver = site.start().await;
    let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
    assert_eq!(stream.welcome().await.last, Some(wire::point_id_to_wire(source.id)));
}

#[tokio::test]
async fn a_writer_of_a_higher_epoch_raises_it_upon_the_newest_point() {
    let site = Site::new();
    let receiver = site.start().await;
    let identity = site.sidecar(VOLUME);
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    let base = source.replicate(&mut stream, "a", b"content").await;

    // An epoch that nobody granted here may be a slip of the hand, and must not end the rightful writer.
    let mut slip = receiver.sidecar(&identity, hello(VOLUME, 4, 9)).await;
    let (reason, retry) = slip.denied().await;
    assert!(reason.contains("is at epoch 1") && reason.contains("--raise-epoch") && !retry, "{reason}");
    let base = {
        assert_eq!(base, source.id);
        source.replicate(&mut stream, "still", b"the rightful writer").await
    };

    let granted = Hello { raise_epoch: true, ..hello(VOLUME, 4, 9) };
    let mut newer = receiver.sidecar(&identity, granted).await;
    let welcome = newer.welcome().await;
    assert_eq!((welcome.epoch, welcome.last), (4, Some(wire::point_id_to_wire(base))));
    source.id = PointId::new(Epoch(4), Seq(0));
    source.replicate(&mut newer, "b", b"by the new writer").await;
    let mut old = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    assert_eq!(old.fenced().await, 4);
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn whether_an_application_may_be_stopped_is_told_by_its_own_sidecar() {
    let site = Site::new();
    let receiver = site.start().await;
    let mut source = Source::new("acme", 1);
    let identity = site.sidecar(VOLUME);
    let may_leave = async || {
        let replies = receiver.ask(&site.operator(None), RequestKind::Status(StatusRequest {})).await;
        match replies.first() {
            Some(ReplyKind::Volume(status)) => status.heartbeat.as_ref().and_then(|beat| beat.leaves),
            other => panic!("not a status: {other:?}"),
        }
    };
    // An import, which has no application.
    let mut import = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    import.welcome().await;
    let heartbeat = Heartbeat { now_ns: 1, leaves: Some(false), ..Heartbeat::default() };
    import.say(ToReceiverKind::Heartbeat(heartbeat)).await;
    source.replicate(&mut import, "a", b"content").await;
    assert_eq!(may_leave().await, Some(false));
    drop(import);
    let mut sidecar = receiver.sidecar(&identity, hello(VOLUME, 1, 8)).await;
    sidecar.welcome().await;
    source.replicate(&mut sidecar, "b", b"content").await;
    assert_eq!(may_leave().await, None);
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn metrics_show_lag_points_and_sessions() {
    let site = Site::new();
    let receiver = site.start().await;
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    source.replicate(&mut stream, "a", b"content").await;
    let heartbeat = Heartbeat { now_ns: 1, behind_bytes: 4096, ..Heartbeat::default() };
    stream.say(ToReceiverKind::Heartbeat(heartbeat)).await;
    source.replicate(&mut stream, "b", b"content").await;
    let (ok, text) = receiver.get("/metrics").await;
    assert!(ok);
    let label = "{tenant=\"acme\",volume=\"pg\"}";
    for line in [
        format!("tidelock_points{label} 2"),
        format!("tidelock_commits_total{label} 2"),
        format!("tidelock_chunks_deduplicated_total{label} 1"),
        format!("tidelock_behind_bytes{label} 4096"),
        format!("tidelock_connected{label} 1"),
        format!("tidelock_epoch{label} 1"),
        format!("tidelock_lag_seconds{label} "),
        "tidelock_durable_seconds_count 2".to_owned(),
        "tidelock_sessions 1".to_owned(),
    ] {
        assert!(text.contains(&line), "no {line} in\n{text}");
    }
    assert!(receiver.get("/healthz").await.0);
    receiver.stop().await.unwrap();
}
