//! Why a receiver does not start, or stops.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;
use tidelock_proto::{identity::IdentityFileError, transport::TransportError};

use crate::{archive::ArchiveError, image::ImageError, store::StoreError};

/// One line that says what to do.
#[derive(Debug, Error)]
pub enum RunError {
    /// The identity cannot be used.
    #[error("--identity: {0}")]
    Identity(#[from] IdentityFileError),
    /// The store cannot be opened.
    #[error("--store: {0}")]
    Open(StoreError),
    /// The archive cannot be used, or acknowledgements wait for one that is not this receiver's any more.
    #[error("--archive: {0}")]
    Archive(ArchiveError),
    /// The directory of the images cannot be used.
    #[error("--image: {0}")]
    Image(ImageError),
    /// An address cannot be listened on.
    #[error("{option} {address}: {}", advice(.cause))]
    Listen {
        /// The option that names it.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// The transport cannot be set up.
    #[error(transparent)]
    Transport(TransportError),
    /// The port file cannot be written.
    #[error("--port-file {}: {source}", path.display())]
    PortFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Threads(io::Error),
    /// The store failed while the receiver ran.
    #[error("the store failed: {0}")]
    Store(StoreError),
    /// A long-lived part of the process ended by itself.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

impl RunError {
    /// Whether the configuration has to change before another attempt can succeed.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Image(_) | Self::Identity(_) | Self::Listen { .. } | Self::PortFile { .. } => true,
            Self::Archive(error) => !error.is_transient(),
            Self::Open(error) => matches!(
                error,
                StoreError::Locked { .. }
                    | StoreError::NotEmpty { .. }
                    | StoreError::Dir { .. }
                    | StoreError::Key(_)
            ),
            Self::Transport(error) => matches!(error, TransportError::NotAReceiver(_)),
            Self::Threads(_) | Self::Store(_) | Self::Ended(_) => false,
        }
    }
}

fn advice(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::AddrInUse => {
            "the address is in use: choose another port, or stop what listens there".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address: use one of its own, or 0.0.0.0".to_owned()
        }
        io::ErrorKind::PermissionDenied => "not permitted: choose a port above 1023".to_owned(),
        _ => cause.to_string(),
    }
}
