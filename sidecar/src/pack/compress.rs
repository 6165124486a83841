//! Compression where it pays, and cheap ways to see where it does not.

use bytes::Bytes;
use tidelock_proto::limits::CHUNK_MAX_BYTES;

/// Content is looked at through at most this many bytes.
const SAMPLE_BYTES: usize = 1024;
/// The sample is taken from this many places.
const SAMPLE_PARTS: usize = 8;
/// After a long row of chunks that did not compress, one in this many is still tried.
const TRY_ONE_IN_MAX: u32 = 16;
/// Chunks that must fail in a row before some are not even tried.
const PATIENCE: u32 = 8;

/// The level of what is at most as long as a large page, unless a higher one than the default was asked for. At 8 KiB the entropy coder's tables, which
/// levels below 0 do without, are half of the work on both sides: on pages and logs of PostgreSQL they double the speed and
/// cost some percent in size; on text the size grows by a fifth.
const SHORT_LEVEL: i32 = -1;
/// Length up to which content is short, in bytes.
const SHORT_BYTES: usize = 16 * 1024;

/// One thread's zstd contexts and what it has learned from recent chunks.
pub(super) struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    short: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
    /// Chunks in a row that did not get smaller.
    failures: u32,
    skipped: u32,
}

impl Compressor {
    pub(super) fn new(level: i32) -> Self {
        let context =
            |level| zstd::bulk::Compressor::new(level).expect("zstd clamps levels it does not have");
        let short = if level > super::LEVEL_DEFAULT { level } else { level.min(SHORT_LEVEL) };
        let (context, short) = (context(level), context(short));
        Self { context, short, buffer: Vec::with_capacity(CHUNK_MAX_BYTES), failures: 0, skipped: 0 }
    }

    /// The compressed payload, or `None` if it would save less than a sixteenth.
    pub(super) fn compress(&mut self, content: &[u8]) -> Option<Bytes> {
        if self.weary() || looks_random(content) {
            return None;
        }
        let payload = self.try_compress(content);
        self.failures = if payload.is_some() { 0 } else { self.failures.saturating_add(1) };
        payload
    }

    /// The buffer's capacity is the bound that compression must meet, so zstd gives up early where it cannot.
    fn try_compress(&mut self, content: &[u8]) -> Option<Bytes> {
        let bound = content.len() - content.len().div_ceil(16);
        self.buffer.resize(bound, 0);
        let short = content.len() <= SHORT_BYTES;
        let context = if short { &mut self.short } else { &mut self.context };
        let len = context.compress_to_buffer(content, self.buffer.as_mut_slice()).ok()?;
        Some(Bytes::copy_from_slice(&self.buffer[..len]))
    }

    /// Whether to let this chunk pass untried, because those before it did not compress.
    fn weary(&mut self) -> bool {
        let one_in = 1 << (self.failures / PATIENCE).min(TRY_ONE_IN_MAX.ilog2());
        self.skipped = if self.skipped + 1 >= one_in { 0 } else { self.skipped + 1 };
        self.skipped != 0
    }
}

/// Whether the bytes of a sample are spread so evenly that compression has little to find. This sees what is compressed or
/// encrypted already; it does not see random bytes that repeat, which are rare and only cost their saving.
///
/// The sum of the squared counts of n random bytes is about n + n²/256. It is larger where bytes are not spread evenly: text
/// has four times as much, a compressed file with its headers a few percent more.
fn looks_random(content: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    let mut n = 0;
    let step = (content.len() / SAMPLE_PARTS).max(1);
    for part in content.chunks(step) {
        let part = &part[..part.len().min(SAMPLE_BYTES / SAMPLE_PARTS).min(step.div_ceil(2))];
        part.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        n += part.len() as u64;
    }
    let squares: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
    let random = n + n * n / 256;
    n >= 256 && squares * 4 < random * 5
}

#[cfg(test)]
mod tests {
    use rand::{RngCore, SeedableRng, rngs::SmallRng};

    use super::*;

    fn random(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn random_bytes_are_recognised_and_text_is_not() {
        for len in [1024, 4096, 65536, 262_144] {
            assert!(looks_random(&random(7, len)), "{len} random bytes");
            let text: Vec<u8> = random(7, len).iter().map(|byte| b'a' + byte % 64).collect();
            assert!(!looks_random(&text), "{len} bytes of 64 symbols");
            assert!(!looks_random(&vec![0; len]), "{len} zeros");
        }
    }

    #[test]
    fn what_saves_less_than_a_sixteenth_stays_as_it_is() {
        let mut compressor = Compressor::new(1);
        assert!(compressor.compress(&[7]).is_none());
        let mut page = random(1, 4096);
        page[..200].fill(0);
        assert!(compressor.try_compress(&page).is_none(), "200 of 4096 bytes is too little");
        page[..2048].fill(0);
        assert!(compressor.try_compress(&page).is_some_and(|payload| payload.len() <= 4096 - 256));
    }

    #[test]
    fn a_row_of_failures_makes_trying_rare_and_one_success_ends_that() {
        let mut compressor = Compressor::new(1);
        compressor.failures = 1000;
        let tries = (0..160).filter(|_| !compressor.weary()).count();
        assert_eq!(tries, 10);
        while compressor.compress(&[0; 4096]).is_none() {}
        assert!((0..10).all(|_| !compressor.weary()));
    }
}
