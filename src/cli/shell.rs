//! What shells and manuals need: completions and man pages, made from the command line itself.

use std::path::PathBuf;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

use super::exit::Failure;

/// Print completions for a shell, such as `tidelock completions bash > /etc/bash_completion.d/tidelock`
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

/// Write the man pages, one a command
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// The directory, such as /usr/local/share/man/man1; created if it is not there
    directory: PathBuf,
}

pub(crate) fn completions(args: &Completions, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tidelock", &mut script);
    super::output::print(String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

pub(crate) fn man(args: &Man, command: Command) -> Result<(), Failure> {
    let directory = args.directory.display();
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(command, &args.directory))
        .with_context(|| format!("cannot write the pages to {directory}"))?;
    Ok(())
}
