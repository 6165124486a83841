//! Operations as messages: on the wire, in the log's commits and in checkpoints.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::WireError;
use crate::{
    ids::{ChunkId, FileId},
    limits,
    tree::{ChunkRef, Kind, Meta, Name, Op, Origin, Piece, Timestamp, Xattrs},
};

/// One operation.
#[derive(Clone, PartialEq, Message)]
pub struct OpMessage {
    #[prost(oneof = "OpKind", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    kind: Option<OpKind>,
}

#[derive(Clone, PartialEq, Oneof)]
enum OpKind {
    #[prost(message, tag = "1")]
    Create(Create),
    #[prost(message, tag = "2")]
    SetMeta(SetMeta),
    #[prost(message, tag = "3")]
    SetXattrs(SetXattrs),
    #[prost(message, tag = "4")]
    Link(Link),
    #[prost(message, tag = "5")]
    Unlink(Unlink),
    #[prost(message, tag = "6")]
    Write(Write),
    #[prost(message, tag = "7")]
    Resize(Resize),
    #[prost(message, tag = "8")]
    Reserve(Reserve),
}

#[derive(Clone, PartialEq, Message)]
struct Create {
    #[prost(uint64, tag = "1")]
    id: u64,
    /// 1 file, 2 directory, 3 symlink, 4 fifo, 5 character device, 6 block device.
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(bytes = "bytes", tag = "3")]
    target: Bytes,
    #[prost(uint32, tag = "4")]
    major: u32,
    #[prost(uint32, tag = "5")]
    minor: u32,
    #[prost(message, optional, tag = "6")]
    meta: Option<MetaMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct MetaMessage {
    #[prost(uint32, tag = "1")]
    mode: u32,
    #[prost(uint32, tag = "2")]
    uid: u32,
    #[prost(uint32, tag = "3")]
    gid: u32,
    #[prost(sint64, tag = "4")]
    mtime_secs: i64,
    #[prost(uint32, tag = "5")]
    mtime_nanos: u32,
    #[prost(uint64, tag = "6")]
    inode: u64,
    #[prost(uint64, tag = "7")]
    generation: u64,
    #[prost(sint64, tag = "8")]
    ctime_secs: i64,
    #[prost(uint32, tag = "9")]
    ctime_nanos: u32,
}

#[derive(Clone, PartialEq, Message)]
struct SetMeta {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, optional, tag = "2")]
    meta: Option<MetaMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct SetXattrs {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "2")]
    xattrs: Vec<Xattr>,
}

#[derive(Clone, PartialEq, Message)]
struct Xattr {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Link {
    #[prost(uint64, tag = "1")]
    dir: u64,
    #[prost(bytes = "bytes", tag = "2")]
    name: Bytes,
    #[prost(uint64, tag = "3")]
    id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Unlink {
    #[prost(uint64, tag = "1")]
    dir: u64,
    #[prost(bytes = "bytes", tag = "2")]
    name: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Write {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    offset: u64,
    #[prost(message, repeated, tag = "3")]
    pieces: Vec<PieceMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceMessage {
    #[prost(uint64, tag = "1")]
    len: u64,
    /// 32 bytes; empty is a hole.
    #[prost(bytes = "bytes", tag = "2")]
    chunk: Bytes,
    #[prost(uint32, tag = "3")]
    at: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Resize {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    size: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Reserve {
    #[prost(uint64, tag = "1")]
    next_id: u64,
}

/// The message of an operation.
pub fn encode_op(op: &Op) -> OpMessage {
    let kind = match op {
        Op::Create { id, kind, meta } => OpKind::Create(encode_create(*id, kind, meta)),
        Op::SetMeta { id, meta } => OpKind::SetMeta(SetMeta { id: id.0, meta: Some(encode_meta(meta)) }),
        Op::SetXattrs { id, xattrs } => OpKind::SetXattrs(SetXattrs {
            id: id.0,
            xattrs: xattrs
                .iter()
                .map(|(name, value)| Xattr { name: name.clone().into(), value: value.clone().into() })
                .collect(),
        }),
        Op::Link { dir, name, id } => {
            OpKind::Link(Link { dir: dir.0, name: Bytes::copy_from_slice(name.as_bytes()), id: id.0 })
        }
        Op::Unlink { dir, name } => {
            OpKind::Unlink(Unlink { dir: dir.0, name: Bytes::copy_from_slice(name.as_bytes()) })
        }
        Op::Write { id, offset, pieces } => {
            assert!(pieces.len() <= limits::PIECES_PER_OP_MAX, "a write is split at its limit of pieces");
            let pieces = pieces.iter().map(encode_piece).collect();
            OpKind::Write(Write { id: id.0, offset: *offset, pieces })
        }
        Op::Resize { id, size } => OpKind::Resize(Resize { id: id.0, size: *size }),
        Op::Reserve { next_id } => OpKind::Reserve(Reserve { next_id: next_id.0 }),
    };
    OpMessage { kind: Some(kind) }
}

/// The length of an operation's message, in bytes.
pub fn encoded_len(op: &OpMessage) -> usize {
    op.encoded_len()
}

/// Groups operations, in order, so that each group's encoding stays near [`limits::OPS_FRAME_BYTES`].
pub fn split_ops(ops: impl IntoIterator<Item = Op>) -> impl Iterator<Item = Vec<OpMessage>> {
    let mut ops = ops.into_iter().peekable();
    std::iter::from_fn(move || {
        ops.peek()?;
        let (mut group, mut bytes) = (Vec::new(), 0);
        while bytes < limits::OPS_FRAME_BYTES
            && let Some(op) = ops.next()
        {
            let message = encode_op(&op);
            bytes += message.encoded_len();
            group.push(message);
        }
        Some(group)
    })
}

/// Reads operations, checking every limit and name.
pub fn decode_ops(messages: Vec<OpMessage>) -> Result<Vec<Op>, WireError> {
    messages.into_iter().map(decode_op).collect()
}

fn decode_op(message: OpMessage) -> Result<Op, WireError> {
    Ok(match message.kind.ok_or(WireError::Missing("operation"))? {
        OpKind::Create(create) => decode_create(create)?,
        OpKind::SetMeta(set) => Op::SetMeta { id: FileId(set.id), meta: decode_meta(set.meta)? },
        OpKind::SetXattrs(set) => decode_xattrs(set)?,
        OpKind::Link(link) => {
            Op::Link { dir: FileId(link.dir), name: decode_name(&link.name)?, id: FileId(link.id) }
        }
        OpKind::Unlink(unlink) => Op::Unlink { dir: FileId(unlink.dir), name: decode_name(&unlink.name)? },
        OpKind::Write(write) => decode_write(&write)?,
        OpKind::Resize(resize) => Op::Resize { id: FileId(resize.id), size: resize.size },
        OpKind::Reserve(reserve) => Op::Reserve { next_id: FileId(reserve.next_id) },
    })
}

fn encode_create(id: FileId, kind: &Kind, meta: &Meta) -> Create {
    let mut create = Create { id: id.0, meta: Some(encode_meta(meta)), ..Create::default() };
    create.kind = match kind {
        Kind::File => 1,
        Kind::Directory => 2,
        Kind::Symlink(target) => {
            create.target = target.clone().into();
            3
        }
        Kind::Fifo => 4,
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            (create.major, create.minor) = (*major, *minor);
            if matches!(kind, Kind::CharDevice(..)) { 5 } else { 6 }
        }
    };
    create
}

fn decode_create(create: Create) -> Result<Op, WireError> {
    let kind = match create.kind {
        1 => Kind::File,
        2 => Kind::Directory,
        3 if create.target.is_empty() || create.target.contains(&0) => {
            return Err(WireError::Bad("symlink target"));
        }
        3 if create.target.len() > limits::SYMLINK_MAX_BYTES => {
            return Err(WireError::TooMany("symlink target bytes"));
        }
        3 => Kind::Symlink(create.target.to_vec()),
        4 => Kind::Fifo,
        5 => Kind::CharDevice(create.major, create.minor),
        6 => Kind::BlockDevice(create.major, create.minor),
        _ => return Err(WireError::Bad("kind")),
    };
    Ok(Op::Create { id: FileId(create.id), kind, meta: decode_meta(create.meta)? })
}

fn encode_meta(meta: &Meta) -> MetaMessage {
    MetaMessage {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime_secs: meta.mtime.secs,
        mtime_nanos: meta.mtime.nanos,
        inode: meta.origin.inode,
        generation: meta.origin.generation,
        ctime_secs: meta.origin.ctime.secs,
        ctime_nanos: meta.origin.ctime.nanos,
    }
}

fn decode_meta(meta: Option<MetaMessage>) -> Result<Meta, WireError> {
    let meta = meta.ok_or(WireError::Missing("attributes"))?;
    if meta.mode > 0o7777 {
        return Err(WireError::Bad("mode"));
    }
    Ok(Meta {
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: decode_time(meta.mtime_secs, meta.mtime_nanos)?,
        origin: Origin {
            inode: meta.inode,
            generation: meta.generation,
            ctime: decode_time(meta.ctime_secs, meta.ctime_nanos)?,
        },
    })
}

fn decode_time(secs: i64, nanos: u32) -> Result<Timestamp, WireError> {
    if nanos < 1_000_000_000 { Ok(Timestamp { secs, nanos }) } else { Err(WireError::Bad("time")) }
}

fn decode_xattrs(set: SetXattrs) -> Result<Op, WireError> {
    let mut xattrs = Xattrs::new();
    for xattr in set.xattrs {
        let named = !xattr.name.is_empty() && xattr.name.len() <= limits::NAME_MAX_BYTES;
        if !named || xattr.name.contains(&0) {
            return Err(WireError::Bad("extended attribute name"));
        }
        xattrs.insert(xattr.name.to_vec(), xattr.value.to_vec());
    }
    Ok(Op::SetXattrs { id: FileId(set.id), xattrs })
}

fn decode_name(bytes: &[u8]) -> Result<Name, WireError> {
    Name::new(bytes).map_err(|_| WireError::Bad("entry name"))
}

fn encode_piece(piece: &Piece) -> PieceMessage {
    let (chunk, at) = match piece.chunk {
        Some(chunk) => (Bytes::copy_from_slice(&chunk.id.0), chunk.at),
        None => (Bytes::new(), 0),
    };
    PieceMessage { len: piece.len, chunk, at }
}

fn decode_write(write: &Write) -> Result<Op, WireError> {
    if write.pieces.len() > limits::PIECES_PER_OP_MAX {
        return Err(WireError::TooMany("pieces"));
    }
    let mut pieces = Vec::with_capacity(write.pieces.len());
    for piece in &write.pieces {
        let chunk = match piece.chunk.len() {
            0 => None,
            _ => {
                let id = ChunkId::from_slice(&piece.chunk).ok_or(WireError::Bad("chunk id"))?;
                Some(ChunkRef { id, at: piece.at })
            }
        };
        pieces.push(Piece { len: piece.len, chunk });
    }
    Ok(Op::Write { id: FileId(write.id), offset: write.offset, pieces })
}
