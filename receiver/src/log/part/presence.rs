//! Which blocks of a segment are known to be here.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::fetch::Absent;
use crate::limits;

/// What is known to be here of a segment.
pub(super) struct Presence {
    pub(super) state: Mutex<State>,
    pub(super) blocks: u64,
    /// All of it.
    pub(super) whole: AtomicBool,
    /// The archive lacks some of it.
    pub(super) lost: AtomicBool,
}

pub(super) struct State {
    pub(super) bits: Vec<u64>,
    pub(super) here: u64,
    /// Those that the archive does not have either.
    pub(super) lost: BTreeMap<u64, Absent>,
    /// Where the last fetch ended, and how long it was: who reads on gets more at once.
    pub(super) ahead: Range<u64>,
}

impl Presence {
    pub(super) fn new(len: u64) -> Self {
        let blocks = len.div_ceil(limits::OUTLINE_BLOCK_BYTES);
        let bits = vec![0; blocks.div_ceil(64) as usize];
        let state = Mutex::new(State { bits, here: 0, lost: BTreeMap::new(), ahead: 0..0 });
        Self { state, blocks, whole: AtomicBool::new(false), lost: AtomicBool::new(false) }
    }

    pub(super) fn has(&self, block: u64) -> bool {
        self.state.lock().bits[(block / 64) as usize] & (1 << (block % 64)) != 0
    }

    pub(super) fn set(&self, block: u64) {
        let mut state = self.state.lock();
        let word = &mut state.bits[(block / 64) as usize];
        let was = *word;
        *word |= 1 << (block % 64);
        state.here += u64::from(was != *word);
    }

    /// The first block that may be had.
    pub(super) fn next_wanted(&self) -> Option<u64> {
        let state = self.state.lock();
        let has = |block: &u64| state.bits[(*block / 64) as usize] & (1 << (*block % 64)) != 0;
        (0..self.blocks).find(|block| !has(block) && !state.lost.contains_key(block))
    }

    pub(super) fn missing(&self) -> u64 {
        self.blocks - self.state.lock().here
    }

    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }
}
