//! One way to a receiver's volumes, whether the receiver runs or is gone.

mod direct;
mod remote;

use std::path::Path;

use tidelock_proto::{
    Epoch, PointId, Tree, VolumeName,
    point::Point,
    wire::messages::{Heartbeat, StorePlan, VolumePlan},
};
use tidelock_receiver::{
    archive::ArchiveUrl,
    history::{Found, Usage},
    image::Given,
    reconcile::Chunks,
    retention::Policy,
    store::{Named, StoreError},
    vault::TenantKeys,
};

use crate::{
    error::FailoverError,
    verify::{Summary, Told},
};
use direct::Direct;
pub use direct::check_store;
use remote::Remote;

/// `Failed.code`: the volume's tenant is encrypted, and its key is not at the receiver.
const CODE_LOCKED: u32 = 8;

/// What is known of a volume.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) name: VolumeName,
    pub(crate) epoch: Epoch,
    /// The epoch was raised by a promotion and no writer of it has come yet; `last` is its base.
    pub(crate) promoted: bool,
    pub(crate) last: Option<Point>,
    pub(crate) points: u64,
    pub(crate) oldest_ns: u64,
    /// What the names of its points say.
    pub(crate) named: Named,
    /// What only a running receiver knows.
    pub(crate) live: Option<Live>,
}

/// What a running receiver knows of a volume besides.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) connected: bool,
    pub(crate) lag_ns: u64,
    pub(crate) heartbeat: Option<Heartbeat>,
    /// The condition of the receiver's archive; empty if there is none.
    pub(crate) archive: String,
    pub(crate) store_conditions: Vec<String>,
    pub(crate) image: Option<Image>,
    /// Content that comes, and all that comes, in bytes a second; older receivers do not tell.
    pub(crate) throughput: Option<(u64, u64)>,
    pub(crate) inodes: u64,
    pub(crate) data_bytes: u64,
}

/// What a receiver's hot image is doing.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) state: String,
    pub(crate) point: Option<PointId>,
    pub(crate) failure: Option<String>,
}

/// What a deletion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deleted {
    pub(crate) points: u64,
    pub(crate) epoch: Epoch,
    /// Bytes that were given back; a running receiver does that later.
    pub(crate) freed_bytes: Option<u64>,
}

/// Whether the content of a point is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) looked_for: u64,
    pub(crate) missing: u64,
}

/// A way to volumes. Its calls block: not for a thread that runs asynchronous tasks.
pub struct Access(Kind);

enum Kind {
    Remote(Remote),
    Direct(Direct),
}

impl Access {
    /// Connects to the receiver at `HOST:PORT` as the operator whose certificate is in `identity`.
    pub fn remote(address: &str, identity: &Path) -> Result<Self, FailoverError> {
        Remote::connect(address, identity).map(|remote| Self(Kind::Remote(remote)))
    }

    /// Opens the store in `directory`, which no receiver must be using.
    pub fn direct(directory: &Path) -> Result<Self, FailoverError> {
        Self::direct_with(directory, TenantKeys::default(), None, None)
    }

    /// [`Access::direct`] of a store in which tenants are encrypted with these keys, with the hot images that a receiver has kept beneath `images`, and
    /// with the archive that has what was never fetched of the store.
    pub fn direct_with(
        directory: &Path,
        keys: TenantKeys,
        images: Option<&Path>,
        archive: Option<&ArchiveUrl>,
    ) -> Result<Self, FailoverError> {
        Direct::open(directory, keys, images, archive).map(|direct| Self(Kind::Direct(direct)))
    }

    /// What a receiver is asked from now on may wait behind what else it does: nobody stands still for it.
    #[must_use]
    pub fn patient(mut self, patient: bool) -> Self {
        if let Kind::Remote(remote) = &mut self.0 {
            remote.patient = patient;
        }
        self
    }

    pub(crate) fn volumes(&self) -> Result<Vec<Volume>, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.volumes(),
            Kind::Direct(direct) => Ok(direct.volumes()),
        }
    }

    pub(crate) fn volume(&self, name: &VolumeName) -> Result<Volume, FailoverError> {
        let all = self.volumes()?;
        let known = || all.iter().map(|volume| volume.name.clone()).collect();
        let found = all.iter().find(|volume| volume.name == *name).cloned();
        if found.is_none() {
            self.check_key(name)?;
        }
        found.ok_or_else(|| FailoverError::NoVolume { volume: name.clone(), known: known() })
    }

    /// Whether the volume is not there because its tenant is encrypted and its key is not.
    fn check_key(&self, name: &VolumeName) -> Result<(), FailoverError> {
        match self.points(name, Some(1)) {
            Err(error @ FailoverError::Store(StoreError::Key(_))) => Err(error),
            Err(error @ FailoverError::Failed { code: CODE_LOCKED, .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// All points or the newest of them, oldest first.
    pub(crate) fn points(
        &self,
        name: &VolumeName,
        newest: Option<usize>,
    ) -> Result<Vec<Point>, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.points(name, newest),
            Kind::Direct(direct) => direct.points(name, newest),
        }
    }

    /// The tree of a point; it has the digest that was committed.
    pub(crate) fn tree(&self, name: &VolumeName, point: &Point) -> Result<Tree, FailoverError> {
        let tree = match &self.0 {
            Kind::Remote(remote) => remote.tree(name, point.id)?,
            Kind::Direct(direct) => direct.tree(name, point.id)?,
        };
        if tree.digest() == point.cut.digest { Ok(tree) } else { Err(FailoverError::Digest(point.id)) }
    }

    /// The content of a volume's chunks.
    pub(crate) fn chunks<'a>(&'a self, name: &'a VolumeName) -> Box<dyn Chunks + 'a> {
        match &self.0 {
            Kind::Remote(remote) => Box::new(remote.chunks(name)),
            Kind::Direct(direct) => Box::new(direct.chunks(name)),
        }
    }

    /// Looks for the chunks of a tree without reading all of them.
    pub(crate) fn probe(&self, name: &VolumeName, tree: &Tree) -> Result<Probe, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.probe(name, tree),
            Kind::Direct(direct) => direct.probe(name, tree),
        }
    }

    /// Raises the epoch of a volume, if it is still `expected`, so that the next writer builds on `base`; without one,
    /// on the newest point there is once the old writer has been stopped. Tells the epoch and the base.
    pub(crate) fn raise_epoch(
        &self,
        name: &VolumeName,
        expected: Epoch,
        base: Option<PointId>,
    ) -> Result<(Epoch, PointId), FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.raise_epoch(name, expected, base),
            Kind::Direct(direct) => direct.raise_epoch(name, expected, base),
        }
    }

    /// Brings the hot image of a volume to its newest point and tells where it is; with `release` it is given away there.
    pub(crate) fn image(&self, name: &VolumeName, release: bool) -> Result<Given, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.image(name, release),
            Kind::Direct(direct) => direct.image(name, release),
        }
    }

    /// Raises the epoch of a volume, if it is still `expected`, once its sidecar has stopped the application and taken a last
    /// cut, which is the base. Only a running receiver can.
    pub(crate) fn move_away(
        &self,
        name: &VolumeName,
        expected: Epoch,
    ) -> Result<(Epoch, PointId), FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.move_away(name, expected),
            Kind::Direct(_) => Err(FailoverError::MoveNeedsReceiver),
        }
    }

    /// Re-reads the log and replays a volume, or all, and tells what is found while it runs; with `repair`, what is left after what
    /// the receiver could do about it.
    pub(crate) fn verify(
        &self,
        name: Option<&VolumeName>,
        repair: bool,
        told: &mut dyn FnMut(Told),
    ) -> Result<Summary, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.verify(name, repair, told),
            Kind::Direct(_) if repair => Err(FailoverError::NeedsReceiver("--repair")),
            Kind::Direct(direct) => direct.verify(name, told),
        }
    }

    /// What a policy and a cap would make of a volume, or of all. Without a policy it is the receiver's own, and so is the cap.
    pub(crate) fn plan(
        &self,
        name: Option<&VolumeName>,
        policy: Option<&Policy>,
        cap_bytes: Option<u64>,
    ) -> Result<(Vec<VolumePlan>, StorePlan), FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.plan(name, policy, cap_bytes),
            Kind::Direct(direct) => direct.plan(name, policy, cap_bytes),
        }
    }

    /// Looks for names in the points from a first to a last one, until `each` returns `false`.
    pub(crate) fn find(
        &self,
        name: &VolumeName,
        pattern: &str,
        points: (PointId, PointId),
        changes: bool,
        each: &mut dyn FnMut(Found) -> bool,
    ) -> Result<(), FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.find(name, pattern, points, changes, each),
            Kind::Direct(direct) => direct.find(name, pattern, points, changes, each),
        }
    }

    /// What a point takes, or all points together.
    pub(crate) fn usage(&self, name: &VolumeName, point: Option<PointId>) -> Result<Usage, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.usage(name, point),
            Kind::Direct(direct) => direct.usage(name, point),
        }
    }

    /// Makes the volume `to` of a point; tells its first point.
    pub(crate) fn clone_volume(
        &self,
        name: &VolumeName,
        point: PointId,
        to: &VolumeName,
    ) -> Result<Point, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.clone_volume(name, point, to),
            Kind::Direct(direct) => direct.clone_volume(name, point, to),
        }
    }

    /// Deletes a volume with all its points, if its epoch is still `expected`; with `force` although its sidecar is connected.
    pub(crate) fn delete(
        &self,
        name: &VolumeName,
        expected: Epoch,
        force: bool,
    ) -> Result<Deleted, FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.delete(name, expected, force),
            Kind::Direct(direct) => direct.delete(name, expected),
        }
    }

    /// Names a point.
    pub fn tag(&self, name: &VolumeName, point: PointId, tag: &str) -> Result<(), FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.tag(name, point, tag),
            Kind::Direct(direct) => direct.tag(name, point, tag),
        }
    }

    /// Takes the names from a point that hold it.
    pub(crate) fn release(&self, name: &VolumeName, point: PointId) -> Result<(), FailoverError> {
        match &self.0 {
            Kind::Remote(remote) => remote.release(name, point),
            Kind::Direct(direct) => direct.release(name, point),
        }
    }
}

#[cfg(test)]
impl Access {
    /// The store that is open.
    pub(crate) fn store(&self) -> tidelock_receiver::store::Store {
        match &self.0 {
            Kind::Direct(direct) => direct.store(),
            Kind::Remote(_) => unreachable!("these tests have no receiver"),
        }
    }
}

/// The distinct chunks of a tree.
fn chunk_ids(tree: &Tree) -> Vec<tidelock_proto::ChunkId> {
    let extents = tree.iter().filter_map(|(_, inode)| inode.extents());
    let ids =
        extents.flat_map(|extents| extents.iter().map(|(_, extent)| extent.chunk.id).collect::<Vec<_>>());
    let distinct: std::collections::BTreeSet<_> = ids.collect();
    distinct.into_iter().collect()
}
