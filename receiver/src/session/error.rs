//! Why a session cannot go on.

use thiserror::Error;
use tidelock_proto::{
    ChunkId, Epoch, FileId, Seq, TreeDigest, chunk::ChunkError, limits, tree::TreeError, wire::WireError,
};

/// What a sidecar did that ends its session. The text is sent to it as the reason.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SessionError {
    /// A frame means nothing.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A chunk is not what it says.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// An operation cannot be applied to the tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// An operation refers to a chunk that is not here.
    #[error("inode {} refers to chunk {chunk}, which is not held: chunks come before the operations that use them", file.0)]
    MissingChunk {
        /// The file written.
        file: FileId,
        /// What it refers to.
        chunk: ChunkId,
    },
    /// An operation refers to bytes beyond the end of a chunk.
    #[error("inode {} refers to bytes up to {end} of chunk {chunk}, which has {len}", file.0)]
    ShortChunk {
        /// The file written.
        file: FileId,
        /// What it refers to.
        chunk: ChunkId,
        /// One after the last byte referred to.
        end: u64,
        /// Bytes of the chunk.
        len: u32,
    },
    /// The operations of one commit pass [`limits::COMMIT_OPS_MAX_BYTES`].
    #[error("the operations of one commit are longer than {} bytes", limits::COMMIT_OPS_MAX_BYTES)]
    CommitTooLong,
    /// A commit of another epoch than the session's.
    #[error("commit of epoch {found} in a session of epoch {session}")]
    Epoch {
        /// The commit's.
        found: Epoch,
        /// The session's.
        session: Epoch,
    },
    /// A commit is missing, or came twice.
    #[error("commit {found} came where {expected} was due")]
    Gap {
        /// The commit's number.
        found: Seq,
        /// The number after the last commit.
        expected: Seq,
    },
    /// The trees of both sides differ.
    #[error("after commit {seq} the tree has digest {found}, and the sidecar's has {expected}")]
    Digest {
        /// The commit.
        seq: Seq,
        /// Of the tree here.
        found: TreeDigest,
        /// As the sidecar says.
        expected: TreeDigest,
    },
    /// A frame longer than [`limits::FRAME_MAX_BYTES`].
    #[error("a frame of {0} bytes is longer than {max}", max = limits::FRAME_MAX_BYTES)]
    FrameTooLong(usize),
    /// The bytes of a frame are no message.
    #[error("a frame is not a message of this protocol")]
    MalformedFrame,
    /// The manifest was asked for after the tree had begun to change.
    #[error("the manifest can be asked for only before the first operation of a session")]
    LateManifest,
}
