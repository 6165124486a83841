//! The live volumes: who writes each of them, and what is known beyond the store.
//!
//! One writer: whoever holds [`Volume::writer`] may append commits, and what it guards is the tree of the last session.
//! A newcomer announces itself first ([`Volume::arrive`]), which ends the session that holds the lock, and then waits for
//! it; a session gives it up only when everything it appended is durable or refused. So a new session never begins on a
//! point that is about to be overtaken. The price: taking over waits for one fsync.
//!
//! A promotion takes the lock in the same way, so nothing is appended between the choice of its base and the new epoch.

mod lag;
mod live;
mod rate;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tidelock_proto::{ChunkId, Epoch, PointId, Tree, VolumeName};
use tokio::sync::{OwnedMutexGuard, oneshot, watch};

pub use lag::lag_ns;
pub use live::Live;
pub use rate::{Rate, Throughput};

/// All volumes that somebody has asked for since the start.
#[derive(Debug, Default)]
pub struct Volumes {
    all: Mutex<BTreeMap<VolumeName, Arc<Volume>>>,
}

/// One volume.
#[derive(Debug)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// Held by whoever may append to it.
    writer: Arc<tokio::sync::Mutex<Option<Parked>>>,
    control: watch::Sender<Control>,
    /// One promotion at a time.
    promotion: tokio::sync::Mutex<()>,
    live: Mutex<Live>,
    /// Who waits for the answer of a planned move.
    leaver: Mutex<Option<Leaver>>,
    /// Chunks that the sidecar is to send again, and who waits for that.
    resend: Mutex<Option<Resend>>,
}

/// Damaged chunks with the lengths of their contents, taken by the session that asks, and who hears how many came, durably.
#[derive(Debug)]
struct Resend {
    chunks: Vec<(ChunkId, u32)>,
    tell: oneshot::Sender<Result<u32, String>>,
}

/// The tree that a session left behind.
#[derive(Debug)]
pub struct Parked {
    /// The durable point it is the tree of; `None` for a volume without points.
    pub last: Option<PointId>,
    /// The tree.
    pub tree: Tree,
    since: Instant,
}

/// Hears the point that holds everything, or why there is none.
type Leaver = oneshot::Sender<Result<PointId, String>>;

/// The right to append to a volume.
pub type Writer = OwnedMutexGuard<Option<Parked>>;

/// What sessions of a volume must heed.
#[derive(Debug, Clone, Copy, Default)]
struct Control {
    /// Counts sessions; the newest one is the writer.
    arrival: u64,
    /// The newest session's sidecar.
    instance: u64,
    /// The highest epoch that was raised while this process runs.
    epoch: Epoch,
    /// A promotion is under way.
    promoting: bool,
    /// Counts planned moves; the newest one is asked for.
    leave: u64,
    /// Counts questions for damaged chunks; the newest one is asked.
    resend: u64,
}

/// Why a session must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The volume was promoted.
    Fenced(Epoch),
    /// Another stream came; from the same sidecar if `reconnected`.
    Superseded {
        /// Whether it was the same instance.
        reconnected: bool,
    },
    /// A promotion is under way: stop, and wait for what comes of it.
    Promoting,
}

/// A session's place at a volume.
#[derive(Debug)]
pub struct Seat {
    /// The volume.
    pub volume: Arc<Volume>,
    arrival: u64,
    instance: u64,
    epoch: Epoch,
    /// Planned moves that the session was told of.
    leave: u64,
    /// Questions for chunks that the session has taken.
    resend: u64,
    control: watch::Receiver<Control>,
}

impl Volumes {
    /// The volume of this name, which need not exist in the store.
    pub fn get(&self, name: &VolumeName) -> Arc<Volume> {
        let mut all = self.all.lock();
        if let Some(volume) = all.get(name) {
            return volume.clone();
        }
        let volume = Arc::new(Volume::new(name.clone()));
        all.insert(name.clone(), volume.clone());
        volume
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Arc<Volume>> {
        self.all.lock().values().cloned().collect()
    }

    /// Drops trees that have waited for their sidecar for longer than `idle`, and volumes nobody uses.
    pub fn sweep(&self, now: Instant, idle: Duration) {
        for volume in self.all() {
            volume.drop_idle_tree(now, idle);
        }
        self.all.lock().retain(|_, volume| Arc::strong_count(volume) > 1 || volume.live().seen);
    }
}

impl Volume {
    fn new(name: VolumeName) -> Self {
        Self {
            name,
            writer: Arc::default(),
            control: watch::Sender::new(Control::default()),
            promotion: tokio::sync::Mutex::default(),
            live: Mutex::default(),
            leaver: Mutex::default(),
            resend: Mutex::default(),
        }
    }

    /// Announces a session: an older one must stop.
    pub fn arrive(self: &Arc<Self>, instance: u64, epoch: Epoch) -> Seat {
        let mut arrival = 0;
        self.control.send_modify(|control| {
            control.arrival += 1;
            control.instance = instance;
            arrival = control.arrival;
        });
        let mut control = self.control.subscribe();
        let Control { leave, resend, .. } = *control.borrow_and_update();
        Seat { volume: self.clone(), arrival, instance, epoch, leave, resend, control }
    }

    /// Stops the session, if there is one, and takes its place. The session waits until the guard is gone and then
    /// hears what [`Volume::fence`] was told, or that it may come again.
    pub async fn begin_promotion(&self) -> Promotion<'_> {
        let alone = self.promotion.lock().await;
        self.control.send_modify(|control| control.promoting = true);
        // From here on the session learns the outcome even if this future is dropped.
        let mut promotion = Promotion { volume: self, _alone: alone, writer: None };
        promotion.writer = Some(self.writer.clone().lock_owned().await);
        promotion
    }

    /// [`Volume::begin_promotion`] unless a session runs, which is not disturbed then.
    pub async fn begin_unless_connected(&self) -> Option<Promotion<'_>> {
        let alone = self.promotion.lock().await;
        {
            // A session says that it runs under the same lock: it is seen here, or it sees that it must stop before it takes anything.
            let live = self.live.lock();
            if live.connected {
                return None;
            }
            self.control.send_modify(|control| control.promoting = true);
        }
        let mut promotion = Promotion { volume: self, _alone: alone, writer: None };
        promotion.writer = Some(self.writer.clone().lock_owned().await);
        Some(promotion)
    }

    /// Asks the sidecar for a planned move; without one nobody answers. Whoever asked before is forgotten.
    pub fn leave(&self) -> oneshot::Receiver<Result<PointId, String>> {
        let (tell, told) = oneshot::channel();
        *self.leaver.lock() = Some(tell);
        self.control.send_modify(|control| control.leave += 1);
        told
    }

    /// The sidecar's answer.
    pub fn answer_leave(&self, answer: Result<PointId, String>) {
        if let Some(leaver) = self.leaver.lock().take() {
            // Nobody may wait for it any more.
            let _ = leaver.send(answer);
        }
    }

    /// Asks the sidecar for chunks that are damaged in the store; without one nobody answers. Whoever asked before is forgotten.
    pub fn resend(&self, chunks: Vec<(ChunkId, u32)>) -> oneshot::Receiver<Result<u32, String>> {
        let (tell, told) = oneshot::channel();
        *self.resend.lock() = Some(Resend { chunks, tell });
        self.control.send_modify(|control| control.resend += 1);
        told
    }

    /// So many of them came and are durable, or why not.
    pub fn answer_resend(&self, answer: Result<u32, String>) {
        if let Some(Resend { tell, .. }) = self.resend.lock().take() {
            // Nobody may wait for it any more.
            let _ = tell.send(answer);
        }
    }

    /// The epoch is durable: every session of a lower one ends.
    pub fn fence(&self, epoch: Epoch) {
        self.control.send_modify(|control| control.epoch = control.epoch.max(epoch));
    }

    /// Whether a session is open that is not of this sidecar.
    pub fn is_written_by_another(&self, instance: u64) -> bool {
        self.live().connected && self.control.borrow().instance != instance
    }

    /// What is known beyond the store.
    pub fn live(&self) -> parking_lot::MutexGuard<'_, Live> {
        self.live.lock()
    }

    fn drop_idle_tree(&self, now: Instant, idle: Duration) {
        let Ok(mut parked) = self.writer.try_lock() else { return };
        if parked.as_ref().is_some_and(|parked| now.saturating_duration_since(parked.since) >= idle) {
            *parked = None;
        }
    }
}

impl Parked {
    /// The tree of `last`, left at `now`.
    pub fn new(last: Option<PointId>, tree: Tree, now: Instant) -> Self {
        Self { last, tree, since: now }
    }
}

/// A promotion under way; nothing is appended to the volume while it is there.
#[derive(Debug)]
pub struct Promotion<'a> {
    volume: &'a Volume,
    _alone: tokio::sync::MutexGuard<'a, ()>,
    writer: Option<Writer>,
}

impl Drop for Promotion<'_> {
    fn drop(&mut self) {
        self.volume.control.send_modify(|control| control.promoting = false);
        self.writer = None;
    }
}

impl Seat {
    /// Waits for the right to append. `Err` if something else happened first.
    pub async fn take(&mut self) -> Result<Writer, Interruption> {
        let lock = self.volume.writer.clone().lock_owned();
        tokio::pin!(lock);
        loop {
            tokio::select! {
                biased;
                () = self.changed() => match self.interruption() {
                    // The promotion holds the lock; what it did is seen when it lets go.
                    None | Some(Interruption::Promoting) => {}
                    Some(interruption) => return Err(interruption),
                },
                writer = &mut lock => return self.superseded().map_or(Ok(writer), Err),
            }
        }
    }

    /// Waits until [`Seat::interruption`] may have something new to say.
    pub async fn changed(&mut self) {
        // The sender is in the volume, which this seat holds.
        let _ = self.control.changed().await;
    }

    /// Whether a planned move was asked for since this was last asked.
    pub fn take_leave(&mut self) -> bool {
        let asked = self.control.borrow().leave;
        std::mem::replace(&mut self.leave, asked) != asked
    }

    /// The damaged chunks that were asked for since this was last asked.
    pub fn take_resend(&mut self) -> Option<Vec<(ChunkId, u32)>> {
        let asked = self.control.borrow().resend;
        if std::mem::replace(&mut self.resend, asked) == asked {
            return None;
        }
        self.volume.resend.lock().as_mut().map(|resend| std::mem::take(&mut resend.chunks))
    }

    /// Why the session must stop, if it must.
    pub fn interruption(&self) -> Option<Interruption> {
        let control = *self.control.borrow();
        if control.epoch > self.epoch {
            return Some(Interruption::Fenced(control.epoch));
        }
        self.superseded().or(control.promoting.then_some(Interruption::Promoting))
    }

    /// Waits for the end of a promotion, and says what it means for this session; `None` if nothing came of it.
    pub async fn after_promotion(&mut self) -> Option<Interruption> {
        loop {
            match self.interruption() {
                Some(Interruption::Promoting) => self.changed().await,
                other => return other,
            }
        }
    }

    /// Whether this is still the newest session.
    pub fn is_newest(&self) -> bool {
        self.superseded().is_none()
    }

    fn superseded(&self) -> Option<Interruption> {
        let control = *self.control.borrow();
        (control.arrival != self.arrival)
            .then_some(Interruption::Superseded { reconnected: control.instance == self.instance })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Arc<Volume> {
        Volumes::default().get(&"acme/pg".parse().expect("name"))
    }

    #[tokio::test]
    async fn whoever_comes_last_is_the_writer() {
        let volume = volume();
        let mut first = volume.arrive(1, Epoch(1));
        let held = first.take().await.expect("nobody else is there");
        let mut second = volume.arrive(2, Epoch(1));
        first.changed().await;
        assert_eq!(first.interruption(), Some(Interruption::Superseded { reconnected: false }));
        let mut third = volume.arrive(2, Epoch(1));
        assert_eq!(second.take().await.err(), Some(Interruption::Superseded { reconnected: true }));
        drop(held);
        assert!(third.take().await.is_ok());
    }

    #[tokio::test]
    async fn a_promotion_waits_for_the_session_and_tells_it_the_outcome() {
        for promoted in [true, false] {
            let volume = volume();
            let mut seat = volume.arrive(1, Epoch(1));
            let held = seat.take().await.expect("nobody else is there");
            let session = async {
                seat.changed().await;
                assert_eq!(seat.interruption(), Some(Interruption::Promoting));
                drop(held);
                seat.after_promotion().await
            };
            let promote = async {
                let promotion = volume.begin_promotion().await;
                if promoted {
                    volume.fence(Epoch(2));
                }
                drop(promotion);
            };
            let (heard, ()) = tokio::join!(session, promote);
            assert_eq!(heard, promoted.then_some(Interruption::Fenced(Epoch(2))));
        }
    }

    #[tokio::test]
    async fn an_idle_tree_is_dropped_and_a_used_one_is_not() {
        let volumes = Volumes::default();
        let volume = volumes.get(&"acme/pg".parse().expect("name"));
        let begin = Instant::now();
        let mut seat = volume.arrive(1, Epoch(1));
        let mut held = seat.take().await.expect("nobody else is there");
        *held = Some(Parked::new(None, Tree::new(), begin));
        let idle = Duration::from_secs(60);
        volumes.sweep(begin + idle * 2, idle);
        assert!(held.is_some());
        drop(held);
        volumes.sweep(begin + idle / 2, idle);
        assert!(seat.take().await.expect("free").is_some());
        volumes.sweep(begin + idle, idle);
        assert!(seat.take().await.expect("free").is_none());
    }
}
