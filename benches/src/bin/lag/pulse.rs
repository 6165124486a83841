//! The connection whose commits are timed.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tidelock_tests::{pg::Pg, wait::now_ns};

/// A commit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beat {
    /// When PostgreSQL acknowledged it, in nanoseconds since 1970.
    pub(crate) acked_ns: u64,
    /// A position in PostgreSQL's log that is not before its end: at most a few commits of others later.
    pub(crate) lsn: u64,
}

/// Makes the table that the rows go to.
pub(crate) fn make_table(pg: &Pg) {
    pg.connect()
        .batch_execute("CREATE TABLE pulse (id bigserial PRIMARY KEY)")
        .expect("the table can be made");
}

/// A thread that commits.
pub(crate) struct Pulse {
    beats: Arc<Mutex<Vec<Beat>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    /// Commits a row every `pause`.
    pub(crate) fn start(pg: &Pg, pause: Duration) -> Self {
        let mut client = pg.connect();
        let beats = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (out, until) = (Arc::clone(&beats), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let insert = client.prepare("INSERT INTO pulse DEFAULT VALUES").expect("the table is there");
            let position =
                client.prepare("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn").expect("a primary");
            while !until.load(Ordering::Relaxed) {
                client.execute(&insert, &[]).expect("the server runs");
                let acked_ns = now_ns();
                let row = client.query_one(&position, &[]).expect("the server runs");
                let lsn = super::standby::lsn(&row);
                out.lock().expect("no holder panics").push(Beat { acked_ns, lsn });
                thread::sleep(pause);
            }
        });
        Self { beats, stop, thread: Some(thread) }
    }

    /// The first commit, once it is there.
    pub(crate) fn first(&self) -> Option<Beat> {
        self.beats.lock().expect("no holder panics").first().copied()
    }

    /// Stops and returns all commits.
    pub(crate) fn stop(mut self) -> Vec<Beat> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ran to the end");
        }
        self.beats.lock().expect("no holder panics").clone()
    }
}
