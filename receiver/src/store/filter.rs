//! A set of chunks that may say "yes" too often and never "no" too often, in memory that has a limit.
//!
//! A Bloom filter (B. H. Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", 1970) with six bits for each chunk.

use tidelock_proto::ChunkId;

/// Ids of chunks, as the index has them.
pub(super) struct Filter {
    words: Vec<u64>,
}

impl Filter {
    /// Sixteen bits for each 4 KiB of the log, as far as `most_bytes` goes.
    pub(super) fn new(log_bytes: u64, most_bytes: u64) -> Self {
        let words = (log_bytes / 4096 / 4).clamp(1024, most_bytes / 8);
        Self { words: vec![0; words.next_power_of_two() as usize] }
    }

    fn bits(&self, id: &ChunkId) -> impl Iterator<Item = (usize, u64)> + use<> {
        let number = |at: usize| u64::from_le_bytes(id.0[at..at + 8].try_into().expect("eight bytes"));
        let (first, step, mask) = (number(8), number(16) | 1, self.words.len() as u64 * 64 - 1);
        (0..6u64).map(move |turn| {
            let bit = first.wrapping_add(step.wrapping_mul(turn)) & mask;
            ((bit / 64) as usize, 1 << (bit % 64))
        })
    }

    pub(super) fn insert(&mut self, id: &ChunkId) {
        self.bits(id).for_each(|(word, bit)| self.words[word] |= bit);
    }

    pub(super) fn contains(&self, id: &ChunkId) -> bool {
        self.bits(id).all(|(word, bit)| self.words[word] & bit != 0)
    }

    /// How likely it is to say "yes" of a chunk that was never added.
    pub(super) fn doubt(&self) -> f64 {
        let set: u64 = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
        (set as f64 / (self.words.len() as f64 * 64.0)).powi(6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ChunkId {
        ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn it_never_forgets_and_says_how_often_it_errs() {
        let mut filter = Filter::new(0, 1 << 20);
        assert_eq!(filter.doubt(), 0.0);
        let mut known = 0;
        for count in [500, 6_000, 30_000] {
            (known..count).for_each(|number| filter.insert(&id(number)));
            known = count;
            assert!((0..known).all(|number| filter.contains(&id(number))));
            let strangers = (1_000_000..1_020_000).filter(|number| filter.contains(&id(*number))).count();
            let (found, said) = (strangers as f64 / 20_000.0, filter.doubt());
            assert!((found - said).abs() < 0.02, "{count}: {found} found, {said} said");
        }
        assert!(filter.doubt() > 0.5, "{}", filter.doubt());
    }
}
