//! Deletion of a volume. Its session is ended first and everything it appended is on disk, so nothing of it comes behind the deletion.

use std::sync::atomic::Ordering;

use tidelock_proto::{
    Epoch, VolumeName,
    identity::Peer,
    wire::messages::{DeleteRequest, Deleted, ReplyKind},
};
use tracing::warn;

use super::{OperatorError, Replies, promote::check};
use crate::{
    server::{Context, blocking},
    volume::Live,
};

pub(super) async fn answer(
    context: &Context,
    peer: &Peer,
    name: VolumeName,
    request: &DeleteRequest,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let expected = Epoch(request.expected_epoch);
    // Before anybody is disturbed; what counts is looked at again by the store.
    check(&context.store, &name, expected)?;
    let volume = context.volumes.get(&name);
    let turn = match request.force {
        true => volume.begin_promotion().await,
        false => {
            let turn = volume.begin_unless_connected().await;
            turn.ok_or_else(|| OperatorError::Connected(name.clone()))?
        }
    };
    let done = {
        let (store, images, name) = (context.store.clone(), context.images.clone(), name.clone());
        blocking(move || {
            // It keeps a point of the volume.
            images.iter().for_each(|images| images.end(&name));
            let done = store.delete(&name, expected);
            for images in images.iter() {
                match done.is_ok() {
                    true => images.remove(&name),
                    false => images.nudge(&name),
                }
            }
            done
        })
        .await?
    };
    *volume.live() = Live::default();
    context.space_wanted.store(true, Ordering::Relaxed);
    // A session that waits hears that nothing came of a promotion, comes again, and is refused.
    drop(turn);
    // As with promotions: what somebody wanted, and still worth finding in every log.
    warn!(volume = %name, points = done.points, %peer, "volume deleted");
    replies.send(ReplyKind::Deleted(Deleted { points: done.points, epoch: done.epoch.0 })).await
}
