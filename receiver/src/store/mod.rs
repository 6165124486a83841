//! The store: a log, an index over it, and what both say of every volume.
//!
//! ```text
//! append ─▶ inbox ─▶ writer ─▶ log ──fdatasync──▶ index, volumes ─▶ receipts
//!                                                   ▲
//! points, tree_at, read_chunk ──────────────────────┘──▶ log
//! ```
//! Invariant: nothing is acknowledged, counted, or offered before it is durable. Readers see the index and the volumes, and
//! those are told of a record only after its `fdatasync`. The one thing that may rest on what is not durable yet is
//! the decision not to send a chunk again ([`Store::has_chunk_or_pending`]); why that is right is argued in `inbox`.
//!
//! The store guards its own order (epochs, numbers, parents) and takes everything else on trust: that a chunk is what its id
//! says, and that a commit's operations fit its parent and give its digest, is for the session to check first.

mod batch;
mod checkpoint;
mod clone;
mod compact;
mod delete;
mod error;
mod filter;
mod forecast;
mod inbox;
mod inspect;
mod lock;
mod named;
mod open;
mod owed;
mod pins;
mod reachable;
mod read;
mod recognise;
mod relieve;
mod retire;
mod space;
mod survey;
mod thin;
mod told;
mod writer;

use std::{
    future::Future,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{JoinHandle, Thread},
};

use bytes::Bytes;
use parking_lot::RwLock;
use tidelock_proto::{ChunkId, Epoch, PointId, Seq, Tree, VolumeName, point::Point};
use tokio::sync::{Semaphore, watch};

pub use crate::catalogue::{HOLD, INSTANT_HOLD, VolumeInfo, is_hold};
pub use batch::{Batch, Commit, Receipt, Record, encode_model_ops, encode_ops};
pub use compact::{CompactOptions, Compacted};
pub use delete::Deleted;
pub use error::{Cause, StoreError};
pub use forecast::{Ask, CapForecast, Forecast, Sizes, VolumeForecast};
pub use named::Named;
pub(crate) use open::Prepared;
pub use owed::Lease;
pub use pins::Pin;
pub use read::StoredChunk;
pub(crate) use recognise::is_store;
pub use relieve::Relieved;
pub use retire::Retired;
pub use thin::Thinned;

use crate::{
    catalogue::{Catalogue, decode_content_len, decode_place},
    index::{Index, Table, key},
    limits,
    log::{Damage, reader::LogReader},
    vault::{KeyError, TenantKeys, Vault},
};

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Size of new segments, in bytes, within [`limits::SEGMENT_BYTES_RANGE`].
    pub segment_bytes: u64,
    /// Memory for the index's blocks, in bytes.
    pub index_cache_bytes: u64,
    /// Bytes of the disk that commits leave free, for promotions and for the index.
    pub reserve_bytes: u64,
    /// Bytes that the log may have; then only promotions and tags are taken.
    pub cap_bytes: Option<u64>,
    /// Bytes that may be queued or being written; beyond it [`Store::append`] waits.
    pub queue_bytes: usize,
    /// Keys of tenants whose data is encrypted.
    pub keys: TenantKeys,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            segment_bytes: limits::SEGMENT_BYTES,
            index_cache_bytes: limits::INDEX_CACHE_BYTES,
            reserve_bytes: limits::STORE_RESERVE_BYTES,
            cap_bytes: None,
            queue_bytes: limits::QUEUE_BYTES,
            keys: TenantKeys::default(),
        }
    }
}

/// What was found when a store was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// A torn tail was cut off: the last run ended in a crash.
    pub torn: bool,
    /// The index was rebuilt from the whole log.
    pub rebuilt: bool,
    /// Records read from the log.
    pub replayed: u64,
    /// What is damaged, at most [`limits::DAMAGE_LISTED`] places. Only what was read again is looked at.
    pub damage: Vec<Damage>,
    /// How many places are.
    pub damaged: u64,
    /// Volumes that ended at this point by the index, and have not come so far in the log.
    pub lost: Vec<(VolumeName, PointId)>,
}

/// A store that is open. Cheap to clone; the last clone that goes closes it, after everything appended is durable.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    queue_kib: u32,
    opened: Opened,
    threads: Threads,
    _lock: lock::StoreLock,
    /// Gone behind the lock.
    open: watch::Sender<()>,
}

/// What the store's threads and its callers share.
struct Shared {
    vault: Arc<Vault>,
    inbox: inbox::Inbox,
    index: Index,
    log: LogReader,
    /// What is durable.
    volumes: RwLock<Catalogue>,
    checkpoints: checkpoint::Wanted,
    /// Held while points are chosen, merged and dropped.
    thinning: parking_lot::Mutex<()>,
    pins: pins::Pins,
    /// Chunks that somebody counts on.
    owed: Arc<owed::Owed>,
    /// Held while segments are removed; read by whoever needs all of them to stay.
    segments: RwLock<()>,
    /// A reader that missed what went looks again where it is now.
    moves: retire::Moves,
    /// What the names of points say.
    named: named::Kept,
    /// What the log may take.
    space: space::Space,
    /// Upkeep is to end.
    stopping: AtomicBool,
}

#[derive(Default)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    checkpoints: Option<JoinHandle<()>>,
    index: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in `dir`, creating it if there is none. Reads the log from where the index ends, cuts off a torn
    /// tail, and rebuilds the index if it is missing, unusable, or says other things than the log.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        open::open(dir, options)
    }

    /// Makes a directory ready to be opened as a store, by nobody but the caller.
    pub(crate) fn prepare(dir: &Path) -> Result<Prepared, StoreError> {
        open::prepare(dir)
    }

    /// Opens a store without its index, which is made anew from the log alone.
    pub fn rebuild(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        open::rebuild(dir, options)
    }

    /// Waits until the last clone is gone, and the store can be opened again. It keeps none itself.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut open = self.0.open.subscribe();
        async move { while open.changed().await.is_ok() {} }
    }

    /// What was found when it was opened.
    pub fn opened(&self) -> &Opened {
        &self.0.opened
    }

    /// All volumes, in the order of their names.
    pub fn volumes(&self) -> Vec<VolumeName> {
        let volumes = self.shared().volumes.read();
        let there = volumes.iter().filter(|(_, info)| !info.deleted);
        let mut names: Vec<_> = there.map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// What is known of a volume.
    pub fn volume(&self, volume: &VolumeName) -> Option<VolumeInfo> {
        self.shared().volumes.read().get(volume).cloned()
    }

    /// The points of a volume, oldest first: all, or this many of the newest.
    pub fn points(&self, volume: &VolumeName, newest: Option<usize>) -> Result<Vec<Point>, StoreError> {
        let (first, last) = (PointId::default(), PointId::new(Epoch(u64::MAX), Seq(u64::MAX)));
        self.shared().points(volume, first, last, true, newest.unwrap_or(usize::MAX))
    }

    /// At most `limit` points before `before`, the nearest ones, oldest first: a volume's points page by page.
    pub fn points_before(
        &self,
        volume: &VolumeName,
        before: PointId,
        limit: usize,
    ) -> Result<Vec<Point>, StoreError> {
        let last = match before.seq.0.checked_sub(1) {
            Some(seq) => PointId::new(before.epoch, Seq(seq)),
            None => PointId::new(Epoch(before.epoch.0.saturating_sub(1)), Seq(u64::MAX)),
        };
        self.shared().points(volume, PointId::default(), last, true, limit)
    }

    /// At most `limit` points from `first` on, itself included, oldest first: a volume's points page by page.
    pub fn points_from(
        &self,
        volume: &VolumeName,
        first: PointId,
        limit: usize,
    ) -> Result<Vec<Point>, StoreError> {
        self.shared().points(volume, first, PointId::new(Epoch(u64::MAX), Seq(u64::MAX)), false, limit)
    }

    /// Why there is no such volume: because its tenant is locked, or because there is none.
    pub fn no_volume(&self, volume: &VolumeName) -> StoreError {
        self.shared().no_volume(volume)
    }

    /// Whether a tenant's data is encrypted and its key is not here.
    pub fn check_key(&self, tenant: &str) -> Result<(), KeyError> {
        self.shared().vault.check(tenant)
    }

    /// Tenants whose data is encrypted and whose keys are not here: nothing of them is offered or taken.
    pub fn locked_tenants(&self) -> Vec<String> {
        self.shared().vault.locked()
    }

    /// One point, with its tags.
    pub fn point(&self, volume: &VolumeName, id: PointId) -> Result<Point, StoreError> {
        let (_, mut point) = self.shared().point(volume, id)?;
        point.tags = self.shared().tags(volume, id, id)?.remove(&id).unwrap_or_default();
        Ok(point)
    }

    /// The tree of a point, built from the nearest checkpoint and the commits after it, and compared with the point's
    /// digest. Takes time in proportion to the tree and reads the disk: not for a thread that must not block.
    pub fn tree_at(&self, volume: &VolumeName, id: PointId) -> Result<Tree, StoreError> {
        self.shared().tree_at(volume, id)
    }

    /// Whether a chunk of this tenant is durable.
    pub fn has_chunk(&self, tenant: &str, id: ChunkId) -> Result<bool, StoreError> {
        Ok(self.shared().index.get(Table::Chunks, &self.shared().chunk_key(tenant, &id))?.is_some())
    }

    /// Whether a chunk of this tenant is durable, or will be before anything that is appended from now on. This is the
    /// question for "must it be sent", and for "is every chunk of this commit there".
    pub fn has_chunk_or_pending(&self, tenant: &str, id: ChunkId) -> Result<bool, StoreError> {
        self.shared().has_chunk_or_pending(tenant, id)
    }

    /// A durable chunk as it is stored; the record's checksum is checked, the id is not.
    pub fn read_chunk(&self, tenant: &str, id: ChunkId) -> Result<StoredChunk, StoreError> {
        self.shared().read_chunk(tenant, id)
    }

    /// The content of a durable chunk, which is certain to be what its id says.
    pub fn read_content(&self, tenant: &str, id: ChunkId) -> Result<Bytes, StoreError> {
        self.shared().read_content(tenant, id)
    }

    /// Queues a batch behind all that were queued before, waiting while the queue is full. The order of these calls is the
    /// order of the log. Dropped before it returns, it has queued nothing.
    pub async fn append(&self, batch: Batch) -> Receipt {
        // Bytes are counted in KiB, so that any queue fits the semaphore's numbers; a huge batch takes the whole queue.
        let kib = u32::try_from(batch.bytes() / 1024 + 1).unwrap_or(u32::MAX).min(self.0.queue_kib);
        let room = self.0.room.clone().acquire_many_owned(kib).await.ok();
        self.shared().inbox.push(batch, room)
    }

    /// [`Store::append`] for a thread that may block, and waits until the batch is durable.
    pub fn append_and_wait(&self, batch: Batch) -> Result<(), StoreError> {
        block_on(async { self.append(batch).await.await })
    }

    /// Raises the epoch of a volume to `epoch`, above `expected`, which must be the current one. Everything of a lower
    /// epoch is refused from then on; the next point is number 1 of `epoch`, and its parent is `base`.
    pub async fn raise_epoch(
        &self,
        volume: &VolumeName,
        expected: Epoch,
        epoch: Epoch,
        base: PointId,
    ) -> Receipt {
        self.append(Batch::of(Record::Epoch { volume: volume.clone(), expected, epoch, base })).await
    }

    /// What the names of a volume's points say of it.
    pub fn named(&self, volume: &VolumeName) -> Result<Named, StoreError> {
        self.shared().named(volume)
    }

    /// Adds a tag to a point; a tag it has already changes nothing.
    pub async fn tag(&self, volume: &VolumeName, point: PointId, tag: &str) -> Receipt {
        let tag = tag.to_owned();
        self.append(Batch::of(Record::Tag { volume: volume.clone(), point, tag })).await
    }

    /// Takes the names from a point that hold it, if there are any (see [`HOLD`]).
    pub async fn release(&self, volume: &VolumeName, point: PointId) -> Receipt {
        self.append(Batch::of(Record::Release { volume: volume.clone(), point, copy: false })).await
    }

    /// Writes a checkpoint of a point now, unless there is one, and waits for it. The store does this by itself when
    /// it is due.
    pub fn checkpoint(&self, volume: &VolumeName, point: PointId) -> Result<(), StoreError> {
        checkpoint::write(self.shared(), volume, point).map(drop)
    }

    /// Writes a checkpoint from a tree the caller has, which must be the point's. This is how a volume whose log is damaged
    /// gets whole again: the points from here on can be opened, whatever is before them.
    pub fn checkpoint_tree(
        &self,
        volume: &VolumeName,
        point: PointId,
        tree: &Tree,
    ) -> Result<(), StoreError> {
        checkpoint::write_tree(self.shared(), volume, point, tree, batch::Room::Usual).map(drop)
    }

    /// Waits until no checkpoint is due or being written.
    fn quiesce(&self) {
        self.shared().checkpoints.wait_idle();
    }

    /// Ends thinning and compaction, now and for good: they return [`StoreError::Closed`] as soon as they can.
    pub fn stop_upkeep(&self) {
        self.shared().stopping.store(true, Ordering::Relaxed);
    }

    /// Why the store takes no writes, if it does not.
    pub fn refusal(&self) -> Option<StoreError> {
        self.shared().inbox.refusal()
    }

    /// Why the store takes no commits for the time being, if its disk is full. It still takes promotions and tags, and everything
    /// once there is space again.
    pub fn full(&self) -> Option<StoreError> {
        self.shared().inbox.full()
    }

    /// How often the store was full since it was opened; see [`Batch::bind`].
    pub fn generation(&self) -> u64 {
        self.shared().inbox.generation()
    }

    /// The length of a chunk's content, if [`Store::has_chunk_or_pending`]: a piece of a file must lie within it.
    pub fn chunk_len_or_pending(&self, tenant: &str, id: ChunkId) -> Result<Option<u32>, StoreError> {
        self.shared().chunk_len_or_pending(tenant, id)
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("opened", &self.0.opened).finish_non_exhaustive()
    }
}

impl Shared {
    /// To be asked now and then by whatever takes long and can be done later.
    fn check_stop(&self) -> Result<(), StoreError> {
        if self.stopping.load(Ordering::Relaxed) { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// A chunk's key in the index.
    fn chunk_key(&self, tenant: &str, id: &ChunkId) -> Vec<u8> {
        key::chunk(tenant, &self.vault.blind(tenant, id))
    }

    /// Why there is no such volume.
    fn no_volume(&self, volume: &VolumeName) -> StoreError {
        match self.vault.check(volume.tenant()) {
            Err(error) => error.into(),
            Ok(()) => StoreError::NoSuchVolume(volume.clone()),
        }
    }

    fn has_chunk_or_pending(&self, tenant: &str, id: ChunkId) -> Result<bool, StoreError> {
        Ok(self.chunk_len_or_pending(tenant, id)?.is_some())
    }

    fn chunk_len_or_pending(&self, tenant: &str, id: ChunkId) -> Result<Option<u32>, StoreError> {
        // In this order: a chunk is in the index before it stops being pending. In memory its id is plain.
        if let Some(len) = self.inbox.pending_len(&key::chunk(tenant, &id)) {
            return Ok(Some(len));
        }
        let value = self.index.get(Table::Chunks, &self.chunk_key(tenant, &id))?;
        let leaving =
            |value: &Vec<u8>| decode_place(value).is_some_and(|place| self.owed.is_leaving(place.segment));
        Ok(value.filter(|value| !leaving(value)).and_then(|value| decode_content_len(&value)))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let join = |thread: Option<JoinHandle<()>>| {
            if thread.is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a thread of the store panicked");
            }
        };
        self.shared.checkpoints.close();
        self.shared.inbox.close();
        join(self.threads.checkpoints.take());
        join(self.threads.writer.take());
        self.shared.index.close();
        join(self.threads.index.take());
    }
}

/// Runs a future of the store's own kind (no timers, no sockets) on this thread.
///
/// Unconstrained: on a thread that is in the middle of a task, tokio's budget of that task would be spent after some dozens
/// of answers and is only filled again when the task yields, which it cannot do from here; it would wait for ever.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(tokio::task::unconstrained(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

#[cfg(test)]
pub(crate) mod tests;
