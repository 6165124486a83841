//! Threads for what nobody waits for: they stand back behind the ones that acknowledge.
//!
//! The index is written, checkpoints are cut and images follow in bursts of milliseconds. At one priority such a burst can keep the store's
//! writer off a core for a whole slice of the scheduler, some ten times as long as an `fdatasync`, and every commit of that moment with it.
//! What they fall behind is bounded elsewhere (the writer waits for an index that is too far behind), so they cannot starve for good. The keeper,
//! which makes room in a full store, is not among them: commits do wait for room.

use std::{io, thread::JoinHandle};

use crate::limits::BACKGROUND_NICE;

/// Starts a thread of lower priority than the one that calls.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Always allowed; if it ever is not, a thread of the same priority is better than none.
        let _ = rustix::process::nice(BACKGROUND_NICE);
        run();
    })
}
