//! What operators ask: one request a stream, answered by data frames and then `Done`, or by `Failed` at any point.
//!
//! Every request names one volume and is allowed or not before the store is looked at, so that an operator of another tenant
//! cannot tell a volume that exists from one that does not.

mod clone;
mod delete;
mod error;
mod history;
mod image;
mod plan;
mod promote;
mod read;
mod status;
mod verify;

use std::collections::VecDeque;

use parking_lot::Mutex;
use tidelock_proto::{
    VolumeName,
    identity::{Peer, Role},
    transport::FrameWriter,
    wire::{
        PROTOCOL_VERSION, WireError,
        messages::{Done, Failed, OperatorReply, OperatorRequest, ReplyKind, RequestKind},
    },
};
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

pub(crate) use status::observe;

use crate::{
    limits,
    server::{Context, finish},
    store::Pin,
};
use error::OperatorError;

/// The points whose trees were asked for over a connection: they stay as long as it lives, because their chunks are asked for next.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<VecDeque<Pin>>);

impl Pins {
    fn hold(&self, pin: Pin) {
        let mut pins = self.0.lock();
        pins.push_back(pin);
        if pins.len() > limits::PINS_PER_CONNECTION {
            pins.pop_front();
        }
    }
}

/// Serves an operator's stream from its request on.
pub(crate) async fn serve(
    context: &Context,
    pins: &Pins,
    peer: &Peer,
    request: OperatorRequest,
    writer: FrameWriter,
) {
    let mut replies = Replies { writer };
    let Err(failure) = answer(context, pins, peer, request, &mut replies).await else { return };
    let reason = failure.to_string();
    match &failure {
        OperatorError::Gone(_) => return debug!(%peer, %reason, "operator left before the end of its answer"),
        OperatorError::NotPermitted { .. } | OperatorError::Version(_) => {
            context.metrics.on_refused_stream();
            warn!(%peer, %reason, "operator refused");
        }
        OperatorError::Wire(_) | OperatorError::BadRequest(_) => {
            context.metrics.on_broken_stream();
            warn!(%peer, %reason, "operator's request makes no sense");
        }
        OperatorError::Store(failure) if failure.is_damage() => {
            error!(%peer, %reason, "operator's request failed")
        }
        _ => info!(%peer, %reason, "operator's request failed"),
    }
    let last = async {
        replies.send(ReplyKind::Failed(Failed { reason, code: failure.code() })).await?;
        finish(&mut replies.writer).await.map_err(OperatorError::from)
    };
    let _ = timeout(limits::LAST_WORDS_TIMEOUT, last).await;
}

/// The stream of replies.
struct Replies {
    writer: FrameWriter,
}

impl Replies {
    /// Adds a frame; waits while the operator does not read.
    async fn send(&mut self, kind: ReplyKind) -> Result<(), OperatorError> {
        Ok(self.writer.feed(&OperatorReply { kind: Some(kind) }).await?)
    }
}

async fn answer(
    context: &Context,
    pins: &Pins,
    peer: &Peer,
    request: OperatorRequest,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    if request.version != PROTOCOL_VERSION {
        return Err(OperatorError::Version(request.version));
    }
    let kind = request.kind.ok_or(WireError::Missing("request"))?;
    let only_reads = matches!(
        kind,
        RequestKind::Status(_) | RequestKind::Points(_) | RequestKind::Tree(_) | RequestKind::Chunks(_)
    );
    let may_ask = match peer.role {
        Role::Operator { .. } => true,
        Role::Reader { .. } => only_reads,
        Role::Sidecar { .. } | Role::Receiver => false,
    };
    if !may_ask {
        return Err(OperatorError::NotPermitted {
            peer: peer.to_string(),
            what: "ask as an operator".to_owned(),
        });
    }
    let permitted = |volume: &str| permit(peer, volume, Peer::may_operate);
    let readable = |volume: &str| permit(peer, volume, Peer::may_read);
    match kind {
        RequestKind::Status(_) => status::answer(context, peer, replies).await?,
        RequestKind::Points(request) => {
            read::points(context, readable(&request.volume)?, request.newest, replies).await?;
        }
        RequestKind::Tree(request) => {
            read::tree(context, pins, readable(&request.volume)?, request.point, replies).await?;
        }
        RequestKind::Chunks(request) => {
            read::chunks(context, readable(&request.volume)?, &request.ids, replies).await?;
        }
        RequestKind::Promote(request) => {
            promote::answer(context, peer, permitted(&request.volume)?, &request, replies).await?;
        }
        RequestKind::Tag(request) => {
            tag(context, permitted(&request.volume)?, request.point, &request.tag).await?
        }
        RequestKind::Release(request) => {
            release(context, permitted(&request.volume)?, request.point).await?;
        }
        RequestKind::Verify(request) => {
            let volume = request.volume.as_deref().map(permitted).transpose()?;
            verify::answer(context, peer, volume, &request, replies).await?;
        }
        RequestKind::Find(request) => {
            history::find(context, permitted(&request.volume)?, request, replies).await?;
        }
        RequestKind::Usage(request) => {
            history::usage(context, permitted(&request.volume)?, request.point, replies).await?;
        }
        RequestKind::Image(request) => {
            image::answer(context, permitted(&request.volume)?, request.release, replies).await?;
        }
        RequestKind::Delete(request) => {
            delete::answer(context, peer, permitted(&request.volume)?, &request, replies).await?;
        }
        RequestKind::Plan(request) => {
            let volume = request.volume.as_deref().map(permitted).transpose()?;
            plan::answer(context, peer, volume, &request, replies).await?;
        }
        RequestKind::Clone(request) => {
            let (volume, to) = (permitted(&request.volume)?, permitted(&request.to)?);
            clone::answer(context, volume, request.point, to, replies).await?;
        }
    }
    replies.send(ReplyKind::Done(Done {})).await?;
    Ok(finish(&mut replies.writer).await?)
}

fn permit(
    peer: &Peer,
    volume: &str,
    may: fn(&Peer, &VolumeName) -> bool,
) -> Result<VolumeName, OperatorError> {
    let volume: VolumeName = volume.parse()?;
    if may(peer, &volume) {
        return Ok(volume);
    }
    Err(OperatorError::NotPermitted { peer: peer.to_string(), what: format!("touch volume {volume}") })
}

async fn release(
    context: &Context,
    volume: VolumeName,
    point: Option<tidelock_proto::wire::messages::PointId>,
) -> Result<(), OperatorError> {
    let point = tidelock_proto::wire::point_id_from_wire(point)?;
    context.store.release(&volume, point).await.await?;
    info!(%volume, %point, "point released");
    Ok(())
}

async fn tag(
    context: &Context,
    volume: VolumeName,
    point: Option<tidelock_proto::wire::messages::PointId>,
    tag: &str,
) -> Result<(), OperatorError> {
    let point = tidelock_proto::wire::point_id_from_wire(point)?;
    if tag.is_empty() || tag.chars().any(char::is_control) {
        return Err(OperatorError::BadRequest("a tag is empty or has control characters"));
    }
    context.store.tag(&volume, point, tag).await.await?;
    info!(%volume, %point, tag, "point tagged");
    Ok(())
}
