//! Real endpoints on loopback, with certificates made by [`crate::pki`].

mod flood;
mod frames;
mod handshake;
mod reset;
mod rotation;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::{Connection, Server, TransportError, connect, server};
use crate::{
    identity::{Identity, TrustDomain},
    pki::{self, Request, Validity},
};

/// A directory with an authority and the identities made from it.
struct Site {
    directory: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { directory: tempfile::tempdir().expect("temporary directory") };
        site.authority("ca");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn authority(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        pki::init(&path, for_an_hour()).expect("authority");
        path
    }

    /// Issues to the directory `name` and loads it.
    fn identity(&self, name: &str, request: &Request) -> Identity {
        let out = self.path(name);
        issue(&self.path("ca"), request, &out);
        Identity::load(out).expect("identity")
    }

    fn receiver(&self) -> Identity {
        self.identity("receiver", &receiver_for(&["127.0.0.1", "localhost", "::1"]))
    }

    fn sidecar(&self) -> Identity {
        self.identity("sidecar", &sidecar())
    }
}

fn for_an_hour() -> Validity {
    Validity::starting(SystemTime::now(), Duration::from_secs(3600))
}

fn issue(authority: &Path, request: &Request, out: &Path) {
    pki::issue(authority, &TrustDomain::default(), request, for_an_hour(), out).expect("issued");
}

fn sidecar() -> Request {
    Request::Sidecar {
        volumes: ["acme/pg", "acme/files"].iter().map(|name| name.parse().expect("name")).collect(),
    }
}

fn receiver_for(hosts: &[&str]) -> Request {
    Request::Receiver {
        name: "dr-1".to_owned(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
    }
}

fn listen(identity: Identity) -> (Server, SocketAddr) {
    let server = server((std::net::Ipv4Addr::LOCALHOST, 0).into(), identity).expect("server");
    let address = server.local_addr().expect("address");
    (server, address)
}

async fn accept(server: &Server) -> Result<Connection, TransportError> {
    server.accept().await.expect("the server listens").complete().await
}

/// Dials and accepts at once: what both sides get.
async fn meet(
    server: &Server,
    host: &str,
    client: &Identity,
) -> (Result<Connection, TransportError>, Result<Connection, TransportError>) {
    let address = format!("{host}:{}", server.local_addr().expect("address").port());
    tokio::join!(connect(&address, client), accept(server))
}
