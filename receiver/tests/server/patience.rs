//! Operators who can wait, and a receiver that does not wait for them.

use std::time::{Duration, Instant};

use tidelock_proto::{
    transport::{Connection, FrameReader},
    wire::{
        PROTOCOL_VERSION,
        messages::{ChunksRequest, Open, OpenKind, OperatorReply, OperatorRequest, RequestKind},
    },
};
use tidelock_receiver::store::{Store, StoreOptions};
use tokio::task::JoinSet;

use crate::harness::*;

const VOLUME: &str = "acme/pg";
/// Answers that nobody reads to their end.
const ANSWERS: usize = 24;
/// How often the same chunk is asked for in each: more than the windows of a connection take.
const CHUNKS: usize = 512;
/// Longer than a receiver waits for its sessions, and far shorter than anybody who reads nothing would keep it.
const END: Duration = Duration::from_secs(15);

#[tokio::test]
async fn answers_that_nobody_reads_keep_neither_the_receiver_nor_its_store() {
    for patient in [true, false] {
        let site = Site::new();
        let receiver = site.start().await;
        let mut source = Source::new("acme", 1);
        let mut stream = receiver.sidecar(&site.sidecar(VOLUME), hello(VOLUME, 1, 7)).await;
        stream.welcome().await;
        let content: Vec<u8> =
            (0..200_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        source.replicate(&mut stream, "file", &content).await;
        drop(stream);

        let ids = source.chunk(&content).0.0.repeat(CHUNKS);
        let connection = receiver.connect(&site.operator(Some("acme"))).await.expect("connected");
        let mut begun = JoinSet::new();
        for _ in 0..ANSWERS {
            let mut answer = ask(&connection, patient, ids.clone()).await;
            begun.spawn(async move { (answer.next::<OperatorReply>().await, answer) });
        }
        // The others wait for the window that these have filled, or for their turn.
        let (first, _unread) = soon(begun.join_next()).await.expect("some").expect("no panic");
        assert!(first.is_ok_and(|first| first.is_some()), "the answers have begun");
        let stopping = Instant::now();
        receiver.stop().await.expect("it ends well");
        assert!(stopping.elapsed() < END, "{:?}", stopping.elapsed());
        // Whoever starts it again does so at once.
        drop(Store::open(&site.path("store"), StoreOptions::default()).expect("nobody has it open"));
        drop(begun);
    }
}

/// Asks for chunks.
async fn ask(connection: &Connection, patient: bool, ids: Vec<u8>) -> FrameReader {
    let (mut writer, reader) = connection.open().await.expect("stream");
    let request = RequestKind::Chunks(ChunksRequest { volume: VOLUME.to_owned(), ids: ids.into() });
    let request = OperatorRequest { version: PROTOCOL_VERSION, patient, kind: Some(request) };
    writer.send(&Open { kind: Some(OpenKind::Request(request)) }).await.expect("sent");
    reader
}
