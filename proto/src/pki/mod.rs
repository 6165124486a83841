//! A small certificate authority for people without cert-manager.
//!
//! Keys are ECDSA P-256: cert-manager, Kubernetes tooling, HSMs and FIPS builds all take it, where Ed25519 is refused by
//! some, and one handshake per connection makes its speed irrelevant. The authority's key stays in its directory with
//! mode 0600 and is never printed; there is no revocation, so keep leaves short-lived or rotate the authority.

mod authority;
mod issue;
#[cfg(test)]
mod tests;
mod write;

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use thiserror::Error;

pub use authority::{Authority, AuthorityError, Request, signing_request};
pub use issue::{init, issue};
pub use write::renew;

/// How long an authority is valid by default: ten years.
pub const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long a certificate is valid by default: one year.
pub const LEAF_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// A certificate begins this much before it is made, for machines whose clocks are behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
/// The authority's certificate within its directory.
pub const CA_CERTIFICATE_FILE: &str = "ca.crt";
/// The authority's private key within its directory.
pub const CA_KEY_FILE: &str = "ca.key";

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub not_before: SystemTime,
    /// Its last second.
    pub not_after: SystemTime,
}

impl Validity {
    /// Valid for `period` from `now`, beginning [`CLOCK_SKEW`] earlier.
    pub fn starting(now: SystemTime, period: Duration) -> Self {
        Self { not_before: now - CLOCK_SKEW, not_after: now + period }
    }
}

/// Why no certificate was made.
#[derive(Debug, Error)]
pub enum PkiError {
    /// There is an authority already.
    #[error("{}: there is an authority already, and overwriting it would cut off every peer it signed: choose another directory", .0.display())]
    Exists(PathBuf),
    /// There is no authority in the directory.
    #[error("{}: no such file: make an authority first with `tidelock pki init`", .0.display())]
    NoAuthority(PathBuf),
    /// The authority's files are not a certificate and its key.
    #[error("{}: not the certificate and key of an authority ({source})", .directory.display())]
    BadAuthority {
        /// Where they are.
        directory: PathBuf,
        /// What the parser said.
        source: rcgen::Error,
    },
    /// The authority's key belongs to another certificate.
    #[error("{}: is not the key of the certificate in {CA_CERTIFICATE_FILE}: restore the right one", .0.display())]
    AuthorityKeyMismatch(PathBuf),
    /// The authority's own time is over, or ends before the certificate would begin.
    #[error("{}: the authority expired at {}: make a new one", .path.display(), humantime::format_rfc3339_seconds(*.not_after))]
    AuthorityExpired {
        /// The authority's certificate.
        path: PathBuf,
        /// Its last second.
        not_after: SystemTime,
    },
    /// The request asks for nothing, or for what one certificate cannot be.
    #[error("{0}")]
    BadRequest(&'static str),
    /// A name cannot be put into a certificate.
    #[error("{0:?} cannot be the name of a receiver: use a DNS name or an IP address")]
    BadHost(String),
    /// The output would overwrite the authority.
    #[error("{}: this is the authority's own directory: choose another for the certificate", .0.display())]
    IntoAuthority(PathBuf),
    /// A certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A file could not be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
