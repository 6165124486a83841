//! The command line: one file a subcommand, with its arguments and a `run` that wires a library role to the terminal.
//!
//! What a command does belongs to the libraries, which neither print nor exit. Exit codes are in [`exit`].

mod cat;
mod demo;
mod diff;
pub(crate) mod exit;
mod find;
mod local;
mod logging;
mod ls;
pub(crate) mod output;
mod pki;
mod points;
mod promote;
mod receiver;
mod restore;
mod sidecar;
mod signals;
mod source;
mod stats;
mod status;
mod store;
mod verify;
mod watchdog;

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
enum Command {
    Points(points::Args),
    Ls(ls::Args),
    Cat(cat::Args),
    Diff(diff::Args),
    Find(find::Args),
    Stats(stats::Args),
    Restore(restore::Args),
    Promote(promote::Args),
    Status(status::Args),
    Mark(local::Mark),
    Checkpoint(local::Checkpoint),
    Verify(verify::Args),
    Store(store::Args),
    Pki(pki::Args),
    Receiver(receiver::Args),
    Sidecar(sidecar::Args),
    Demo(demo::Args),
    #[command(name = watchdog::NAME, hide = true)]
    Watchdog,
}

/// Parses the command line, runs the command, and says how it ended.
pub(crate) fn run() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => exit::report(dispatch(cli.command)),
        Err(error) => exit::usage(&error),
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Points(args) => points::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Find(args) => find::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Promote(args) => promote::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Mark(args) => local::mark(&args),
        Command::Checkpoint(args) => local::checkpoint(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Pki(args) => pki::run(args),
        Command::Receiver(args) => receiver::run(args),
        Command::Sidecar(args) => sidecar::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Watchdog => watchdog::run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_age_is_not_taken_for_an_option() {
        let parsed =
            Cli::try_parse_from(["tidelock", "restore", "t/v", "--at", "-5m", "--to", "x", "--store", "s"]);
        assert!(parsed.is_ok(), "{parsed:?}");
        for bad in [&["tidelock"][..], &["tidelock", "points", "no-tenant"], &["tidelock", "promote", "t/v"]]
        {
            assert!(Cli::try_parse_from(bad).is_err(), "{bad:?}");
        }
    }
}
