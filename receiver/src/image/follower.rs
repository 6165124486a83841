//! One image, kept equal to the newest point of its volume, without threads or clocks.
//!
//! ```text
//!         open (clean: nothing; dirty: what is in doubt is compared; else: everything)
//! closed ───────────────────────────────────────────────────────────▶ following ──release──▶ released
//!    ▲   any failure: the tree is thrown away                             │  ▲
//!    └────────────────────────────────────────────────────────────────────┘  └ advance: the difference of all points that came
//! ```
//! The log is the queue: an image that falls behind applies the difference of many points at once. What is applied is durable in the log before, so the log also knows
//! what may be half done after a crash ([`super::doubts`]).

use std::{
    collections::HashSet,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use rustix::{
    fd::OwnedFd,
    fs::{self, Mode, OFlags},
};
use tidelock_proto::{ChunkId, ChunkKey, FileId, Op, PointId, Seq, Tree, VolumeName, tree::Name};

use super::{
    ImageError, doubts,
    places::{Places, State, fail},
};
use crate::{
    catalogue::Step,
    limits,
    reconcile::{self, Changes, Chunks, ChunksError, Options},
    store::{Pin, Store, StoreError, VolumeInfo},
};

/// An image that can be taken: nobody writes to it any more.
#[derive(Debug, Clone)]
pub struct Given {
    /// Where it is on the receiver's machine.
    pub path: PathBuf,
    /// Device and inode there, so that whoever takes it knows that it is the same machine.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// The point it is equal to.
    pub point: PointId,
    /// Operations that make the tree's root: its attributes are still to be set.
    pub root: Vec<Op>,
}

/// The image of one volume.
pub(super) struct Follower {
    store: Store,
    volume: VolumeName,
    places: Places,
    following: Option<Following>,
    /// Long work is to end.
    stop: Arc<AtomicBool>,
}

struct Following {
    point: PointId,
    tree: Tree,
    /// The next points are merged upon this one, if on any, as long as it is held.
    _pin: Pin,
    /// For `syncfs`, which tells it of failed writes since the last call.
    root: OwnedFd,
    /// The epoch and point of the state that was written.
    clean: Option<(u64, PointId)>,
}

/// The chunks of one tenant, until it is time to stop.
struct StoreChunks<'a> {
    store: &'a Store,
    tenant: &'a str,
    stop: &'a AtomicBool,
}

impl Chunks for StoreChunks<'_> {
    fn fetch(&self, ids: &[ChunkId], each: &mut dyn FnMut(usize, Bytes) -> bool) -> Result<(), ChunksError> {
        for (index, id) in ids.iter().enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(StoreError::Closed.into());
            }
            if !each(index, self.store.read_content(self.tenant, *id)?) {
                break;
            }
        }
        Ok(())
    }
}

/// What a promotion says in the marker of its target; an image has it from the beginning, so that a promotion which was interrupted after it took
/// the image goes on as from an unfinished copy.
pub fn promotion_label(volume: &VolumeName) -> String {
    format!("{volume} (a promotion)")
}

impl Follower {
    pub(super) fn new(store: Store, dir: &Path, volume: VolumeName, stop: Arc<AtomicBool>) -> Self {
        let places = Places::of(dir, &volume);
        Self { store, volume, places, following: None, stop }
    }

    /// Whether long work is to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The point that the image is equal to.
    pub(super) fn point(&self) -> Option<PointId> {
        self.following.as_ref().map(|following| following.point)
    }

    /// Lets go of everything; the image has to be opened again.
    pub(super) fn close(&mut self) {
        self.following = None;
    }

    /// Whether there is a directory, in either place.
    pub(super) fn is_there(&self) -> bool {
        self.places.inode().is_some() || self.places.released.is_dir()
    }

    /// Whether an image was given away at the newest point: there is nothing to keep until another one comes.
    pub(super) fn is_given(&self) -> bool {
        let newest = self.store.volume(&self.volume).map(|info| info.last.id);
        self.following.is_none()
            && self.places.inode().is_none()
            && newest.is_some()
            && self.places.state().and_then(|state| state.point()) == newest
    }

    /// Makes the image equal to the newest point. `false` if the volume has none.
    pub(super) fn open(&mut self) -> Result<bool, ImageError> {
        self.following = None;
        let Some(info) = self.store.volume(&self.volume) else { return Ok(false) };
        self.places.make()?;
        if self.places.inode().is_none() && self.places.released.exists() {
            self.places.swap(&self.places.released, &self.places.image)?;
        }
        let last = info.last.id;
        let pin = self.store.pin(&self.volume, last)?;
        let tree = self.store.tree_at(&self.volume, last)?;
        let marker = Name::new(reconcile::MARKER.as_bytes()).expect("a valid name");
        if tree.lookup(FileId::ROOT, &marker).is_some() {
            return Err(ImageError::Marked(self.volume.clone()));
        }
        let state = self.places.state().filter(|state| self.holds(state, &info));
        let clean = state.and_then(|state| state.point());
        let tree = match clean {
            Some(point) if point == last => tree,
            _ => {
                let doubted = match clean.filter(|clean| *clean < last) {
                    Some(clean) => doubts::since(&self.store, &self.volume, clean, &tree)?,
                    None => None,
                };
                self.repair(tree, doubted)?
            }
        };
        self.follow_from(last, tree, pin)
    }

    /// Whether the state is of this image and of this journal.
    fn holds(&self, state: &State, info: &VolumeInfo) -> bool {
        let Some(point) = state.point() else { return false };
        let known = self.store.point(&self.volume, point);
        state.epoch == info.epoch.0
            && Some(state.inode) == self.places.inode()
            && known.is_ok_and(|known| known.cut.digest.to_string() == state.digest)
            && reconcile::marker_path(&self.places.image).exists()
    }

    /// Makes the directory right whatever it is; what is not in doubt is not read.
    fn repair(&self, tree: Tree, doubted: Option<HashSet<FileId>>) -> Result<Tree, ImageError> {
        tracing::info!(doubted = ?doubted.as_ref().map(HashSet::len), inodes = tree.totals().inodes, "image is being compared");
        let tree = Arc::new(tree);
        let known = doubted.is_some().then(|| tree.clone());
        let doubted = Arc::new(doubted.unwrap_or_default());
        let options = Options { known, doubted, unfinished: true, ..self.options() };
        let report = reconcile::reconcile(&self.places.image, &tree, &self.chunks(), &options, &|_| {})?;
        tracing::info!(
            files = report.files_written,
            bytes = report.bytes_written,
            compared = report.bytes_compared,
            "image is right"
        );
        drop(options);
        Ok(Arc::into_inner(tree).expect("nobody else has it any more"))
    }

    fn follow_from(&mut self, point: PointId, tree: Tree, pin: Pin) -> Result<bool, ImageError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = &self.places.image;
        let root = fs::open(path, flags, Mode::empty()).map_err(|errno| fail("open", path)(errno.into()))?;
        self.following = Some(Following { point, tree, _pin: pin, root, clean: None });
        self.settle().map(|()| true)
    }

    /// Applies what has come, as one difference; a long way behind, a part of it. Whether there was anything.
    ///
    /// After an error the image has to be opened again.
    pub(super) fn advance(&mut self) -> Result<bool, ImageError> {
        let (Some(info), Some(following)) = (self.store.volume(&self.volume), self.following.take()) else {
            return Ok(false);
        };
        if info.last.id == following.point {
            self.following = Some(following);
            return Ok(false);
        }
        self.check_place(&following)?;
        let Some(base) = way(following.point, &info) else { return self.change_line(following, &info) };
        let Following { mut point, mut tree, _pin, root, clean } = following;
        let from = point;
        let mut changes = Changes::of(&tree);
        'way: for (first, last) in [(doubts::after(point), base), (first_of(&info), info.last.id)] {
            let mut next = first.max(doubts::after(point));
            while next <= last {
                let page = self.store.placed_points(&self.volume, next, limits::IMAGE_STEP_POINTS)?;
                let page = page.into_iter().take_while(|(id, _)| *id <= last);
                let mut any = false;
                for (id, step) in page {
                    any = true;
                    next = doubts::after(id);
                    if step.as_ref().is_some_and(|step| step.on.is_none()) {
                        // It does not follow from what is here: everything is compared.
                        return self.open();
                    }
                    let step = step.filter(|step| step.on == Some(point));
                    let Some(step) = step else {
                        return Err(StoreError::NoSuchPoint(self.volume.clone(), point).into());
                    };
                    self.apply(&step, &mut tree, &mut changes)?;
                    point = step.point.id;
                    if changes.len() >= limits::IMAGE_STEP_CHANGES {
                        break 'way;
                    }
                }
                if !any {
                    break;
                }
            }
        }
        if point == from {
            return Err(StoreError::NoSuchPoint(self.volume.clone(), info.last.id).into());
        }
        let pin = self.store.pin(&self.volume, point)?;
        let Places { image, staging, .. } = &self.places;
        reconcile::follow(image, staging, &tree, &changes, &self.chunks(), &self.options())?;
        self.following = Some(Following { point, tree, _pin: pin, root, clean });
        Ok(true)
    }

    fn apply(&self, step: &Step, tree: &mut Tree, changes: &mut Changes) -> Result<(), ImageError> {
        self.store.ops_of(&self.volume, step, &mut |op| changes.apply(tree, op))?;
        let sealed = changes.seal(tree).is_ok();
        if sealed && tree.digest() == step.point.cut.digest {
            Ok(())
        } else {
            Err(ImageError::Digest(step.point.id))
        }
    }

    /// A promotion went back: the newest point is not one that follows.
    fn change_line(&mut self, following: Following, info: &VolumeInfo) -> Result<bool, ImageError> {
        let last = info.last.id;
        // What was applied on the way that is left is not after the durable point on the new one: a crash from here on leaves everything in doubt.
        self.places.forget_state()?;
        let clean = following.clean.map_or(last, |(_, point)| point.min(last));
        drop(following);
        let pin = self.store.pin(&self.volume, last)?;
        let tree = self.store.tree_at(&self.volume, last)?;
        let doubted = doubts::since(&self.store, &self.volume, clean, &tree)?;
        let tree = self.repair(tree, doubted)?;
        self.follow_from(last, tree, pin)
    }

    /// Makes everything durable and says so.
    pub(super) fn settle(&mut self) -> Result<(), ImageError> {
        let Some(following) = &self.following else { return Ok(()) };
        self.check_place(following)?;
        let Some(following) = &mut self.following else { return Ok(()) };
        let epoch = self.store.volume(&self.volume).map_or(0, |info| info.epoch.0);
        if following.clean == Some((epoch, following.point)) {
            return Ok(());
        }
        let image = &self.places.image;
        fs::syncfs(&following.root).map_err(|errno| fail("write to disk", image)(errno.into()))?;
        let inode = self.places.inode().unwrap_or_default();
        let digest = following.tree.digest().to_string();
        self.places.write_state(&State::new(&self.volume, following.point, epoch, digest, inode))?;
        following.clean = Some((epoch, following.point));
        Ok(())
    }

    /// Whether something was applied that is not durable yet.
    pub(super) fn is_dirty(&self) -> bool {
        let unclean =
            |following: &Following| following.clean.is_none_or(|(_, point)| point != following.point);
        self.following.as_ref().is_some_and(unclean)
    }

    /// Whether it is still where it was.
    fn check_place(&self, following: &Following) -> Result<(), ImageError> {
        let image = &self.places.image;
        let stat = fs::fstat(&following.root).map_err(|errno| fail("look at", image)(errno.into()))?;
        match self.places.inode() {
            Some(inode) if inode == stat.st_ino => Ok(()),
            _ => Err(ImageError::Gone(image.clone())),
        }
    }

    /// Makes everything durable, and tells where it is.
    pub(super) fn show(&mut self) -> Result<Given, ImageError> {
        self.settle()?;
        self.given(&self.places.image)
    }

    /// Gives the image away: it is moved to where nobody writes to it any more.
    pub(super) fn release(&mut self) -> Result<Given, ImageError> {
        self.settle()?;
        // Refused here if there is none.
        self.given(&self.places.image)?;
        if self.places.released.exists() {
            std::fs::remove_dir_all(&self.places.released).map_err(fail("remove", &self.places.released))?;
        }
        self.places.swap(&self.places.image, &self.places.released)?;
        let given = self.given(&self.places.released);
        self.following = None;
        given
    }

    /// What was given away and not taken, as long as the volume has not moved on.
    pub(super) fn given_before(&self) -> Result<Option<Given>, ImageError> {
        let released = std::fs::symlink_metadata(&self.places.released).map(|meta| meta.ino()).ok();
        let known = self.places.state().map(|state| state.inode);
        if !self.is_given() || released.is_none() || released != known {
            return Ok(None);
        }
        let Some(info) = self.store.volume(&self.volume) else { return Ok(None) };
        let tree = self.store.tree_at(&self.volume, info.last.id)?;
        given(&self.places.released, info.last.id, &tree).map(Some)
    }

    fn given(&self, path: &Path) -> Result<Given, ImageError> {
        let Some(following) = &self.following else {
            let state = "it is not open".to_owned();
            return Err(ImageError::Absent { volume: self.volume.clone(), state });
        };
        given(path, following.point, &following.tree)
    }

    fn options(&self) -> Options {
        let key = ChunkKey::of_tenant(self.volume.tenant());
        Options {
            interrupt: self.stop.clone(),
            own: true,
            ..Options::new(key, promotion_label(&self.volume))
        }
    }

    fn chunks(&self) -> StoreChunks<'_> {
        StoreChunks { store: &self.store, tenant: self.volume.tenant(), stop: &self.stop }
    }
}

fn given(path: &Path, point: PointId, tree: &Tree) -> Result<Given, ImageError> {
    let meta = std::fs::symlink_metadata(path).map_err(fail("look at", path))?;
    let path = std::fs::canonicalize(path).map_err(fail("look at", path))?;
    let mut root = Vec::new();
    if let Some(inode) = tree.get(FileId::ROOT) {
        root.push(Op::Create { id: FileId::ROOT, kind: inode.kind(), meta: inode.meta });
        root.push(Op::SetXattrs { id: FileId::ROOT, xattrs: inode.xattrs.clone() });
    }
    Ok(Given { path, device: meta.dev(), inode: meta.ino(), point, root })
}

/// Up to where the points after `from` are of its own epoch, on the way to the newest; `None` if the newest is on another line.
fn way(from: PointId, info: &VolumeInfo) -> Option<PointId> {
    let last = info.last.id;
    if last.epoch == from.epoch {
        return Some(last).filter(|last| *last > from);
    }
    info.base.filter(|base| base.epoch == from.epoch && *base >= from)
}

/// The first number of the newest point's epoch.
fn first_of(info: &VolumeInfo) -> PointId {
    PointId::new(info.last.id.epoch, Seq(1))
}
