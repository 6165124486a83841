//! Strangers do not disturb those who are in.

use std::net::UdpSocket;

use super::*;
use crate::limits;

#[derive(Clone, PartialEq, prost::Message)]
struct Ping {
    #[prost(uint64, tag = "1")]
    number: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_does_not_disturb_a_connection() {
    let site = Site::new();
    let (server, address) = listen(site.receiver());
    let (client, served) = meet(&server, "127.0.0.1", &site.sidecar()).await;
    let (client, served) = (client.expect("connected"), served.expect("accepted"));
    let echo = tokio::spawn(async move {
        let (mut writer, mut reader) = served.accept().await.expect("stream");
        while let Some(ping) = reader.next::<Ping>().await.expect("frame") {
            writer.send(&ping).await.expect("sent");
        }
    });
    let (mut writer, mut reader) = client.open().await.expect("stream");
    let garbage = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let mut noise = blake3::Hasher::new().finalize_xof();
    for number in 0..200 {
        for _ in 0..20 {
            let mut datagram = [0; 1200];
            noise.fill(&mut datagram);
            // Every second one looks like the first packet of a QUIC handshake.
            if number % 2 == 0 {
                datagram[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
            }
            // A full socket buffer drops it, as a network would.
            let _ = garbage.send_to(&datagram, address);
        }
        writer.send(&Ping { number }).await.expect("sent");
        assert_eq!(reader.next::<Ping>().await.expect("frame"), Some(Ping { number }));
    }
    writer.finish().await.expect("finished");
    echo.await.expect("echoed");
}

#[tokio::test]
async fn with_many_handshakes_under_way_a_client_proves_its_address_and_beyond_the_limit_it_is_refused() {
    let site = Site::new();
    let (server, address) = listen(site.receiver());
    let identity = site.sidecar();
    let dial = || {
        let (address, identity) = (address.to_string(), identity.clone());
        tokio::spawn(async move { connect(&address, &identity).await })
    };
    // Handshakes that are never completed take the places, first those of unproven clients, then all.
    let (mut waiting, mut dialling) = (Vec::new(), Vec::new());
    for number in 0..limits::HANDSHAKES_MAX {
        dialling.push(dial());
        let handshake = server.accept().await.expect("listening");
        assert_eq!(handshake.proved_address(), number >= limits::HANDSHAKES_UNPROVEN_MAX, "client {number}");
        waiting.push(handshake);
    }
    let refused = tokio::select! {
        refused = dial() => refused.expect("dialled"),
        _ = server.accept() => panic!("a client beyond the limit was admitted"),
    };
    assert!(matches!(refused, Err(TransportError::Busy)), "{refused:?}");

    waiting.clear();
    let (client, served) = meet(&server, "127.0.0.1", &identity).await;
    assert!(client.is_ok() && served.is_ok());
    for attempt in dialling {
        attempt.abort();
    }
}
