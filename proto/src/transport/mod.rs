//! QUIC with mutual TLS 1.3: the only way Tidelock's processes talk to each other.
//!
//! ```text
//! client                                  server
//!   ── TLS: certificate, receiver's? ──────▶  refuse: TLS alert
//!   ◀─ TLS: certificate, host, receiver's? ─  refuse: TLS alert, or close(REFUSED, reason)
//!   ◀─ one stream with GREETING ────────────  certificate and role accepted
//! ```
//! In TLS 1.3 the client is done before the server has looked at its certificate. So the server greets a client that it
//! accepted, and [`connect`] returns only then: whoever is refused learns the reason from `connect`, not from the first
//! lost message. The price is half a round trip for each connection.
//!
//! Nothing is resumed and nothing is sent in 0-RTT, so each connection is judged by the certificates and authorities of
//! its own time.

mod client;
mod config;
mod connection;
mod error;
pub mod frame;
pub(crate) mod reset;
mod server;
#[cfg(test)]
mod tests;
mod tls;

pub use client::connect;
pub use connection::{Connection, close};
pub use error::{TransportError, Whose};
pub use frame::{FrameError, FrameReader, FrameWriter};
pub use server::{Handshake, Server, server};

/// The application protocol named in TLS.
pub const ALPN: &[u8] = b"tidelock/1";

/// What an accepting server says first.
const GREETING: &[u8] = b"tidelock/1 accepted\n";
