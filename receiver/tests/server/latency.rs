//! A figure, not a judgement: how long a small commit takes from the first byte sent to its acknowledgement.

use std::time::{Duration, Instant};

use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints a figure; run it alone on a quiet machine"]
async fn a_commit_of_one_page_alone_and_beside_a_seeding_volume() {
    let site = Site::new();
    let receiver = site.start().await;
    let mut stream = receiver.sidecar(&site.sidecar("acme/pg"), hello("acme/pg", 1, 1)).await;
    stream.welcome().await;
    let mut source = Source::new("acme", 1);
    let alone = measure(&mut source, &mut stream, 500).await;
    println!("alone:          p50 {:?}  p99 {:?}", alone[250], alone[495]);

    let mut seeding = receiver.sidecar(&site.sidecar("evil/db"), hello("evil/db", 1, 1)).await;
    seeding.welcome().await;
    let seed = tokio::spawn(async move {
        let mut other = Source::new("evil", 1);
        for n in 0u64.. {
            let content: Vec<u8> = n.to_le_bytes().into_iter().cycle().take(200_000).collect();
            let frames = other.add_file(&format!("f{n}"), &content);
            let last = n % 16 == 15;
            for frame in frames {
                seeding.say(frame).await;
            }
            if last {
                seeding.acked(other.id).await;
            }
        }
    });
    let beside = measure(&mut source, &mut stream, 500).await;
    println!("beside seeding: p50 {:?}  p99 {:?}", beside[250], beside[495]);
    seed.abort();
    let (_, text) = receiver.get("/metrics").await;
    for line in text.lines().filter(|line| line.starts_with("tidelock_durable_seconds")) {
        println!("{line}");
    }
}

async fn measure(source: &mut Source, stream: &mut Stream, commits: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0..commits {
        let mut page = vec![0; 4096];
        page[..8].copy_from_slice(&times.len().to_le_bytes());
        page[8..16].copy_from_slice(&source.id.seq.0.to_le_bytes());
        let begun = Instant::now();
        source.replicate(stream, &format!("page {} {n}", source.id.seq), &page).await;
        times.push(begun.elapsed());
    }
    times.sort();
    times
}
