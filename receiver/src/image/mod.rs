//! The hot image: the newest recovery point of every volume, already laid out as files, so that promoting it copies nothing.
//!
//! A thread for each volume follows the log after the acknowledgement, so nothing that is acknowledged waits for it; it runs below the priority of the
//! sessions, rests between its steps, and takes all that came meanwhile as one difference. An image is a cache: whatever goes wrong with it (a full disk, somebody's hands in
//! it) is its own condition, it is made right from the store or not at all, and replication knows nothing of it.
//!
//! **Never trusted blindly.** A state beside the image names the point up to which everything is durable, written only after `syncfs`. After a crash every file that later points
//! touched is compared by content, all names and attributes are compared in any case, and without a state everything is ([`doubts`]).
//!
//! **Giving it away.** A promotion on the same machine and file system takes the image by rename, with its own rights: the receiver follows up to the newest point, makes that
//! durable, and moves the image to where nobody writes to it any more. If nobody takes it, it is taken back when the volume moves on.
//!
//! The price: the tree of the volume once more in memory, and the volume once more on disk.

mod doubts;
mod error;
mod follower;
mod places;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::Mutex;
use tidelock_proto::{PointId, VolumeName};
use tokio::{sync::oneshot, time::timeout};
use tracing::{error, warn};

pub use error::ImageError;
use follower::Follower;
pub use follower::{Given, promotion_label};
use worker::{Question, Slot};

use crate::{flock::FileLock, limits, store::Store};

/// What an image is doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ImageState {
    /// There is none: the volume has no points, or the image was given to a promotion.
    #[default]
    Absent,
    /// It is being made, or compared after a crash.
    Building,
    /// It is equal to the point, and follows.
    Following(PointId),
    /// It cannot be made or kept; this is why. It is tried again.
    Failed(String),
}

impl ImageState {
    /// One word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Building => "building",
            Self::Following(_) => "following",
            Self::Failed(_) => "failed",
        }
    }
}

/// The images of all volumes. They end with this.
pub(crate) struct Images {
    store: Store,
    dir: PathBuf,
    running: Mutex<BTreeMap<VolumeName, Running>>,
    stop: Arc<AtomicBool>,
    _lock: FileLock,
}

struct Running {
    slot: Arc<Slot>,
    /// Its long work is to end.
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Images {
    /// Keeps an image of every volume of the store beneath `dir`, which nobody else may use.
    pub(crate) fn start(store: Store, dir: &Path) -> Result<Self, ImageError> {
        let lock = places::lock(dir)?;
        let images =
            Self { store, dir: dir.to_owned(), running: Mutex::default(), stop: Arc::default(), _lock: lock };
        // What a crash has left.
        images.store.deleted_volumes().iter().for_each(|volume| images.remove(volume));
        images.store.volumes().iter().for_each(|volume| images.nudge(volume));
        Ok(images)
    }

    /// Something has changed in the volume's journal.
    pub(crate) fn nudge(&self, volume: &VolumeName) {
        let mut running = self.running.lock();
        match running.get(volume) {
            Some(known) => known.slot.nudge(),
            None if !self.stop.load(Ordering::Relaxed) => {
                let (slot, stop) = (Arc::new(Slot::default()), Arc::new(AtomicBool::new(false)));
                let follower = Follower::new(self.store.clone(), &self.dir, volume.clone(), stop.clone());
                let thread = worker::spawn(follower, volume.clone(), slot.clone()).inspect_err(|reason| {
                    warn!(%volume, reason, "no image is kept");
                    slot.set_state(ImageState::Failed(reason.clone()));
                });
                running.insert(volume.clone(), Running { slot, stop, thread: thread.ok() });
            }
            None => {}
        }
    }

    /// Nobody follows the volume any more, and keeps no point of it, until the next nudge. Waits for that.
    pub(crate) fn end(&self, volume: &VolumeName) {
        let running = self.running.lock().remove(volume);
        running.into_iter().for_each(|running| running.end(volume));
    }

    /// The volume is gone, and [`Images::end`] was called: so are its files.
    pub(crate) fn remove(&self, volume: &VolumeName) {
        if let Err(error) = places::Places::of(&self.dir, volume).remove() {
            warn!(%volume, %error, "the image of a deleted volume is not removed");
        }
    }

    /// What the image of a volume is doing.
    pub(crate) fn state(&self, volume: &VolumeName) -> ImageState {
        self.running.lock().get(volume).map(|running| running.slot.state()).unwrap_or_default()
    }

    /// Brings the image to the newest point, durably, and tells where it is; with `release` it is given away there.
    pub(crate) async fn ask(&self, volume: &VolumeName, release: bool) -> Result<Given, ImageError> {
        let absent = |state: &str| ImageError::Absent { volume: volume.clone(), state: state.to_owned() };
        let slot = self.running.lock().get(volume).map(|running| running.slot.clone());
        let slot = slot.ok_or_else(|| absent("absent"))?;
        let state = slot.state();
        if !matches!(state, ImageState::Following(_) | ImageState::Absent) {
            return Err(absent(state.word()));
        }
        let (reply, answer) = oneshot::channel();
        if !slot.ask(Question { release, reply }) {
            return Err(absent("busy"));
        }
        match timeout(limits::IMAGE_ASK_TIMEOUT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(absent(slot.state().word())),
            Err(_) => Err(absent("too far behind")),
        }
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let running = std::mem::take(&mut *self.running.lock());
        running.values().for_each(Running::stop);
        running.into_iter().for_each(|(volume, running)| running.end(&volume));
    }
}

impl Running {
    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.slot.stop();
    }

    fn end(self, volume: &VolumeName) {
        self.stop();
        if self.thread.is_some_and(|thread| thread.join().is_err()) {
            error!(%volume, "the image's thread panicked");
        }
    }
}

/// The images of a receiver that does not run. Nobody else can use them until this is dropped.
pub struct Resting {
    store: Store,
    dir: PathBuf,
    open: Mutex<BTreeMap<VolumeName, Follower>>,
    _lock: FileLock,
}

impl Resting {
    /// Takes the directory.
    pub fn open(store: &Store, dir: &Path) -> Result<Self, ImageError> {
        let lock = places::lock(dir)?;
        Ok(Self { store: store.clone(), dir: dir.to_owned(), open: Mutex::default(), _lock: lock })
    }

    /// Brings an image that is there to the newest point, durably, after what is in doubt has been compared; and tells where it is. With `release` it is given away there.
    pub fn ask(&self, volume: &VolumeName, release: bool) -> Result<Given, ImageError> {
        let mut open = self.open.lock();
        let follower = match open.entry(volume.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let follower = Follower::new(self.store.clone(), &self.dir, volume.clone(), Arc::default());
                if !follower.is_there() {
                    let state = format!("{} has none", self.dir.display());
                    return Err(ImageError::Absent { volume: volume.clone(), state });
                }
                entry.insert(follower)
            }
        };
        if follower.point().is_none() && !follower.is_given() {
            follower.open()?;
        }
        while follower.advance()? {}
        worker::answer(follower, release)
    }
}
