//! The local port: probes, metrics, status.
//!
//! `/healthz` says that the process runs, `/readyz` that its volumes are protected, `/metrics` and `/status` how well. Nothing
//! of the volumes' content is shown. What can be asked for ([`control`]) is taken from this machine alone.

mod bounded;
mod control;

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tidelock_proto::identity::Identity;
use tokio::net::TcpListener;

pub(crate) use self::control::Control;

use self::bounded::Bounded;
use crate::{
    limits, metrics,
    status::{Report, Status, now_ns},
};

type Volumes = Arc<[Arc<Status>]>;

/// What `/status` shows.
#[derive(Debug, Serialize)]
struct Page {
    version: &'static str,
    volumes: Vec<Report>,
}

/// Answers until `shutdown`.
pub(crate) async fn serve(
    listener: TcpListener,
    volumes: Vec<Arc<Status>>,
    identity: Option<Identity>,
    control: Control,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = Bounded::new(listener, limits::HTTP_CONNECTIONS_MAX);
    let volumes: Volumes = volumes.into();
    let router = router(volumes.clone(), identity).merge(control::router(control, volumes));
    let service = router.into_make_service_with_connect_info::<control::Peer>();
    axum::serve(listener, service).with_graceful_shutdown(shutdown).await
}

fn router(volumes: Volumes, identity: Option<Identity>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .with_state(volumes.clone())
        .merge(Router::new().route("/metrics", get(page)).with_state((volumes, identity)))
}

/// Names the volumes that are not ready, and why.
async fn ready(State(volumes): State<Volumes>) -> Response {
    let unready: Vec<String> = volumes
        .iter()
        .filter(|status| !status.is_ready())
        .map(|status| format!("{}: {}\n", status.volume(), status.state().as_str()))
        .collect();
    match unready.is_empty() {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, unready.concat()).into_response(),
    }
}

async fn page(State((volumes, identity)): State<(Volumes, Option<Identity>)>) -> Response {
    match metrics::render(&volumes, identity.map(|identity| identity.validity()), now_ns()) {
        Ok(page) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(volumes): State<Volumes>) -> impl IntoResponse {
    let now = now_ns();
    let volumes = volumes.iter().map(|status| status.report(now)).collect();
    Json(Page { version: env!("CARGO_PKG_VERSION"), volumes })
}

#[cfg(test)]
mod tests {
    use tidelock_proto::{Epoch, PointId, Seq};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::ship::End;

    async fn ask(port: u16, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a listener");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    }

    #[tokio::test]
    async fn probes_follow_the_status() {
        let volume = Arc::new(Status::new("t/v".parse().expect("valid"), Epoch(1)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let desk = Arc::new(crate::cut::Desk::new().expect("an eventfd"));
        let control = Control::new(desk, Arc::new(crate::hooks::Hooks::new(Default::default())));
        tokio::spawn(serve(listener, vec![volume.clone()], None, control, std::future::pending()));
        assert!(ask(port, "/healthz").await.starts_with("HTTP/1.1 200"));
        let unready = ask(port, "/readyz").await;
        assert!(unready.starts_with("HTTP/1.1 503") && unready.contains("t/v: connecting"), "{unready}");
        volume.on_session(true, Some((PointId::new(Epoch(1), Seq(9)), 5)), 9);
        assert!(ask(port, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask(port, "/status").await.contains(r#""last_acked":{"point":"1.9""#));
        assert!(ask(port, "/metrics").await.contains("tidelock_ready{volume=\"t/v\"} 1.0"));
        volume.on_ended(&End::Fenced(Epoch(2)));
        assert!(ask(port, "/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(ask(port, "/status").await.contains("fenced: epoch 2 has another writer"));
    }
}
