//! A new volume out of a point.

use tidelock_proto::{
    VolumeName,
    wire::{
        self,
        messages::{PointId, ReplyKind},
    },
};
use tracing::info;

use super::{OperatorError, Replies};
use crate::server::{Context, blocking, now};

pub(super) async fn answer(
    context: &Context,
    volume: VolumeName,
    point: Option<PointId>,
    to: VolumeName,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let point = wire::point_id_from_wire(point)?;
    // A tree is in memory until it is written.
    let _turn = context.trees.acquire().await.ok();
    let (store, name) = (context.store.clone(), to.clone());
    let received_ns = now().wall_ns;
    let origin = volume.clone();
    let first = blocking(move || store.clone_volume(&origin, point, &name, received_ns)).await?;
    info!(%volume, %point, clone = %to, "volume cloned");
    replies.send(ReplyKind::Cloned(wire::point_to_wire(&first))).await
}
