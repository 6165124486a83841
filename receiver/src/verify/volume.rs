//! The second pass: one volume, point by point.
//!
//! One tree is carried along. While it is not to be had (a commit cannot be read), every point is touched by what it
//! was lost to, up to the next checkpoint that can be used: that is how opening a point goes, too. A chunk that cannot be read touches
//! every point in which a file still refers to it, so only the files that do are looked at again, and only when they change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tidelock_proto::{ChunkId, FileId, Op, PointId, Tree, VolumeName};

use super::{Event, Fault, Progress, Run, Touched, log::Log};
use crate::{
    catalogue::Step,
    limits,
    log::{LogError, Place, entry::Kind},
    store::{Cause, Store, StoreError},
};

/// Who is to blame.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Blame {
    /// A fault of the log, by its index.
    Log(usize),
    /// A fault that only this volume shows.
    Own(Fault),
}

/// The same as a key: the volume's own faults by their index, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Log(usize),
    Own(usize),
}

/// Checks the points of a volume that were durable when the log was read, and says what is touched by which fault.
pub(super) fn check(
    store: &Store,
    volume: &VolumeName,
    log: &Log,
    total: u64,
    run: &mut Run<'_>,
) -> Result<Vec<(Blame, Touched)>, StoreError> {
    let mut check = Check {
        store,
        volume,
        log,
        standing: Standing::Tree(None),
        tree: Tree::new(),
        own: Vec::new(),
        lost: None,
        bad: HashMap::new(),
        tainted: BTreeMap::new(),
        touched: BTreeMap::new(),
    };
    let mut next = PointId::default();
    loop {
        let page = store.placed_points(volume, next, limits::POINTS_PAGE)?;
        let Some((end, _)) = page.last() else { break };
        next = PointId::new(end.epoch, end.seq.next());
        for (id, entry) in page {
            if run.stopped() {
                return Ok(check.findings());
            }
            if entry.as_ref().is_some_and(|step| log.is_behind(step.place)) {
                continue;
            }
            run.summary.points += 1;
            if run.summary.points.is_multiple_of(limits::VERIFY_PROGRESS_POINTS) {
                let done = run.summary.points;
                run.say(Event::Progress(Progress::Points { done, total: total.max(done) }));
            }
            if !check.point(id, entry, &mut run.summary.checkpoints)? {
                run.summary.damaged_points += 1;
            }
        }
    }
    if !check.bad.is_empty() {
        run.broken.chunks.insert(volume.clone(), check.bad.keys().copied().collect());
    }
    Ok(check.findings())
}

/// What the carried tree is.
#[derive(Debug, Clone, Copy)]
enum Standing {
    /// The tree of this point; of the empty volume if `None`.
    Tree(Option<PointId>),
    /// There is none: it was lost at or before this point, to this.
    Lost(PointId, Key),
}

struct Check<'a> {
    store: &'a Store,
    volume: &'a VolumeName,
    log: &'a Log,
    standing: Standing,
    tree: Tree,
    own: Vec<Fault>,
    /// The fault that stands for all chunks that are nowhere.
    lost: Option<usize>,
    /// Chunks that cannot be read.
    bad: HashMap<ChunkId, Key>,
    /// Files of the tree that refer to some.
    tainted: BTreeMap<FileId, BTreeSet<Key>>,
    touched: BTreeMap<Key, Touched>,
}

impl Check<'_> {
    /// Whether the point can be restored whole.
    fn point(&mut self, id: PointId, entry: Option<Step>, checkpoints: &mut u64) -> Result<bool, StoreError> {
        let Some(step) = entry else {
            let key = self.own(Fault::Point { point: id, cause: Cause::Unreadable("index entry") });
            self.standing = Standing::Lost(id, key);
            self.touch(key).point(id);
            return Ok(false);
        };
        self.advance(&step)?;
        if let Some(place) = self.store.checkpoint_place(self.volume, id)? {
            *checkpoints += 1;
            self.checkpoint(id, place)?;
        }
        if let Standing::Lost(_, key) = self.standing {
            self.touch(key).point(id);
            return Ok(false);
        }
        if self.tree.digest() != step.point.cut.digest {
            let key = self.own(Fault::Point { point: id, cause: Cause::Digest });
            self.touch(key).point(id);
            return Ok(false);
        }
        let hit: BTreeSet<Key> = self.tainted.values().flatten().copied().collect();
        for key in &hit {
            let file = self.tainted.iter().find(|(_, keys)| keys.contains(key)).map(|(file, _)| *file);
            let path = file.and_then(|file| self.tree.path(file));
            let touched = self.touch(*key);
            touched.point(id);
            if touched.file.is_none() {
                touched.file = path.map(|path| String::from_utf8_lossy(&path).into_owned());
            }
        }
        Ok(hit.is_empty())
    }

    /// From the carried tree to the point's.
    fn advance(&mut self, step: &Step) -> Result<(), StoreError> {
        let point = &step.point;
        match (self.standing, step.on) {
            // Its tree is nowhere but in its checkpoint.
            (_, None) if step.kind == Kind::Merged => {
                match self.store.tree_at(self.volume, point.id) {
                    Ok(tree) => {
                        self.standing = Standing::Tree(Some(point.id));
                        self.adopt(tree)?;
                    }
                    Err(error) => {
                        let key = self.blame(point.id, error)?;
                        self.standing = Standing::Lost(point.id, key);
                    }
                }
                return Ok(());
            }
            (Standing::Tree(at), parent) if at == parent => {}
            // The parent is lost, and so is this one.
            (Standing::Lost(at, key), Some(parent)) if at == parent => {
                self.standing = Standing::Lost(point.id, key);
                return Ok(());
            }
            (_, parent) => {
                self.standing = Standing::Tree(parent);
                let found = match parent {
                    None => Ok(Tree::new()),
                    Some(parent) => self.store.tree_at(self.volume, parent),
                };
                match found {
                    Ok(tree) => self.adopt(tree)?,
                    Err(error) => {
                        let key = self.blame(point.id, error)?;
                        self.standing = Standing::Lost(point.id, key);
                        return Ok(());
                    }
                }
            }
        }
        let (mut changed, mut written) = (BTreeSet::new(), BTreeSet::new());
        let mut unlinked = false;
        let replayed = self.store.replay_commit(self.volume, step, &mut self.tree, &mut |op| match op {
            Op::Write { id, pieces, .. } => {
                changed.insert(*id);
                written.extend(pieces.iter().filter_map(|piece| piece.chunk).map(|chunk| (chunk.id, *id)));
            }
            Op::Resize { id, .. } => drop(changed.insert(*id)),
            Op::Link { .. } | Op::Unlink { .. } => unlinked = true,
            _ => {}
        });
        match replayed {
            Ok(()) => self.standing = Standing::Tree(Some(point.id)),
            Err(error) => {
                let key = self.blame(point.id, error)?;
                self.standing = Standing::Lost(point.id, key);
                return Ok(());
            }
        }
        if unlinked {
            self.tainted.retain(|file, _| self.tree.get(*file).is_some());
        }
        changed.retain(|file| self.tainted.contains_key(file));
        for (chunk, file) in written {
            if self.chunk(chunk)?.is_some() {
                changed.insert(file);
            }
        }
        changed.into_iter().for_each(|file| self.look_at(file));
        Ok(())
    }

    /// Compares a checkpoint with its point, and takes its tree if there is no other.
    fn checkpoint(&mut self, id: PointId, place: Place) -> Result<(), StoreError> {
        match self.store.checkpoint_at(self.volume, id, place) {
            Ok(tree) => {
                if matches!(self.standing, Standing::Lost(..)) {
                    self.standing = Standing::Tree(Some(id));
                    self.adopt(tree)?;
                }
            }
            Err(error) => {
                let key = self.blame(id, error)?;
                self.touch(key).checkpoints += 1;
            }
        }
        Ok(())
    }

    /// Goes on with another tree.
    fn adopt(&mut self, tree: Tree) -> Result<(), StoreError> {
        self.tree = tree;
        self.tainted.clear();
        let files: Vec<FileId> = self.tree.iter().map(|(file, _)| file).collect();
        for file in files {
            let mut bad = false;
            for chunk in self.chunks_of(file) {
                bad |= self.chunk(chunk)?.is_some();
            }
            if bad {
                self.look_at(file);
            }
        }
        Ok(())
    }

    /// Which of the chunks known to be bad a file refers to.
    fn look_at(&mut self, file: FileId) {
        let keys: BTreeSet<Key> =
            self.chunks_of(file).iter().filter_map(|chunk| self.bad.get(chunk)).copied().collect();
        if keys.is_empty() {
            self.tainted.remove(&file);
        } else {
            self.tainted.insert(file, keys);
        }
    }

    fn chunks_of(&self, file: FileId) -> Vec<ChunkId> {
        let extents = self.tree.get(file).and_then(|inode| inode.extents());
        extents.into_iter().flat_map(|extents| extents.iter()).map(|(_, extent)| extent.chunk.id).collect()
    }

    /// Why a chunk cannot be read, if it cannot.
    fn chunk(&mut self, id: ChunkId) -> Result<Option<Key>, StoreError> {
        if let Some(key) = self.bad.get(&id) {
            return Ok(Some(*key));
        }
        let key = match self.store.chunk_place(self.volume.tenant(), &id)? {
            Some(place) if self.log.is_intact(place) => return Ok(None),
            // Written again meanwhile.
            Some(place) if self.log.is_behind(place) && self.store.is_intact(place, Kind::Chunk) => {
                return Ok(None);
            }
            Some(place) => match self.log.blame(place) {
                Some(index) => Key::Log(index),
                None => self.nowhere(id),
            },
            None => self.nowhere(id),
        };
        self.bad.insert(id, key);
        Ok(Some(key))
    }

    fn nowhere(&mut self, id: ChunkId) -> Key {
        let index = *self.lost.get_or_insert_with(|| {
            self.own.push(Fault::Lost { count: 0, example: id });
            self.own.len() - 1
        });
        if let Some(Fault::Lost { count, .. }) = self.own.get_mut(index) {
            *count += 1;
        }
        Key::Own(index)
    }

    /// Who is to blame for an error that is damage; another error is handed on.
    fn blame(&mut self, point: PointId, error: StoreError) -> Result<Key, StoreError> {
        let cause = match error {
            StoreError::Log(LogError::Damaged(damage)) => Cause::Log(damage),
            StoreError::Damaged { cause, .. } => cause,
            // A place that the disk refuses to read.
            StoreError::Log(LogError::Io { what, .. }) => Cause::Unreadable(what),
            StoreError::NoSuchPoint(_, missing) => Cause::Missing(missing),
            other => return Err(other),
        };
        match cause {
            Cause::Log(damage) => {
                let offset = u32::try_from(damage.offset).unwrap_or(u32::MAX);
                let place = Place { segment: damage.segment, offset, len: 0 };
                Ok(match self.log.blame(place) {
                    Some(index) => Key::Log(index),
                    None => self.own(Fault::Log(damage)),
                })
            }
            Cause::Chunk(id) => match self.chunk(id)? {
                Some(key) => Ok(key),
                None => Ok(self.own(Fault::Point { point, cause: Cause::Chunk(id) })),
            },
            cause => Ok(self.own(Fault::Point { point, cause })),
        }
    }

    /// A fault of this volume; beyond the limit the last one stands for all.
    fn own(&mut self, fault: Fault) -> Key {
        if let Some(index) = self.own.iter().rposition(|known| *known == fault) {
            return Key::Own(index);
        }
        if self.own.len() < limits::DAMAGE_LISTED {
            self.own.push(fault);
        }
        Key::Own(self.own.len() - 1)
    }

    fn touch(&mut self, key: Key) -> &mut Touched {
        self.touched.entry(key).or_default()
    }

    fn findings(self) -> Vec<(Blame, Touched)> {
        let blame = |key| match key {
            Key::Log(index) => Blame::Log(index),
            Key::Own(index) => Blame::Own(self.own[index].clone()),
        };
        self.touched.into_iter().map(|(key, touched)| (blame(key), touched)).collect()
    }
}
