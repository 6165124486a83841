//! One connection: handshake, requests, end.

use std::{pin::pin, sync::Arc};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::Shared;
use crate::limits;

/// Serves a connection until the peer or `closing` ends it.
pub(super) async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shared: Arc<Shared>,
    mut closing: watch::Receiver<bool>,
) {
    let _open = shared.metrics.connection();
    // Answers are small, and somebody waits for each.
    let _ = stream.set_nodelay(true);
    let stream = match timeout(limits::HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            debug!(%error, "handshake failed");
            return shared.metrics.on_handshake_failed();
        }
        Err(_) => return shared.metrics.on_handshake_failed(),
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits::IDLE_TIMEOUT)
        .max_buf_size(limits::HEAD_MAX_BYTES)
        .max_headers(limits::HEADERS_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let asked = async move {
        // A server that is gone closes, too.
        let _ = closing.wait_for(|closing| *closing).await;
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = asked => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection broke");
    }
}
