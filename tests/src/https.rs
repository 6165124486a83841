//! A small HTTPS client for one connection, and certificates for a server: what an API server is to a webhook.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, client::Resumption, crypto::ring};

/// How long one read or write may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The name that certificates are for.
const HOST: &str = "injector.tidelock.svc";

/// An authority for servers.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    client: Arc<ClientConfig>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("the provider's versions");
        let mut client = builder.with_root_certificates(roots).with_no_client_auth();
        // A session that is taken up again shows the certificate that it began with.
        client.resumption = Resumption::disabled();
        let client = Arc::new(client);
        Self { issuer: Issuer::new(params, key), client }
    }

    /// Writes a new `tls.crt` and `tls.key` into a directory, one after the other, as an editor would.
    pub fn issue(&self, directory: &Path) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![HOST.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        fs::create_dir_all(directory).expect("writable");
        for (name, text) in [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem())] {
            let half = directory.join(format!("{name}.new"));
            fs::write(&half, text).expect("writable");
            fs::rename(half, directory.join(name)).expect("writable");
        }
    }

    /// A connection to a server with a certificate of this authority.
    pub fn connect(&self, address: &str) -> io::Result<Https> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let name = HOST.try_into().expect("a name");
        let connection = ClientConnection::new(self.client.clone(), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Https(stream))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// One connection, which takes one request after the other.
pub struct Https(StreamOwned<ClientConnection, TcpStream>);

impl Https {
    /// Asks and waits for the answer: its status and body.
    pub fn post(&mut self, path: &str, body: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        self.begin(path, body.len())?;
        self.send(body)?;
        self.answer()
    }

    /// Sends the head of a request whose body is said to be so long.
    pub fn begin(&mut self, path: &str, len: usize) -> io::Result<()> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n"
        );
        self.send(head.as_bytes())
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    /// Waits for the answer to what was sent.
    pub fn answer(&mut self) -> io::Result<(u16, Vec<u8>)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let bad = || io::Error::new(io::ErrorKind::InvalidData, head.clone());
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
        let length = head.split("content-length:").nth(1).and_then(|rest| rest.lines().next());
        let length: usize = length.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, body))
    }

    /// The certificate that the server has shown.
    pub fn certificate(&self) -> Vec<u8> {
        let chain = self.0.conn.peer_certificates().expect("the handshake is over");
        chain[0].to_vec()
    }
}
