//! Why an operator's request fails, and the code it is told.

use thiserror::Error;
use tidelock_proto::{
    Epoch, VolumeName, ids::VolumeNameError, limits::LEAVE_WITHIN, transport::FrameError,
    wire::PROTOCOL_VERSION, wire::WireError,
};

use crate::{history::PatternError, image::ImageError, store::StoreError};

/// Why a planned move is refused. The old writer goes on as if nothing had happened.
#[derive(Debug, Error)]
pub(super) enum LeaveError {
    #[error(
        "the sidecar of volume {0} is not connected: a planned move needs it. `tidelock promote` does not"
    )]
    NotConnected(VolumeName),
    #[error("the sidecar did not stop its application within {} s", LEAVE_WITHIN.as_secs())]
    Late,
    #[error("the sidecar says: {0}")]
    Refused(String),
    #[error("the volume changed after its application stood still: somebody else writes there, too")]
    Changed,
    #[error(
        "the last cut is fuzzy, so it may not hold everything: see the sidecar's conditions, or promote with --accept fuzzy"
    )]
    Fuzzy,
}

/// See `docs/protocol.md` for the codes.
#[derive(Debug, Error)]
pub(super) enum OperatorError {
    #[error(
        "protocol version {0} is not spoken here, only {PROTOCOL_VERSION}: run the same release on both sides"
    )]
    Version(u32),
    #[error(transparent)]
    Name(#[from] VolumeNameError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0}")]
    BadRequest(&'static str),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("{peer} may not {what}: its certificate does not allow it")]
    NotPermitted { peer: String, what: String },
    #[error("the epoch is {current}, not {expected}: somebody else promoted the volume")]
    Epoch { current: Epoch, expected: Epoch },
    #[error("{0}")]
    Leave(#[from] LeaveError),
    #[error(
        "the sidecar of volume {0} is connected: stop it first, or use --force, which ends its replication"
    )]
    Connected(VolumeName),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}", .0.line())]
    Image(ImageError),
    #[error("this receiver keeps no images")]
    NoImages,
    /// There is nobody to be told.
    #[error(transparent)]
    Gone(#[from] FrameError),
}

impl OperatorError {
    /// `Failed.code` of the protocol.
    pub(super) fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::Name(_) | Self::Wire(_) | Self::BadRequest(_) | Self::Pattern(_) => 1,
            Self::Gone(_) => 1,
            Self::NoImages | Self::Image(_) => 9,
            Self::NotPermitted { .. } => 2,
            Self::Epoch { .. } => 5,
            Self::Leave(_) => 10,
            Self::Connected(_) => 11,
            Self::Store(error) => match error {
                StoreError::Full { .. } => 7,
                StoreError::Key(_) => 8,
                StoreError::Limit(_) | StoreError::VolumeExists(_) | StoreError::OtherTenant(..) => 1,
                StoreError::NoSuchVolume(_) => 3,
                StoreError::NoSuchPoint(..) => 4,
                StoreError::EpochMoved { .. } | StoreError::Fenced { .. } => 5,
                StoreError::PointOpen(..) => 11,
                // Ids of chunks come from trees, so one that is not there was lost.
                StoreError::NoSuchChunk(_) => 6,
                error if error.is_damage() || error.is_lost() => 6,
                error if error.is_absent() => 12,
                _ => 7,
            },
        }
    }
}
