//! Rows whose commit is known, and when: the witness outside the volume.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::Pg;
use crate::wait::now_ns;

/// A committed row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Key of the row.
    pub id: i64,
    /// When it was sent, in nanoseconds since 1970.
    pub begun_ns: u64,
    /// When the commit was acknowledged, in nanoseconds since 1970.
    pub acked_ns: u64,
}

/// A thread that commits one row after the other.
pub struct Heartbeat {
    beats: Arc<Mutex<Vec<Beat>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Starts to commit a row every `pause`, from id 1 on. The table `heartbeat` is made here.
    pub fn start(pg: &Pg, pause: Duration) -> Self {
        let mut client = pg.connect();
        client
            .batch_execute("CREATE TABLE heartbeat (id bigint PRIMARY KEY)")
            .expect("the table can be made");
        let beats = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (out, until) = (Arc::clone(&beats), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let insert = client.prepare("INSERT INTO heartbeat VALUES ($1)").expect("the table is there");
            for id in 1.. {
                let begun_ns = now_ns();
                if until.load(Ordering::Relaxed) || client.execute(&insert, &[&id]).is_err() {
                    return;
                }
                let acked_ns = now_ns();
                out.lock().expect("no holder panics").push(Beat { id, begun_ns, acked_ns });
                thread::sleep(pause);
            }
        });
        Self { beats, stop, thread: Some(thread) }
    }

    /// All rows acknowledged so far, oldest first.
    pub fn acked(&self) -> Vec<Beat> {
        self.beats.lock().expect("no holder panics").clone()
    }

    /// Stops and returns all acknowledged rows.
    pub fn stop(mut self) -> Vec<Beat> {
        self.end();
        self.acked()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.end();
    }
}
