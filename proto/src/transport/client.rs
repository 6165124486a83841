//! The dialling end: resolve the name anew, try every address, trust only a receiver that the certificate names.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use quinn::Side;
use tokio::{
    net::lookup_host,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    GREETING, TransportError, close, config,
    connection::{Connection, close_with},
    server::{peer_of, refusal},
    tls::{self, Verdict},
};
use crate::{
    identity::{Credentials, Identity, Role},
    limits,
};

/// The next address of a name is tried this long after the one before it, if that has not answered.
const STAGGER: Duration = Duration::from_millis(250);

/// Connects to the receiver at `HOST:PORT`, whose certificate must name `HOST`.
///
/// Returns when the receiver has accepted this side's certificate, or within [`limits::HANDSHAKE_TIMEOUT`] for each
/// address, all of them overlapping. The addresses of the name are looked up each time.
pub async fn connect(address: &str, identity: &Identity) -> Result<Connection, TransportError> {
    let (host, port) = split(address).ok_or_else(|| TransportError::Address(address.to_owned()))?;
    let resolve = |source| TransportError::Resolve { address: address.to_owned(), source };
    let resolved = timeout(limits::HANDSHAKE_TIMEOUT, lookup_host((host, port)))
        .await
        .unwrap_or_else(|elapsed| Err(elapsed.into()))
        .map_err(resolve)?;
    let mut addresses: VecDeque<SocketAddr> = resolved.take(limits::ADDRESSES_MAX).collect();

    let credentials = identity.credentials();
    let mut attempts = JoinSet::new();
    let mut failure = TransportError::Unreachable { address: address.to_owned() };
    loop {
        if let Some(remote) = addresses.pop_front() {
            attempts.spawn(attempt(remote, host.to_owned(), credentials.clone()));
        }
        let outcome = tokio::select! {
            outcome = attempts.join_next() => outcome,
            () = sleep(STAGGER), if !addresses.is_empty() => continue,
        };
        match outcome {
            Some(Ok(Ok(connection))) => return Ok(connection),
            // One address that refused says more than one that is silent.
            Some(Ok(Err(TransportError::Unreachable { .. }))) => {}
            Some(Ok(Err(error))) => failure = error,
            Some(Err(panicked)) => failure = TransportError::Other(panicked.to_string()),
            None => return Err(failure),
        }
    }
}

fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    if host.is_empty() {
        return None;
    }
    Some((host, port.parse().ok().filter(|port| *port != 0)?))
}

async fn attempt(
    remote: SocketAddr,
    host: String,
    credentials: Arc<Credentials>,
) -> Result<Connection, TransportError> {
    let unreachable = || TransportError::Unreachable { address: remote.to_string() };
    match timeout(limits::HANDSHAKE_TIMEOUT, handshake(remote, &host, &credentials)).await {
        Ok(Err(TransportError::TimedOut)) | Err(_) => Err(unreachable()),
        Ok(result) => result,
    }
}

async fn handshake(
    remote: SocketAddr,
    host: &str,
    credentials: &Credentials,
) -> Result<Connection, TransportError> {
    let local: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = config::endpoint(local, quinn::EndpointConfig::default(), None)
        .map_err(|source| TransportError::Bind { address: local.to_string(), source })?;
    let verdict = Verdict::default();
    let failed = |error| TransportError::from_quic(error, verdict.get());
    let mut config = tls::client(credentials, verdict.clone());
    config.transport_config(config::transport(Side::Client));
    let connecting = endpoint
        .connect_with(config, remote, host)
        .map_err(|error| TransportError::Other(format!("cannot dial {remote}: {error}")))?;
    let quic = connecting.await.map_err(failed)?;
    let peer = peer_of(&quic).and_then(|peer| match peer.role {
        Role::Receiver => Ok(peer),
        _ => Err(TransportError::WrongRole { found: peer.to_string(), wanted: "a receiver" }),
    });
    let peer = match peer {
        Ok(peer) => peer,
        Err(error) => {
            close_with(&quic, close::REFUSED, &refusal(&error));
            return Err(error);
        }
    };
    let mut stream = quic.accept_uni().await.map_err(failed)?;
    match stream.read_to_end(GREETING.len()).await {
        Ok(greeting) if greeting == GREETING => Ok(Connection::new(quic, endpoint, peer)),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error))) => Err(failed(error)),
        _ => Err(TransportError::Protocol),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn addresses_are_host_and_port() {
        assert_eq!(split("dr.example:4433"), Some(("dr.example", 4433)));
        assert_eq!(split("[::1]:4433"), Some(("::1", 4433)));
        for bad in ["", "host", "host:", ":1", "host:0", "host:70000", "::1:4433", "[::1:4433", "host:1:2"] {
            assert_eq!(split(bad), None, "{bad:?} was accepted");
        }
    }
}
