//! Promotion: from an instant on, nothing of the old writer is taken.
//!
//! The writing session is stopped and everything it appended is on disk before the base is chosen, so a promotion
//! upon "the newest point" loses nothing that this receiver was sent whole. The epoch is durable before anybody hears of it.

use std::time::Instant;

use tidelock_proto::{
    Epoch, PointId, VolumeName,
    identity::Peer,
    limits::LEAVE_WITHIN,
    point::Consistency,
    wire::{
        self,
        messages::{PromoteRequest, Promoted, ReplyKind},
    },
};
use tokio::time::timeout;
use tracing::warn;

use super::{OperatorError, Replies, error::LeaveError};
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
    let (epoch, base) = match request.planned {
        true => planned(context, &volume, expected).await?,
        false => promote(context, &volume, expected, base).await?,
    };
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

/// The application stands still while this runs, and is let go by whatever is not a new epoch. Why nothing is lost is argued in
/// the sidecar's `cut/departure.rs`.
async fn planned(
    context: &Context,
    name: &VolumeName,
    expected: Epoch,
) -> Result<(Epoch, PointId), OperatorError> {
    check(&context.store, name, expected)?;
    let volume = context.volumes.get(name);
    if !volume.live().connected {
        return Err(LeaveError::NotConnected(name.clone()).into());
    }
    // Before the question, so that the sidecar's time is over later.
    let asked = Instant::now();
    let answer = timeout(LEAVE_WITHIN, volume.leave()).await;
    let answer = answer.map_err(|_| LeaveError::Late)?.map_err(|_| LeaveError::Late)?;
    let last = answer.map_err(LeaveError::Refused)?;
    let promotion = volume.begin_promotion().await;
    let info = check(&context.store, name, expected)?;
    if info.last.id != last {
        return Err(LeaveError::Changed.into());
    }
    if info.last.cut.consistency == Consistency::Fuzzy {
        return Err(LeaveError::Fuzzy.into());
    }
    if asked.elapsed() >= LEAVE_WITHIN {
        return Err(LeaveError::Late.into());
    }
    let epoch = info.epoch.next();
    context.store.raise_epoch(name, info.epoch, epoch, last).await.await?;
    volume.fence(epoch);
    volume.live().covered_ns = 0;
    drop(promotion);
    Ok((epoch, last))
}

pub(super) fn check(
    store: &Store,
    volume: &VolumeName,
    expected: Epoch,
) -> Result<VolumeInfo, OperatorError> {
    let info = store.volume(volume).ok_or_else(|| store.no_volume(volume))?;
    if info.epoch == expected {
        Ok(info)
    } else {
        Err(OperatorError::Epoch { current: info.epoch, expected })
    }
}
