//! `tidelock injector`: the admission webhook.

use std::{net::SocketAddr, path::PathBuf};

use tidelock_injector::server::{self, ServeError, ServerConfig};

use super::{
    exit::{Failure, USAGE},
    inject::Injection,
    logging::{self, LogArgs},
    signals,
};

/// Add sidecars to pods as they are created: the admission webhook that an API server asks
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// TCP address for the API server
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:9443")]
    listen: SocketAddr,
    /// Directory with the server's tls.crt and tls.key, which may change at any time
    #[arg(long, value_name = "DIR")]
    certificate: PathBuf,
    /// TCP address for /healthz, /readyz and /metrics, which are plain HTTP
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9903")]
    http: SocketAddr,
    /// The namespace that this runs in: pods there are left alone
    #[arg(long, value_name = "NAME", env = "TIDELOCK_NAMESPACE")]
    own_namespace: Option<String>,
    /// Write the two bound addresses here once everything listens, a line each
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,
    #[command(flatten)]
    injection: Injection,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs until it is told to stop.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    logging::init(&args.log)?;
    let config = ServerConfig {
        listen: args.listen,
        certificate: args.certificate,
        http: args.http,
        port_file: args.port_file,
        injection: args.injection.config(args.own_namespace)?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = signals::shutdown()?;
        server::run(config, shutdown).await.map_err(failure)
    });
    runtime.shutdown_background();
    ended
}

fn failure(error: ServeError) -> Failure {
    match error {
        ServeError::Ended => error.into(),
        _ => Failure::new(USAGE, error),
    }
}
