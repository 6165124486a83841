//! Making a store's index anew.

use std::path::Path;

use serde::Serialize;
use tidelock_receiver::{
    store::{Store, StoreOptions},
    vault::TenantKeys,
};

use crate::{access::check_store, error::FailoverError};

/// What was read back from the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RebuildReport {
    /// Intact records.
    pub records: u64,
    /// Volumes.
    pub volumes: u64,
    /// Points of all volumes.
    pub points: u64,
    /// Damaged places.
    pub damaged: u64,
    /// They in words, as many as are listed.
    pub damage: Vec<String>,
}

/// Removes the index and the catalogue of the store in `directory`, which no receiver must be using, and makes them anew from the log.
/// What is damaged there is left out and reported. Tenants that are encrypted need their keys.
pub fn rebuild(directory: &Path, keys: TenantKeys) -> Result<RebuildReport, FailoverError> {
    check_store(directory)?;
    let store = Store::rebuild(directory, StoreOptions { keys, ..StoreOptions::default() })?;
    let opened = store.opened();
    let volumes = store.volumes();
    Ok(RebuildReport {
        records: opened.replayed,
        volumes: volumes.len() as u64,
        points: volumes.iter().filter_map(|name| store.volume(name)).map(|info| info.points).sum(),
        damaged: opened.damaged,
        damage: opened.damage.iter().map(ToString::to_string).collect(),
    })
}
