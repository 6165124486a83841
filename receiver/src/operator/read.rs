//! Points, trees and chunks for operators.

use prost::Message;
use tidelock_proto::{
    ChunkKey, Epoch, PointId, Seq, VolumeName,
    chunk::open_checked,
    limits::OPS_FRAME_BYTES,
    point::Point,
    wire::{
        self,
        messages::{self, Chunk, Manifest, Points, ReplyKind},
    },
};

use super::{OperatorError, Pins, Replies};
use crate::{
    limits,
    server::{Context, blocking},
    session::decode_ids,
    store::{Store, StoreError},
};

/// All points, or this many of the newest, oldest first, page by page.
pub(super) async fn points(
    context: &Context,
    volume: VolumeName,
    newest: u64,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let (store, name) = (context.store.clone(), volume.clone());
    let mut next = blocking(move || first_of_newest(&store, &name, newest)).await?;
    loop {
        let (store, name) = (context.store.clone(), volume.clone());
        let page = blocking(move || store.points_from(&name, next, limits::POINTS_PAGE)).await?;
        let Some(last) = page.last() else { return Ok(()) };
        next = PointId::new(last.id.epoch, last.id.seq.next());
        for points in frames_of(&page) {
            replies.send(ReplyKind::Points(points)).await?;
        }
    }
}

/// The first of the `newest` points; of all of them if that is 0.
fn first_of_newest(store: &Store, volume: &VolumeName, newest: u64) -> Result<PointId, StoreError> {
    let mut rest = usize::try_from(newest).unwrap_or(usize::MAX);
    let mut first = PointId::new(Epoch(u64::MAX), Seq(u64::MAX));
    while rest > 0 {
        let page = store.points_before(volume, first, rest.min(limits::POINTS_PAGE))?;
        let Some(oldest) = page.first() else { break };
        first = oldest.id;
        rest -= page.len();
    }
    Ok(if newest == 0 { PointId::default() } else { first })
}

/// Groups points into frames by their length, which depends on their texts.
fn frames_of(points: &[Point]) -> impl Iterator<Item = Points> {
    let mut points = points.iter().map(wire::point_to_wire).peekable();
    std::iter::from_fn(move || {
        points.peek()?;
        let (mut group, mut bytes) = (Vec::new(), 0);
        while bytes < OPS_FRAME_BYTES
            && let Some(point) = points.next()
        {
            bytes += point.encoded_len();
            group.push(point);
        }
        Some(Points { points: group })
    })
}

/// The tree of a point as a snapshot. The point stays while the connection lives.
pub(super) async fn tree(
    context: &Context,
    pins: &Pins,
    volume: VolumeName,
    point: Option<messages::PointId>,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let point = wire::point_id_from_wire(point)?;
    // The tree stays in memory until it is sent.
    let _turn = context.trees.acquire().await.ok();
    let store = context.store.clone();
    let (pin, tree) =
        blocking(move || Ok::<_, StoreError>((store.pin(&volume, point)?, store.tree_at(&volume, point)?)))
            .await?;
    // Before the first frame: whoever has the tree may ask for its chunks.
    pins.hold(pin);
    let mut groups = wire::split_ops(tree.snapshot()).peekable();
    while let Some(ops) = groups.next() {
        replies.send(ReplyKind::Tree(Manifest { ops, last: groups.peek().is_none() })).await?;
    }
    Ok(())
}

/// Chunks of the volume's tenant, in the order asked, each compared with its id before it is sent.
pub(super) async fn chunks(
    context: &Context,
    volume: VolumeName,
    ids: &[u8],
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let ids = decode_ids(ids, limits::CHUNKS_PER_REQUEST)?;
    if context.store.volume(&volume).is_none() {
        return Err(context.store.no_volume(&volume).into());
    }
    for group in ids.chunks(limits::CHUNKS_PER_READ) {
        let (store, tenant, group) = (context.store.clone(), volume.tenant().to_owned(), group.to_vec());
        let chunks: Result<Vec<Chunk>, StoreError> = blocking(move || {
            let key = ChunkKey::of_tenant(&tenant);
            group.into_iter().map(|id| read_chunk(&store, &tenant, &key, id)).collect()
        })
        .await;
        for chunk in chunks? {
            replies.send(ReplyKind::Chunk(chunk)).await?;
        }
    }
    Ok(())
}

fn read_chunk(
    store: &Store,
    tenant: &str,
    key: &ChunkKey,
    id: tidelock_proto::ChunkId,
) -> Result<Chunk, StoreError> {
    let stored = store.read_chunk(tenant, id)?;
    open_checked(key, id, stored.codec, stored.len as usize, &stored.payload)
        .map_err(|error| StoreError::BadChunk(id, error))?;
    Ok(wire::chunk_to_wire(id, stored.codec, stored.len, stored.payload))
}
