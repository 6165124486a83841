//! The command line: one file a subcommand, with its arguments and a `run` that wires a library role to the terminal.
//!
//! What a command does belongs to the libraries, which neither print nor exit. Exit codes are in [`exit`].

mod cat;
mod check;
mod clone;
mod delete;
mod demo;
mod diff;
mod drill;
pub(crate) mod exit;
mod failback;
mod failover;
mod failpoint;
mod find;
mod hold;
mod identity_from;
mod inject;
mod injector;
mod instant;
mod keys;
mod local;
mod logging;
mod ls;
mod mount;
mod nice;
pub(crate) mod output;
mod patience;
mod pki;
mod plan;
mod points;
mod probe;
mod promote;
mod receiver;
mod recorder;
mod restore;
mod rollback;
mod seed;
mod shell;
mod sidecar;
mod signals;
mod source;
mod stats;
mod status;
mod store;
mod subject;
mod trial;
mod verify;
mod watchdog;
mod window;
mod workload;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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
    Check(check::Args),
    Diff(diff::Args),
    Failback(failback::Args),
    Failover(failover::Args),
    Find(find::Args),
    Stats(stats::Args),
    Restore(restore::Args),
    Mount(mount::Args),
    Promote(promote::Args),
    Hydration(instant::Hydration),
    Move(promote::Move),
    Commit(window::Commit),
    Unpromote(window::Unpromote),
    Rollback(rollback::Args),
    Seed(seed::Args),
    Branches(seed::Branches),
    Clone(clone::Args),
    Hold(hold::Hold),
    Release(hold::Release),
    Test(drill::Test),
    Drill(drill::Drill),
    Status(status::Args),
    Mark(local::Mark),
    Checkpoint(local::Checkpoint),
    Verify(verify::Args),
    Store(store::Args),
    Pki(pki::Args),
    Receiver(receiver::Args),
    Recorder(recorder::Args),
    Sidecar(sidecar::Args),
    Inject(inject::Args),
    Injector(injector::Args),
    Probe(probe::Args),
    Demo(demo::Args),
    Completions(shell::Completions),
    Man(shell::Man),
    #[command(name = watchdog::NAME, hide = true)]
    Watchdog,
}

/// Parses the command line, runs the command, and says how it ended.
pub(crate) fn run() -> ExitCode {
    let parsed = command(std::env::args_os().next()).try_get_matches();
    match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => exit::report(dispatch(cli.command)),
        Err(error) => exit::usage(&error),
    }
}

/// The command line; installed as `kubectl-tidelock` it is a plugin, and speaks of itself as one.
fn command(program: Option<OsString>) -> clap::Command {
    let program = program.as_deref().map(Path::new).and_then(Path::file_stem);
    match program.is_some_and(|name| name == "kubectl-tidelock") {
        true => Cli::command().bin_name("kubectl tidelock"),
        false => Cli::command(),
    }
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Points(args) => points::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Failback(args) => failback::run(&args),
        Command::Failover(args) => failover::run(&args),
        Command::Find(args) => find::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Mount(args) => mount::run(&args),
        Command::Promote(args) => promote::run(&args),
        Command::Hydration(args) => instant::run_hydration(&args),
        Command::Move(args) => promote::run_move(args),
        Command::Commit(args) => window::run_commit(&args),
        Command::Unpromote(args) => window::run_unpromote(&args),
        Command::Rollback(args) => rollback::run(&args),
        Command::Seed(args) => seed::run(&args),
        Command::Branches(args) => seed::run_branches(&args),
        Command::Clone(args) => clone::run(&args),
        Command::Hold(args) => hold::run_hold(&args),
        Command::Release(args) => hold::run_release(&args),
        Command::Test(args) => drill::test(&args),
        Command::Drill(args) => drill::drill(&args),
        Command::Status(args) => status::run(&args),
        Command::Mark(args) => local::mark(&args),
        Command::Checkpoint(args) => local::checkpoint(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Pki(args) => pki::run(args),
        Command::Receiver(args) => receiver::run(args),
        Command::Recorder(args) => recorder::run(args),
        Command::Sidecar(args) => sidecar::run(args),
        Command::Inject(args) => inject::run(&args),
        Command::Injector(args) => injector::run(args),
        Command::Probe(args) => probe::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
        Command::Watchdog => watchdog::run(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn as_a_plugin_it_speaks_of_itself_as_one() {
        for (program, shown) in
            [("/usr/bin/kubectl-tidelock", "kubectl tidelock points"), ("./tidelock", "tidelock points")]
        {
            let parsed = command(Some(program.into())).try_get_matches_from([program, "points"]);
            let error = parsed.expect_err("the volume is missing");
            let usage = error.to_string();
            assert!(usage.contains(&format!("Usage: {shown}")), "{usage}");
        }
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
