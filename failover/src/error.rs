//! Why an operator's request failed, and which of the failures are refusals.

use std::{
    error::Error,
    io::{self, ErrorKind},
    path::PathBuf,
};

use thiserror::Error;
use tidelock_proto::{
    ChunkId, Epoch, PointId, VolumeName,
    chunk::ChunkError,
    identity::IdentityFileError,
    transport::{FrameError, TransportError},
    tree::TreeError,
    wire::WireError,
};
use tidelock_receiver::{
    archive::ArchiveError,
    history::PatternError,
    image::ImageError,
    reconcile::{ChunksError, ReconcileError},
    store::StoreError,
};

use crate::{
    at::AtError,
    browse::{EntryKind, PathError, VolumePath},
};

/// `Failed.code`: somebody uses what was to be deleted.
const CODE_BUSY: u32 = 11;

/// Why it failed. The messages say what to do where that is known.
#[derive(Debug, Error)]
pub enum FailoverError {
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// No connection with the receiver, or it was lost.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The receiver's answer broke off.
    #[error("the receiver's answer broke off")]
    Frame(#[from] FrameError),
    /// The receiver's answer makes no sense.
    #[error("the receiver's answer makes no sense")]
    Wire(#[from] WireError),
    /// The receiver's answer is not one to the question.
    #[error("the receiver answered another question")]
    Answer,
    /// The receiver failed to answer; its code says how, see `docs/protocol.md`.
    #[error("the receiver says: {reason}")]
    Failed {
        /// The kind of failure.
        code: u32,
        /// In words.
        reason: String,
    },
    /// The runtime for the connection could not be started.
    #[error("cannot start")]
    Start(#[source] std::io::Error),
    /// Only a running receiver can do it.
    #[error("{0} needs a running receiver: it is what sidecars and the archive are connected to")]
    NeedsReceiver(&'static str),
    /// The directory is not a store.
    #[error("{} is not a store: it has no log", .0.display())]
    NotAStore(PathBuf),
    /// Whether the directory is a store cannot be seen.
    #[error("cannot look into the store {}: run this as the receiver's user", path.display())]
    StoreHidden {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There are no hot images where somebody was asked for one.
    #[error("no images are kept there")]
    NoImages,
    /// A hot image cannot be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive of a store that no receiver uses.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// What an instant promotion keeps beneath its directory cannot be read or written.
    #[error("cannot keep what is written to the promoted volume")]
    Instant(#[source] io::Error),
    /// Another process serves the directory.
    #[error("another process has this instant promotion; end that one first")]
    InstantInUse,
    /// It is mounted already.
    #[error("{} is an instant promotion that is mounted already: `tidelock hydration` tells how far it is", .0.display())]
    InstantMounted(PathBuf),
    /// It is none.
    #[error("{} is no mounted instant promotion", .0.display())]
    NotInstant(PathBuf),
    /// It is of something else.
    #[error("{} is an instant promotion of {holds}; nothing was changed", path.display())]
    InstantOther {
        /// The directory.
        path: PathBuf,
        /// Of what.
        holds: String,
    },
    /// The journal of an instant promotion is damaged.
    #[error(
        "the journal of the instant promotion is damaged at byte {at}; nothing was changed: what was written is in the files beside it"
    )]
    InstantDamaged {
        /// Where.
        at: u64,
    },
    /// A change of an instant promotion is not durable.
    #[error("what was written last may not be durable; run the command again")]
    InstantLost,
    /// The receiver was never reached.
    #[error("the receiver is not connected")]
    Unreached,
    /// A planned move on a store that no receiver uses.
    #[error(
        "a planned move asks the sidecar for a last cut, so it needs the running receiver (--receiver): `tidelock promote` does not"
    )]
    MoveNeedsReceiver,
    /// Some volumes of a pod are empty and some are not.
    #[error(
        "{} is empty and {} is not, so nobody knows what is meant: restore the one, or empty the other",
        .empty.display(), .full.display()
    )]
    PartlyFilled {
        /// A directory that holds something.
        full: PathBuf,
        /// One that holds nothing.
        empty: PathBuf,
    },
    /// There is no such volume, or it is not this operator's.
    #[error("there is no volume {volume}{}", others(.known))]
    NoVolume {
        /// What was asked for.
        volume: VolumeName,
        /// What there is.
        known: Vec<VolumeName>,
    },
    /// A volume without points.
    #[error("volume {0} has no recovery point yet")]
    NoPoints(VolumeName),
    /// The point does not exist.
    #[error("volume {volume} has no point {point}: `tidelock points {volume}` lists them")]
    NoPoint {
        /// The volume.
        volume: VolumeName,
        /// What was asked for.
        point: PointId,
    },
    /// No point has the name.
    #[error("volume {volume} has no usable point named {tag:?}: `tidelock points {volume} --all` lists them")]
    NoTag {
        /// The volume.
        volume: VolumeName,
        /// What was asked for.
        tag: String,
    },
    /// A point that nobody holds was to be released.
    #[error(
        "point {point} of volume {volume} is not held, so there is nothing to release: `tidelock points {volume}` shows `held:` where one is"
    )]
    NotHeld {
        /// The volume.
        volume: VolumeName,
        /// What was asked for.
        point: PointId,
    },
    /// No point is as old as was asked for.
    #[error(
        "volume {volume} has no usable point at or before {wanted}: they begin at {oldest} and end at {newest}"
    )]
    TooEarly {
        /// The volume.
        volume: VolumeName,
        /// What was asked for.
        wanted: String,
        /// The cut of the oldest.
        oldest: String,
        /// The cut of the newest.
        newest: String,
    },
    /// The point was not cut at one instant.
    #[error(
        "point {0} is fuzzy: its files were copied one by one, and a database may not start from it; --accept fuzzy takes it nevertheless"
    )]
    Fuzzy(PointId),
    /// No other points than fuzzy ones.
    #[error(
        "volume {0} has only fuzzy points, whose files were copied one by one; --accept fuzzy takes one nevertheless"
    )]
    OnlyFuzzy(VolumeName),
    /// The text that names a point makes no sense.
    #[error(transparent)]
    At(#[from] AtError),
    /// Somebody else promoted the volume meanwhile.
    #[error(
        "volume {volume} is no longer at epoch {expected}: somebody else promoted it; see `tidelock status {volume}`"
    )]
    EpochMoved {
        /// The volume.
        volume: VolumeName,
        /// The epoch when this promotion began.
        expected: Epoch,
    },
    /// The sidecar lost events and has not compared the volume yet.
    #[error(
        "volume {0} is unverified: its sidecar lost events and compares the volume, so the newest point may lack changes; \
         --accept unverified promotes it nevertheless"
    )]
    Unverified(VolumeName),
    /// No promotion can be taken back.
    #[error(
        "no window of volume {0} is open: it was not promoted with --window, or that promotion was committed, or taken back and followed by another"
    )]
    NoWindow(VolumeName),
    /// A promotion can no longer be taken back.
    #[error(
        "the window in which the promotion of volume {volume} to epoch {epoch} could be taken back ended at {until}: `tidelock move` is the way to another primary"
    )]
    WindowOver {
        /// The volume.
        volume: VolumeName,
        /// The epoch of the promotion.
        epoch: Epoch,
        /// When it ended, RFC 3339.
        until: String,
    },
    /// The copy could not be written; the epoch has not risen.
    #[error(
        "point {point} could not be written, so nobody was fenced; {}", advice(.source)
    )]
    BeforeFence {
        /// What was being written.
        point: PointId,
        /// Why not.
        #[source]
        source: Box<FailoverError>,
    },
    /// The epoch was raised, and the copy could not be written.
    #[error(
        "the old primary is fenced since epoch {epoch}, but point {point} could not be written; {}", advice(.source)
    )]
    AfterFence {
        /// The volume's epoch now.
        epoch: Epoch,
        /// What was being written.
        point: PointId,
        /// Why not.
        #[source]
        source: Box<FailoverError>,
    },
    /// The tree that came is not the one that was committed.
    #[error("the tree of point {0} is not the one that was committed")]
    Digest(PointId),
    /// The tree does not apply.
    #[error("the tree of the point makes no sense")]
    Tree(#[from] TreeError),
    /// A chunk is not what its id says.
    #[error("the content of the point is damaged")]
    Chunk(#[from] ChunkError),
    /// Chunks that the point needs are not there.
    #[error("point {point} cannot be restored: {missing} of its chunks are missing; choose an earlier one")]
    Unrestorable {
        /// The point.
        point: PointId,
        /// How many are missing of those that were looked for.
        missing: u64,
    },
    /// The point has nothing at this path.
    #[error("point {point} has no {path}: `tidelock ls` shows what it has; links are not followed")]
    NoPath {
        /// The point.
        point: PointId,
        /// The path.
        path: VolumePath,
    },
    /// What was to be read is something else.
    #[error("{path} is no regular file but a {}", format!("{kind:?}").to_lowercase())]
    NotAFile {
        /// The path.
        path: VolumePath,
        /// What it is.
        kind: EntryKind,
    },
    /// Not a path in a volume.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Not a pattern.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The patterns leave nothing.
    #[error("the point has no name that --include means and --exclude does not; nothing was written")]
    NothingIncluded,
    /// A directory cannot be made equal to a part.
    #[error(
        "--overwrite would delete what --include and --exclude leave out; restore the part to a directory of its own"
    )]
    PartOverwrites,
    /// The sidecar of a volume that is to be rolled back still runs.
    #[error(
        "the sidecar of {0} is connected: stop the application and then the sidecar, whose final cut keeps what is there now; \
         --force goes on nevertheless"
    )]
    Connected(VolumeName),
    /// Somebody works in the directory that is to be changed.
    #[error("{} is in use by {by}: stop what works there; --force goes on nevertheless", directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// The first processes.
        by: String,
    },
    /// A volume is to be made within another one that is replicated.
    #[error(
        "{} lies in a volume that {by} replicates, and would become part of it: choose a directory beside it; --force goes on nevertheless", directory.display()
    )]
    WithinVolume {
        /// The directory.
        directory: PathBuf,
        /// The first sidecars.
        by: String,
    },
    /// The directory cannot be made, or written to.
    #[error("cannot write to {}: make it writable for this user, or choose another directory", place.display())]
    NotWritable {
        /// It, or what of its path is there.
        place: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The copy is larger than what is free.
    #[error(
        "the point has {} and there is room for {} at {}: make room, or choose another directory; --force tries nevertheless",
        mebibytes(*.needed_bytes), mebibytes(*.free_bytes), directory.display()
    )]
    NoRoom {
        /// Where it was to be.
        directory: PathBuf,
        /// The content, in bytes.
        needed_bytes: u64,
        /// What it may take, in bytes.
        free_bytes: u64,
    },
    /// A planned move of a volume whose sidecar is not there.
    #[error(
        "the sidecar of {0} is not connected, so nobody can stop its application: `tidelock promote` does not need it"
    )]
    MoveDisconnected(VolumeName),
    /// A planned move of an application that nobody may stop.
    #[error(
        "the sidecar of {0} was not told whom to stop: start it with --on-fence stop, or stop the application, wait for `tidelock \
         checkpoint --wait`, and promote"
    )]
    MoveWithoutStop(VolumeName),
    /// What needs an empty directory, and overwrites none.
    #[error("{} is not empty{}; nothing was changed: choose another directory", directory.display(), unfinished(.holds))]
    NotVacant {
        /// The directory.
        directory: PathBuf,
        /// Of what it holds an unfinished copy.
        holds: Option<String>,
    },
    /// A directory that is to be rolled back is not what the volume is kept in.
    #[error(
        "{} has no name in common with point {point} of {volume}, nor with the newest, and all that is there would be deleted: is it the right \
         directory? --force goes on nevertheless", directory.display()
    )]
    NotThatVolume {
        /// The directory.
        directory: PathBuf,
        /// The volume.
        volume: VolumeName,
        /// The point that was to be gone back to.
        point: PointId,
    },
    /// A volume was named more than once.
    #[error("volume {0} is named twice")]
    VolumeTwice(VolumeName),
    /// Two volumes would be written over each other.
    #[error("{} and {} are one directory, or one holds the other: give each volume its own", one.display(), other.display())]
    PlacesMeet {
        /// A directory.
        one: PathBuf,
        /// And the other.
        other: PathBuf,
    },
    /// A volume is to get the point of another one, with which it was not cut.
    #[error(
        "{other} is not cut together with {volume}, whose point is of {group}; promote it with a command of its own"
    )]
    NotOfGroup {
        /// The first volume.
        volume: VolumeName,
        /// The other.
        other: VolumeName,
        /// Whom the point is of.
        group: Box<str>,
    },
    /// There is nothing in a directory that is to be imported.
    #[error("{} is empty: is the volume mounted there?", .0.display())]
    NothingThere(PathBuf),
    /// A directory that is to be imported is a copy that was not completed.
    #[error(
        "{} holds an unfinished copy of a point, and not what an old primary wrote: complete it with the command that began it", .0.display()
    )]
    HalfWritten(PathBuf),
    /// No point is of the epoch that a directory was written in.
    #[error(
        "volume {volume} has no point of epoch {epoch} or before: --epoch is what the old primary's sidecar was started with"
    )]
    NoPointOfEpoch {
        /// The volume.
        volume: VolumeName,
        /// What was asked for.
        epoch: Epoch,
    },
    /// A volume has the name that a branch was to get.
    #[error("volume {branch} is there already, and is not the branch of {of} at {base}: choose another name")]
    NotThatBranch {
        /// The volume that is there.
        branch: VolumeName,
        /// What was to be branched.
        of: VolumeName,
        /// Where.
        base: PointId,
    },
    /// It could not be found out who works in a directory.
    #[error("cannot find out who has files open there")]
    Openers(#[source] io::Error),
    /// Somebody asked for the end. Nothing is left behind.
    #[error("interrupted; nothing is left behind")]
    Interrupted,
    /// A check could not be run.
    #[error("cannot run the check")]
    Check(#[source] io::Error),
    /// What a test failover had written could not be removed.
    #[error("cannot remove what the test has written")]
    CleanUp(#[source] io::Error),
    /// A point could not be mounted or unmounted.
    #[error("cannot mount there: this needs root (CAP_SYS_ADMIN), or /dev/fuse and fusermount3")]
    Mount(#[source] io::Error),
    /// There is no place for what is written to a mounted point.
    #[error("cannot make a scratch file")]
    Scratch(#[source] io::Error),
    /// The first point comes after the last.
    #[error("point {from} is newer than {to}: --from is the older one")]
    Backwards {
        /// Where to begin.
        from: PointId,
        /// Where to end.
        to: PointId,
    },
    /// Content could not be had.
    #[error("cannot get the content")]
    Content(#[source] ChunksError),
    /// A chunk did not come, or is too short for the file that refers to it.
    #[error("chunk {0} is missing or too short for the file that refers to it")]
    LostChunk(ChunkId),
    /// Nobody takes the content.
    #[error("cannot write the content")]
    Output(#[source] io::Error),
    /// The directory could not be written.
    #[error(transparent)]
    Reconcile(#[from] ReconcileError),
}

impl FailoverError {
    /// For a command that has no --overwrite, and must not advise it.
    pub(crate) fn without_overwrite(self) -> Self {
        match self {
            Self::Reconcile(ReconcileError::NotEmpty(directory)) => {
                Self::NotVacant { directory, holds: None }
            }
            Self::Reconcile(ReconcileError::Unfinished { path, holds }) => {
                Self::NotVacant { directory: path, holds: Some(holds) }
            }
            other => other,
        }
    }

    /// Whether this was not done on purpose, because it could lose data; nothing was changed.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Fuzzy(_)
                | Self::OnlyFuzzy(_)
                | Self::EpochMoved { .. }
                | Self::Unverified(_)
                | Self::Connected(_)
                | Self::Failed { code: CODE_BUSY, .. }
                | Self::InUse { .. }
                | Self::WithinVolume { .. }
                | Self::NotOfGroup { .. }
                | Self::NotVacant { .. }
                | Self::NotThatVolume { .. }
                | Self::NoRoom { .. }
                | Self::MoveDisconnected(_)
                | Self::MoveWithoutStop(_)
                | Self::NoWindow(_)
                | Self::WindowOver { .. }
                | Self::NothingThere(_)
                | Self::HalfWritten(_)
                | Self::NotThatBranch { .. }
                | Self::PartlyFilled { .. }
                | Self::InstantInUse
                | Self::InstantMounted(_)
                | Self::InstantOther { .. }
        ) || matches!(self, Self::Reconcile(error) if error.is_refusal())
    }

    /// Whether the request itself makes no sense.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Identity(_)
                | Self::NotAStore(_)
                | Self::NeedsReceiver(_)
                | Self::Store(StoreError::Key(_))
                | Self::Image(ImageError::Store(StoreError::Key(_)))
                | Self::Archive(ArchiveError::Store(StoreError::Key(_)))
                | Self::At(_)
                | Self::Archive(ArchiveError::Url { .. })
                | Self::Path(_)
                | Self::Pattern(_)
                | Self::Backwards { .. }
                | Self::NothingIncluded
                | Self::VolumeTwice(_)
                | Self::PlacesMeet { .. }
                | Self::PartOverwrites
                | Self::Transport(TransportError::Address(_))
                | Self::Reconcile(ReconcileError::NotDirectory(_))
        )
    }
}

/// What helps against the reason that a point could not be written.
fn advice(source: &(dyn Error + 'static)) -> &'static str {
    let (mut kind, mut next) = (None, Some(source));
    while let Some(cause) = next {
        kind = cause.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
        next = cause.source();
    }
    match kind {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            "make room there and run this again, or choose another directory"
        }
        Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            "make it writable for this user and run this again, or choose another directory"
        }
        _ => "run this again, or choose an earlier point with --at (`tidelock verify` says which are whole)",
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn unfinished(holds: &Option<String>) -> String {
    holds.as_ref().map(|holds| format!(", but holds an unfinished copy of {holds}")).unwrap_or_default()
}

fn others(volumes: &[VolumeName]) -> String {
    let names: Vec<String> = volumes.iter().take(10).map(ToString::to_string).collect();
    match names.len() {
        0 => ", nor any other".to_owned(),
        _ => format!("; there is {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_reason_to_go_back_in_time() {
        let told = |kind: ErrorKind| {
            let cause = ReconcileError::Io { what: "write", path: "/new/data".into(), source: kind.into() };
            let point = PointId::new(Epoch(1), tidelock_proto::Seq(7));
            FailoverError::BeforeFence { point, source: Box::new(cause.into()) }.to_string()
        };
        for (kind, word) in [
            (ErrorKind::StorageFull, "make room"),
            (ErrorKind::ReadOnlyFilesystem, "make it writable"),
            (ErrorKind::PermissionDenied, "make it writable"),
        ] {
            let told = told(kind);
            assert!(told.contains(word) && !told.contains("earlier"), "{told}");
        }
        assert!(told(ErrorKind::Other).contains("an earlier point"));
    }
}
