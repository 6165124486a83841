//! Threads for what nobody waits for: they stand back behind the ones that acknowledge.
//!
//! The index is written, checkpoints are cut and images follow in bursts of milliseconds. At one priority such a burst can keep the store's
//! writer off a core for a whole slice of the scheduler, some ten times as long as an `fdatasync`, and every commit of that moment with it.
//! What they fall behind is bounded elsewhere (the writer waits for an index that is too far behind), so they cannot starve for good. The keeper,
//! which makes room in a full store, is not among them: commits do wait for room.

use std::{io, thread::JoinHandle};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::limits::BACKGROUND_NICE;

/// Starts a thread of lower priority than the one that calls.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        stand_back();
        run();
    })
}

/// Of this thread.
fn stand_back() {
    // Always allowed; if it ever is not, a thread of the same priority is better than none.
    let _ = rustix::process::nice(BACKGROUND_NICE);
}

/// A runtime of such threads, those that block included: for operators who can wait. What they read keeps no acknowledgement off its core.
pub(crate) struct Background(Option<Runtime>);

impl Background {
    /// One thread runs tasks: nearly all they do is to wait for the disk and the peer.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("patient")
            .on_thread_start(stand_back)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.0.as_ref().expect("it is taken when it is dropped").handle()
    }
}

impl Drop for Background {
    /// What still runs there has nobody any more who waits for it.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    fn nice() -> i32 {
        getpriority_process(None).expect("of this thread")
    }

    #[test]
    fn whoever_can_wait_stands_back_wherever_it_runs() {
        let (before, background) = (nice(), Background::start().expect("threads"));
        let (task, blocking) = background.handle().block_on(async {
            let task = tokio::spawn(async { nice() });
            (task.await.expect("no panic"), tokio::task::spawn_blocking(nice).await.expect("no panic"))
        });
        assert_eq!((task, blocking), (before + BACKGROUND_NICE, before + BACKGROUND_NICE));
        assert_eq!(nice(), before, "others do not");
    }
}
