//! Promotion: from an instant on, nothing of the old writer is taken.
//!
//! The writing session is stopped and everything it appended is on disk before the base is chosen, so a promotion
//! upon "the newest point" loses nothing that this receiver was sent whole. The epoch is durable before anybody hears of it.

use tidelock_proto::{
    Epoch, PointId, VolumeName,
    identity::Peer,
    wire::{
        self,
        messages::{PromoteRequest, Promoted, ReplyKind},
    },
};
use tracing::warn;

use super::{OperatorError, Replies};
use crate::{
    server::Context,
    store::{Store, VolumeInfo},
};

pub(super) async fn answer(
    context: &Context,
    peer: &Peer,
    volume: VolumeName,
    request: &PromoteRequest,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let base = match request.base {
        Some(base) => Some(wire::point_id_from_wire(Some(base))?),
        None => None,
    };
    let expected = Epoch(request.expected_epoch);
    let (epoch, base) = promote(context, &volume, expected, base).await?;
    // ERROR is for what went wrong; this is what somebody wanted, and still worth finding in every log.
    warn!(%volume, %epoch, %base, %peer, "volume promoted");
    let promoted = Promoted { epoch: epoch.0, base: Some(wire::point_id_to_wire(base)) };
    replies.send(ReplyKind::Promoted(promoted)).await
}

async fn promote(
    context: &Context,
    name: &VolumeName,
    expected: Epoch,
    base: Option<PointId>,
) -> Result<(Epoch, PointId), OperatorError> {
    // Before anybody is disturbed; what counts is looked at again below.
    check(&context.store, name, expected)?;
    if let Some(base) = base {
        context.store.point(name, base)?;
    }
    let volume = context.volumes.get(name);
    let promotion = volume.begin_promotion().await;
    let info = check(&context.store, name, expected)?;
    let base = base.unwrap_or(info.last.id);
    let epoch = info.epoch.next();
    context.store.raise_epoch(name, info.epoch, epoch, base).await.await?;
    volume.fence(epoch);
    volume.live().covered_ns = 0;
    context.on_durable(name);
    drop(promotion);
    Ok((epoch, base))
}

fn check(store: &Store, volume: &VolumeName, expected: Epoch) -> Result<VolumeInfo, OperatorError> {
    let info = store.volume(volume).ok_or_else(|| store.no_volume(volume))?;
    if info.epoch == expected {
        Ok(info)
    } else {
        Err(OperatorError::Epoch { current: info.epoch, expected })
    }
}
