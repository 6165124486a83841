//! Frames through pipes of any granularity, and through QUIC.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncWriteExt, duplex};

use super::*;
use crate::{
    limits,
    transport::{FrameError, FrameReader, FrameWriter},
};

#[derive(Clone, PartialEq, prost::Message)]
struct Piece {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    payload: Bytes,
}

fn piece(number: u64, len: usize) -> Piece {
    Piece { number, payload: vec![number as u8; len].into() }
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(future)
}

/// Frames as they are on the wire, with any length in front.
fn raw(len: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_survive_any_split(
        sizes in prop::collection::vec(prop_oneof![0usize..40, 0usize..5_000, 60_000usize..300_000], 0..20),
        pipe_bytes in 1usize..100_000,
        flush_every in 1usize..8,
    ) {
        let sent: Vec<Piece> = sizes.iter().enumerate().map(|(n, size)| piece(n as u64, *size)).collect();
        let received = block_on(async {
            let (near, far) = duplex(pipe_bytes.max(sizes.iter().sum::<usize>() / 2_000));
            let write = async {
                let mut writer = FrameWriter::new(near);
                for (index, piece) in sent.iter().enumerate() {
                    writer.feed(piece).await.expect("fed");
                    assert!(writer.waiting_bytes() <= limits::WRITE_COALESCE_MAX_BYTES.max(piece.payload.len() + 32));
                    if index % flush_every == 0 {
                        writer.flush().await.expect("flushed");
                    }
                }
                writer.finish().await.expect("finished");
            };
            let read = async {
                let (mut reader, mut received) = (FrameReader::new(far), Vec::new());
                while let Some(piece) = reader.next::<Piece>().await.expect("frame") {
                    received.push(piece);
                }
                received
            };
            tokio::join!(write, read).1
        });
        prop_assert_eq!(sent, received);
    }

    /// Each poll of `next` is dropped before the next byte comes, as a `select!` would.
    #[test]
    fn a_dropped_read_loses_nothing(sizes in prop::collection::vec(0usize..300, 1..8), step in 1usize..50) {
        let sent: Vec<Piece> = sizes.iter().enumerate().map(|(n, size)| piece(n as u64, *size)).collect();
        let mut bytes = BytesMut::new();
        for piece in &sent {
            bytes.put_u32_le(prost::Message::encoded_len(piece) as u32);
            prost::Message::encode(piece, &mut bytes).expect("encoded");
        }
        let received = block_on(async {
            let (mut near, far) = duplex(64 * 1024);
            let (mut reader, mut received) = (FrameReader::new(far), Vec::new());
            for part in bytes.chunks(step) {
                near.write_all(part).await.expect("written");
                while let Some(Some(piece)) = poll_once(reader.next::<Piece>()).await {
                    received.push(piece.expect("frame"));
                }
            }
            received
        });
        prop_assert_eq!(sent, received);
    }

    /// The other end takes a few bytes at a time, and each flush is dropped in between.
    #[test]
    fn a_dropped_flush_loses_nothing(sizes in prop::collection::vec(0usize..300, 1..8), pipe_bytes in 1usize..50) {
        let sent: Vec<Piece> = sizes.iter().enumerate().map(|(n, size)| piece(n as u64, *size)).collect();
        let received = block_on(async {
            let (near, far) = duplex(pipe_bytes);
            let (mut writer, mut reader, mut received) = (FrameWriter::new(near), FrameReader::new(far), Vec::new());
            for piece in &sent {
                writer.feed(piece).await.expect("fed");
            }
            // Each turn moves at least one byte, or there is nothing left to move.
            let turns = sent.iter().map(|piece| piece.payload.len() + 20).sum();
            for _ in 0..turns {
                let _ = poll_once(writer.flush()).await;
                if let Some(Some(piece)) = poll_once(reader.next::<Piece>()).await {
                    received.push(piece.expect("frame"));
                }
            }
            received
        });
        prop_assert_eq!(sent, received);
    }
}

/// Polls a future that may be waiting once, and drops it. `Some(None)` is the end of a stream.
async fn poll_once<T: Transposed>(future: impl Future<Output = T>) -> Option<T::Out> {
    // The runtime lets a task that never yields read and write only so often.
    tokio::task::yield_now().await;
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match future.as_mut().poll(context) {
            std::task::Poll::Ready(value) => Some(value.transposed()),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

trait Transposed {
    type Out;
    fn transposed(self) -> Self::Out;
}

impl Transposed for Result<Option<Piece>, FrameError> {
    type Out = Option<Result<Piece, FrameError>>;

    fn transposed(self) -> Self::Out {
        self.transpose()
    }
}

impl Transposed for Result<(), FrameError> {
    type Out = ();

    fn transposed(self) {
        self.expect("flushed");
    }
}

async fn read_raw(bytes: &[u8]) -> Result<Option<Piece>, FrameError> {
    FrameReader::new(bytes).next().await
}

#[tokio::test]
async fn bad_frames_are_told_apart() {
    let too_long = read_raw(&raw(limits::FRAME_MAX_BYTES as u32 + 1, b"")).await;
    assert!(matches!(too_long, Err(FrameError::TooLong { .. })));
    assert!(matches!(read_raw(&raw(u32::MAX, b"")).await, Err(FrameError::TooLong { .. })));
    assert!(matches!(read_raw(&raw(10, b"short")).await, Err(FrameError::Truncated)));
    assert!(matches!(read_raw(&[1, 0]).await, Err(FrameError::Truncated)));
    assert!(matches!(read_raw(&raw(3, b"\xff\xff\xff")).await, Err(FrameError::Malformed(_))));
    assert!(matches!(read_raw(b"").await, Ok(None)));
    assert!(matches!(read_raw(&raw(0, b"")).await, Ok(Some(_))));
}

#[tokio::test]
async fn a_frame_at_the_limit_passes_and_one_byte_more_does_not() {
    let fits = piece(0, limits::FRAME_MAX_BYTES - 4);
    assert_eq!(prost::Message::encoded_len(&fits), limits::FRAME_MAX_BYTES);
    let (near, far) = duplex(2 * limits::FRAME_MAX_BYTES);
    let (mut writer, mut reader) = (FrameWriter::new(near), FrameReader::new(far));
    writer.send(&fits).await.expect("sent");
    assert_eq!(reader.next::<Piece>().await.expect("frame"), Some(fits));
    let over = piece(0, limits::FRAME_MAX_BYTES - 3);
    assert!(matches!(writer.send(&over).await, Err(FrameError::TooLong { .. })));
    assert_eq!(writer.waiting_bytes(), 0);
}

#[tokio::test]
async fn payloads_are_slices_of_the_read_buffer() {
    let mut bytes = Vec::new();
    prost::Message::encode(&piece(7, 5_000), &mut bytes).expect("encoded");
    let stream = raw(bytes.len() as u32, &bytes);
    let mut reader = FrameReader::new(&stream[..]);
    let first: Piece = reader.next().await.expect("frame").expect("one");
    // A copy would be the only owner of its bytes; a slice shares them with the reader.
    assert!(!first.payload.is_unique());
}

#[tokio::test]
async fn an_over_long_frame_ends_one_stream_and_no_other() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    let (client, served) = meet(&server, "127.0.0.1", &site.sidecar()).await;
    let (client, served) = (client.expect("connected"), served.expect("accepted"));
    let (mut bad, _bad_replies) = client.open().await.expect("stream");
    bad.stream_mut().write_all(&raw(u32::MAX, &[0; 1000])).await.expect("written");
    let (_, mut reader) = served.accept().await.expect("stream");
    assert!(matches!(reader.next::<Piece>().await, Err(FrameError::TooLong { .. })));

    let (mut good, _good_replies) = client.open().await.expect("stream");
    good.send(&piece(1, 4096)).await.expect("sent");
    let (_, mut reader) = served.accept().await.expect("stream");
    assert_eq!(reader.next::<Piece>().await.expect("frame"), Some(piece(1, 4096)));
}

#[tokio::test]
async fn a_lost_connection_says_why() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    let (client, served) = meet(&server, "127.0.0.1", &site.sidecar()).await;
    let (client, served) = (client.expect("connected"), served.expect("accepted"));
    let (mut writer, mut reader) = client.open().await.expect("stream");
    writer.send(&piece(1, 10)).await.expect("sent");
    served.close(crate::transport::close::PROTOCOL, "too \u{7} much");
    assert!(matches!(reader.next::<Piece>().await, Err(FrameError::Lost(_))));
    assert_eq!(client.closed().await.to_string(), "closed by the peer: too ? much (code 2)");
    drop(server);
}
