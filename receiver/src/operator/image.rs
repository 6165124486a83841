//! Where a hot image is, for a promotion on this machine to take.
//!
//! The receiver moves nothing on an operator's word but its own image within its own directory: the one who takes it from there does so with their own
//! rights on this machine, and an operator elsewhere can do nothing with the answer.

use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use tidelock_proto::{
    VolumeName,
    wire::{
        self,
        messages::{Image, ReplyKind},
    },
};
use tracing::info;

use super::{OperatorError, Replies};
use crate::server::Context;

pub(super) async fn answer(
    context: &Context,
    volume: VolumeName,
    release: bool,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let images = context.images.as_ref().ok_or(OperatorError::NoImages)?;
    let given = images.ask(&volume, release).await.map_err(OperatorError::Image)?;
    if release {
        info!(%volume, point = %given.point, path = %given.path.display(), "image given away");
    }
    let image = Image {
        path: Bytes::copy_from_slice(given.path.as_os_str().as_bytes()),
        device: given.device,
        inode: given.inode,
        point: Some(wire::point_id_to_wire(given.point)),
        root: wire::split_ops(given.root).flatten().collect(),
    };
    replies.send(ReplyKind::Image(image)).await
}
