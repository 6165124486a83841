//! The messages, as prost types, a file for each subject. See `docs/protocol.md` for who sends which when.

#![allow(missing_docs, reason = "the fields are drawn in docs/protocol.md")]

mod history;
mod operator;
mod plan;
mod point;
mod promote;
mod requests;
mod status;
mod to_receiver;
mod to_sidecar;
mod verify;

use prost::{Message, Oneof};

pub use history::*;
pub use operator::*;
pub use plan::*;
pub use point::*;
pub use promote::*;
pub use requests::*;
pub use status::*;
pub use to_receiver::*;
pub use to_sidecar::*;
pub use verify::*;

/// The first frame on every stream that a client opens; it decides what the stream is for.
#[derive(Clone, PartialEq, Message)]
pub struct Open {
    #[prost(oneof = "OpenKind", tags = "1, 2")]
    pub kind: Option<OpenKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum OpenKind {
    /// A sidecar begins to replicate a volume.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// An operator asks one question.
    #[prost(message, tag = "2")]
    Request(OperatorRequest),
}
