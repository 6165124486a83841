//! Peers that may not, and peers that make no sense: told why, and no harm to anybody else.

use tidelock_proto::{
    ChunkId, limits,
    wire::messages::{Chunk, Have, Heartbeat, Hello, Open, OpenKind, ToReceiver, ToReceiverKind},
};

use crate::harness::*;

const VOLUME: &str = "acme/pg";

#[tokio::test]
async fn a_sidecar_writes_only_what_its_certificate_names() {
    let site = Site::new();
    let receiver = site.start().await;
    for volume in [VOLUME, "evil/other"] {
        let mut stream = receiver.sidecar(&site.sidecar("evil/db"), hello(volume, 1, 1)).await;
        let (reason, retry) = stream.denied().await;
        assert!(!retry, "trying again cannot help");
        assert_eq!(
            reason,
            format!("sidecar of evil/db may not write volume {volume}: its certificate does not name it")
        );
    }
    let mut stream = receiver.sidecar(&site.operator(None), hello(VOLUME, 1, 1)).await;
    assert!(stream.denied().await.0.starts_with("operator of every tenant may not write"));
    let (_, text) = receiver.get("/metrics").await;
    assert!(text.contains("tidelock_streams_refused_total 3"), "{text}");
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn only_an_operator_imports_and_only_where_nobody_writes() {
    let site = Site::new();
    let receiver = site.start().await;
    let import = |epoch, instance| Hello { import: true, ..hello(VOLUME, epoch, instance) };
    for identity in [site.sidecar(VOLUME), site.operator(Some("evil"))] {
        let (reason, retry) = receiver.sidecar(&identity, import(1, 1)).await.denied().await;
        assert!(!retry && reason.contains("may not import into volume acme/pg"), "{reason}");
    }
    let operator = site.operator(Some("acme"));
    let mut source = Source::new("acme", 2);
    let mut stream = receiver.sidecar(&operator, import(2, 2)).await;
    stream.welcome().await;
    source.replicate(&mut stream, "a", b"as found").await;
    // One that lost its connection comes again before the receiver has noticed.
    let mut again = receiver.sidecar(&operator, import(2, 2)).await;
    again.welcome().await;
    drop((stream, again));

    // The sidecar of the same epoch goes on from there, and from then on an import is somebody else's older state.
    let mut writer = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 2, 3)).await;
    assert_eq!(writer.welcome().await.digest[..], source.tree.digest().0);
    let (reason, retry) = receiver.sidecar(&operator, import(2, 4)).await.denied().await;
    assert!(!retry && reason.contains("has a writer"), "{reason}");
    assert_eq!(receiver.sidecar(&operator, import(1, 5)).await.fenced().await, 2);
    source.replicate(&mut writer, "b", b"undisturbed").await;
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_hello_that_cannot_be_is_refused_with_the_reason() {
    let site = Site::new();
    let receiver = site.start().await;
    let identity = site.sidecar(VOLUME);
    let good = hello(VOLUME, 1, 1);
    let long = "x".repeat(limits::TEXT_MAX_BYTES + 1);
    for (hello, expected) in [
        (Hello { version: 99, ..good.clone() }, "protocol version 99"),
        (hello("../../etc", 1, 1), "must be written TENANT/NAME"),
        (hello("acme/..", 1, 1), "not a valid tenant or volume name"),
        (hello(VOLUME, 0, 1), "epoch 0"),
        (hello(VOLUME, u64::MAX, 1), "is none"),
        (Hello { build: long, ..good }, "longer than"),
    ] {
        let (reason, retry) = receiver.sidecar(&identity, hello).await.denied().await;
        assert!(!retry && reason.contains(expected), "{reason}");
    }
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn garbage_ends_its_own_stream_and_nothing_else() {
    let site = Site::new();
    let receiver = site.start().await;
    let identity = site.sidecar(VOLUME);
    let mut source = Source::new("acme", 1);
    let mut good = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    good.welcome().await;
    source.replicate(&mut good, "before", b"garbage").await;

    let evil = receiver.connect(&site.sidecar("evil/db")).await.unwrap();
    let open = raw_frame(&Open { kind: Some(OpenKind::Hello(hello("evil/db", 1, 1))) });
    let bomb = Chunk {
        id: ChunkId([1; 32]).0.to_vec().into(),
        codec: 1,
        len: 4096,
        payload: zstd::bulk::compress(&vec![0; 32 << 20], 19).unwrap().into(),
    };
    let frame = |kind| raw_frame(&ToReceiver { kind: Some(kind) });
    let long = Heartbeat { state: "x".repeat(2000), ..Heartbeat::default() };
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        u32::MAX.to_le_bytes().to_vec(),
        [&5u32.to_le_bytes()[..], &[0xff; 5]].concat(),
        raw_frame(&Open { kind: None }),
        [&open[..], &u32::MAX.to_le_bytes()].concat(),
        [&open[..], &5u32.to_le_bytes(), &[0xff; 5]].concat(),
        [open.clone(), frame(ToReceiverKind::Chunk(bomb))].concat(),
        [open.clone(), frame(ToReceiverKind::Have(Have { ids: vec![0; 33].into() }))].concat(),
        [open.clone(), frame(ToReceiverKind::Heartbeat(long))].concat(),
        [open.clone(), raw_frame(&ToReceiver { kind: None })].concat(),
    ];
    let count = garbage.len();
    for (n, bytes) in garbage.into_iter().enumerate() {
        let (mut writer, reader) = evil.open().await.unwrap();
        writer.stream_mut().write_all(&bytes).await.unwrap();
        let mut stream = Stream { connection: evil.clone(), writer, reader };
        let mut reason = stream.hear().await;
        while let Some(tidelock_proto::wire::messages::ToSidecarKind::Welcome(_)) = reason {
            reason = stream.hear().await;
        }
        let Some(tidelock_proto::wire::messages::ToSidecarKind::Denied(denied)) = reason else {
            panic!("garbage {n} was answered with {reason:?}")
        };
        assert!(denied.retry && !denied.reason.is_empty());
        assert_eq!(stream.hear().await, None);
        source.replicate(&mut good, &format!("during {n}"), &[n as u8]).await;
    }
    assert!(evil.close_reason().is_none(), "the connection is not touched");
    let (_, text) = receiver.get("/metrics").await;
    assert!(text.contains(&format!("tidelock_streams_broken_total {count}")), "{text}");
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn a_sidecar_that_never_reads_cannot_keep_the_volume() {
    let site = Site::new();
    let receiver = site.start().await;
    let identity = site.sidecar(VOLUME);
    let mut deaf = receiver.sidecar(&identity, hello(VOLUME, 1, 1)).await;
    // Answers of a few bytes each would have to be read one day; far more than any window is asked for here.
    let ids: bytes::Bytes = vec![7; 32 * limits::HAVE_BATCH_MAX].into();
    let flood = async {
        loop {
            let have = ToReceiver { kind: Some(ToReceiverKind::Have(Have { ids: ids.clone() })) };
            if deaf.writer.send(&have).await.is_err() {
                return;
            }
        }
    };
    let take_over = async {
        let mut other = receiver.sidecar(&identity, hello(VOLUME, 1, 2)).await;
        other.welcome().await;
        Source::new("acme", 1).replicate(&mut other, "a", b"content").await;
    };
    tokio::select! {
        () = take_over => {}
        () = async { flood.await; std::future::pending().await } => {}
    }
    receiver.stop().await.unwrap();
}

#[tokio::test]
async fn an_unknown_authority_is_refused_on_both_sides() {
    let (site, other) = (Site::new(), Site::new());
    let receiver = site.start().await;
    let foreign = other.sidecar(VOLUME);
    // Trust the receiver, but show a certificate it does not trust.
    std::fs::copy(site.path("ca").join("ca.crt"), other.path("sidecar-acme-pg").join("ca.crt")).unwrap();
    let mixed = tidelock_proto::identity::Identity::load(other.path("sidecar-acme-pg")).unwrap();
    drop(foreign);
    let error = receiver.connect(&mixed).await.unwrap_err();
    assert!(error.to_string().contains("signed by an authority that the peer does not trust"), "{error}");
    let refused =
        async { while !receiver.get("/metrics").await.1.contains("tidelock_peers_refused_total 1") {} };
    soon(refused).await;
    receiver.stop().await.unwrap();
}
