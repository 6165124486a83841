//! Health and metrics over plain HTTP.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::watch};

use super::Shared;

#[derive(Clone)]
struct Health {
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
}

/// - `/healthz`: the process runs.
/// - `/readyz`: 503 once it is about to stop.
/// - `/metrics`: OpenMetrics text.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, stopping: watch::Receiver<bool>) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Health { shared, stopping });
    // Ends only with the process.
    let _ = axum::serve(listener, router).await;
}

async fn readyz(State(health): State<Health>) -> Response {
    match *health.stopping.borrow() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
        false => "ok\n".into_response(),
    }
}

async fn metrics(State(health): State<Health>) -> Response {
    let text = health.shared.metrics.encode(health.shared.certificate.not_after_s());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
