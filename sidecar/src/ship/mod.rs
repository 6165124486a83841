//! Shipping: what the cutter produced crosses the network, in order, once, and is kept until it is durable there.
//!
//! ```text
//! cutter ──Outbox──▶ Session ──poll_transmit──▶ driver ──▶ QUIC
//!        ◀──events──         ◀──handle_frame───        ◀──
//! ```
//! [`Session`] holds all decisions and no clock or socket; [`run`] is a loop around it; [`Outbox`] is the cutter's handle.
//! Memory is bounded by the window: chunks until they are acknowledged, operations until their commit is.

mod chunks;
mod driver;
mod events;
mod frame;
mod outbox;
mod records;
mod session;
#[cfg(test)]
mod tests;

use thiserror::Error;
use tidelock_proto::{tree::TreeError, wire::WireError};

pub use driver::{ShipConfig, run};
pub use events::{AgreedTree, ShipEvent};
pub use frame::Frame;
pub use outbox::{Outbox, ShipEnd, outbox};
pub use session::{End, Session, SessionConfig};

/// What a receiver must not send.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SessionError {
    /// A message that means nothing.
    #[error("the receiver sent nonsense: {0}")]
    Wire(#[from] WireError),
    /// A message at the wrong time, or with a value that cannot be.
    #[error("the receiver sent an unexpected {0}")]
    Unexpected(&'static str),
    /// The operations of its manifest do not make a tree.
    #[error("the receiver's tree is broken: {0}")]
    Tree(#[from] TreeError),
    /// Its manifest is not the tree it said it is.
    #[error("the receiver's tree has another digest than it said")]
    Digest,
}
