//! One machine as two: some of its processors are the application's, the others the standby's.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which processors are whose.
#[derive(Debug)]
pub(crate) struct Parts {
    here: CpuSet,
    there: CpuSet,
}

impl Parts {
    /// All for everybody, or the first half of them for one side and the rest for the other. The calling thread, and what it
    /// starts, is here from then on.
    pub(crate) fn new(apart: bool) -> Self {
        let all = sched_getaffinity(None).expect("processors can be asked for");
        let numbers: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&number| all.is_set(number)).collect();
        assert!(!apart || numbers.len() >= 2, "--apart needs two processors");
        let (first, second) = numbers.split_at(numbers.len() / 2);
        let parts = if apart {
            Self { here: set(first), there: set(second) }
        } else {
            Self { here: all, there: all }
        };
        parts.place(&parts.here);
        parts
    }

    /// What `start` starts runs on the other side.
    pub(crate) fn there<T>(&self, start: impl FnOnce() -> T) -> T {
        self.place(&self.there);
        let started = start();
        self.place(&self.here);
        started
    }

    fn place(&self, processors: &CpuSet) {
        sched_setaffinity(None, processors).expect("threads can be placed");
    }
}

fn set(numbers: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    numbers.iter().for_each(|&number| set.set(number));
    set
}
