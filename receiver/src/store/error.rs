//! What can go wrong with a store.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;
use tidelock_proto::{
    ChunkId, Epoch, PointId, VolumeName, chunk::ChunkError, tree::TreeError, wire::WireError,
};

use crate::{
    index::KvError,
    log::{
        Damage, LogError,
        part::{Absent, absent},
    },
    vault::KeyError,
};

/// Why a store does not do what it was asked. Cheap to clone: one failed `fdatasync` is told to everybody who waited for it.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Another process has it.
    #[error(
        "store {} is in use by a receiver (pid {pid}); stop that one, or talk to it instead of opening its store",
        dir.display()
    )]
    Locked {
        /// The store.
        dir: PathBuf,
        /// Who has it, as the lock file says.
        pid: String,
    },
    /// The directory is something else.
    #[error(
        "{} holds {found:?} and is no store: choose an empty directory, which nothing else uses",
        dir.display()
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// An entry that is not a store's.
        found: std::ffi::OsString,
    },
    /// The directory cannot be used.
    #[error("store {}: {what}: {source}", dir.display())]
    Dir {
        /// The store.
        dir: PathBuf,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A tenant is encrypted and its key is missing or wrong, or the other way round.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The log said no.
    #[error("log: {0}")]
    Log(#[source] LogError),
    /// The index said no.
    #[error(transparent)]
    Index(#[from] KvError),
    /// An earlier write failed; what is on disk is not known until the store is opened again.
    #[error(
        "the store takes no writes since one failed ({0}); restart the receiver once the cause is removed"
    )]
    Poisoned(Arc<StoreError>),
    /// There is no space for more, for the time being: what was acknowledged is there, and nothing more is taken.
    #[error("{}", full(*.capped, *.available, *.wanted))]
    Full {
        /// It is the store's cap, not the disk.
        capped: bool,
        /// Bytes that are left.
        available: u64,
        /// Bytes that have to be.
        wanted: u64,
    },
    /// The store was closed before the batch was written.
    #[error("the store is closed")]
    Closed,
    /// No such volume.
    #[error("volume {0} does not exist")]
    NoSuchVolume(VolumeName),
    /// A new volume was to be made, and there is one.
    #[error("volume {0} exists; choose another name")]
    VolumeExists(VolumeName),
    /// A clone of another tenant: chunks are a tenant's own.
    #[error("{1} is of another tenant than {0}; a clone stays with its tenant")]
    OtherTenant(VolumeName, VolumeName),
    /// The volume has no such point.
    #[error("volume {0} has no point {1}")]
    NoSuchPoint(VolumeName, PointId),
    /// The point was to be dropped, and is needed.
    #[error("volume {0}: points from {1} on cannot be dropped, one of them is the newest or has a tag")]
    InUse(VolumeName, PointId),
    /// The volume was to be deleted, and one of its points is being read.
    #[error("volume {0}: somebody reads its point {1}; try again when that is done")]
    PointOpen(VolumeName, PointId),
    /// A compaction found something that must be looked at first; the store is what it was.
    #[error("nothing was compacted: {0} is not as it should be: {1}")]
    NotCompacted(&'static str, String),
    /// What was to be counted changes too fast, or is in the way of somebody who makes room.
    #[error("the store is making room, and what would become of it cannot be counted meanwhile; ask again")]
    Restless,
    /// Parts of the log are only in the archive, and what was asked waits until they are here.
    #[error("the store is still being fetched from its archive; {0} waits until that is done")]
    Filling(&'static str),
    /// The tenant has no such chunk.
    #[error("chunk {0} is not in the store")]
    NoSuchChunk(ChunkId),
    /// The writer's epoch has passed.
    #[error("volume {volume} was promoted: its epoch is {epoch}")]
    Fenced {
        /// The volume.
        volume: VolumeName,
        /// Its epoch.
        epoch: Epoch,
    },
    /// The epoch is not the one that was expected.
    #[error("volume {volume} is at epoch {current}, not {expected}: somebody else promoted it")]
    EpochMoved {
        /// The volume.
        volume: VolumeName,
        /// What was expected.
        expected: Epoch,
        /// What it is.
        current: Epoch,
    },
    /// A commit that does not follow the last one.
    #[error("point {point} of {volume} does not follow: expected {expected} on {parent:?}")]
    OutOfOrder {
        /// The volume.
        volume: VolumeName,
        /// What came.
        point: PointId,
        /// What had to come.
        expected: PointId,
        /// On which parent.
        parent: Option<PointId>,
    },
    /// A limit of the store or the model is passed.
    #[error("{0} beyond the limit")]
    Limit(&'static str),
    /// What is asked for rests on bytes that are damaged.
    #[error("volume {volume}, point {point}: {cause}")]
    Damaged {
        /// The volume.
        volume: VolumeName,
        /// The point that cannot be had.
        point: PointId,
        /// Why.
        cause: Cause,
    },
    /// A chunk's record is there, its content is not what it should be.
    #[error("chunk {0}: {1}")]
    BadChunk(ChunkId, ChunkError),
}

/// Why a point's tree cannot be had.
#[derive(Debug, Clone, Error)]
pub enum Cause {
    /// The log is damaged there.
    #[error(transparent)]
    Log(Damage),
    /// A point it builds on is not in the log.
    #[error("point {0}, which it builds on, is missing")]
    Missing(PointId),
    /// A commit or a checkpoint does not read as one.
    #[error("{0} does not read as what it should be")]
    Unreadable(&'static str),
    /// Its operations do not read as such.
    #[error("its operations are malformed: {0}")]
    Ops(#[from] WireError),
    /// Its operations do not fit its parent's tree.
    #[error("its operations do not apply: {0}")]
    Tree(#[from] TreeError),
    /// The tree is another one than was committed.
    #[error("the tree built from the log has another digest than the one that was committed")]
    Digest,
    /// A chunk of its checkpoint is not there or not whole.
    #[error("chunk {0} of its checkpoint is not readable")]
    Chunk(ChunkId),
}

fn full(capped: bool, available: u64, wanted: u64) -> String {
    if capped {
        return format!(
            "store-cap: the receiver's store has reached its size cap ({available} bytes left, {wanted} needed); it goes on by itself once the oldest points have gone. If none may go, raise --store-cap, or release or delete something"
        );
    }
    format!(
        "store-full: the receiver's disk is full ({available} bytes left, {wanted} needed); it goes on by itself once there is space"
    )
}

impl From<LogError> for StoreError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Full { capped, available, wanted } => Self::Full { capped, available, wanted },
            LogError::Key(error) => Self::Key(error),
            error => Self::Log(error),
        }
    }
}

impl StoreError {
    /// Whether bytes on disk are not what was written there.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::BadChunk(..) | Self::Log(LogError::Damaged(_)))
    }

    /// Whether it says that bytes are not here and may be had later.
    pub fn is_absent(&self) -> bool {
        self.absent().is_some_and(|absent| !absent.lost)
    }

    /// Whether it says that bytes are not here, and that the archive does not have them either.
    pub fn is_lost(&self) -> bool {
        self.absent().is_some_and(|absent| absent.lost)
    }

    /// Whether the disk did not read what it was asked for, which it may do the next time: not known to be damaged, nor to be whole.
    pub(crate) fn is_unread(&self) -> bool {
        matches!(self, Self::Log(LogError::Io { .. })) && self.absent().is_none()
    }

    fn absent(&self) -> Option<&Absent> {
        match self {
            Self::Log(LogError::Io { source, .. }) => absent(source),
            _ => None,
        }
    }

    pub(crate) fn dir(dir: &std::path::Path, what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Dir { dir: dir.to_owned(), what, source: Arc::new(source) }
    }
}
