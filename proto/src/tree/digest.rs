//! The incremental digest: a sum over independent facts.
//!
//! Every fact of a tree (an inode with its attributes and size, an entry of a directory, an extent of a file, a set of
//! extended attributes) is hashed with BLAKE3, and the digest is the sum of those hashes as 256-bit numbers modulo
//! 2^256, known as AdHash (Bellare and Micciancio, "A New Paradigm for Collision-Free Hashing", 1997). A change costs
//! the hashes of what changed, however large the tree. The sum guards against faults of software and hardware; a
//! peer that wants to lie about its own volume needs no collision to do so.

use crate::ids::{FileId, TreeDigest};

/// The running sum, as four little-endian words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Accumulator([u64; 4]);

impl Accumulator {
    pub(super) fn add(&mut self, fact: &Fact) {
        self.carry(fact.words(), u64::overflowing_add);
    }

    pub(super) fn subtract(&mut self, fact: &Fact) {
        self.carry(fact.words(), u64::overflowing_sub);
    }

    fn carry(&mut self, words: [u64; 4], step: fn(u64, u64) -> (u64, bool)) {
        let mut carry = false;
        for (sum, word) in self.0.iter_mut().zip(words) {
            let (partial, first) = step(*sum, word);
            let (total, second) = step(partial, u64::from(carry));
            *sum = total;
            carry = first || second;
        }
    }

    /// The digest: the sum, hashed together with the counter that is no fact of any inode.
    pub(super) fn finish(&self, next_id: FileId) -> TreeDigest {
        let mut hasher = blake3::Hasher::new_derive_key("tidelock tree digest v1");
        for word in self.0 {
            hasher.update(&word.to_le_bytes());
        }
        hasher.update(&next_id.0.to_le_bytes());
        TreeDigest(*hasher.finalize().as_bytes())
    }
}

/// One fact, ready to be added or subtracted. Fields are length-prefixed or of fixed width, so that no two facts share
/// an encoding.
pub(super) struct Fact(blake3::Hasher);

impl Fact {
    pub(super) fn new(tag: u8, id: FileId) -> Self {
        let mut fact = Self(blake3::Hasher::new());
        fact.0.update(&[tag]);
        fact.number(id.0);
        fact
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
        self
    }

    fn words(&self) -> [u64; 4] {
        let hash = self.0.finalize();
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(hash.as_bytes().chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        words
    }
}
