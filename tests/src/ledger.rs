//! Transactions whose begin and acknowledgement are known: the witness outside a database's volume.
//!
//! Every writer commits 1, 2, 3, … to a counter of its own. A copy of the database therefore shows by one number a writer
//! which transactions it holds, and the ledger says which it must hold and which it cannot.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::wait::{self, SOON, now_ns};

/// A connection that can commit the next value of its counter. Errors are for people.
pub trait Writer: Send {
    /// Returns when the database has acknowledged the commit of `value`, which is one more than the last.
    fn commit(&mut self, value: u64) -> Result<(), String>;
}

/// When a value was committed, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Commit {
    begun_ns: u64,
    acked_ns: u64,
}

/// One thread a writer, each committing as fast as it can.
pub struct Load {
    threads: Vec<JoinHandle<Result<(), String>>>,
    commits: Vec<Arc<Mutex<Vec<Commit>>>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// Starts the threads.
    pub fn start(writers: Vec<Box<dyn Writer>>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let commits: Vec<_> = writers.iter().map(|_| Arc::new(Mutex::new(Vec::new()))).collect();
        let threads = writers.into_iter().zip(&commits).map(|(writer, commits)| {
            let (commits, stop) = (Arc::clone(commits), Arc::clone(&stop));
            thread::spawn(move || write(writer, &commits, &stop))
        });
        let threads = threads.collect();
        Self { threads, commits, stop }
    }

    /// Waits until every writer has committed something, and returns the time then.
    pub fn under_way(&self) -> u64 {
        let begun = |commits: &Arc<Mutex<Vec<Commit>>>| !commits.lock().expect("no holder panics").is_empty();
        wait::until_true("a commit of every writer", SOON, || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a writer has failed");
            self.commits.iter().all(begun)
        });
        now_ns()
    }

    /// Lets the writers work on for a while, then ends them; panics if one of them failed.
    pub fn finish(mut self, after: Duration) -> Ledger {
        // The length of the load is what is wanted here; nothing is waited for.
        thread::sleep(after);
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join().expect("a writer does not panic");
            ended.unwrap_or_else(|reason| panic!("a writer failed: {reason}"));
        }
        Ledger(self.commits.iter().map(|commits| commits.lock().expect("no holder panics").clone()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(mut writer: Box<dyn Writer>, commits: &Mutex<Vec<Commit>>, stop: &AtomicBool) -> Result<(), String> {
    for value in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun_ns = now_ns();
        writer.commit(value)?;
        let acked_ns = now_ns();
        commits.lock().expect("no holder panics").push(Commit { begun_ns, acked_ns });
    }
    Ok(())
}

/// All that the writers did, by writer.
pub struct Ledger(Vec<Vec<Commit>>);

impl Ledger {
    /// Transactions in all.
    pub fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Whether nothing was committed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is wrong with the counters of a copy that claims the instant `cut_ns`. A commit is promised `slack` after its
    /// acknowledgement: zero for a database that writes before it acknowledges.
    pub fn judge(&self, held: &[u64], cut_ns: u64, slack: Duration) -> Vec<String> {
        let slack_ns = u64::try_from(slack.as_nanos()).expect("a short time");
        assert_eq!(held.len(), self.0.len(), "one counter a writer");
        let mut wrong = Vec::new();
        for (writer, (commits, held)) in self.0.iter().zip(held).enumerate() {
            let promised = commits.partition_point(|commit| commit.acked_ns + slack_ns < cut_ns) as u64;
            let begun = commits.partition_point(|commit| commit.begun_ns <= cut_ns) as u64;
            if *held < promised {
                wrong.push(format!("writer {writer}: {held} is held, but {promised} had been acknowledged"));
            }
            if *held > begun {
                wrong.push(format!("writer {writer}: {held} is held, but only {begun} had begun"));
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred commits, 10 ns each.
    fn ledger() -> Ledger {
        let commits = (0..100).map(|at| Commit { begun_ns: at * 10, acked_ns: at * 10 + 9 });
        Ledger(vec![commits.collect()])
    }

    #[test]
    fn a_lost_commit_and_one_from_the_future_are_found() {
        let ledger = ledger();
        for (held, wrong) in [(49, 1), (50, 0), (51, 0), (52, 1)] {
            assert_eq!(ledger.judge(&[held], 505, Duration::ZERO).len(), wrong, "{held}");
        }
    }

    #[test]
    fn slack_excuses_only_the_last_commits() {
        let ledger = ledger();
        for (held, wrong) in [(39, 1), (40, 0), (51, 0), (52, 1)] {
            assert_eq!(ledger.judge(&[held], 505, Duration::from_nanos(100)).len(), wrong, "{held}");
        }
    }
}
