//! Peers with a valid certificate and bad intentions: each is disconnected, and nobody else notices.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use prost::Message;
use tidelock_proto::{
    ChunkId, ChunkKey, FileId, Op,
    chunk::Codec,
    identity::Identity,
    limits,
    transport::{Connection, FrameReader, FrameWriter, connect},
    tree::{Kind, Meta, Name},
    wire::{
        PROTOCOL_VERSION, chunk_to_wire, encode_op,
        messages::{Hello, Open, OpenKind, Ops, ToReceiver, ToReceiverKind, ToSidecar, ToSidecarKind},
    },
};
use tidelock_tests::{
    procfs,
    site::{Receiver, Site},
    wait::{self, SOON},
};
use tokio::time::timeout;

/// How long the receiver may take to be rid of a bad peer.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn hostile_peers_are_disconnected_and_nobody_else_notices() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    receiver
        .process
        .allow("refused")
        .allow("makes no sense")
        .allow("has to begin anew")
        .allow("disconnected");
    let mut good = site.sidecar(&receiver, &volume).start();
    good.settle(SOON);
    let mallory = site.sidecar_identity("mallory/data");

    for (what, frames) in mischief() {
        let said = with_peer(&receiver, &mallory, async |mut peer: Peer| {
            for frame in &frames {
                // The receiver may have hung up already; what counts is that it does.
                if peer.out.stream_mut().write_all(frame).await.is_err() {
                    break;
                }
            }
            peer.hung_up(what).await
        });
        println!("{what}: {said}");
        good.settle(SOON);
    }
    receiver.process.must_run();
    let peak = procfs::peak_memory_bytes(receiver.process.pid());
    assert!(peak < 256 << 20, "a hostile peer made the receiver use {} MiB", peak >> 20);
}

#[test]
fn a_neighbour_and_an_expired_certificate_are_refused_by_the_receiver_itself() {
    let site = Site::new();
    let mut receiver = site.receiver();
    receiver.process.allow("");
    let neighbour = site.sidecar_identity("rival/data");
    let said = with_peer(&receiver, &neighbour, async |mut peer: Peer| {
        peer.out.stream_mut().write_all(&frame(&hello("acme/data"))).await.expect("connected");
        peer.hung_up("neighbour").await
    });
    assert!(said.contains("acme/data"), "the refusal does not name the volume: {said}");

    let expired = crate::identity::expired(&site);
    let long_ago = SystemTime::now() - Duration::from_secs(5400);
    let identity = Identity::load_at(&expired, long_ago).expect("it was valid then");
    let error = runtime().block_on(connect(&receiver.listen, &identity)).expect_err("expired");
    assert!(error.to_string().contains("expired"), "the refusal does not say why: {error}");
    wait::until_true("the receiver tells of both", SOON, || {
        let log = receiver.process.log();
        log.contains("rival/data") && log.contains("expired")
    });
}

/// What bad peers send, each after it has connected and opened a stream.
fn mischief() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let hello = frame(&hello("mallory/data"));
    let begin = |then: Vec<u8>| vec![hello.clone(), then];
    let key = ChunkKey::of_tenant("mallory");
    let page = vec![7; 4096];
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("zeros compress");
    let chunk = |id: ChunkId, len: u32, payload: &[u8]| {
        let chunk = chunk_to_wire(id, Codec::Zstd, len, payload.to_vec().into());
        frame(&ToReceiver { kind: Some(ToReceiverKind::Chunk(chunk)) })
    };
    let over_long = u32::try_from(limits::FRAME_MAX_BYTES + 1).expect("limits are small").to_le_bytes();
    vec![
        ("garbage", vec![vec![0xa5; 3000]]),
        ("garbage after a good start", begin(frame_of(&[0xff; 500]))),
        ("an over-long frame", begin([over_long.as_slice(), &[0; 5000]].concat())),
        ("the largest length there is", begin(vec![0xff; 4096])),
        ("another tenant's volume", vec![frame(&self::hello("acme/data"))]),
        ("a volume name that climbs", vec![frame(&self::hello("mallory/../acme"))]),
        ("the name ..", begin(create_with_name("nn", b".."))),
        ("an absolute name", begin(create_with_name("netc", b"/etc"))),
        ("a name with NUL", begin(create_with_name("nul", b"n\0l"))),
        ("a zstd bomb of a page", begin(chunk(key.id(&page), 4096, &bomb))),
        ("a zstd bomb that says so", begin(chunk(key.id(&page), 64 << 20, &bomb))),
        (
            "a chunk under another name",
            begin(chunk(key.id(b"other"), 4096, &zstd::bulk::compress(&page, 1).expect("compresses"))),
        ),
    ]
}

fn hello(volume: &str) -> Open {
    let hello = Hello {
        version: PROTOCOL_VERSION,
        volume: volume.to_owned(),
        epoch: 1,
        instance: 1,
        build: "test".to_owned(),
        tracker: "exact".to_owned(),
        raise_epoch: false,
        import: false,
    };
    Open { kind: Some(OpenKind::Hello(hello)) }
}

/// A frame of operations that makes a file under `name`, which our own encoder would not write: it is put in place of
/// the harmless `stand_in` of the same length.
fn create_with_name(stand_in: &str, name: &[u8]) -> Vec<u8> {
    let file = FileId(2);
    let ops = [
        Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() },
        Op::Create { id: file, kind: Kind::File, meta: Meta::default() },
        Op::Link { dir: FileId::ROOT, name: Name::new(stand_in.as_bytes()).expect("harmless"), id: file },
    ];
    let ops = Ops { ops: ops.iter().map(encode_op).collect() };
    let mut bytes = ToReceiver { kind: Some(ToReceiverKind::Ops(ops)) }.encode_to_vec();
    let at =
        bytes.windows(name.len()).position(|window| window == stand_in.as_bytes()).expect("it is in there");
    bytes[at..at + name.len()].copy_from_slice(name);
    frame_of(&bytes)
}

fn frame(message: &impl Message) -> Vec<u8> {
    frame_of(&message.encode_to_vec())
}

fn frame_of(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("small");
    [&len.to_le_bytes(), bytes].concat()
}

struct Peer {
    connection: Connection,
    out: FrameWriter,
    into: FrameReader,
}

impl Peer {
    /// Waits until the receiver ends the stream, and returns the reason it gave.
    async fn hung_up(mut self, what: &str) -> String {
        let end = async {
            loop {
                match self.into.next::<ToSidecar>().await {
                    Ok(Some(ToSidecar { kind: Some(ToSidecarKind::Denied(denied)) })) => {
                        return denied.reason;
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return "the stream ended".to_owned(),
                    Err(error) => {
                        let closed = self.connection.close_reason().map(|reason| reason.to_string());
                        return closed.unwrap_or_else(|| error.to_string());
                    }
                }
            }
        };
        timeout(PATIENCE, end).await.unwrap_or_else(|_| panic!("{what}: still connected"))
    }
}

fn with_peer<T>(receiver: &Receiver, identity: &Path, play: impl AsyncFnOnce(Peer) -> T) -> T {
    runtime().block_on(async {
        let identity = Identity::load(identity).expect("issued by the site");
        let connection = connect(&receiver.listen, &identity).await.expect("the certificate is good");
        let (out, into) = connection.open().await.expect("a stream");
        play(Peer { connection, out, into }).await
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
