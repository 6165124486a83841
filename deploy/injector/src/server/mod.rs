//! The webhook as a server: HTTPS for the API server, and plain HTTP for health and metrics.
//!
//! A review is answered without asking the API server. It does not tell the labels of the pod's namespace, but the API server knows them:
//! its selectors choose the path that is asked ([`routes`]), so the answer needs no cache of namespaces that could be
//! behind, and no right to read them.
//!
//! Whoever reaches the port may ask, so every request is bounded in bytes and time, all together in memory, and a bad one
//! costs its sender a connection and nobody else anything. HTTP/1.1 only, which the API server falls back to.
//!
//! At the end: `/readyz` says no, and requests are still taken for as long as it may take until nobody is sent here any
//! more; then connections are closed as they become idle.

mod body;
mod certificate;
mod connection;
mod health;
mod metrics;
mod routes;

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::Router;
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use certificate::Certificate;
pub use certificate::CertificateError;
use metrics::Metrics;

use crate::{config::Config, limits};

/// Every metric begins so.
pub const METRICS_PREFIX: &str = "tidelock_injector";

/// How the server runs.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// TCP address for the API server.
    pub listen: SocketAddr,
    /// Directory with `tls.crt` and `tls.key`.
    pub certificate: PathBuf,
    /// TCP address for `/healthz`, `/readyz` and `/metrics`, in plain HTTP.
    pub http: SocketAddr,
    /// Both bound addresses are written here, a line each.
    pub port_file: Option<PathBuf>,
    /// What pods get.
    pub injection: Config,
}

/// What else the server answers and counts.
#[derive(Debug)]
pub struct Extras {
    /// Further paths.
    pub routes: Router,
    /// Further metrics; the prefix is [`METRICS_PREFIX`].
    pub registry: Registry,
    /// The authorities in `identity_from` as they are at any time, where they may change.
    pub authorities: Option<Authorities>,
}

/// Authorities that may change, PEM.
pub struct Authorities(Box<dyn Fn() -> String + Send + Sync>);

impl Authorities {
    /// What `now` answers.
    pub fn new(now: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self(Box::new(now))
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authorities").finish_non_exhaustive()
    }
}

impl Default for Extras {
    fn default() -> Self {
        Self { routes: Router::new(), registry: Registry::with_prefix(METRICS_PREFIX), authorities: None }
    }
}

/// Why the server does not run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// An address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The port file cannot be written.
    #[error("cannot write {}: {source}", .path.display())]
    PortFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The server for health and metrics ended.
    #[error("the HTTP server for health and metrics ended")]
    Ended,
}

/// What all connections share.
struct Shared {
    injection: Config,
    authorities: Option<Authorities>,
    metrics: Metrics,
    /// Bytes of bodies that may be in memory.
    memory: Arc<Semaphore>,
    certificate: Arc<Certificate>,
}

impl Shared {
    /// What a pod gets now.
    fn injection(&self) -> Cow<'_, Config> {
        let Some(authorities) = &self.authorities else { return Cow::Borrowed(&self.injection) };
        let mut injection = self.injection.clone();
        if let Some(from) = &mut injection.identity_from {
            from.authorities = authorities.0();
        }
        Cow::Owned(injection)
    }
}

/// Serves until `shutdown`, and then until what was asked is answered.
pub async fn run(config: ServerConfig, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    run_with(config, Extras::default(), shutdown).await
}

/// [`run`], with more to answer and to count.
pub async fn run_with(
    config: ServerConfig,
    extras: Extras,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let certificate = Certificate::load(&config.certificate)?;
    let listener = bind(config.listen).await?;
    let http = bind(config.http).await?;
    let metrics = Metrics::new(extras.registry);
    let shared = Arc::new(Shared {
        injection: config.injection,
        authorities: extras.authorities,
        metrics,
        memory: Arc::new(Semaphore::new(limits::BODIES_MAX_BYTES)),
        certificate: certificate.clone(),
    });
    let address = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
    let (listening, serving) = (address(&listener, config.listen), address(&http, config.http));
    if let Some(path) = &config.port_file {
        write_whole(path, &format!("{listening}\n{serving}\n"))
            .map_err(|source| ServeError::PortFile { path: path.clone(), source })?;
    }
    info!(listen = %listening, http = %serving, image = shared.injection.image, "injector runs");
    let (stop, stopping) = watch::channel(false);
    let mut health = tokio::spawn(health::serve(http, shared.clone(), stopping.clone()));
    let (close, closing) = watch::channel(false);
    let mut connections = JoinSet::new();
    let acceptor = TlsAcceptor::from(certificate.server_config());
    let router = routes::router(shared.clone()).merge(extras.routes);
    let accepting = accept(&listener, &acceptor, &router, &shared, &closing, &mut connections);
    let lame_duck = async {
        shutdown.await;
        stop.send_replace(true);
        info!("stopping: new requests are still taken for a moment");
        sleep(limits::LAME_DUCK).await;
    };
    let ended = tokio::select! {
        () = accepting => Ok(()),
        () = lame_duck => Ok(()),
        _ = &mut health => Err(ServeError::Ended),
    };
    drop(listener);
    close.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(limits::DRAIN_TIMEOUT, all).await.is_err() {
        warn!(open = connections.len(), "connections were not idle in time");
    }
    health.abort();
    info!("stopped");
    ended
}

/// Takes connections as long as there is room for them; others wait in the kernel's queue.
async fn accept(
    listener: &TcpListener,
    acceptor: &TlsAcceptor,
    router: &Router,
    shared: &Arc<Shared>,
    closing: &watch::Receiver<bool>,
    connections: &mut JoinSet<()>,
) {
    loop {
        while connections.len() >= limits::CONNECTIONS_MAX || connections.try_join_next().is_some() {
            if connections.len() >= limits::CONNECTIONS_MAX {
                connections.join_next().await;
            }
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let serve = connection::serve(
                    stream,
                    acceptor.clone(),
                    router.clone(),
                    shared.clone(),
                    closing.clone(),
                );
                connections.spawn(serve);
            }
            // One that went away again, or no file descriptors left: others will end.
            Err(error) => {
                warn!(%error, "cannot take a connection");
                sleep(limits::ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

/// Whoever waits for the file finds all of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let half = path.with_extension("new");
    std::fs::write(&half, text)?;
    std::fs::rename(half, path)
}
