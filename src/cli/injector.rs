//! `tidelock injector`: the admission webhook.

use std::{net::SocketAddr, path::PathBuf};

use tidelock_cluster::{
    api::{Client, ElectionApi, InjectorApi, Place, WatchApi, connect},
    authority::{Care, Rotation},
    election::{alone, leave},
    identity::Policy,
    limits::{IDENTITY_VALIDITY, LEASE_LOOK_EVERY},
    managed::{self, Managed, ManagedError},
    watch::{Pace, Tally, Watcher},
};
use tidelock_injector::server::{self, Extras, ServeError, ServerConfig};

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
    #[command(flatten)]
    own: OwnAuthority,
    #[command(flatten)]
    watch: Watch,
    /// A namespace that the API server does not ask about; may be given several times
    #[arg(long = "excluded-namespace", value_name = "NAME")]
    excluded_namespaces: Vec<String>,
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

/// An authority of its own, which gives identities to pods.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Authority of its own")]
struct OwnAuthority {
    /// Keep an authority in this Secret of the own namespace, make it if it is not there, and write the server's certificate to
    /// --certificate. Pods get their identities here. Needs the API
    #[arg(long, value_name = "SECRET", requires_all = ["webhooks", "hosts", "own_namespace"])]
    authority_secret: Option<String>,
    /// Give the authority a successor half a year before it ends, which is believed at once and signs a quarter of a year later
    #[arg(long, requires = "authority_secret")]
    rotate_authority: bool,
    /// The MutatingWebhookConfiguration that is to believe the authority
    #[arg(long, value_name = "NAME", requires = "authority_secret")]
    webhooks: Option<String>,
    /// The server's name in DNS; may be given several times, and pods use the first
    #[arg(long = "host", value_name = "NAME", requires = "authority_secret")]
    hosts: Vec<String>,
    /// The service account of receivers in the own namespace, which get identities, too
    #[arg(long, value_name = "NAME", requires = "receiver_hosts")]
    receiver_account: Option<String>,
    /// A DNS name or address that they are dialled by; may be given several times
    #[arg(long = "receiver-host", value_name = "NAME", requires = "receiver_account")]
    receiver_hosts: Vec<String>,
    /// The service account of the recorder in the own namespace, which gets an identity for each tenant
    #[arg(long, value_name = "NAME", requires = "authority_secret")]
    recorder_account: Option<String>,
    /// The domain in the names of identities
    #[arg(long, default_value = "tidelock", value_name = "NAME", requires = "authority_secret")]
    trust_domain: String,
}

/// Looking after pods that are there.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pods that are there")]
struct Watch {
    /// Watch all pods, and report those that asked for protection and are not protected: as metrics, and as Events on their
    /// owners. Of several replicas one does, by this Lease in the own namespace. Needs the API
    #[arg(long, value_name = "LEASE", requires_all = ["own_namespace", "replica"])]
    watch_lease: Option<String>,
    /// This replica's name, unlike any other's
    #[arg(long, value_name = "NAME", env = "TIDELOCK_REPLICA")]
    replica: Option<String>,
}

impl Watch {
    /// What watches, and what it takes turns by; nothing if that was not asked for.
    fn watcher(self, client: &Client, config: &ServerConfig) -> Option<(Watcher<WatchApi>, ElectionApi)> {
        let injection = &config.injection;
        let (lease, replica) = (self.watch_lease?, self.replica?);
        let election = ElectionApi::new(client.clone(), injection.own_namespace.as_ref()?, &lease);
        let (calls, tally) = (WatchApi::new(client.clone()), Tally::default());
        Some((Watcher { calls, config: injection.clone(), tally, replica, pace: Pace::default() }, election))
    }
}

impl OwnAuthority {
    /// Where the objects are, and what is to be looked after; nothing if that was not asked for.
    fn managed(self, namespace: Option<&str>) -> Result<Option<(Place, Managed)>, Failure> {
        let (Some(secret), Some(webhooks), Some(namespace)) =
            (self.authority_secret, self.webhooks, namespace)
        else {
            return Ok(None);
        };
        let namespace = namespace.to_owned();
        let receiver = self.receiver_account.map(|account| (account, self.receiver_hosts));
        let managed = Managed {
            hosts: self.hosts,
            policy: Policy { namespace: namespace.clone(), receiver, recorder: self.recorder_account },
            domain: self.trust_domain.parse().map_err(Failure::usage)?,
            validity: IDENTITY_VALIDITY,
            care: Care { rotation: self.rotate_authority.then(Rotation::default), ..Care::default() },
        };
        Ok(Some((Place { namespace, secret, webhooks }, managed)))
    }
}

/// Runs until it is told to stop.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    logging::init(&args.log)?;
    let managed = args.own.managed(args.own_namespace.as_deref())?;
    let needs_api = managed.is_some() || args.watch.watch_lease.is_some();
    let mut config = ServerConfig {
        listen: args.listen,
        certificate: args.certificate,
        http: args.http,
        port_file: args.port_file,
        injection: args.injection.config(args.own_namespace)?,
    };
    config.injection.excluded_namespaces = args.excluded_namespaces;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(async {
        let shutdown = signals::shutdown()?;
        if !needs_api {
            return server::run(config, shutdown).await.map_err(failure);
        }
        let client = connect().await.map_err(|error| Failure::new(USAGE, error))?;
        let mut extras = Extras::default();
        let watcher = args.watch.watcher(&client, &config);
        if let Some((watcher, _)) = &watcher {
            watcher.tally.register(&mut extras.registry);
        }
        beside(watcher, serve(client, managed, config, extras, shutdown)).await
    });
    runtime.shutdown_background();
    ended
}

async fn serve(
    client: Client,
    managed: Option<(Place, Managed)>,
    config: ServerConfig,
    extras: Extras,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let Some((place, managed)) = managed else {
        return server::run_with(config, extras, shutdown).await.map_err(failure);
    };
    let ended = managed::run(InjectorApi::new(client, place), managed, config, extras, shutdown).await;
    ended.map_err(|error| match error {
        ManagedError::Serve(error) => failure(error),
        ManagedError::Keep(error) => error.into(),
    })
}

/// Serves, and looks after pods whenever it is this replica's turn.
async fn beside(
    watcher: Option<(Watcher<WatchApi>, ElectionApi)>,
    serving: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let Some((watcher, election)) = watcher else { return serving.await };
    let ended = tokio::select! {
        ended = serving => ended,
        () = alone(&election, &watcher.replica, LEASE_LOOK_EVERY, || watcher.run()) => Ok(()),
    };
    leave(&election, &watcher.replica).await;
    ended
}

fn failure(error: ServeError) -> Failure {
    match error {
        ServeError::Ended => error.into(),
        _ => Failure::new(USAGE, error),
    }
}
