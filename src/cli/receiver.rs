//! `tidelock receiver`: takes in what sidecars send and keeps the journal of recovery points.

use std::{net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use tidelock_cluster::identity::Wanted;
use tidelock_receiver::{
    Cap, Config, RunError,
    archive::{self, Ack, ArchiveUrl},
    limits,
    retention::{self, Policy},
};

use super::{
    exit::{Failure, USAGE},
    identity_from::{self, IdentityFrom},
    keys::KeyArgs,
    logging::{self, LogArgs},
    patience, sidecar, signals,
};

/// Keep the standby copies: take in what sidecars send, answer operators.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the store; created if it is not there. One receiver a store.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// UDP address for sidecars and operators, such as 0.0.0.0:4433; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    listen: SocketAddr,
    /// Directory with tls.crt, tls.key and ca.crt; `tidelock pki issue receiver` makes one.
    #[arg(long, value_name = "DIR")]
    identity: PathBuf,
    #[command(flatten)]
    identity_from: IdentityFrom,
    /// Directory for a hot image of every volume: its newest point, laid out as files, which a promotion on this machine takes by rename.
    /// One receiver a directory; on a file system of its own it does not slow the store's disk.
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
    /// TCP address for /healthz, /readyz and /metrics, which are plain HTTP.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    http: SocketAddr,
    /// Which points stay as they grow old: tiers STEP:AGE from young to old; `all:forever` keeps all.
    #[arg(long, value_name = "POLICY", default_value = retention::DEFAULT)]
    keep: Policy,
    #[command(flatten)]
    archive: Archive,
    /// How long the store's log may get, such as 500G; near it the oldest points go before their time, except those with a name. At least 64M
    #[arg(long, value_name = "BYTES", value_parser = cap_bytes)]
    store_cap: Option<u64>,
    /// Warn in status and metrics from this part of --store-cap on
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(1..=100))]
    store_warn: u8,
    /// Write the two bound addresses here once everything listens, a line each.
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// A copy of the store in an object store.
#[derive(Debug, clap::Args)]
struct Archive {
    /// Keep a copy of the store there, from which a receiver with an empty --store goes on: s3://BUCKET/PREFIX, gs://…, az://…, file:///DIR.
    /// Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT, …).
    #[arg(long, value_name = "URL")]
    archive: Option<ArchiveUrl>,
    /// When a sidecar is told that its point is durable.
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = AckArg::Local, requires_if("archive", "archive"))]
    ack: AckArg,
    /// How often what is new is archived; 10s, or 250ms with `--ack archive`; at least 10ms
    #[arg(long, value_name = "TIME", requires = "archive", value_parser = archive_interval)]
    archive_interval: Option<Duration>,
    /// How long another receiver must see no sign of this one before it takes the archive over: 1s to 10m
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = archive_lease)]
    archive_lease: Duration,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AckArg {
    /// On the receiver's disk
    Local,
    /// In the archive too
    Archive,
}

impl Archive {
    fn options(self) -> Option<archive::Options> {
        Some(archive::Options {
            url: self.archive?,
            ack: match self.ack {
                AckArg::Local => Ack::Local,
                AckArg::Archive => Ack::Archive,
            },
            interval: self.archive_interval,
            lease: self.archive_lease,
        })
    }
}

/// Runs until it is told to stop.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    logging::init(&args.log)?;
    let source = args.identity_from.source(Wanted::Receiver, args.identity.clone())?;
    let config = Config {
        store: args.store,
        keys: args.keys.load()?,
        listen: args.listen,
        identity: args.identity,
        image: args.image,
        http: args.http,
        cap: args.store_cap.map(|bytes| Cap { bytes, warn_percent: args.store_warn }),
        keep: args.keep,
        archive: args.archive.options(),
        port_file: args.port_file,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Half of the cores: most of what the runtime does is short, and waking a second thread for it costs more than it
    // saves. Hashing, the log and the index have threads of their own.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut shutdown = pin!(signals::shutdown()?);
        let wait = source.is_some();
        let work = async {
            if wait && !patience::identity(&config.identity, config.http, shutdown.as_mut()).await? {
                return Ok(());
            }
            tidelock_receiver::run(config, shutdown).await.map_err(failure)
        };
        identity_from::holding(source, work).await
    });
    // Nothing that is still running has anything left to promise.
    runtime.shutdown_background();
    ended
}

pub(super) fn cap_bytes(text: &str) -> Result<u64, String> {
    let bytes = sidecar::parse_bytes(text)?;
    if bytes < limits::CAP_MIN_BYTES { Err("is less than 64M".to_owned()) } else { Ok(bytes) }
}

fn archive_interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if interval < limits::ARCHIVE_INTERVAL_MIN { Err("is less than 10ms".to_owned()) } else { Ok(interval) }
}

fn archive_lease(text: &str) -> Result<Duration, String> {
    let lease = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match () {
        () if lease < limits::ARCHIVE_LEASE_MIN => Err("is less than 1s".to_owned()),
        // Nobody else would believe it for longer, and it is renewed every third of it.
        () if lease > limits::ARCHIVE_LEASE_MAX => Err("is more than 10m".to_owned()),
        () => Ok(lease),
    }
}

fn failure(error: RunError) -> Failure {
    if error.is_configuration() { Failure::new(USAGE, error) } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_nobody_could_renew_or_believe_is_refused() {
        for text in ["0s", "999ms", "601s", "soon"] {
            assert!(archive_lease(text).is_err(), "{text}");
        }
        assert_eq!(archive_lease("1s"), Ok(Duration::from_secs(1)));
        assert_eq!(archive_lease("10m"), Ok(Duration::from_secs(600)));
        assert!(archive_interval("0s").is_err() && archive_interval("10ms").is_ok());
    }
}
