//! A receiver from its configuration to its end.
//!
//! Order of starting: identity, store (which takes its lock), addresses, port file. So whatever is wrong with the
//! configuration is found before anybody can connect, and a second receiver on the same store never listens.
//!
//! Order of ending: no more connections; every session's commits are made durable and acknowledged; the store is closed. A
//! store that fails ends the process with an error: nothing it could still do would be a promise kept.

use std::{
    fs::{self, File},
    future::Future,
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use tidelock_proto::{
    identity::{Identity, Role},
    transport::{self, Server, TransportError},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{info, warn};

use crate::{
    Config, RunError,
    archive::{self, Archive, Filler},
    background::Background,
    http,
    image::Images,
    keeper::Keeper,
    limits,
    metrics::Metrics,
    server::{self, CheckPool, Context},
    store::{Store, StoreError, StoreOptions},
    volume::Volumes,
};

/// Runs a receiver until `shutdown` resolves or something it needs fails.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    let identity = Identity::load(&config.identity)?;
    if identity.peer().role != Role::Receiver {
        return Err(RunError::Transport(TransportError::NotAReceiver(identity.peer().to_string())));
    }
    // Before the store: who cannot serve takes nobody's archive over.
    let server = transport::server(config.listen, identity.clone()).map_err(|error| match error {
        TransportError::Bind { source, .. } => {
            RunError::Listen { option: "--listen", address: config.listen, cause: source }
        }
        error => RunError::Transport(error),
    })?;
    let on_http = |cause| RunError::Listen { option: "--http", address: config.http, cause };
    let listener = TcpListener::bind(config.http).await.map_err(on_http)?;
    let (quic, http) = (server.local_addr().map_err(on_http)?, listener.local_addr().map_err(on_http)?);
    let (store, mut archive, filler) = open_store(&config).await?;

    let images = match config.image.clone() {
        Some(dir) => {
            let store = store.clone();
            let images = server::blocking(move || Images::start(store, &dir)).await;
            Some(Arc::new(images.map_err(RunError::Image)?))
        }
        None => None,
    };
    let (close, closing) = watch::channel(false);
    let context = Arc::new(Context {
        store,
        volumes: Volumes::default(),
        metrics: Metrics::default(),
        identity,
        images,
        checks: CheckPool::start().map_err(RunError::Threads)?,
        background: Background::start().map_err(RunError::Threads)?,
        archive: archive.as_ref().map(Archive::handle),
        trees: Semaphore::new(limits::TREES_AT_ONCE),
        verifications: Semaphore::new(limits::VERIFY_AT_ONCE),
        cap: config.cap,
        keep: config.keep.clone(),
        plans: Semaphore::new(limits::PLANS_AT_ONCE),
        space_wanted: AtomicBool::new(false),
        closing,
    });
    if let Some(path) = &config.port_file {
        let source = |source| RunError::PortFile { path: path.clone(), source };
        write_whole(path, &format!("{quic}\n{http}\n")).map_err(source)?;
    }
    announce(&config, quic, http, &context.store);
    let mut keeper = Keeper::start(context.clone(), config.keep.clone()).map_err(RunError::Threads)?;

    let (stop_http, stopping_http) = oneshot::channel();
    let mut http_server = tokio::spawn(http::serve(listener, context.clone(), stopping_http));
    let ended = tokio::select! {
        ended = serve_until(&server, &context, shutdown, &close) => ended,
        error = watch_over(&context) => Err(RunError::Store(error)),
        _ = &mut http_server => Err(RunError::Ended("the HTTP server")),
        () = keeper.ended() => Err(RunError::Ended("retention")),
        lost = archive_ended(&mut archive) => Err(lost.map_or(RunError::Ended("the archive"), RunError::Archive)),
    };
    close.send_replace(true);
    drop(filler);
    server.shutdown("the receiver is shutting down").await;
    drop(stop_http);
    if !http_server.is_finished() && timeout(limits::LAST_WORDS_TIMEOUT, &mut http_server).await.is_err() {
        http_server.abort();
    }
    if let Some(archive) = archive {
        archive.stop().await;
    }
    let closed = context.store.closed();
    // Waits for the disk.
    server::blocking(move || {
        keeper.stop();
        drop(context);
    })
    .await;
    // A session that was cut short is gone only when its task has been dropped, wherever that runs.
    if timeout(limits::CLOSE_TIMEOUT, closed).await.is_err() {
        warn!("the store is still in use; what was acknowledged is durable");
    }
    info!("stopped");
    ended
}

/// The store, behind what its archive has if it was lost.
async fn open_store(config: &Config) -> Result<(Store, Option<Archive>, Option<Filler>), RunError> {
    let dir = config.store.clone();
    let prepared = server::blocking(move || Store::prepare(&dir)).await.map_err(RunError::Open)?;
    let cap_bytes = config.cap.map(|cap| cap.bytes);
    let options = StoreOptions { keys: config.keys.clone(), cap_bytes, ..StoreOptions::default() };
    let opening = match &config.archive {
        Some(archive) => {
            let begun = archive::Opening::begin(prepared.dir(), archive.clone(), options.clone()).await;
            Some(begun.map_err(RunError::Archive)?)
        }
        None => None,
    };
    let begun = Instant::now();
    let reach = opening.as_ref().map(archive::Opening::reach).transpose().map_err(RunError::Archive)?;
    let fetches = reach.is_some();
    let store = server::blocking(move || prepared.open_with(options, reach));
    let store = store.await.map_err(RunError::Open)?;
    let opened = store.opened();
    info!(took = ?begun.elapsed(), torn = opened.torn, rebuilt = opened.rebuilt, replayed = opened.replayed, "store opened");
    if opened.damaged > 0 {
        tracing::error!(places = opened.damaged, first = ?opened.damage.first(), "store is damaged; points that rest on it cannot be opened");
    }
    let archive = match opening {
        Some(opening) => Some(opening.start(Arc::new(store.clone())).await.map_err(RunError::Archive)?),
        None => None,
    };
    let filler = match store.parts().filter(|parts| parts.is_filling()) {
        Some(parts) if fetches => Some(Filler::start(parts).map_err(RunError::Threads)?),
        Some(parts) => {
            tracing::error!(
                bytes = parts.absent_bytes(),
                "parts of the store are only in its archive, and no --archive was given"
            );
            None
        }
        None => None,
    };
    Ok((store, archive, filler))
}

async fn archive_ended(archive: &mut Option<Archive>) -> Option<archive::ArchiveError> {
    match archive {
        Some(archive) => archive.ended().await,
        None => std::future::pending().await,
    }
}

fn announce(config: &Config, quic: SocketAddr, http: SocketAddr, store: &Store) {
    info!(
        listen = %quic,
        http = %http,
        store = %config.store.display(),
        identity = %config.identity.display(),
        keep = %config.keep,
        archive = config.archive.as_ref().map(|archive| archive.url.to_string()),
        cap_bytes = config.cap.map(|cap| cap.bytes),
        volumes = store.volumes().len(),
        version = env!("CARGO_PKG_VERSION"),
        "receiver ready"
    );
}

/// Serves; once `shutdown` resolves, lets the sessions come to their end.
async fn serve_until(
    server: &Server,
    context: &Arc<Context>,
    shutdown: impl Future<Output = ()>,
    close: &watch::Sender<bool>,
) -> Result<(), RunError> {
    let serving = server::serve(server, context.clone());
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return Err(RunError::Ended("the QUIC server")),
        () = shutdown => {}
    }
    info!("shutting down");
    close.send_replace(true);
    serving.await;
    Ok(())
}

/// Drops what nobody uses; ends when the store takes no writes any more, and says why.
async fn watch_over(context: &Context) -> StoreError {
    let mut tick = interval(limits::STORE_CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept = Instant::now();
    loop {
        tick.tick().await;
        if let Some(reason) = context.store.refusal() {
            context.metrics.on_poisoned();
            return reason;
        }
        if swept.elapsed() >= limits::SWEEP_INTERVAL {
            swept = Instant::now();
            context.volumes.sweep(swept, limits::IDLE_TREE);
        }
    }
}

/// Writes a file that is never seen half written.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}
