//! Health and metrics over plain HTTP. They name volumes and no content; bind them where only the cluster reaches them.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::oneshot};

use crate::{operator::observe, server::Context};

/// Serves until `stop`, after the last session: so that readiness tells of a shutdown while it lasts.
///
/// - `/healthz`: 503 once the store takes no writes, which only a restart can cure.
/// - `/readyz`: 503 also while shutting down.
/// - `/metrics`: OpenMetrics text.
pub(crate) async fn serve(
    listener: TcpListener,
    context: Arc<Context>,
    stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(context);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            let _ = stop.await;
        })
        .await
}

async fn healthz(State(context): State<Arc<Context>>) -> Response {
    match context.store.refusal() {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn readyz(State(context): State<Arc<Context>>) -> Response {
    if *context.closing.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response();
    }
    healthz(State(context)).await
}

async fn metrics(State(context): State<Arc<Context>>) -> Response {
    for observed in observe(&context, crate::server::now().wall_ns) {
        context.metrics.set_volume(&observed.name, &observed.gauges());
    }
    if let Some(archive) = &context.archive {
        context.metrics.set_archive(&archive.observe());
    }
    context.metrics.set_identity(context.identity.validity());
    context.metrics.set_full(context.store.full().is_some());
    context.metrics.set_absent(context.store.parts().map_or(0, |parts| parts.absent_bytes()));
    if let Some(cap) = context.cap {
        let log_bytes = context.store.log_len();
        context.metrics.set_cap(cap.bytes, log_bytes, cap.is_near(log_bytes));
    }
    if context.store.refusal().is_some() {
        context.metrics.on_poisoned();
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], context.metrics.encode()).into_response()
}
