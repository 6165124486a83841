//! Completes a store whose segments are partly in the archive, while everything else goes on.
//!
//! It works on a thread that stands back, some bytes at a time, and rests as long as it worked. What readers have fetched meanwhile it finds. Once all is here the store is like any other; until then no space is given back and nothing is mended.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::park_timeout,
    time::{Duration, Instant},
};

use tracing::{debug, info, warn};

use crate::{background, limits, log::part::PartDisk};

/// The thread that fetches. It ends soon after this is dropped; it may be waiting for the object store then, and holds nothing that anybody needs.
pub(crate) struct Filler {
    stop: Arc<AtomicBool>,
}

impl Filler {
    pub(crate) fn start(parts: PartDisk) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // Its end is not waited for.
        drop(background::spawn("archive-fill", move || run(&parts, &stopped))?);
        Ok(Self { stop })
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(parts: &PartDisk, stop: &AtomicBool) {
    let mut failures = 0;
    info!(bytes = parts.absent_bytes(), "the rest of the store is fetched in the background");
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        match parts.fill() {
            Ok(true) => {
                failures = 0;
                rest(begun.elapsed(), stop);
            }
            Ok(false) => match parts.absent_bytes() {
                0 => return info!("all of the store is here"),
                bytes => {
                    return warn!(bytes, "what the archive has of the store is here; some of it is lost");
                }
            },
            Err(error) => {
                failures += 1;
                match failures {
                    1 => warn!(%error, "the rest of the store cannot be fetched; it is tried again"),
                    _ => debug!(%error, "the rest of the store still cannot be fetched"),
                }
                rest((limits::ARCHIVE_RETRY_FIRST * failures).min(limits::ARCHIVE_RETRY_LAST), stop);
            }
        }
    }
}

fn rest(pause: Duration, stop: &AtomicBool) {
    let until = Instant::now() + pause;
    while !stop.load(Ordering::Relaxed) && Instant::now() < until {
        park_timeout(until.saturating_duration_since(Instant::now()).min(limits::ARCHIVE_RETRY_FIRST));
    }
}
