//! At which points a name exists, and when it changed.
//!
//! The names that match are kept, and after each point only those it touched are looked at. A directory that comes, goes or is
//! renamed takes everything below with it: then all names are looked at anew. Where a tree has to be opened anew (a
//! point that retention merged into a checkpoint), a change shows in an inode's attributes or size.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tidelock_proto::{
    FileId, PointId, Tree, VolumeName,
    point::Point,
    tree::{Meta, Name},
};

use super::{
    names::each_name,
    pattern::Patterns,
    walk::{Touched, Visit, walk},
};
use crate::store::{Store, StoreError};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Which names.
    pub patterns: &'a Patterns,
    /// From this point on.
    pub first: PointId,
    /// Up to this one, along the line that leads to it.
    pub last: PointId,
    /// Every change is told, and not only how many there were.
    pub changes: bool,
}

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It exists at the first point that was looked at.
    There,
    /// This point is the first that has it.
    Created,
    /// Its content or attributes are others than at the point before, or it names another inode.
    Changed,
    /// This point has it no more.
    Removed,
    /// It still exists at the last point that was looked at.
    Last,
}

/// An answer. Of each path: `There` or `Created`, `Changed` if asked for, then `Removed` or `Last`, perhaps several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The path from the root, without a leading slash.
    pub path: Vec<u8>,
    /// What happened.
    pub what: What,
    /// At which point.
    pub point: PointId,
    /// The time of its cut, in nanoseconds since 1970.
    pub time_ns: u64,
    /// The size of a regular file, in bytes, after this.
    pub size_bytes: u64,
    /// How often it changed since it came, and the last time.
    pub changes: u64,
    /// The last point at which it changed.
    pub changed: Option<PointId>,
}

/// Answers a query until `each` returns `false`. Replays every commit among the points: not for a thread that must not block.
pub fn find(
    store: &Store,
    volume: &VolumeName,
    query: Query<'_>,
    each: &mut dyn FnMut(Found) -> bool,
) -> Result<(), StoreError> {
    let mut search = Search { query, known: BTreeMap::new(), ids: HashMap::new(), dirs: HashSet::new() };
    let mut last = None;
    let mut stopped = false;
    walk(store, volume, query.first, query.last, &mut |visit| {
        let found = search.point(visit, last.is_none());
        last = Some((visit.point.id, visit.point.cut.time_ns));
        stopped = !found.into_iter().all(&mut *each);
        !stopped
    })?;
    if let (false, Some((point, time_ns))) = (stopped, last) {
        let end = |(path, known): (Vec<u8>, Known)| known.found(path, What::Last, point, time_ns);
        search.known.into_iter().map(end).all(each);
    }
    Ok(())
}

/// A name that matches and exists.
#[derive(Debug, Clone, Copy)]
struct Known {
    id: FileId,
    meta: Meta,
    size: u64,
    changes: u64,
    changed: Option<PointId>,
}

impl Known {
    fn new(tree: &Tree, id: FileId) -> Self {
        let inode = tree.get(id);
        let size = inode.and_then(|inode| inode.extents()).map_or(0, |extents| extents.size());
        let meta = inode.map(|inode| inode.meta).unwrap_or_default();
        Self { id, meta, size, changes: 0, changed: None }
    }

    fn found(self, path: Vec<u8>, what: What, point: PointId, time_ns: u64) -> Found {
        let Self { size, changes, changed, .. } = self;
        Found { path, what, point, time_ns, size_bytes: size, changes, changed }
    }
}

struct Search<'a> {
    query: Query<'a>,
    known: BTreeMap<Vec<u8>, Known>,
    /// The paths in `known` of each inode.
    ids: HashMap<FileId, BTreeSet<Vec<u8>>>,
    /// Every entry that is a directory.
    dirs: HashSet<(FileId, Name)>,
}

impl Search<'_> {
    fn point(&mut self, visit: Visit<'_>, first: bool) -> Vec<Found> {
        let Visit { point, tree, touched } = visit;
        let paths = match touched {
            Some(touched) if !self.moves_directories(tree, touched) => self.touched(tree, touched),
            _ => self.all(tree),
        };
        let written = |id| touched.is_some_and(|it| it.written.contains(&id) || it.attributes.contains(&id));
        let judged = paths.into_iter().filter_map(|(path, now)| {
            let now = now.map(|id| Known::new(tree, id));
            let what = self.judge(&path, now, first, &written)?;
            self.note(path, now, what, point)
        });
        judged.collect()
    }

    fn moves_directories(&self, tree: &Tree, touched: &Touched) -> bool {
        touched.entries.iter().any(|entry| {
            let now = tree.lookup(entry.0, &entry.1);
            self.dirs.contains(entry) || now.is_some_and(|id| tree.entries(id).is_some())
        })
    }

    /// The paths that a point touched, and what they name now. No directory has moved.
    fn touched(&self, tree: &Tree, touched: &Touched) -> BTreeMap<Vec<u8>, Option<FileId>> {
        let mut paths = BTreeMap::new();
        for (dir, name) in &touched.entries {
            let Some(mut path) = tree.path(*dir) else { continue };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            if self.query.patterns.matches(&path) {
                paths.insert(path, tree.lookup(*dir, name));
            }
        }
        for id in touched.written.iter().chain(&touched.attributes) {
            for path in self.ids.get(id).into_iter().flatten() {
                paths.entry(path.clone()).or_insert(Some(*id));
            }
        }
        paths
    }

    /// Every path that matches or did.
    fn all(&mut self, tree: &Tree) -> BTreeMap<Vec<u8>, Option<FileId>> {
        let mut paths: BTreeMap<_, _> = self.known.keys().map(|path| (path.clone(), None)).collect();
        self.dirs.clear();
        each_name(tree, FileId::ROOT, b"", &mut |named| {
            if tree.entries(named.id).is_some() {
                self.dirs.insert((named.dir, named.name.clone()));
            }
            if self.query.patterns.matches(named.path) {
                paths.insert(named.path.to_vec(), Some(named.id));
            }
            true
        });
        paths
    }

    fn judge(
        &self,
        path: &[u8],
        now: Option<Known>,
        first: bool,
        written: &dyn Fn(FileId) -> bool,
    ) -> Option<What> {
        match (self.known.get(path), now) {
            (None, None) => None,
            (None, Some(_)) if first => Some(What::There),
            (None, Some(_)) => Some(What::Created),
            (Some(_), None) => Some(What::Removed),
            (Some(before), Some(now)) => {
                let same = (before.id, before.meta, before.size) == (now.id, now.meta, now.size);
                (!same || written(now.id)).then_some(What::Changed)
            }
        }
    }

    /// Remembers what was found, and says what is to be told of it.
    fn note(&mut self, path: Vec<u8>, now: Option<Known>, what: What, point: &Point) -> Option<Found> {
        let before = self.known.remove(&path);
        if let Some(before) = before
            && let Some(paths) = self.ids.get_mut(&before.id)
        {
            paths.remove(&path);
            if paths.is_empty() {
                self.ids.remove(&before.id);
            }
        }
        let told = match (before, now) {
            (Some(before), Some(now)) => {
                Known { changes: before.changes + 1, changed: Some(point.id), ..now }
            }
            (None, Some(now)) => now,
            (Some(before), None) => before,
            (None, None) => return None,
        };
        if now.is_some() {
            self.ids.entry(told.id).or_default().insert(path.clone());
            self.known.insert(path.clone(), told);
        }
        let tell = what != What::Changed || self.query.changes;
        tell.then(|| told.found(path, what, point.id, point.cut.time_ns))
    }
}
