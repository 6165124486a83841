//! Logs of the long-running commands: to standard error, as text for people or JSON for collectors.

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt};

use super::exit::Failure;

/// Which events are logged; the syntax is that of `tracing_subscriber::EnvFilter`.
const FILTER_VARIABLE: &str = "TIDELOCK_LOG";
/// What libraries say of their own doings is not for operators.
const DEFAULT_FILTER: &str =
    "info,fjall=warn,fuser=error,lsm_tree=warn,quinn=warn,quinn_proto=warn,rustls=warn";

/// How a command logs.
#[derive(Debug, Default, Args)]
pub(crate) struct LogArgs {
    /// Form of the log on standard error. What is logged is chosen with TIDELOCK_LOG, such as `info` or
    /// `info,tidelock_receiver=debug`.
    #[arg(long, value_enum, default_value_t, env = "TIDELOCK_LOG_FORMAT", value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    /// A line for a person.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// Begins to log. Once a process.
pub(crate) fn init(args: &LogArgs) -> Result<(), Failure> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(filter) => EnvFilter::try_new(&filter)
            .map_err(|error| Failure::usage(format!("{FILTER_VARIABLE}={filter}: {error}")))?,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match args.log_format {
        LogFormat::Text => {
            builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
        }
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
