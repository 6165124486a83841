//! The QUIC side: connections, streams, and who may open which.
//!
//! One task for a connection and one for each of its streams, so that a stream which ends in disorder disturbs nobody
//! else. The number of connections and of streams in each is limited by the transport.

mod begin;
mod checks;
mod sidecar;

use std::sync::{Arc, atomic::AtomicBool};

use tidelock_proto::{
    VolumeName,
    identity::Identity,
    transport::{Connection, FrameError, FrameReader, FrameWriter, Handshake, Server, TransportError},
    wire::messages::{Denied, Open, OpenKind, ToSidecar, ToSidecarKind},
};
use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{Instrument, debug, error, info_span, warn};

pub(crate) use checks::CheckPool;
pub(crate) use sidecar::now;

use crate::{
    Cap, archive, background::Background, image::Images, limits, metrics::Metrics, operator,
    retention::Policy, store::Store, volume::Volumes,
};

/// What all streams share.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) volumes: Volumes,
    pub(crate) metrics: Metrics,
    /// Who this is to its peers.
    pub(crate) identity: Identity,
    /// The hot images, if any are kept.
    pub(crate) images: Option<Arc<Images>>,
    pub(crate) checks: CheckPool,
    /// For operators that can wait.
    pub(crate) background: Background,
    /// Trees built for operators, each of which may be large.
    pub(crate) trees: Semaphore,
    /// Where the log is archived, if it is.
    pub(crate) archive: Option<archive::Handle>,
    /// Verifications for operators, each of which reads the whole log.
    pub(crate) verifications: Semaphore,
    /// How long the store's log may get.
    pub(crate) cap: Option<Cap>,
    /// Which points stay as they grow old.
    pub(crate) keep: Policy,
    /// Forecasts for operators, each of which reads all operations.
    pub(crate) plans: Semaphore,
    /// Much is not needed any more: space is to be given back soon.
    pub(crate) space_wanted: AtomicBool,
    /// Turns true when the receiver shuts down.
    pub(crate) closing: watch::Receiver<bool>,
}

impl Context {
    /// The volume's journal has changed.
    pub(crate) fn on_durable(&self, volume: &VolumeName) {
        if let Some(images) = &self.images {
            images.nudge(volume);
        }
    }
}

/// Accepts peers until the receiver shuts down, then waits for their streams, at most [`limits::DRAIN_TIMEOUT`].
pub(crate) async fn serve(server: &Server, context: Arc<Context>) {
    let mut closing = context.closing.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            handshake = server.accept() => match handshake {
                Some(handshake) => {
                    connections.spawn(serve_connection(handshake, context.clone()));
                }
                None => break,
            },
            Some(ended) = connections.join_next() => report_panic(ended),
            _ = closing.wait_for(|closing| *closing) => break,
        }
    }
    let drain = async {
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    };
    if timeout(limits::DRAIN_TIMEOUT, drain).await.is_err() {
        warn!("sessions still running at the end of their time");
    }
}

async fn serve_connection(handshake: Handshake, context: Arc<Context>) {
    let address = handshake.remote_address();
    let connection = match handshake.complete().await {
        Ok(connection) => connection,
        Err(reason) => {
            context.metrics.on_refused_peer();
            warn!(%address, %reason, "peer refused");
            return;
        }
    };
    let span = info_span!("peer", %address);
    serve_streams(&connection, &context).instrument(span).await;
}

/// Serves a connection's streams. Once the receiver shuts down no new one is taken, and the last one that ends frees
/// the connection.
async fn serve_streams(connection: &Connection, context: &Arc<Context>) {
    debug!(peer = %connection.peer(), "connected");
    let mut closing = context.closing.clone();
    let pins = Arc::new(operator::Pins::default());
    let mut streams = JoinSet::new();
    let reason = loop {
        tokio::select! {
            stream = connection.accept() => match stream {
                Ok((writer, reader)) => {
                    let (connection, context, pins) = (connection.clone(), context.clone(), pins.clone());
                    let serve =
                        async move { serve_stream(&connection, &context, &pins, writer, reader).await };
                    streams.spawn(serve.in_current_span());
                }
                Err(reason) => break Some(reason),
            },
            Some(ended) = streams.join_next() => report_panic(ended),
            _ = closing.wait_for(|closing| *closing) => break None,
        }
    };
    match reason {
        Some(reason @ TransportError::TimedOut) => warn!(peer = %connection.peer(), %reason, "disconnected"),
        Some(reason) => debug!(peer = %connection.peer(), %reason, "disconnected"),
        None => {}
    }
    while let Some(ended) = streams.join_next().await {
        report_panic(ended);
    }
}

async fn serve_stream(
    connection: &Connection,
    context: &Arc<Context>,
    pins: &Arc<operator::Pins>,
    mut writer: FrameWriter,
    mut reader: FrameReader,
) {
    let mut closing = context.closing.clone();
    let open = tokio::select! {
        open = timeout(limits::OPEN_TIMEOUT, reader.next::<Open>()) => open,
        _ = closing.wait_for(|closing| *closing) => return,
    };
    let peer = connection.peer();
    let fault = match open {
        Ok(Ok(Some(Open { kind: Some(OpenKind::Hello(hello)) }))) => {
            return sidecar::serve(context, peer, hello, writer, reader).await;
        }
        Ok(Ok(Some(Open { kind: Some(OpenKind::Request(request)) }))) => {
            if !request.patient {
                return operator::serve(context, pins, peer, request, writer).await;
            }
            let (connection, context, pins) = (connection.clone(), context.clone(), pins.clone());
            let handle = context.background.handle().clone();
            let serve = async move {
                operator::serve(&context, &pins, connection.peer(), request, writer).await;
            };
            // It ends with this stream: the store is closed by the last who has the context.
            let mut answer = JoinSet::new();
            answer.spawn_on(serve.in_current_span(), &handle);
            return answer.join_next().await.map_or((), report_panic);
        }
        Ok(Ok(Some(Open { kind: None }))) => "its first frame opens nothing".to_owned(),
        Ok(Err(error @ (FrameError::TooLong { .. } | FrameError::Malformed(_)))) => error.to_string(),
        // Gone before it said anything.
        Ok(Ok(None) | Err(_)) => return,
        Err(_) => "nothing was said in time".to_owned(),
    };
    context.metrics.on_broken_stream();
    warn!(%peer, reason = fault, "stream ended: it makes no sense");
    // What the peer wanted is not known; both sides of the protocol read this frame or see the stream end.
    let denied = ToSidecarKind::Denied(Denied { reason: fault, retry: true });
    let last = async {
        writer.send(&ToSidecar { kind: Some(denied) }).await?;
        finish(&mut writer).await
    };
    let _ = timeout(limits::LAST_WORDS_TIMEOUT, last).await;
}

/// Ends a stream and waits until the peer has received all of it: a connection that is dropped drops what is on its
/// way.
pub(crate) async fn finish(writer: &mut FrameWriter) -> Result<(), FrameError> {
    writer.finish().await?;
    // Whether the peer took it or wants no more, there is nothing left to do.
    let _ = writer.stream_mut().stopped().await;
    Ok(())
}

/// Work that would keep a runtime thread for long. Elsewhere where the runtime allows it, here where it has one thread.
pub(crate) fn heavy<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}

/// Work that waits for the disk.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends, and so does whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a task panicked; its stream is gone");
    }
}
