//! The end that somebody asks for.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

use super::exit;

/// From here on, Ctrl-C ends the process with a word on how to go on: what writes a copy can be run again at any moment.
pub(crate) fn say_how_to_go_on() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let asked = {
        let _inside = runtime.enter();
        shutdown()?
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(asked);
        eprintln!("tidelock: interrupted: the copy is not finished; run the same command again, and it goes on from there");
        std::process::exit(exit::INTERRUPTED.into());
    })?;
    Ok(())
}

/// Resolves at the first SIGTERM or SIGINT. From this call on neither ends the process by itself.
pub(crate) fn shutdown() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Turns true at SIGTERM or Ctrl-C.
pub(crate) fn stopped() -> io::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let asked = {
        let _inside = runtime.enter();
        shutdown()?
    };
    let seen = stopped.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(asked);
        seen.store(true, Ordering::Relaxed);
    })?;
    Ok(stopped)
}
