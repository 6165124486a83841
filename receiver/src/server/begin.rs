//! From `Hello` to a session: who may write, in which epoch, and on which tree.

use std::time::Instant;

use thiserror::Error;
use tidelock_proto::{
    Epoch, PointId, Tree, VolumeName,
    identity::Peer,
    ids::VolumeNameError,
    limits as wire_limits,
    wire::{
        PROTOCOL_VERSION,
        messages::{Denied, Fenced, Hello, ToSidecarKind},
    },
};

use super::Context;
use crate::{
    archive,
    session::{Session, Start},
    store::{Store, StoreError, VolumeInfo},
    vault::KeyError,
    volume::{Interruption, Parked, Seat, Writer},
};

/// Why no session begins.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error(
        "protocol version {0} is not spoken here, only {PROTOCOL_VERSION}: run the same release on both sides"
    )]
    Version(u32),
    #[error(transparent)]
    Name(#[from] VolumeNameError),
    #[error("{peer} may not write volume {volume}: its certificate does not name it")]
    NotPermitted { peer: String, volume: VolumeName },
    #[error("{peer} may not import into volume {volume}: that takes an operator's certificate")]
    NotOperator { peer: String, volume: VolumeName },
    #[error(
        "volume {volume} has a writer, whose state is newer than any directory at rest: import it as a branch"
    )]
    HasWriter { volume: VolumeName },
    #[error("epoch {writer} is none: 1 is for a writer that was given none, {max} the last", max = wire_limits::EPOCH_MAX)]
    NoEpoch { writer: u64 },
    #[error(
        "volume {volume} is at epoch {current} here, and nothing at this receiver granted epoch {writer}: start this \
         sidecar with --epoch {current}; if the volume was promoted at another receiver, add --raise-epoch"
    )]
    Ungranted { volume: VolumeName, current: Epoch, writer: Epoch },
    #[error("volume {volume} was deleted here; to begin it anew start its sidecar with --epoch {next}")]
    Deleted { volume: VolumeName, next: Epoch },
    #[error("a text of Hello is longer than {} bytes", wire_limits::TEXT_MAX_BYTES)]
    TooLong,
    #[error("volume {volume} was promoted to epoch {current}, and this writer is of epoch {writer}")]
    Fenced { volume: VolumeName, current: Epoch, writer: Epoch },
    #[error("another stream took over before this one could begin")]
    Superseded { reconnected: bool },
    #[error("{0}")]
    Full(StoreError),
    #[error("locked: {0}")]
    Locked(KeyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the volume is being promoted")]
    Promoting,
    #[error("the receiver is shutting down")]
    Closing,
}

/// A session that may begin.
pub(super) struct Begun {
    pub(super) session: Session,
    pub(super) seat: Seat,
    /// Empty: the session has the tree.
    pub(super) writer: Writer,
    /// Of the store, before anything was asked of it.
    pub(super) generation: u64,
}

impl Refusal {
    /// What the sidecar is told; nothing if it has reconnected in the meantime.
    pub(super) fn message(&self) -> Option<ToSidecarKind> {
        let denied = |retry| Some(ToSidecarKind::Denied(Denied { reason: self.to_string(), retry }));
        match self {
            Self::Fenced { current, .. } => Some(ToSidecarKind::Fenced(Fenced { epoch: current.0 })),
            Self::Superseded { reconnected: true } => None,
            Self::Store(_) => {
                let reason = "the receiver's store failed: see the receiver's log".to_owned();
                Some(ToSidecarKind::Denied(Denied { reason, retry: true }))
            }
            Self::Closing | Self::Promoting | Self::Full(_) | Self::Locked(_) => denied(true),
            _ => denied(false),
        }
    }
}

/// Checks what needs no waiting: what the peer says, and what it may do.
pub(super) fn authorise(hello: &Hello, peer: &Peer) -> Result<VolumeName, Refusal> {
    if hello.version != PROTOCOL_VERSION {
        return Err(Refusal::Version(hello.version));
    }
    let volume: VolumeName = hello.volume.parse()?;
    if hello.import && !peer.may_operate(&volume) {
        return Err(Refusal::NotOperator { peer: peer.to_string(), volume });
    }
    if !hello.import && !peer.may_write(&volume) {
        return Err(Refusal::NotPermitted { peer: peer.to_string(), volume });
    }
    if !(1..=wire_limits::EPOCH_MAX).contains(&hello.epoch) {
        return Err(Refusal::NoEpoch { writer: hello.epoch });
    }
    if hello.build.len().max(hello.tracker.len()) > wire_limits::TEXT_MAX_BYTES {
        return Err(Refusal::TooLong);
    }
    Ok(volume)
}

/// Ends an older session of the volume, waits for it, and begins on the newest durable point.
pub(super) async fn begin(context: &Context, hello: &Hello, volume: &VolumeName) -> Result<Begun, Refusal> {
    let epoch = Epoch(hello.epoch);
    // Before anybody is disturbed; the epoch that counts is looked at again below.
    check_epoch(&context.store, context.store.volume(volume).as_ref(), volume, hello)?;
    if hello.import && context.volumes.get(volume).is_written_by_another(hello.instance) {
        return Err(Refusal::HasWriter { volume: volume.clone() });
    }
    context.store.check_key(volume.tenant()).map_err(Refusal::Locked)?;
    if let Some(full) = context.store.full() {
        return Err(Refusal::Full(full));
    }
    let generation = context.store.generation();
    let mut seat = context.volumes.get(volume).arrive(hello.instance, epoch);
    let mut closing = context.closing.clone();
    let taken = tokio::select! {
        taken = seat.take() => taken,
        _ = closing.wait_for(|closing| *closing) => return Err(Refusal::Closing),
    };
    let mut writer = match taken {
        Ok(writer) => writer,
        Err(interruption) => return Err(interrupted(interruption, volume, epoch)),
    };
    let info = current(&context.store, volume, hello).await?;
    // The welcome says what is durable.
    if let Some(mut archived) = context.archive.as_ref().and_then(archive::Handle::acks) {
        let number = context.store.durable_number();
        loop {
            tokio::select! {
                found = archived.wait_for(|archived| *archived >= number) => match found {
                    Ok(_) => break,
                    Err(_) => return Err(Refusal::Closing),
                },
                () = seat.changed() => if let Some(interruption) = seat.interruption() {
                    return Err(interrupted(interruption, volume, epoch));
                },
                _ = closing.wait_for(|closing| *closing) => return Err(Refusal::Closing),
            }
        }
    }
    let last = info.as_ref().map(|info| info.last.id);
    let tree = match writer.take().filter(|parked| parked.last == last) {
        Some(parked) => Some(parked.tree),
        None => load(&context.store, volume, last).await?,
    };
    let afresh = tree.is_none();
    seat.volume.live().damaged = last.filter(|_| afresh);
    // What is damaged covers nothing.
    let cut_ns = info.as_ref().filter(|_| !afresh).map_or(0, |info| info.last.cut.time_ns);
    let tree = tree.unwrap_or_else(Tree::new);
    let session = Session::new(Start { volume: volume.clone(), epoch, last, cut_ns, tree, afresh });
    Ok(Begun { session, seat, writer, generation })
}

fn interrupted(interruption: Interruption, volume: &VolumeName, writer: Epoch) -> Refusal {
    match interruption {
        Interruption::Fenced(current) => Refusal::Fenced { volume: volume.clone(), current, writer },
        Interruption::Superseded { reconnected } => Refusal::Superseded { reconnected },
        Interruption::Promoting => Refusal::Promoting,
    }
}

fn check_epoch(
    store: &Store,
    info: Option<&VolumeInfo>,
    volume: &VolumeName,
    hello: &Hello,
) -> Result<(), Refusal> {
    let writer = Epoch(hello.epoch);
    // Its sidecar is not told that it is fenced: nothing was promoted, and its application may go on.
    if let Some(next) = store.deleted(volume).filter(|next| *next > writer) {
        return Err(Refusal::Deleted { volume: volume.clone(), next });
    }
    match info {
        Some(info) if info.epoch > writer => {
            Err(Refusal::Fenced { volume: volume.clone(), current: info.epoch, writer })
        }
        Some(info) if info.epoch < writer && !hello.raise_epoch => {
            Err(Refusal::Ungranted { volume: volume.clone(), current: info.epoch, writer })
        }
        _ => Ok(()),
    }
}

/// What the store knows of the volume, at the writer's epoch. A writer of a higher epoch that was granted it elsewhere, and
/// says so, raises it here too, durably and upon the newest point.
async fn current(store: &Store, volume: &VolumeName, hello: &Hello) -> Result<Option<VolumeInfo>, Refusal> {
    let (info, writer) = (store.volume(volume), Epoch(hello.epoch));
    check_epoch(store, info.as_ref(), volume, hello)?;
    match info {
        Some(info) if info.epoch < writer => {
            store.raise_epoch(volume, info.epoch, writer, info.last.id).await.await?;
            tracing::info!(%volume, from = %info.epoch, to = %writer, base = %info.last.id, "epoch raised by its writer");
            Ok(store.volume(volume))
        }
        info => Ok(info),
    }
}

/// The tree of the newest point; `None` if it rests on damaged bytes, so that the session has to begin afresh ([`Start`]). Bytes that are
/// not here and may come are waited for: the sidecar tries again.
async fn load(store: &Store, volume: &VolumeName, last: Option<PointId>) -> Result<Option<Tree>, StoreError> {
    let Some(last) = last else { return Ok(Some(Tree::new())) };
    let (store, name) = (store.clone(), volume.clone());
    let begun = Instant::now();
    let tree = match super::blocking(move || store.tree_at(&name, last)).await {
        Err(error) if error.is_damage() || error.is_lost() => {
            tracing::error!(
                %volume, point = %last, %error,
                "newest-damaged: the newest point cannot be opened; the sidecar sends the volume as a whole, and the next point rests on \
                 nothing older. Run `tidelock verify`: it names the points that are damaged"
            );
            return Ok(None);
        }
        tree => tree?,
    };
    tracing::debug!(%volume, point = %last, inodes = tree.totals().inodes, took = ?begun.elapsed(), "tree loaded");
    Ok(Some(tree))
}

/// Leaves a tree for the next session.
pub(super) fn park(writer: &mut Writer, session: Session) {
    **writer = session.into_tree().map(|(last, tree)| Parked::new(last, tree, Instant::now()));
}
