//! The server's certificate, taken anew from its files when they change.
//!
//! Every handshake looks at the two files first. A connection keeps the certificate it began with, so a change drops
//! nothing. Files that do not fit together, because somebody is in the middle of changing them or has made a mistake,
//! never replace a pair that does; they are told of once, and tried again when they change again.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;
use tracing::{info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::limits;

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{}: {source}: the directory holds tls.crt and tls.key", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what the file should hold.
    #[error("{}: holds no {wanted} in PEM form", .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// TLS cannot use the pair.
    #[error("{}: certificate and key cannot be used together: {source}", .directory.display())]
    Unusable {
        /// Where they are.
        directory: PathBuf,
        /// What TLS said.
        source: rustls::Error,
    },
}

/// The certificate and the files it comes from.
pub(super) struct Certificate {
    directory: PathBuf,
    current: ArcSwap<Pair>,
    /// The files at the last attempt to load them, good or bad.
    seen: Mutex<Stamps>,
}

struct Pair {
    certified: Arc<CertifiedKey>,
    not_after_s: i64,
}

/// What changes when a file, or the link that leads to it, is replaced.
type Stamps = [Option<(u64, u64, i64, i64)>; 2];

impl Certificate {
    pub(super) fn load(directory: &Path) -> Result<Arc<Self>, CertificateError> {
        let stamps = stamps(directory);
        let pair = load(directory)?;
        let (directory, current) = (directory.to_owned(), ArcSwap::from_pointee(pair));
        Ok(Arc::new(Self { directory, current, seen: Mutex::new(stamps) }))
    }

    /// TLS 1.2 and 1.3, HTTP/1.1.
    pub(super) fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder =
            builder.with_safe_default_protocol_versions().expect("the provider has what the versions need");
        let mut config = builder.with_no_client_auth().with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// When the certificate in use ends, in seconds since 1970.
    pub(super) fn not_after_s(&self) -> i64 {
        self.current.load().not_after_s
    }

    fn refresh(&self) {
        let now = stamps(&self.directory);
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == now {
                return;
            }
            *seen = now;
        }
        match load(&self.directory) {
            Ok(pair) => {
                info!(not_after_s = pair.not_after_s, "certificate changed");
                self.current.store(Arc::new(pair));
            }
            Err(error) => warn!(%error, "the new certificate cannot be used: the old one stays"),
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.refresh();
        Some(self.current.load().certified.clone())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("directory", &self.directory).finish_non_exhaustive()
    }
}

fn stamps(directory: &Path) -> Stamps {
    ["tls.crt", "tls.key"].map(|name| {
        let file = std::fs::metadata(directory.join(name)).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    })
}

fn load(directory: &Path) -> Result<Pair, CertificateError> {
    let (path, key_path) = (directory.join("tls.crt"), directory.join("tls.key"));
    let not_pem = |path: &Path, wanted| CertificateError::NotPem { path: path.to_owned(), wanted };
    let text = read(&path)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| not_pem(&path, "certificate"))?;
    let key =
        PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|_| not_pem(&key_path, "private key"))?;
    let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(|_| not_pem(&path, "certificate"))?;
    let not_after_s = leaf.validity().not_after.timestamp();
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|source| CertificateError::Unusable { directory: directory.to_owned(), source })?;
    if not_after_s < seconds(SystemTime::now()) {
        warn!(not_after_s, "the certificate has expired: the API server will not take it");
    }
    Ok(Pair { certified: Arc::new(certified), not_after_s })
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    use std::io::Read;
    let unreadable = |source| CertificateError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = Vec::new();
    file.take(limits::CERTIFICATE_MAX_BYTES).read_to_end(&mut text).map_err(unreadable)?;
    Ok(text)
}
