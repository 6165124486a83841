//! What the transport gives on loopback: round trips of a page, and bulk throughput.
//!
//! `cargo run --release -p tidelock-proto --example link`

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use bytes::Bytes;
use tidelock_proto::{
    identity::{Identity, TrustDomain},
    pki::{self, Request, Validity},
    transport::{Connection, FrameReader, FrameWriter, close, connect, server},
};

const PAGE_BYTES: usize = 4096;
const ROUND_TRIPS: usize = 20_000;
const BULK_BYTES: usize = 256 << 20;
const BULK_FRAME_BYTES: usize = 64 << 10;

#[derive(Clone, PartialEq, prost::Message)]
struct Payload {
    #[prost(bytes = "bytes", tag = "1")]
    bytes: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Reply {
    #[prost(uint64, tag = "1")]
    bytes: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let receiver = Request::Receiver { name: "link".to_owned(), hosts: vec!["127.0.0.1".to_owned()] };
    let sidecar = Request::Sidecar { volumes: [("t/v".parse())?].into() };
    pki::init(&directory.path().join("ca"), an_hour())?;
    let server = server((Ipv4Addr::LOCALHOST, 0).into(), identity(directory.path(), "receiver", &receiver)?)?;
    let address = server.local_addr()?.to_string();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.context("the server listens")?.complete().await?;
        serve(&connection).await
    });

    let sidecar = identity(directory.path(), "sidecar", &sidecar)?;
    let begin = Instant::now();
    let connection = connect(&address, &sidecar).await?;
    println!("connect         {:8.3} ms", millis(begin.elapsed()));
    let (mut writer, mut reader) = connection.open().await?;
    round_trips("warm-up", &mut writer, &mut reader).await?;
    round_trips("4 KiB + reply", &mut writer, &mut reader).await?;
    bulk(&mut writer, &mut reader).await?;
    round_trips("4 KiB after it", &mut writer, &mut reader).await?;
    let path = connection.stats().path;
    println!("mtu {} bytes, {} lost of {} datagrams", path.current_mtu, path.lost_packets, path.sent_packets);
    connection.close(close::DONE, "measured");
    connection.drained().await;
    serving.await??;
    Ok(())
}

/// Answers each payload of a page, and the last of each bulk, with the number of bytes so far.
async fn serve(connection: &Connection) -> anyhow::Result<()> {
    let (mut writer, mut reader) = connection.accept().await?;
    let mut bytes = 0;
    while let Ok(Some(payload)) = reader.next::<Payload>().await {
        bytes += payload.bytes.len() as u64;
        if payload.bytes.len() != BULK_FRAME_BYTES {
            writer.send(&Reply { bytes }).await?;
        }
    }
    Ok(())
}

async fn round_trips(name: &str, writer: &mut FrameWriter, reader: &mut FrameReader) -> anyhow::Result<()> {
    let page = Payload { bytes: vec![7; PAGE_BYTES].into() };
    let mut times = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begin = Instant::now();
        writer.send(&page).await?;
        reader.next::<Reply>().await?.context("a reply")?;
        times.push(begin.elapsed());
    }
    times.sort();
    let at = |share: f64| millis(times[((ROUND_TRIPS - 1) as f64 * share) as usize]);
    println!("{name:15} p50 {:.3}  p99 {:.3}  max {:.3} ms", at(0.5), at(0.99), at(1.0));
    Ok(())
}

async fn bulk(writer: &mut FrameWriter, reader: &mut FrameReader) -> anyhow::Result<()> {
    let frame = Payload { bytes: vec![7; BULK_FRAME_BYTES].into() };
    let begin = Instant::now();
    for _ in 0..BULK_BYTES / BULK_FRAME_BYTES {
        writer.feed(&frame).await?;
    }
    writer.send(&Payload::default()).await?;
    reader.next::<Reply>().await?.context("a reply")?;
    let took = begin.elapsed();
    println!("256 MiB         {:8.3} s, {:.0} MiB/s", took.as_secs_f64(), 256.0 / took.as_secs_f64());
    Ok(())
}

fn identity(directory: &Path, name: &str, request: &Request) -> anyhow::Result<Identity> {
    let out = directory.join(name);
    pki::issue(&directory.join("ca"), &TrustDomain::default(), request, an_hour(), &out)?;
    Ok(Identity::load(out)?)
}

fn an_hour() -> Validity {
    Validity::starting(SystemTime::now(), Duration::from_secs(3600))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
