//! The receiver's end: one UDP socket, handshakes bounded in number and time.
//!
//! A flood of first packets meets walls: beyond [`limits::HANDSHAKES_UNPROVEN_MAX`] handshakes a client must prove its
//! address before any cryptography is done for it, beyond [`limits::HANDSHAKES_MAX`] it is refused, and beyond
//! [`limits::HANDSHAKE_BACKLOG_MAX`] it is not even answered. Each handshake ends after [`limits::HANDSHAKE_TIMEOUT`].

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{Endpoint, Incoming, ServerConfig, Side, VarInt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tracing::debug;

use super::{
    GREETING, TransportError, close, config,
    connection::{Connection, chain_of, close_with},
    tls::{self, Verdict},
};
use crate::{
    identity::{Identity, Peer, Role},
    limits,
};

/// How long a closing server waits for its last words to be sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// A listening receiver.
#[derive(Debug)]
pub struct Server {
    endpoint: Endpoint,
    config: ServerConfig,
    identity: Identity,
    handshakes: Arc<Semaphore>,
}

/// A client that knocked. Complete it in a task of its own, or drop it to refuse the client.
#[derive(Debug)]
pub struct Handshake {
    incoming: Incoming,
    endpoint: Endpoint,
    config: ServerConfig,
    identity: Identity,
    _permit: OwnedSemaphorePermit,
}

/// Listens on `listen` (UDP). The identity must be a receiver's. Must be called within a tokio runtime.
pub fn server(listen: SocketAddr, identity: Identity) -> Result<Server, TransportError> {
    if identity.peer().role != Role::Receiver {
        return Err(TransportError::NotAReceiver(identity.peer().to_string()));
    }
    let mut config = ServerConfig::with_crypto(tls::server(&identity.credentials(), Verdict::default()));
    config
        .transport_config(config::transport(Side::Server))
        .max_incoming(limits::HANDSHAKE_BACKLOG_MAX)
        .incoming_buffer_size_total(limits::HANDSHAKE_BACKLOG_MAX_BYTES);
    let endpoint = config::endpoint(listen, identity.credentials().reset.endpoint(), Some(config.clone()))
        .map_err(|source| TransportError::Bind { address: listen.to_string(), source })?;
    Ok(Server { endpoint, config, identity, handshakes: Arc::new(Semaphore::new(limits::HANDSHAKES_MAX)) })
}

impl Server {
    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next client, or `None` after [`Server::shutdown`]. Safe to drop and call again.
    pub async fn accept(&self) -> Option<Handshake> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if let Some(handshake) = self.admit(incoming) {
                return Some(handshake);
            }
        }
    }

    fn admit(&self, incoming: Incoming) -> Option<Handshake> {
        let under_way = limits::HANDSHAKES_MAX - self.handshakes.available_permits();
        if under_way >= limits::HANDSHAKES_UNPROVEN_MAX
            && !incoming.remote_address_validated()
            && incoming.may_retry()
        {
            if let Err(error) = incoming.retry() {
                error.into_incoming().refuse();
            }
            return None;
        }
        let permit = self.handshakes.clone().try_acquire_owned();
        let (Ok(permit), true) = (permit, self.endpoint.open_connections() < limits::CONNECTIONS_MAX) else {
            debug!(client = %incoming.remote_address(), "too many connections, client refused");
            incoming.refuse();
            return None;
        };
        Some(Handshake {
            incoming,
            endpoint: self.endpoint.clone(),
            config: self.config.clone(),
            identity: self.identity.clone(),
            _permit: permit,
        })
    }

    /// Closes every connection with [`close::SHUTDOWN`] and waits, a second at most, until the peers were told.
    pub async fn shutdown(&self, reason: &str) {
        self.endpoint.close(VarInt::from_u32(close::SHUTDOWN as u32), reason.as_bytes());
        // Too late is as good as never here: the peers find out by their idle timeout.
        let _ = timeout(DRAIN_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

impl Handshake {
    /// Where the client says it is.
    pub fn remote_address(&self) -> SocketAddr {
        self.incoming.remote_address()
    }

    /// Whether the client has shown that it receives at its address.
    pub fn proved_address(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Judges the client by its certificate. A client that is refused is told why.
    pub async fn complete(self) -> Result<Connection, TransportError> {
        timeout(limits::HANDSHAKE_TIMEOUT, self.judge()).await.unwrap_or(Err(TransportError::TimedOut))
    }

    async fn judge(mut self) -> Result<Connection, TransportError> {
        let verdict = Verdict::default();
        let failed = |error| TransportError::from_quic(error, verdict.get());
        self.config.crypto = tls::server(&self.identity.credentials(), verdict.clone());
        let connecting = self.incoming.accept_with(Arc::new(self.config)).map_err(failed)?;
        let quic = connecting.await.map_err(failed)?;
        let peer = match peer_of(&quic).and_then(client_role) {
            Ok(peer) => peer,
            Err(error) => {
                close_with(&quic, close::REFUSED, &refusal(&error));
                return Err(error);
            }
        };
        let mut greeting = quic.open_uni().await.map_err(failed)?;
        // A client that is gone already is noticed by whoever uses the connection.
        let _ = greeting.write_all(GREETING).await;
        let _ = greeting.finish();
        Ok(Connection::new(quic, self.endpoint, peer))
    }
}

/// The peer in a connection's verified certificate.
pub(super) fn peer_of(quic: &quinn::Connection) -> Result<Peer, TransportError> {
    let chain = chain_of(quic);
    let leaf = chain.first().ok_or(TransportError::NoClientCertificate { whose: super::Whose::Peers })?;
    Ok(Peer::from_certificate(leaf)?)
}

fn client_role(peer: Peer) -> Result<Peer, TransportError> {
    match peer.role {
        Role::Sidecar { .. } | Role::Reader { .. } | Role::Operator { .. } => Ok(peer),
        Role::Receiver => {
            Err(TransportError::WrongRole { found: peer.to_string(), wanted: "a sidecar or an operator" })
        }
    }
}

/// The error as the refused peer should read it.
pub(super) fn refusal(error: &TransportError) -> String {
    match error {
        TransportError::Identity(error) => error.to_string(),
        TransportError::WrongRole { found, wanted } => {
            format!("you are a {found}, and {wanted} was expected here")
        }
        error => error.to_string(),
    }
}
