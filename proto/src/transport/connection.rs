//! A connection with a peer that both sides have accepted.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use quinn::VarInt;
use rustls_pki_types::CertificateDer;

use super::{FrameReader, FrameWriter, TransportError};
use crate::{identity::Peer, limits};

/// Why a connection is closed, as numbers on the wire.
pub mod close {
    use crate::limits;

    /// The work is done.
    pub const DONE: u64 = 0;
    /// The peer may not do this.
    pub const REFUSED: u64 = 1;
    /// The peer broke the protocol.
    pub const PROTOCOL: u64 = 2;
    /// The process ends.
    pub const SHUTDOWN: u64 = 3;
    /// This side failed; the peer did nothing wrong.
    pub const INTERNAL: u64 = 4;

    /// A peer's words, cut and without control characters, fit for a log or a terminal.
    pub(crate) fn printable(reason: &[u8]) -> String {
        let reason = &reason[..reason.len().min(limits::CLOSE_REASON_MAX_BYTES)];
        String::from_utf8_lossy(reason).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

/// How long an ending process waits for its last words to be sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// An accepted connection. Clones are the same connection; it closes when the last clone and stream are gone.
#[derive(Debug, Clone)]
pub struct Connection {
    quic: quinn::Connection,
    endpoint: quinn::Endpoint,
    peer: Arc<Peer>,
}

impl Connection {
    pub(super) fn new(quic: quinn::Connection, endpoint: quinn::Endpoint, peer: Peer) -> Self {
        Self { quic, endpoint, peer: Arc::new(peer) }
    }

    /// The other end, from its certificate.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The peer's certificate chain, leaf first, as it was verified.
    pub fn peer_certificates(&self) -> Vec<CertificateDer<'static>> {
        chain_of(&self.quic)
    }

    /// Where the other end is now; it may move.
    pub fn remote_address(&self) -> SocketAddr {
        self.quic.remote_address()
    }

    /// The current estimate of the round trip.
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// Counters of the transport: datagrams, losses, congestion window.
    pub fn stats(&self) -> quinn::ConnectionStats {
        self.quic.stats()
    }

    /// Opens a stream (clients only). The server sees it with the first frame.
    pub async fn open(&self) -> Result<(FrameWriter, FrameReader), TransportError> {
        let (send, receive) = self.quic.open_bi().await.map_err(lost)?;
        Ok((FrameWriter::new(send), FrameReader::new(receive)))
    }

    /// The next stream the client opened (servers only).
    pub async fn accept(&self) -> Result<(FrameWriter, FrameReader), TransportError> {
        let (send, receive) = self.quic.accept_bi().await.map_err(lost)?;
        Ok((FrameWriter::new(send), FrameReader::new(receive)))
    }

    /// Closes at once, dropping what is not yet acknowledged. `code` is one of [`close`].
    pub fn close(&self, code: u64, reason: &str) {
        close_with(&self.quic, code, reason);
    }

    /// Waits for the end of the connection and says why it ended.
    pub async fn closed(&self) -> TransportError {
        lost(self.quic.closed().await)
    }

    /// Why the connection ended, if it has.
    pub fn close_reason(&self) -> Option<TransportError> {
        self.quic.close_reason().map(lost)
    }

    /// Waits, a second at most, until the peer was told that a client's connection is closed. For the end of a process.
    pub async fn drained(&self) {
        // Too late is as good as never here: the peer finds out by its idle timeout.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

/// The verified chain, leaf first; empty without mutual TLS.
pub(super) fn chain_of(quic: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let chain = quic.peer_identity().and_then(|identity| identity.downcast().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}

pub(super) fn close_with(quic: &quinn::Connection, code: u64, reason: &str) {
    let mut end = reason.len().min(limits::CLOSE_REASON_MAX_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    quic.close(VarInt::from_u64(code).unwrap_or(VarInt::MAX), &reason.as_bytes()[..end]);
}

fn lost(error: quinn::ConnectionError) -> TransportError {
    TransportError::from_quic(error, None)
}
