//! The command line: one file a subcommand, with its arguments and a `run` that wires a library role to the terminal.
//!
//! What a command does belongs to the libraries, which neither print nor exit. Exit codes are in [`exit`].

pub(crate) mod exit;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::Failure;

/// Continuous replication for stateful Kubernetes pods: a standby copy that trails by milliseconds.
#[derive(Debug, Parser)]
#[command(name = "tidelock", version, after_help = exit::HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {}

/// Parses the command line, runs the command, and says how it ended.
pub(crate) fn run() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => exit::report(dispatch(cli.command)),
        Err(error) => exit::usage(&error),
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {}
}
