//! `tidelock demo`: the main job, end to end, on this machine.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{exit::Failure, signals};
use crate::demo;

/// Show the main job end to end on this machine, in under a minute.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds until the disaster; a random moment if absent.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// Run the bank itself in VOLUME, with its witness file. Used by the demo.
    #[arg(long, hide = true, num_args = 2, value_names = ["VOLUME", "WITNESS"])]
    bank: Option<Vec<PathBuf>>,
}

/// Runs the demo, or the part of it that is a process of its own.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if let Some([volume, witness]) = args.bank.as_deref() {
        return Ok(demo::bank::run(volume, witness)?);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let signal = runtime.block_on(async { signals::shutdown() })?;
    runtime.spawn({
        let interrupted = interrupted.clone();
        async move {
            signal.await;
            interrupted.store(true, Ordering::Relaxed);
        }
    });
    Ok(demo::run(args.seconds, &|| interrupted.load(Ordering::Relaxed))?)
}
