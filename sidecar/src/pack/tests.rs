use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use tidelock_proto::chunk::open_checked;

use super::*;

fn key() -> ChunkKey {
    ChunkKey::of_tenant("tests")
}

/// A file as applications make them: stretches of text, zeros and noise.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut bytes = vec![0; len];
    for part in bytes.chunks_mut(10_000) {
        match rng.random_range(0..3) {
            0 => {}
            1 => rng.fill_bytes(part),
            _ => part.iter_mut().for_each(|byte| *byte = b'a' + rng.random_range(0..20)),
        }
    }
    bytes
}

fn opened(packed: &[Packed]) -> Vec<u8> {
    let open = |chunk: &Packed| {
        open_checked(&key(), chunk.id, chunk.codec, chunk.len as usize, &chunk.payload)
            .expect("the chunk opens")
            .into_owned()
    };
    packed.iter().flat_map(open).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn chunks_opened_and_joined_are_the_content(seed: u64, len in 0usize..3_000_000, threads in 1usize..4) {
        let content = content(seed, len);
        let packed = Packer::new(key(), threads, LEVEL_DEFAULT).pack(&content);
        prop_assert!(opened(&packed) == content, "other content");
        let lens: Vec<usize> = packed.iter().map(|chunk| chunk.len as usize).collect();
        prop_assert!(lens.iter().all(|len| (1..=CHUNK_MAX_BYTES).contains(len)), "{lens:?}");
        if let Some((_, all_but_last)) = lens.split_last() {
            prop_assert!(all_but_last.iter().all(|len| *len >= limits::CHUNK_MIN_BYTES), "{lens:?}");
        }
        for chunk in &packed {
            prop_assert!(chunk.payload.len() <= chunk.len as usize, "a payload is larger than its content");
        }
    }

    #[test]
    fn ids_depend_on_the_content_alone(seed: u64, len in 0usize..2_000_000) {
        let content = content(seed, len);
        let ids = |threads, level| -> Vec<ChunkId> {
            Packer::new(key(), threads, level).pack(&content).iter().map(|chunk| chunk.id).collect()
        };
        prop_assert_eq!(ids(1, 1), ids(3, 3));
    }
}

#[test]
fn a_page_ships_as_a_page_and_a_short_run_as_one_chunk() {
    let mut packer = Packer::new(key(), 2, LEVEL_DEFAULT);
    for len in [1, 4096, limits::SMALL_RUN_MAX_BYTES] {
        let content = content(3, len);
        let packed = packer.pack(&content);
        assert_eq!(packed.len(), 1, "{len}");
        assert_eq!(packed[0].id, packer.id(&content));
    }
}

#[test]
fn content_that_moved_keeps_its_chunks() {
    let mut packer = Packer::new(key(), 1, LEVEL_DEFAULT);
    let mut random = vec![0; 4 << 20];
    SmallRng::seed_from_u64(5).fill_bytes(&mut random);
    let before: std::collections::HashSet<_> = packer.pack(&random).iter().map(|chunk| chunk.id).collect();
    random.splice(0..0, *b"some bytes before");
    let after = packer.pack(&random);
    let new = after.iter().filter(|chunk| !before.contains(&chunk.id)).count();
    assert!(new <= 3, "{new} of {} chunks are new", after.len());
}

/// Prints figures: `cargo test --release -p tidelock-sidecar pack::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures, asserts nothing"]
fn speed() {
    let mut random = vec![0; 16 << 20];
    SmallRng::seed_from_u64(5).fill_bytes(&mut random);
    let text: Vec<u8> = random.iter().map(|byte| b'a' + byte % 20).collect();
    for (what, content) in [("random", &random), ("text", &text), ("zeros", &vec![0; 16 << 20])] {
        for threads in [1, 2] {
            let mut packer = Packer::new(key(), threads, LEVEL_DEFAULT);
            let bulk = fastest(|| packer.pack(content).len());
            let page = fastest(|| {
                content[..4 << 20].chunks(4096).map(|page| packer.pack(page)[0].payload.len()).sum()
            });
            let mib = 16.0 / bulk.as_secs_f64();
            println!("{what}, {threads} threads: {mib:.0} MiB/s, a page {:?}", page / 1024);
        }
    }
}

fn fastest(mut work: impl FnMut() -> usize) -> Duration {
    let timed = |_| {
        let start = Instant::now();
        std::hint::black_box(work());
        start.elapsed()
    };
    (0..7).map(timed).min().expect("seven runs")
}
