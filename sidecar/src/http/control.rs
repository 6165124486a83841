//! What can be asked for on the local port: `POST /mark` names a point, `POST /checkpoint` asks whether everything written
//! before is durable over there.
//!
//! Only for peers on this machine (in a pod: its containers), whatever address the port is bound to: a name that
//! is given keeps its point from being thinned out, and a hook acts on the application. Bodies and answers are JSON.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{ConnectInfo, State, connect_info::Connected},
    http::StatusCode,
    routing::post,
    serve::IncomingStream,
};
use serde::{Deserialize, Serialize};
use tidelock_proto::{VolumeName, point::Consistency, wire};
use tokio::{sync::watch, time::timeout};

use super::{Volumes, bounded::Bounded};
use crate::{
    cut::{Busy, Desk, Placed, Progress},
    hooks::{HookError, Hooks},
    limits,
};

/// What requests act on.
pub(crate) struct Control {
    desk: Arc<Desk>,
    hooks: Arc<Hooks>,
}

impl Control {
    pub(crate) fn new(desk: Arc<Desk>, hooks: Arc<Hooks>) -> Self {
        Self { desk, hooks }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// The body of `POST /mark`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    /// One of the sidecar's volumes; all of them get the name.
    volume: String,
    tag: String,
    /// Between the hooks.
    #[serde(default)]
    app: bool,
    /// Answer when the point is durable, or when so many milliseconds have passed; 0: when it is cut.
    #[serde(default)]
    wait_ms: u64,
}

/// The body of `POST /checkpoint`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    /// How long to wait for a yes, in milliseconds; at least a second is.
    #[serde(default)]
    wait_ms: u64,
}

/// The answer: 200 if durable, 202 if not yet, and errors.
#[derive(Debug, Serialize)]
struct Answer {
    durable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    point: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consistency: Option<Consistency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

type Reply = (StatusCode, Json<Answer>);

struct Context {
    control: Control,
    volumes: Volumes,
}

pub(super) fn router(control: Control, volumes: Volumes) -> Router {
    Router::new()
        .route("/mark", post(mark))
        .route("/checkpoint", post(checkpoint))
        .with_state(Arc::new(Context { control, volumes }))
}

async fn mark(
    State(context): State<Arc<Context>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(mark): Json<Mark>,
) -> Reply {
    if !is_local(peer) {
        return failed(StatusCode::FORBIDDEN, &"only from this machine");
    }
    let named = mark.volume.parse::<VolumeName>();
    if !named.is_ok_and(|name| context.volumes.iter().any(|status| *status.volume() == name)) {
        return failed(StatusCode::NOT_FOUND, &format!("volume {} is not protected here", mark.volume));
    }
    if !wire::is_tag(&mark.tag) {
        let reason = "a tag is empty, longer than 128 bytes, or has control characters";
        return failed(StatusCode::BAD_REQUEST, &reason);
    }
    let wait_ms = mark.wait_ms;
    let asked = match mark.app {
        false => context.control.desk.ask(Some(mark.tag), None).map_err(HookError::from),
        true => {
            // A task of its own: the application goes on even if whoever asked does not wait.
            let cut = async move { context.control.hooks.cut(&context.control.desk, mark.tag).await };
            match tokio::spawn(cut).await {
                Ok(asked) => asked,
                Err(_) => return failed(StatusCode::INTERNAL_SERVER_ERROR, &"the sidecar is stopping"),
            }
        }
    };
    let answer = match asked {
        Ok(answer) => answer,
        Err(error @ HookError::NoHook) => return failed(StatusCode::CONFLICT, &error),
        Err(error @ HookError::Failed(_)) => return failed(StatusCode::INTERNAL_SERVER_ERROR, &error),
        Err(error @ HookError::Busy(_)) => return failed(StatusCode::SERVICE_UNAVAILABLE, &error),
    };
    let enough = |progress: &Progress| match wait_ms {
        0 => *progress != Progress::Waiting,
        _ => matches!(progress, Progress::Durable(_) | Progress::TooLate),
    };
    wait(answer, wait_ms, enough).await
}

async fn checkpoint(
    State(context): State<Arc<Context>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Json(checkpoint): Json<Checkpoint>,
) -> Reply {
    if !is_local(peer) {
        return failed(StatusCode::FORBIDDEN, &"only from this machine");
    }
    match context.control.desk.ask(None, None) {
        Ok(answer) => {
            let enough = |progress: &Progress| matches!(progress, Progress::Durable(_));
            wait(answer, checkpoint.wait_ms, enough).await
        }
        Err(error @ Busy) => failed(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

fn is_local(Peer(peer): Peer) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// Waits until there is enough of an answer, or the time is over, and tells how far it has come.
async fn wait(
    mut answer: watch::Receiver<Progress>,
    wait_ms: u64,
    enough: impl Fn(&Progress) -> bool,
) -> Reply {
    let patience = Duration::from_millis(wait_ms).clamp(limits::ANSWER_WITHIN, limits::WAIT_MAX);
    let gone = {
        let waited = timeout(patience, answer.wait_for(|progress| enough(progress))).await;
        matches!(waited, Ok(Err(_)))
    };
    let progress = *answer.borrow();
    match progress {
        Progress::Durable(placed) => at(StatusCode::OK, true, placed),
        Progress::TooLate => failed(
            StatusCode::INTERNAL_SERVER_ERROR,
            &"no quiet instant was found while the application was quiesced",
        ),
        _ if gone => failed(StatusCode::SERVICE_UNAVAILABLE, &"the sidecar is stopping"),
        Progress::Cut(placed) => at(StatusCode::ACCEPTED, false, placed),
        Progress::Waiting => (
            StatusCode::ACCEPTED,
            Json(Answer { durable: false, point: None, consistency: None, error: None }),
        ),
    }
}

fn at(code: StatusCode, durable: bool, Placed { point, consistency }: Placed) -> Reply {
    let (point, consistency) = (Some(point.to_string()), Some(consistency));
    (code, Json(Answer { durable, point, consistency, error: None }))
}

fn failed(code: StatusCode, error: &dyn std::fmt::Display) -> Reply {
    let error = Some(error.to_string());
    (code, Json(Answer { durable: false, point: None, consistency: None, error }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_ask() {
        let from = |address: &str| is_local(Peer(address.parse().expect("an address")));
        assert!(from("127.0.0.1:9") && from("[::1]:9") && from("[::ffff:127.0.0.1]:9"));
        assert!(!from("10.0.0.1:9") && !from("[2001:db8::1]:9"));
    }
}
