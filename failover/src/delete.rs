//! Deleting volumes: all their points go, and compaction gives the space back.

use serde::Serialize;
use tidelock_proto::{Epoch, VolumeName};

use crate::{
    access::{Access, Volume},
    error::FailoverError,
};

/// A volume that could be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletable {
    /// The volume.
    pub volume: VolumeName,
    /// Its epoch: it is deleted only if it still has that.
    pub epoch: u64,
    /// Points it has.
    pub points: u64,
    /// Its sidecar is connected, as far as a running receiver knows.
    pub connected: bool,
}

/// What a deletion did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeleteReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// Points that are gone.
    pub points: u64,
    /// The epoch from which on a volume of this name may begin anew.
    pub next_epoch: u64,
    /// Bytes that were given back at once; absent if a receiver is to do that in its own time: it runs, or has keys that are not here.
    pub freed_bytes: Option<u64>,
}

/// One volume, to be shown to whoever has to confirm.
pub fn deletable(access: &Access, volume: &VolumeName) -> Result<Deletable, FailoverError> {
    Ok(of(&access.volume(volume)?))
}

/// All volumes of a tenant.
pub fn deletable_of(access: &Access, tenant: &str) -> Result<Vec<Deletable>, FailoverError> {
    Ok(access.volumes()?.iter().filter(|volume| volume.name.tenant() == tenant).map(of).collect())
}

/// Deletes a volume with all its points, tags and holds. With `force` although its sidecar is connected, which then ends.
pub fn delete(access: &Access, volume: &Deletable, force: bool) -> Result<DeleteReport, FailoverError> {
    let done = access.delete(&volume.volume, Epoch(volume.epoch), force)?;
    Ok(DeleteReport {
        volume: volume.volume.to_string(),
        points: done.points,
        next_epoch: done.epoch.0,
        freed_bytes: done.freed_bytes,
    })
}

fn of(volume: &Volume) -> Deletable {
    Deletable {
        volume: volume.name.clone(),
        epoch: volume.epoch.0,
        points: volume.points,
        connected: volume.live.as_ref().is_some_and(|live| live.connected),
    }
}
