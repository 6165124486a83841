//! Questions about a volume's history, answered while the store is read.
//!
//! Like a verification they read on a thread of their own, wait when the operator does not listen, and end when the
//! operator leaves.

use tidelock_proto::{
    VolumeName,
    wire::{
        self,
        messages::{FindRequest, PointId, ReplyKind},
    },
};
use tokio::sync::mpsc;

use super::{OperatorError, Replies};
use crate::{
    history::{self, Patterns, Query},
    limits,
    server::{Context, blocking},
};

pub(super) async fn find(
    context: &Context,
    volume: VolumeName,
    request: FindRequest,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let patterns = Patterns::new([request.pattern.as_str()])?;
    let first = request.first.map(|first| wire::point_id_from_wire(Some(first))).transpose()?;
    let first = first.unwrap_or_default();
    let last = wire::point_id_from_wire(request.last)?;
    // One tree is carried along.
    let _turn = context.trees.acquire().await.ok();
    let store = context.store.clone();
    let (events, mut coming) = mpsc::channel(limits::FIND_EVENTS);
    let reading = blocking(move || {
        let query = Query { patterns: &patterns, first, last, changes: request.changes };
        history::find(&store, &volume, query, &mut |found| events.blocking_send(found).is_ok())
    });
    let sending = async {
        while let Some(found) = coming.recv().await {
            if let Err(error) = replies.send(ReplyKind::Found(found.into())).await {
                coming.close();
                return Err(error);
            }
        }
        Ok(())
    };
    let (read, sent) = tokio::join!(reading, sending);
    sent?;
    Ok(read?)
}

pub(super) async fn usage(
    context: &Context,
    volume: VolumeName,
    point: Option<PointId>,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let point = point.map(|point| wire::point_id_from_wire(Some(point))).transpose()?;
    let _turn = context.trees.acquire().await.ok();
    let store = context.store.clone();
    let usage = blocking(move || match point {
        Some(point) => history::usage(&store, &volume, point),
        None => history::usage_of_all(&store, &volume),
    })
    .await?;
    replies.send(ReplyKind::Usage(usage.into())).await
}
