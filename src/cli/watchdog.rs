//! The hidden command that a sidecar starts to have its pauses ended whatever becomes of it.

use super::exit::Failure;

/// Its name on the command line.
pub(crate) const NAME: &str = "pause-watchdog";

/// Watches over the sidecar at the other end of standard input.
pub(crate) fn run() -> Result<(), Failure> {
    Ok(tidelock_sidecar::pause::watch(std::io::stdin())?)
}
