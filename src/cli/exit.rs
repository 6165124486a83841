//! How a command ends: a code for scripts, and one line for people that says what to do.

use std::{fmt::Display, process::ExitCode};

use tidelock_failover::FailoverError;

/// Shown below `tidelock --help`.
pub(crate) const HELP: &str = "Exit codes:\n  \
    0   done\n  \
    1   failed; test, drill: a check failed\n  \
    2   refused for safety: nobody was fenced, nothing deleted (a connected sidecar, a fuzzy point, another epoch, a target that is not empty, in use, or a receiver's)\n  \
    3   sidecar: fenced, the volume was promoted elsewhere\n  \
    4   sidecar: superseded, another sidecar replicates the volume\n  \
    5   verify, store rebuild: damage was found\n  \
    6   check: a pod that asked for protection is not protected\n  \
    64  bad usage or configuration; verify: a tenant was not looked at for want of its key\n  \
    130 interrupted: run the same command again";

/// Something failed.
pub(crate) const FAILED: u8 = 1;
/// Done on purpose not, because it could lose data.
pub(crate) const REFUSED: u8 = 2;
/// The volume was promoted, and this writer must not come back.
pub(crate) const FENCED: u8 = 3;
/// Another sidecar of the same epoch took over.
pub(crate) const SUPERSEDED: u8 = 4;
/// What was asked for was done, and the store is damaged.
pub(crate) const DAMAGED: u8 = 5;
/// Pods that asked for protection are not protected.
pub(crate) const UNPROTECTED: u8 = 6;
/// Ended by Ctrl-C or SIGTERM in the middle of what can be run again.
pub(crate) const INTERRUPTED: u8 = 130;
/// The arguments or the configuration make no sense.
pub(crate) const USAGE: u8 = 64;

/// Why a command ended without success.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// A failure with an exit code of its own.
    pub(crate) fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into() }
    }

    /// Bad arguments or configuration.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(USAGE, anyhow::anyhow!("{message}"))
    }

    /// An operator's request that failed or was refused.
    pub(crate) fn failover(error: FailoverError) -> Self {
        let code = match () {
            () if error.is_refusal() => REFUSED,
            () if error.is_usage() => USAGE,
            () if matches!(error, FailoverError::Interrupted) => INTERRUPTED,
            () => FAILED,
        };
        Self::new(code, error)
    }
}

impl Failure {
    /// The failure in one line.
    pub(crate) fn line(&self) -> String {
        one_line(&self.error)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(FAILED, error)
    }
}

/// Prints the failure, if there is one, as a single line.
pub(crate) fn report(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tidelock: {}", one_line(&failure.error));
            ExitCode::from(failure.code)
        }
    }
}

/// The error and its causes, without those that the one before has told already.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !line.contains(&text) {
            line = if line.is_empty() { text } else { format!("{line}: {text}") };
        }
    }
    line.replace('\n', " ")
}

/// Prints what clap says of the arguments; help and version are no failure.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done about a closed terminal.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let told =
            anyhow::anyhow!("disk full").context("cannot write x: disk full").context("restore\nfailed");
        assert_eq!(one_line(&told), "restore failed: cannot write x: disk full");
    }
}
