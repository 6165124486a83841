//! The identity directory: `tls.crt` (chain, leaf first), `tls.key` and `ca.crt`, as cert-manager mounts them.
//!
//! Every handshake looks at the files first (three `stat` calls), so a rotated certificate or authority is used by the
//! next connection without a restart and without a clock. A set that cannot be used never replaces one that can: it is
//! reported once, and again only when the files change again. Established connections keep what they began with.
//!
//! The three files are read one by one while somebody may be swapping them. They count as one set only if none of them
//! changed from before the first read to after the last.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::ring,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use thiserror::Error;
use tracing::{info, warn};

use super::peer::{self, IdentityError, Peer};
use crate::{limits, pki::Validity, transport::reset::ResetSecret};

/// The certificate chain, leaf first, PEM.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// The private key of the leaf, PEM.
pub const KEY_FILE: &str = "tls.key";
/// The authorities that peers must be signed by, PEM.
pub const CA_FILE: &str = "ca.crt";

/// How often a set that changes while it is read is read again.
const READ_ATTEMPTS: usize = 3;

/// Why an identity directory cannot be used: one line that names the file and says what to do.
#[derive(Debug, Error)]
pub enum IdentityFileError {
    /// One of the three files is not there.
    #[error("{}: no such file: an identity directory holds {CERTIFICATE_FILE}, {KEY_FILE} and {CA_FILE}; `tidelock pki issue` makes one", .0.display())]
    Missing(PathBuf),
    /// A file is there and cannot be read.
    #[error("{}: cannot be read ({source}): give this user read access to it", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is larger than [`limits::IDENTITY_FILE_MAX_BYTES`].
    #[error("{}: larger than {max} bytes: this is not an identity file", .0.display(), max = limits::IDENTITY_FILE_MAX_BYTES)]
    TooLarge(PathBuf),
    /// A file holds no PEM block of the right kind, or a broken one.
    #[error("{}: holds no {wanted} in PEM form: write it again", .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// TLS cannot use a certificate or key.
    #[error("{}: cannot be used ({source}): issue it again", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What TLS said.
        source: rustls::Error,
    },
    /// Key and certificate belong to different pairs.
    #[error("{}: is not the key of the certificate in {CERTIFICATE_FILE}: copy both files from the same issue", .0.display())]
    KeyMismatch(PathBuf),
    /// The certificate's time is over.
    #[error("{}: the certificate expired at {}: issue a new one", .path.display(), humantime::format_rfc3339_seconds(*.not_after))]
    Expired {
        /// The file.
        path: PathBuf,
        /// Its last second.
        not_after: SystemTime,
    },
    /// The certificate's time has not come.
    #[error("{}: the certificate is not valid before {}: check the clock, or issue a new one", .path.display(), humantime::format_rfc3339_seconds(*.not_before))]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// Its first second.
        not_before: SystemTime,
    },
    /// The certificate names no peer.
    #[error("{}: {source}", .path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Why.
        source: IdentityError,
    },
    /// A rotated certificate is of another role than the one in use.
    #[error("{}: is the certificate of a {now}, and this process runs as {before}: restore the right one", .path.display())]
    RoleChanged {
        /// The file.
        path: PathBuf,
        /// The new role.
        now: String,
        /// The role in use.
        before: String,
    },
    /// The files kept changing while they were read.
    #[error("{}: the files changed while they were read", .0.display())]
    Changing(PathBuf),
}

/// A handle on an identity directory. Clones share what was loaded.
#[derive(Clone)]
pub struct Identity(Arc<Shared>);

struct Shared {
    directory: PathBuf,
    current: ArcSwap<Credentials>,
    /// The files as they were at the last attempt to load them, good or bad.
    seen: Mutex<Stamps>,
}

/// One loaded set of files, ready for TLS.
pub(crate) struct Credentials {
    pub(crate) peer: Peer,
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) server_verifier: Arc<dyn ServerCertVerifier>,
    pub(crate) client_verifier: Arc<dyn ClientCertVerifier>,
    pub(crate) reset: ResetSecret,
    serial: String,
    validity: Validity,
}

impl Identity {
    /// Loads the directory. The certificate must be valid now.
    pub fn load(directory: impl Into<PathBuf>) -> Result<Self, IdentityFileError> {
        Self::load_at(directory, SystemTime::now())
    }

    /// Loads the directory as of `now`.
    pub fn load_at(directory: impl Into<PathBuf>, now: SystemTime) -> Result<Self, IdentityFileError> {
        let directory = directory.into();
        let (stamps, credentials) = load(&directory, now);
        let current = ArcSwap::from_pointee(credentials?);
        Ok(Self(Arc::new(Shared { directory, current, seen: Mutex::new(stamps) })))
    }

    /// Who this process is to its peers.
    pub fn peer(&self) -> Peer {
        self.0.current.load().peer.clone()
    }

    /// The serial number of the certificate in use, in hexadecimal.
    pub fn serial(&self) -> String {
        self.0.current.load().serial.clone()
    }

    /// When the certificate in use expires.
    pub fn not_after(&self) -> SystemTime {
        self.0.current.load().validity.not_after
    }

    /// From when to when the certificate is valid; of files that have changed, the new one's.
    pub fn validity(&self) -> Validity {
        self.credentials().validity
    }

    /// Takes over changed files; returns whether it did. Handshakes call this by themselves.
    pub fn reload(&self) -> bool {
        self.reload_at(SystemTime::now())
    }

    fn reload_at(&self, now: SystemTime) -> bool {
        let mut seen = lock(&self.0.seen);
        if *seen == Stamps::of(&self.0.directory) {
            return false;
        }
        let (stamps, loaded) = load(&self.0.directory, now);
        *seen = stamps;
        match loaded.and_then(|credentials| self.same_role(credentials)) {
            Ok(credentials) => {
                info!(serial = %credentials.serial, not_after = %humantime::format_rfc3339_seconds(credentials.validity.not_after), "identity reloaded");
                self.0.current.store(Arc::new(credentials));
                true
            }
            Err(error) => {
                warn!(%error, "changed identity files not used, the previous identity stays");
                false
            }
        }
    }

    /// The credentials for a new handshake.
    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        self.reload();
        self.0.current.load_full()
    }

    fn same_role(&self, new: Credentials) -> Result<Credentials, IdentityFileError> {
        let old = self.0.current.load();
        if std::mem::discriminant(&old.peer.role) == std::mem::discriminant(&new.peer.role) {
            return Ok(new);
        }
        Err(IdentityFileError::RoleChanged {
            path: self.0.directory.join(CERTIFICATE_FILE),
            now: new.peer.to_string(),
            before: old.peer.to_string(),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("directory", &self.0.directory)
            .field("serial", &self.serial())
            .finish()
    }
}

/// What tells one version of a file from the next: device, inode, size, change time. The change time moves with
/// permissions too, so a file that becomes readable is tried again.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

#[derive(Debug, PartialEq, Eq)]
struct Stamps([Stamp; 3]);

impl Stamps {
    fn of(directory: &Path) -> Self {
        Self([CERTIFICATE_FILE, KEY_FILE, CA_FILE].map(|name| {
            let meta = std::fs::metadata(directory.join(name)).ok()?;
            Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
        }))
    }
}

fn load(directory: &Path, now: SystemTime) -> (Stamps, Result<Credentials, IdentityFileError>) {
    let mut before = Stamps::of(directory);
    for _ in 0..READ_ATTEMPTS {
        let loaded = Credentials::read(directory, now);
        let after = Stamps::of(directory);
        if before == after {
            return (after, loaded);
        }
        before = after;
    }
    // Stamps of no file at all: the next handshake tries again.
    (Stamps([None; 3]), Err(IdentityFileError::Changing(directory.to_owned())))
}

impl Credentials {
    fn read(directory: &Path, now: SystemTime) -> Result<Self, IdentityFileError> {
        let [chain_path, key_path, ca_path] =
            [CERTIFICATE_FILE, KEY_FILE, CA_FILE].map(|name| directory.join(name));
        let chain = certificates(&chain_path)?;
        let key = PrivateKeyDer::from_pem_slice(&read_file(&key_path)?)
            .map_err(|_| IdentityFileError::NotPem { path: key_path.clone(), wanted: "private key" })?;
        let reset = ResetSecret::of_key(key.secret_der());
        let authorities = certificates(&ca_path)?;

        let leaf = &chain[0];
        let at_leaf = |source| IdentityFileError::Identity { path: chain_path.clone(), source };
        let parsed = peer::parse(leaf).map_err(at_leaf)?;
        let not_after = seconds(parsed.validity().not_after.timestamp());
        let not_before = seconds(parsed.validity().not_before.timestamp());
        let serial = hex::encode(parsed.raw_serial());
        if now < not_before {
            return Err(IdentityFileError::NotYetValid { path: chain_path, not_before });
        }
        if now > not_after {
            return Err(IdentityFileError::Expired { path: chain_path, not_after });
        }
        let peer = Peer::from_certificate(leaf).map_err(at_leaf)?;

        let provider = Arc::new(ring::default_provider());
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|source| match source {
            rustls::Error::InconsistentKeys(_) => IdentityFileError::KeyMismatch(key_path.clone()),
            source => IdentityFileError::Unusable { path: key_path.clone(), source },
        })?;
        let roots = Arc::new(roots(&ca_path, authorities)?);
        let unusable = || IdentityFileError::NotPem { path: ca_path.clone(), wanted: "usable authority" };
        let server_verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|_| unusable())?;
        let client_verifier =
            WebPkiClientVerifier::builder_with_provider(roots, provider).build().map_err(|_| unusable())?;
        Ok(Self {
            peer,
            certified: Arc::new(certified),
            server_verifier,
            client_verifier,
            reset,
            serial,
            validity: Validity { not_before, not_after },
        })
    }
}

fn roots(path: &Path, authorities: Vec<CertificateDer<'static>>) -> Result<RootCertStore, IdentityFileError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots
            .add(authority)
            .map_err(|source| IdentityFileError::Unusable { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

/// Reads the certificates of a PEM file; there is at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityFileError> {
    let text = read_file(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(IdentityFileError::NotPem { path: path.to_owned(), wanted: "certificate" }),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, IdentityFileError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => IdentityFileError::Missing(path.to_owned()),
        _ => IdentityFileError::Unreadable { path: path.to_owned(), source },
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > limits::IDENTITY_FILE_MAX_BYTES {
        return Err(IdentityFileError::TooLarge(path.to_owned()));
    }
    std::fs::read(path).map_err(unreadable)
}

fn seconds(timestamp: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(timestamp.try_into().unwrap_or(0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
