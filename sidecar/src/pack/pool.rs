//! A few threads that take chunks off the caller's hands.
//!
//! The caller offers a chunk to the threads and packs it itself when their short queue is full, so all are busy, little
//! is copied ahead, and nothing waits unbounded.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Packed, Worker};
use crate::limits;

struct Job {
    index: usize,
    content: Bytes,
}

/// `None` if packing panicked, which is passed on to the caller.
type Done = (usize, Option<Packed>);

pub(super) struct Pool {
    jobs: Sender<Job>,
    /// The other end, so that the caller can take back what nobody has begun.
    begun_by_nobody: Receiver<Job>,
    done: Receiver<Done>,
}

impl Pool {
    pub(super) fn start(threads: usize, worker: impl Fn() -> Worker) -> Self {
        let capacity = threads * limits::PACK_QUEUE_MAX;
        let (jobs, waiting) = bounded(capacity);
        let (results, done) = bounded(capacity + threads);
        for n in 0..threads {
            let (waiting, results, worker) = (waiting.clone(), results.clone(), worker());
            thread::Builder::new()
                .name(format!("pack-{n}"))
                .spawn(move || work(&waiting, &results, worker))
                .expect("the system has room for a thread");
        }
        Self { jobs, begun_by_nobody: waiting, done }
    }

    /// Packs all parts; the results are in their order.
    pub(super) fn pack(&self, parts: &[&[u8]], own: &mut Worker) -> Vec<Packed> {
        let mut packed: Vec<Option<Packed>> = vec![None; parts.len()];
        let mut lent = 0;
        for (index, part) in parts.iter().enumerate() {
            if self.jobs.is_full() {
                packed[index] = Some(own.pack(part));
            } else {
                // Nobody else sends, so there is room.
                let job = Job { index, content: Bytes::copy_from_slice(part) };
                self.jobs.send(job).expect("the receiving end is held here");
                lent += 1;
            }
            for (index, result) in self.done.try_iter() {
                packed[index] = Some(result.expect("packing a chunk panicked"));
                lent -= 1;
            }
        }
        while let Ok(job) = self.begun_by_nobody.try_recv() {
            packed[job.index] = Some(own.pack_owned(job.content));
            lent -= 1;
        }
        for (index, result) in self.done.iter().take(lent) {
            packed[index] = Some(result.expect("packing a chunk panicked"));
        }
        packed.into_iter().map(|packed| packed.expect("every part was packed")).collect()
    }
}

/// Ends when the pool is dropped.
fn work(jobs: &Receiver<Job>, results: &Sender<Done>, mut worker: Worker) {
    for job in jobs {
        let packed = catch_unwind(AssertUnwindSafe(|| worker.pack_owned(job.content))).ok();
        if results.send((job.index, packed)).is_err() {
            return;
        }
    }
}
