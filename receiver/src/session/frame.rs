//! From a sidecar's message to something a session may rely on: limits checked, chunks proven.
//!
//! Proving a chunk (decompress, hash) is by far the most work that a frame can cause, so it is a step of its own, which
//! the driver may do elsewhere for large chunks, as long as the frames reach the session in their order.

use bytes::Bytes;
use prost::Message;
use tidelock_proto::{
    ChunkId, ChunkKey, Op, PointId,
    chunk::{self, ChunkError, Codec},
    limits,
    point::Cut,
    wire::{
        self, WireError,
        messages::{Heartbeat, ToReceiver, ToReceiverKind},
    },
};

/// A frame that a session can handle.
#[derive(Debug)]
pub enum Frame {
    /// Asks for the tree.
    WantManifest,
    /// Asks which chunks are held; at most [`limits::HAVE_BATCH_MAX`].
    Have(Vec<ChunkId>),
    /// Asks what the pages of chunks are; at most [`limits::PAGES_BATCH_MAX`].
    WantPages(Vec<ChunkId>),
    /// Content.
    Chunk(CheckedChunk),
    /// Operations of the next commit.
    Ops {
        /// In order.
        ops: Vec<Op>,
        /// The same as the log keeps them: an `Ops` message.
        encoded: Bytes,
    },
    /// The end of a commit.
    Commit {
        /// Its identity.
        id: PointId,
        /// What the sidecar says of it.
        cut: Cut,
        /// Its names.
        tags: Vec<String>,
    },
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// The answer to [`Session::handle_leave`](super::Session::handle_leave): the point that holds everything, or why there is none.
    Left(Result<PointId, String>),
    /// The answer to [`Session::handle_resend`](super::Session::handle_resend), behind so many chunks of those.
    Resent(u32),
}

/// A frame as far as it can be read without much work.
#[derive(Debug)]
pub enum Decoded {
    /// Ready for the session.
    Ready(Frame),
    /// A chunk that must be proven first.
    Unchecked(UncheckedChunk),
}

/// A chunk as it came.
#[derive(Debug)]
pub struct UncheckedChunk {
    id: ChunkId,
    codec: Codec,
    len: u32,
    payload: Bytes,
}

/// A chunk whose content is what its id says, under the key of the session's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedChunk {
    /// Its name.
    pub id: ChunkId,
    /// How the payload is stored.
    pub codec: Codec,
    /// Bytes of content.
    pub len: u32,
    /// The content, encoded.
    pub payload: Bytes,
}

/// Reads a message, checking every limit.
pub fn decode(message: ToReceiver) -> Result<Decoded, WireError> {
    use ToReceiverKind as Kind;
    Ok(Decoded::Ready(match message.kind.ok_or(WireError::Missing("kind"))? {
        Kind::WantManifest(_) => Frame::WantManifest,
        Kind::Have(have) => Frame::Have(decode_ids(&have.ids, limits::HAVE_BATCH_MAX)?),
        Kind::WantPages(want) => Frame::WantPages(decode_ids(&want.ids, limits::PAGES_BATCH_MAX)?),
        Kind::Chunk(chunk) => {
            let (id, codec, len, payload) = wire::chunk_from_wire(chunk)?;
            return Ok(Decoded::Unchecked(UncheckedChunk { id, codec, len, payload }));
        }
        Kind::Ops(ops) => {
            let encoded = ops.encode_to_vec().into();
            Frame::Ops { ops: wire::decode_ops(ops.ops)?, encoded }
        }
        Kind::Commit(commit) => Frame::Commit {
            id: wire::point_id_from_wire(commit.id)?,
            cut: wire::cut_from_wire(commit.cut)?,
            tags: wire::tags_from_wire(commit.tags)?,
        },
        Kind::Heartbeat(heartbeat) => Frame::Heartbeat(check_heartbeat(heartbeat)?),
        Kind::Left(left) => Frame::Left(match left.point {
            Some(point) => Ok(wire::point_id_from_wire(Some(point))?),
            None if left.reason.len() > limits::TEXT_MAX_BYTES => return Err(WireError::Bad("reason")),
            None => Err(left.reason),
        }),
        Kind::Resent(resent) => Frame::Resent(resent.found),
    }))
}

/// Reads ids of 32 bytes, one after the other; at least one and at most `max`.
pub fn decode_ids(bytes: &[u8], max: usize) -> Result<Vec<ChunkId>, WireError> {
    let (ids, rest) = bytes.as_chunks::<32>();
    if ids.is_empty() || !rest.is_empty() {
        return Err(WireError::Bad("list of chunk ids"));
    }
    if ids.len() > max {
        return Err(WireError::TooMany("chunk ids"));
    }
    Ok(ids.iter().map(|id| ChunkId(*id)).collect())
}

fn check_heartbeat(heartbeat: Heartbeat) -> Result<Heartbeat, WireError> {
    let short = |text: &String| text.len() <= limits::TEXT_MAX_BYTES;
    let all_short = short(&heartbeat.state) && short(&heartbeat.tracker);
    if !all_short || heartbeat.conditions.len() > limits::TAGS_MAX || !heartbeat.conditions.iter().all(short)
    {
        return Err(WireError::TooMany("conditions"));
    }
    Ok(heartbeat)
}

impl Frame {
    /// Whether it takes a look at the disk.
    pub fn reads(&self) -> bool {
        matches!(self, Self::WantPages(_))
    }

    /// Length of the operations in it, in bytes.
    pub fn ops_bytes(&self) -> usize {
        match self {
            Self::Ops { encoded, .. } => encoded.len(),
            _ => 0,
        }
    }
}

impl UncheckedChunk {
    /// Bytes to hash: the length of the content.
    pub fn content_len(&self) -> usize {
        self.len as usize
    }

    /// Bytes that came.
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// Proves that the content is what the id says. Costs about a millisecond per MiB of content.
    pub fn check(self, key: &ChunkKey) -> Result<Frame, ChunkError> {
        let Self { id, codec, len, payload } = self;
        // Content that compression made longer is sent as it is, so nothing honest is refused here.
        if payload.len() > len as usize {
            return Err(ChunkError::Payload(len as usize));
        }
        chunk::prove(key, id, codec, len as usize, &payload)?;
        Ok(Frame::Chunk(CheckedChunk { id, codec, len, payload }))
    }
}
