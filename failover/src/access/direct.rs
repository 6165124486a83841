//! The store of a receiver that does not run.

use std::{fs, io::ErrorKind, path::Path, time::SystemTime};

use bytes::Bytes;
use tidelock_proto::{
    ChunkId, Epoch, PointId, Tree, VolumeName,
    point::Point,
    wire::messages::{StorePlan, VolumePlan},
};
use tidelock_receiver::{
    archive::{self, ArchiveUrl},
    history::{self, Found, Patterns, Query, Usage},
    image::{Given, Resting},
    reconcile::{Chunks, ChunksError},
    retention::Policy,
    store::{Ask, Batch, Record, Store, StoreError, StoreOptions},
    vault::TenantKeys,
    verify::{Event, verify},
};

use super::{Deleted, Probe, Volume, chunk_ids};
use crate::{
    at::to_ns,
    error::FailoverError,
    verify::{Summary, Told},
};

pub(super) struct Direct {
    store: Store,
    images: Option<Resting>,
}

/// The chunks of one tenant.
pub(super) struct StoreChunks<'a> {
    store: &'a Store,
    tenant: &'a str,
}

impl Direct {
    /// Refuses what is not a store already: a mistyped directory must not become an empty one.
    pub(super) fn open(
        directory: &Path,
        keys: TenantKeys,
        images: Option<&Path>,
        archive: Option<&ArchiveUrl>,
    ) -> Result<Self, FailoverError> {
        check_store(directory)?;
        let options = StoreOptions { keys, ..StoreOptions::default() };
        let store = match archive {
            Some(url) => archive::open(url, directory, options)?,
            None => Store::open(directory, options)?,
        };
        let images = images.map(|dir| Resting::open(&store, dir)).transpose()?;
        Ok(Self { store, images })
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> Store {
        self.store.clone()
    }

    pub(super) fn volumes(&self) -> Vec<Volume> {
        let known = |name: VolumeName| {
            let info = self.store.volume(&name)?;
            // What a damaged index does not tell is no reason to tell nothing.
            let named = self.store.named(&name).unwrap_or_default();
            Some(Volume {
                name,
                epoch: info.epoch,
                promoted: info.promoted,
                last: Some(info.last),
                points: info.points,
                oldest_ns: info.oldest_ns,
                named,
                live: None,
            })
        };
        self.store.volumes().into_iter().filter_map(known).collect()
    }

    pub(super) fn points(
        &self,
        name: &VolumeName,
        newest: Option<usize>,
    ) -> Result<Vec<Point>, FailoverError> {
        Ok(self.store.points(name, newest)?)
    }

    pub(super) fn tree(&self, name: &VolumeName, point: PointId) -> Result<Tree, FailoverError> {
        Ok(self.store.tree_at(name, point)?)
    }

    pub(super) fn chunks<'a>(&'a self, name: &'a VolumeName) -> StoreChunks<'a> {
        StoreChunks { store: &self.store, tenant: name.tenant() }
    }

    /// Every chunk is looked up in the index.
    pub(super) fn probe(&self, name: &VolumeName, tree: &Tree) -> Result<Probe, FailoverError> {
        let ids = chunk_ids(tree);
        let mut probe = Probe { looked_for: ids.len() as u64, missing: 0 };
        for id in ids {
            probe.missing += u64::from(!self.store.has_chunk(name.tenant(), id)?);
        }
        Ok(probe)
    }

    pub(super) fn raise_epoch(
        &self,
        name: &VolumeName,
        expected: Epoch,
        base: Option<PointId>,
    ) -> Result<(Epoch, PointId), FailoverError> {
        let newest = self.store.volume(name).map(|info| info.last.id);
        let base = base.or(newest).ok_or_else(|| FailoverError::NoPoints(name.clone()))?;
        let epoch = expected.next();
        let raise = Record::Epoch { volume: name.clone(), expected, epoch, base };
        match self.store.append_and_wait(Batch::of(raise)) {
            Ok(()) => Ok((epoch, base)),
            Err(StoreError::EpochMoved { .. }) => {
                Err(FailoverError::EpochMoved { volume: name.clone(), expected })
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn image(&self, name: &VolumeName, release: bool) -> Result<Given, FailoverError> {
        let images = self.images.as_ref().ok_or(FailoverError::NoImages)?;
        Ok(images.ask(name, release)?)
    }

    pub(super) fn verify(
        &self,
        name: Option<&VolumeName>,
        told: &mut dyn FnMut(Told),
    ) -> Result<Summary, FailoverError> {
        let wanted = |volume: &VolumeName| name.is_none_or(|name| name == volume);
        let summary = verify(&self.store, &wanted, &mut |event| {
            told(match event {
                Event::Progress(progress) => Told::Progress(progress.into()),
                Event::Finding(finding) => Told::Finding((&finding).into()),
            });
            true
        })?;
        Ok(summary.expect("nobody stopped it").into())
    }

    pub(super) fn plan(
        &self,
        name: Option<&VolumeName>,
        policy: Option<&Policy>,
        cap_bytes: Option<u64>,
    ) -> Result<(Vec<VolumePlan>, StorePlan), FailoverError> {
        if let Some(name) = name.filter(|name| self.store.volume(name).is_none()) {
            return Err(self.store.no_volume(name).into());
        }
        let policy = policy.cloned().unwrap_or_default();
        let wanted = |volume: &VolumeName| name.is_none_or(|name| name == volume);
        let ask = Ask { policy: &policy, now_ns: to_ns(SystemTime::now()), cap_bytes, wanted: &wanted };
        let forecast = self.store.forecast(&ask, &mut |_| true)?;
        let volumes = forecast.volumes.iter().map(|volume| volume.told(&policy)).collect();
        Ok((volumes, forecast.told(&policy, name.is_none())))
    }

    pub(super) fn find(
        &self,
        name: &VolumeName,
        pattern: &str,
        (first, last): (PointId, PointId),
        changes: bool,
        each: &mut dyn FnMut(Found) -> bool,
    ) -> Result<(), FailoverError> {
        let patterns = Patterns::new([pattern])?;
        let query = Query { patterns: &patterns, first, last, changes };
        Ok(history::find(&self.store, name, query, each)?)
    }

    pub(super) fn usage(&self, name: &VolumeName, point: Option<PointId>) -> Result<Usage, FailoverError> {
        Ok(match point {
            Some(point) => history::usage(&self.store, name, point)?,
            None => history::usage_of_all(&self.store, name)?,
        })
    }

    pub(super) fn clone_volume(
        &self,
        name: &VolumeName,
        point: PointId,
        to: &VolumeName,
    ) -> Result<Point, FailoverError> {
        Ok(self.store.clone_volume(name, point, to, to_ns(SystemTime::now()))?)
    }

    /// The space is given back at once, as far as it can be: what the open segment holds stays until the log has gone on.
    pub(super) fn delete(&self, name: &VolumeName, expected: Epoch) -> Result<Deleted, FailoverError> {
        let done = self.store.delete(name, expected)?;
        let freed_bytes = self.give_back()?;
        Ok(Deleted { points: done.points, epoch: done.epoch, freed_bytes })
    }

    /// Bytes given back; `None` where keys of other tenants are missing, so that what they need is not known.
    fn give_back(&self) -> Result<Option<u64>, FailoverError> {
        let mut freed_bytes = 0;
        loop {
            let retired = match self.store.retire(&mut |_| ()) {
                Err(StoreError::Key(_)) => return Ok(None),
                other => other?,
            };
            freed_bytes += retired.freed_bytes.saturating_sub(retired.copied_bytes);
            if retired.freed_bytes <= retired.copied_bytes {
                return Ok(Some(freed_bytes));
            }
        }
    }

    pub(super) fn tag(&self, name: &VolumeName, point: PointId, tag: &str) -> Result<(), FailoverError> {
        let record = Record::Tag { volume: name.clone(), point, tag: tag.to_owned() };
        Ok(self.store.append_and_wait(Batch::of(record))?)
    }

    pub(super) fn release(&self, name: &VolumeName, point: PointId) -> Result<(), FailoverError> {
        let record = Record::Release { volume: name.clone(), point, copy: false };
        Ok(self.store.append_and_wait(Batch::of(record))?)
    }
}

/// Refuses what is not a store, and says so of it only where that could be seen.
pub fn check_store(directory: &Path) -> Result<(), FailoverError> {
    match fs::metadata(directory.join("log")) {
        Ok(log) if log.is_dir() => Ok(()),
        Err(source) if source.kind() == ErrorKind::PermissionDenied => {
            Err(FailoverError::StoreHidden { path: directory.to_owned(), source })
        }
        _ => Err(FailoverError::NotAStore(directory.to_owned())),
    }
}

impl Chunks for StoreChunks<'_> {
    fn fetch(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Bytes) -> bool) -> Result<(), ChunksError> {
        for (index, id) in ids.iter().enumerate() {
            if !each(index, self.store.read_content(self.tenant, *id)?) {
                break;
            }
        }
        Ok(())
    }
}
