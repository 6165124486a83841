//! How a receiver is told what to do.

use std::{net::SocketAddr, path::PathBuf};

#[cfg(doc)]
use crate::limits;
use crate::{archive, retention::Policy, vault::TenantKeys};

/// A limit of a store's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// Bytes that it may have; at least [`limits::CAP_MIN_BYTES`].
    pub bytes: u64,
    /// Part of it from which on there is a warning, in percent.
    pub warn_percent: u8,
}

impl Cap {
    /// Whether a log of this length deserves the warning.
    pub fn is_near(&self, log_bytes: u64) -> bool {
        log_bytes >= self.bytes / 100 * u64::from(self.warn_percent)
    }
}

/// What [`crate::run`] needs. Checked before anything is bound.
#[derive(Debug, Clone)]
pub struct Config {
    /// The store; created if it is not there.
    pub store: PathBuf,
    /// Keys of tenants whose data is encrypted in the store.
    pub keys: TenantKeys,
    /// UDP address for sidecars and operators; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Directory with `tls.crt`, `tls.key` and `ca.crt`.
    pub identity: PathBuf,
    /// Directory of the hot images, if any are to be kept.
    pub image: Option<PathBuf>,
    /// TCP address for health and metrics, which are plain HTTP; port 0 takes a free one.
    pub http: SocketAddr,
    /// How long the log may get, if there is a limit.
    pub cap: Option<Cap>,
    /// Which points stay as they grow old.
    pub keep: Policy,
    /// Where the log is archived, if it is.
    pub archive: Option<archive::Options>,
    /// Where to write the bound addresses once everything listens: the UDP one and the TCP one, a line each. It appears whole.
    pub port_file: Option<PathBuf>,
}
