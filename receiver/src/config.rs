//! How a receiver is told what to do.

use std::{net::SocketAddr, path::PathBuf};

use crate::{archive, retention::Policy, vault::TenantKeys};

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
    /// TCP address for health and metrics, which are plain HTTP; port 0 takes a free one.
    pub http: SocketAddr,
    /// Which points stay as they grow old.
    pub keep: Policy,
    /// Where the log is archived, if it is.
    pub archive: Option<archive::Options>,
    /// Where to write the bound addresses once everything listens: the UDP one and the TCP one, a line each. It appears whole.
    pub port_file: Option<PathBuf>,
}
