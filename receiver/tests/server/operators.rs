//! What operators ask, and what they may not.

use tidelock_proto::{
    Epoch, PointId, Seq, Tree,
    wire::{
        self,
        messages::{
            ChunksRequest, CloneRequest, Failed, FindRequest, PlanRequest, PointsRequest, PromoteRequest,
            ReplyKind, RequestKind, StatusRequest, TagRequest, ToReceiverKind, TreeRequest, UsageRequest,
        },
    },
};

use crate::harness::*;

const VOLUME: &str = "acme/pg";

fn points(volume: &str, newest: u64) -> RequestKind {
    RequestKind::Points(PointsRequest { volume: volume.to_owned(), newest })
}

fn promote(base: Option<PointId>, expected_epoch: u64) -> RequestKind {
    let base = base.map(wire::point_id_to_wire);
    RequestKind::Promote(PromoteRequest { volume: VOLUME.to_owned(), base, expected_epoch, planned: false })
}

fn tree(point: PointId) -> RequestKind {
    RequestKind::Tree(TreeRequest { volume: VOLUME.to_owned(), point: Some(wire::point_id_to_wire(point)) })
}

fn find(volume: &str, pattern: &str) -> RequestKind {
    let last = Some(wire::point_id_to_wire(PointId::new(Epoch(1), Seq(3))));
    let (volume, pattern) = (volume.to_owned(), pattern.to_owned());
    RequestKind::Find(FindRequest { volume, pattern, first: None, last, changes: false })
}

fn clone(volume: &str, point: PointId, to: &str) -> RequestKind {
    let point = Some(wire::point_id_to_wire(point));
    RequestKind::Clone(CloneRequest { volume: volume.to_owned(), point, to: to.to_owned() })
}

fn failed(replies: &[ReplyKind]) -> (u32, &str) {
    match replies {
        [ReplyKind::Failed(Failed { code, reason })] => (*code, reason),
        other => panic!("not failed: {other:?}"),
    }
}

/// A receiver with some points of one volume.
async fn replicated(site: &Site, commits: usize) -> (Receiver, Stream, Source) {
    let receiver = site.start().await;
    let mut source = Source::new("acme", 1);
    let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    for n in 0..commits {
        source.replicate(&mut stream, &format!("f{n}"), format!("content {n}").as_bytes()).await;
    }
    (receiver, stream, source)
}

#[tokio::test]
async fn a_point_is_listed_its_tree_can_be_read_and_its_chunks_too() {
    let site = Site::new();
    let (receiver, _stream, source) = replicated(&site, 5).await;
    let operator = site.operator(Some("acme"));

    for (newest, expected) in [(0, 1..=5), (2, 4..=5), (99, 1..=5)] {
        let replies = receiver.ask(&operator, points(VOLUME, newest)).await;
        let [ReplyKind::Points(listed), ReplyKind::Done(_)] = &replies[..] else { panic!("{replies:?}") };
        let seqs: Vec<u64> = listed.points.iter().map(|point| point.id.unwrap().seq).collect();
        assert_eq!(seqs, expected.collect::<Vec<u64>>());
    }

    let replies = receiver.ask(&operator, tree(source.id)).await;
    let mut copy = Tree::new();
    for reply in &replies {
        if let ReplyKind::Tree(part) = reply {
            for op in wire::decode_ops(part.ops.clone()).unwrap() {
                copy.apply(&op).unwrap();
            }
        }
    }
    assert_eq!(copy, source.tree);

    let (first, second) = (source.chunk(b"content 4").0, source.chunk(b"content 0").0);
    let ids = [first.0, second.0].concat().into();
    let replies =
        receiver.ask(&operator, RequestKind::Chunks(ChunksRequest { volume: VOLUME.to_owned(), ids })).await;
    let [ReplyKind::Chunk(a), ReplyKind::Chunk(b), ReplyKind::Done(_)] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert_eq!((&a.payload[..], &b.payload[..]), (&b"content 4"[..], &b"content 0"[..]));
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_plan_is_told_of_the_operators_volumes_and_its_sizes_to_whoever_may_see_all() {
    let site = Site::new();
    let (receiver, _stream, _) = replicated(&site, 4).await;
    let mut foreign = receiver.sidecar(&site.sidecar("evil/db"), hello("evil/db", 1, 1)).await;
    foreign.welcome().await;
    let mut other = Source::new("evil", 1);
    other.replicate(&mut foreign, "file", b"content").await;
    let plan = |volume: Option<&str>, keep: Option<&str>| {
        let (volume, keep) = (volume.map(str::to_owned), keep.map(str::to_owned));
        RequestKind::Plan(PlanRequest { volume, keep, cap_bytes: Some(1 << 30) })
    };

    let replies = receiver.ask(&site.operator(Some("acme")), plan(None, None)).await;
    let [ReplyKind::VolumePlan(mine), ReplyKind::StorePlan(store), ReplyKind::Done(_)] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert_eq!((mine.volume.as_str(), mine.rules[0].kept), (VOLUME, 3), "{mine:?}");
    assert_eq!((store.sizes, store.unknown.as_deref()), (None, None));

    let replies = receiver.ask(&site.operator(None), plan(None, Some("all:1h"))).await;
    let [ReplyKind::VolumePlan(a), ReplyKind::VolumePlan(b), ReplyKind::StorePlan(store), ReplyKind::Done(_)] =
        &replies[..]
    else {
        panic!("{replies:?}")
    };
    assert_eq!((a.volume.as_str(), b.volume.as_str(), store.keep.as_str()), (VOLUME, "evil/db", "all:1h"));
    let sizes = store.sizes.expect("sizes");
    assert!(sizes.needed > 0 && sizes.needed < sizes.log && sizes.freed == 0, "{sizes:?}");
    assert!(sizes.cap.is_some_and(|cap| cap.cap == 1 << 30 && !cap.acts));

    for (identity, volume, keep, code) in [
        (site.operator(Some("evil")), Some(VOLUME), None, 2),
        (site.operator(Some("acme")), Some("acme/other"), None, 3),
        (site.operator(Some("acme")), None, Some("nonsense"), 1),
    ] {
        let replies = receiver.ask(&identity, plan(volume, keep)).await;
        assert_eq!(failed(&replies).0, code, "{replies:?}");
    }
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn status_shows_only_what_the_operator_may_see() {
    let site = Site::new();
    let (receiver, _stream, source) = replicated(&site, 3).await;
    let mut foreign = receiver.sidecar(&site.sidecar("evil/db"), hello("evil/db", 1, 1)).await;
    foreign.welcome().await;
    let status = || RequestKind::Status(StatusRequest {});

    let replies = receiver.ask(&site.operator(Some("acme")), status()).await;
    let [ReplyKind::Volume(volume), ReplyKind::Done(_)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((volume.volume.as_str(), volume.epoch, volume.points), (VOLUME, 1, 3));
    assert!(volume.connected && !volume.promoted && volume.lag_ns < 20_000_000_000);
    assert_eq!(volume.inodes, source.tree.totals().inodes);
    assert_eq!(volume.data_bytes, source.tree.totals().data_bytes);

    let replies = receiver.ask(&site.operator(None), status()).await;
    let [ReplyKind::Volume(_), ReplyKind::Volume(empty), ReplyKind::Done(_)] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert_eq!((empty.volume.as_str(), empty.points, empty.lag_ns), ("evil/db", 0, u64::MAX));
    receiver.stop().await.unwrap();

    // Without any session the figures come from the store.
    let receiver = site.start().await;
    let replies = receiver.ask(&site.operator(None), status()).await;
    let [ReplyKind::Volume(volume), ReplyKind::Done(_)] = &replies[..] else { panic!("{replies:?}") };
    assert!(!volume.connected);
    assert_eq!((volume.points, volume.inodes), (3, source.tree.totals().inodes));
}

#[tokio::test]
async fn a_promotion_fences_the_writer_at_once_and_for_good() {
    let site = Site::new();
    let (receiver, mut stream, mut source) = replicated(&site, 4).await;
    let operator = site.operator(Some("acme"));
    let base = PointId::new(Epoch(1), Seq(3));

    let replies = receiver.ask(&operator, promote(Some(base), 1)).await;
    let [ReplyKind::Promoted(promoted), ReplyKind::Done(_)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((promoted.epoch, promoted.base), (2, Some(wire::point_id_to_wire(base))));
    assert_eq!(stream.fenced().await, 2);
    let identity = site.sidecar(VOLUME);
    assert_eq!(receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await.fenced().await, 2);

    // The new writer goes on from the base, also after a restart.
    receiver.kill().await;
    let receiver = site.start().await;
    assert_eq!(receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await.fenced().await, 2);
    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 2, 8)).await;
    let welcome = stream.welcome().await;
    assert_eq!((welcome.epoch, welcome.last), (2, Some(wire::point_id_to_wire(base))));

    let replies = receiver.ask(&operator, tree(base)).await;
    source.tree = Tree::new();
    for reply in replies {
        if let ReplyKind::Tree(part) = reply {
            for op in wire::decode_ops(part.ops).unwrap() {
                source.tree.apply(&op).unwrap();
            }
        }
    }
    assert_eq!(welcome.digest[..], source.tree.digest().0);
    source.id = PointId::new(Epoch(2), Seq(0));
    source.replicate(&mut stream, "new", b"epoch").await;
    let replies = receiver.ask(&operator, points(VOLUME, 0)).await;
    let [ReplyKind::Points(listed), _] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(listed.points.len(), 5, "the old writer's tail is kept as a branch");
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_promotion_without_a_base_takes_the_newest_point_and_loses_nothing_sent() {
    let site = Site::new();
    let (receiver, mut stream, mut source) = replicated(&site, 1).await;
    // Sent, and perhaps not yet durable or even received when the promotion arrives.
    for n in 0..50 {
        for frame in source.add_file(&format!("late{n}"), &[n; 100]) {
            stream.say(frame).await;
        }
    }
    let replies = receiver.ask(&site.operator(None), promote(None, 1)).await;
    let [ReplyKind::Promoted(promoted), ReplyKind::Done(_)] = &replies[..] else { panic!("{replies:?}") };
    let base = wire::point_id_from_wire(promoted.base).unwrap();
    let mut acked = None;
    loop {
        match stream.hear().await {
            Some(wire::messages::ToSidecarKind::Ack(ack)) => acked = ack.point,
            Some(wire::messages::ToSidecarKind::Fenced(fenced)) => break assert_eq!(fenced.epoch, 2),
            other => panic!("{other:?}"),
        }
    }
    let acked = wire::point_id_from_wire(acked).unwrap_or(PointId::new(Epoch(1), Seq(1)));
    assert!(acked <= base, "{acked} was acknowledged and the new epoch builds on {base}");
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn of_two_promotions_one_wins_and_a_refused_one_changes_nothing() {
    let site = Site::new();
    let (receiver, mut stream, mut source) = replicated(&site, 2).await;
    let operator = site.operator(None);

    let nowhere = PointId::new(Epoch(1), Seq(9));
    assert_eq!(failed(&receiver.ask(&operator, promote(Some(nowhere), 1)).await).0, 4);
    assert_eq!(failed(&receiver.ask(&operator, promote(None, 2)).await).0, 5);
    source.replicate(&mut stream, "still", b"the writer").await;

    let connection = receiver.connect(&operator).await.unwrap();
    let (a, b) = tokio::join!(ask_on(&connection, promote(None, 1)), ask_on(&connection, promote(None, 1)));
    let won = |replies: &[ReplyKind]| matches!(replies, [ReplyKind::Promoted(_), ReplyKind::Done(_)]);
    assert!(won(&a) != won(&b), "{a:?} {b:?}");
    let (code, reason) = failed(if won(&a) { &b } else { &a });
    assert!(code == 5 && reason.contains("somebody else promoted"), "{reason}");
    assert_eq!(stream.fenced().await, 2);
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn tags_are_kept_and_checked() {
    let site = Site::new();
    let (receiver, _stream, source) = replicated(&site, 2).await;
    let operator = site.operator(Some("acme"));
    let tag = |point: PointId, tag: &str| {
        let point = Some(wire::point_id_to_wire(point));
        RequestKind::Tag(TagRequest { volume: VOLUME.to_owned(), point, tag: tag.to_owned() })
    };
    let replies = receiver.ask(&operator, tag(source.id, "before upgrade")).await;
    assert!(matches!(&replies[..], [ReplyKind::Done(_)]), "{replies:?}");
    for bad in ["", "two\nlines", &"x".repeat(129)] {
        assert_eq!(failed(&receiver.ask(&operator, tag(source.id, bad)).await).0, 1, "{bad:?}");
    }
    assert_eq!(failed(&receiver.ask(&operator, tag(PointId::new(Epoch(1), Seq(9)), "x")).await).0, 4);
    let replies = receiver.ask(&operator, points(VOLUME, 1)).await;
    let [ReplyKind::Points(listed), _] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(listed.points[0].tags, ["before upgrade"]);
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_search_sizes_and_a_clone_are_answered_where_the_store_is() {
    let site = Site::new();
    let (receiver, mut stream, mut source) = replicated(&site, 3).await;
    let operator = site.operator(Some("acme"));
    let replies = receiver.ask(&operator, find(VOLUME, "f1")).await;
    let [ReplyKind::Found(came), ReplyKind::Found(there), ReplyKind::Done(_)] = &replies[..] else {
        panic!("{replies:?}")
    };
    assert_eq!((&came.path[..], came.what, came.point.unwrap().seq), (&b"f1"[..], 2, 2));
    assert_eq!((&there.path[..], there.what, there.point.unwrap().seq), (&b"f1"[..], 5, 3));
    assert_eq!(failed(&receiver.ask(&operator, find(VOLUME, "[")).await).0, 1);
    assert_eq!(failed(&receiver.ask(&operator, find("acme/none", "*")).await).0, 3);

    let usage = |point| RequestKind::Usage(UsageRequest { volume: VOLUME.to_owned(), point });
    let replies = receiver.ask(&operator, usage(None)).await;
    let [ReplyKind::Usage(all), ReplyKind::Done(_)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!((all.points, all.files, all.chunks, all.chunk_bytes), (3, 3, 3, 27));

    let first = PointId::new(Epoch(1), Seq(1));
    let replies = receiver.ask(&operator, clone(VOLUME, first, "acme/copy")).await;
    let [ReplyKind::Cloned(_), ReplyKind::Done(_)] = &replies[..] else { panic!("{replies:?}") };
    assert_eq!(failed(&receiver.ask(&operator, clone(VOLUME, first, "acme/copy")).await).0, 1);
    assert_eq!(failed(&receiver.ask(&operator, clone(VOLUME, first, VOLUME)).await).0, 1);
    // The volume it was made of goes on, and so does the clone, with a writer of its own.
    source.replicate(&mut stream, "more", b"of it").await;
    let mut own = receiver.sidecar(&site.sidecar("acme/copy"), hello("acme/copy", 1, 9)).await;
    let welcome = own.welcome().await;
    assert_eq!(welcome.last, Some(wire::point_id_to_wire(first)));
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_reader_reads_its_volume_and_changes_nothing() {
    let site = Site::new();
    let (receiver, _stream, source) = replicated(&site, 1).await;
    let reader = site.reader(VOLUME);
    let ids: bytes::Bytes = source.chunk(b"content 0").0.0.to_vec().into();
    let (volume, other) = (VOLUME.to_owned(), "acme/other".to_owned());
    for kind in [
        RequestKind::Status(StatusRequest {}),
        points(VOLUME, 0),
        tree(source.id),
        RequestKind::Chunks(ChunksRequest { volume: volume.clone(), ids: ids.clone() }),
    ] {
        let replies = receiver.ask(&reader, kind.clone()).await;
        assert!(
            replies.len() > 1 && matches!(replies.last(), Some(ReplyKind::Done(_))),
            "{kind:?}: {replies:?}"
        );
    }
    for kind in [
        points("acme/other", 0),
        RequestKind::Chunks(ChunksRequest { volume: other, ids }),
        promote(None, 1),
        RequestKind::Tag(TagRequest { volume, point: None, tag: "x".to_owned() }),
        find(VOLUME, "*"),
        RequestKind::Usage(UsageRequest { volume: VOLUME.to_owned(), point: None }),
        RequestKind::Plan(PlanRequest { volume: None, keep: None, cap_bytes: None }),
        clone(VOLUME, source.id, "acme/copy"),
    ] {
        let replies = receiver.ask(&reader, kind.clone()).await;
        let (code, reason) = failed(&replies);
        assert!(code == 2 && reason.contains("reader of acme/pg may not"), "{kind:?}: {reason}");
    }
    let mut hands = receiver.sidecar(&reader, hello(VOLUME, 1, 9)).await;
    let (reason, _) = hands.denied().await;
    assert!(reason.contains("reader of acme/pg"), "{reason}");
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn nobody_reaches_another_tenants_volume() {
    let site = Site::new();
    let (receiver, _stream, source) = replicated(&site, 1).await;
    let evil = site.operator(Some("evil"));
    let ids: bytes::Bytes = source.chunk(b"content 0").0.0.to_vec().into();
    let volume = VOLUME.to_owned();
    for kind in [
        points(VOLUME, 0),
        points("acme/other", 0),
        tree(source.id),
        promote(None, 1),
        RequestKind::Chunks(ChunksRequest { volume: volume.clone(), ids: ids.clone() }),
        RequestKind::Tag(TagRequest { volume, point: None, tag: "x".to_owned() }),
        find(VOLUME, "*"),
        RequestKind::Usage(UsageRequest { volume: VOLUME.to_owned(), point: None }),
        clone(VOLUME, source.id, "evil/copy"),
        clone("evil/db", source.id, "acme/copy"),
    ] {
        let replies = receiver.ask(&evil, kind.clone()).await;
        let (code, reason) = failed(&replies);
        assert!(code == 2 && reason.contains("operator of tenant evil may not"), "{kind:?}: {reason}");
    }

    // Its own volume does not lead to the other tenant's chunks either.
    let mut foreign = receiver.sidecar(&site.sidecar("evil/db"), hello("evil/db", 1, 1)).await;
    foreign.welcome().await;
    Source::new("evil", 1).replicate(&mut foreign, "mine", b"content 0").await;
    let request = ChunksRequest { volume: "evil/db".to_owned(), ids };
    assert_eq!(failed(&receiver.ask(&evil, RequestKind::Chunks(request)).await).0, 6);
    foreign
        .say(ToReceiverKind::Have(wire::messages::Have {
            ids: source.chunk(b"content 0").0.0.to_vec().into(),
        }))
        .await;
    let Some(wire::messages::ToSidecarKind::HaveReply(reply)) = foreign.hear().await else {
        panic!("no reply")
    };
    assert_eq!(reply.held[..], [0], "whether another tenant has a chunk is not told");

    let sidecar = site.sidecar(VOLUME);
    let replies = receiver.ask(&sidecar, points(VOLUME, 0)).await;
    assert_eq!(failed(&replies).0, 2, "a sidecar is no operator");
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn questions_that_cannot_be_answered_say_why() {
    let site = Site::new();
    let (receiver, _stream, _) = replicated(&site, 1).await;
    let operator = site.operator(None);
    assert_eq!(failed(&receiver.ask(&operator, points("acme/none", 0)).await).0, 3);
    assert_eq!(failed(&receiver.ask(&operator, points("../../etc", 0)).await).0, 1);
    assert_eq!(failed(&receiver.ask(&operator, tree(PointId::new(Epoch(1), Seq(2)))).await).0, 4);
    let no_point = TreeRequest { volume: VOLUME.to_owned(), point: None };
    assert_eq!(failed(&receiver.ask(&operator, RequestKind::Tree(no_point)).await).0, 1);
    for ids in [vec![], vec![0; 33]] {
        let request = ChunksRequest { volume: VOLUME.to_owned(), ids: ids.into() };
        assert_eq!(failed(&receiver.ask(&operator, RequestKind::Chunks(request)).await).0, 1);
    }
    receiver.stop().await.unwrap();
}
