//! The messages of the wire, and the operations' form on the wire and in the log.
//!
//! Every stream carries length-delimited prost messages (see `transport::frame`). Tags are stable: a number is never used
//! twice. Messages are declared here in Rust, so no protobuf compiler is needed; `docs/protocol.md` draws them.
//!
//! What comes from a peer becomes a type of the model through the conversions of this module, which check every
//! limit. Nothing else reads message fields.

mod convert;
pub mod messages;
mod ops;

pub use convert::{
    chunk_from_wire, chunk_to_wire, cut_from_wire, cut_to_wire, digest_from_wire, is_tag, point_from_wire,
    point_id_from_wire, point_id_to_wire, point_to_wire, tags_from_wire,
};
pub use ops::{decode_ops, encode_op, encoded_len, split_ops};

use thiserror::Error;

/// The version of the protocol. Both sides must speak the same one.
///
/// - 1: the first.
/// - 2: the planned move (`Leave`, `Left`), and the hot image.
/// - 3: imports, and questions about pages; damaged chunks are asked for again (`Resend`, `Resent`), and `repair` of a `Verify`.
pub const PROTOCOL_VERSION: u32 = 3;

/// How the reason of a `Denied` begins that tells a sidecar that another one took its place.
pub const TAKEN_OVER: &str = "another sidecar took over";

/// Why a message means nothing.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum WireError {
    /// Not the bytes of such a message.
    #[error("message is malformed: {0}")]
    Malformed(&'static str),
    /// A required field is not there.
    #[error("message lacks its {0}")]
    Missing(&'static str),
    /// A field has a value it must not have.
    #[error("message has a bad {0}")]
    Bad(&'static str),
    /// A limit of [`crate::limits`] is passed.
    #[error("message has more {0} than the limit allows")]
    TooMany(&'static str),
}
