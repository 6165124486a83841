//! Everything one volume's capture works with.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustix::io::Errno;
use tidelock_proto::{
    FileId, Tree,
    point::Consistency,
    tree::{Name, Timestamp},
};

use super::{
    CutError, conditions,
    dirty::{Dirty, EntryHint, FileDirt, Seen},
    mounts::Mounts,
    stage::Stage,
};
use crate::limits::{CTIME_SETTLES_AFTER, ENTRIES_PER_STEP, MAPPED_INODES_MAX, SLICE_BYTES};
use crate::{
    capture::{Found, Volume},
    excludes::Excludes,
    pack::Packer,
    pause::Waiting,
    scrub::{Scrub, ScrubConfig},
    ship::Outbox,
    status::Status,
    watch::{Event, Tracker, WatchError, Watcher},
};

/// What waits until its inode has a name again. If it gets none the commit removes the inode, and this with it.
#[derive(Debug, Default)]
pub(super) struct Parked {
    pub(super) dirt: Vec<FileDirt>,
    pub(super) entries: Vec<(Box<[u8]>, EntryHint)>,
    pub(super) list: Option<EntryHint>,
}

/// The capture of one volume: its sources, what is dirty, the tree as captured, and where chunks go.
pub(crate) struct Engine {
    pub(super) volume: Volume,
    pub(super) watcher: Watcher,
    pub(super) stage: Stage,
    pub(super) dirty: Dirty,
    pub(super) packer: Packer,
    pub(super) outbox: Outbox,
    pub(super) status: Arc<Status>,
    pub(super) buffer: Vec<u8>,
    pub(super) events: Vec<Event>,
    /// Inodes that are mapped, in the tree or not; `None` once there are too many: then every inode counts as mapped.
    pub(super) mapped: Option<HashSet<u64>>,
    /// What is dirty of inodes that have no name just now, or not the one the tree has.
    pub(super) nameless: BTreeMap<FileId, Parked>,
    /// What could not be read, to be tried again.
    pub(super) unreadable_later: BTreeMap<FileId, FileDirt>,
    /// A scan is under way: whatever is looked up is compared with the tree, also what a rename brings from a directory
    /// that the scan has yet to see into one that it has seen.
    pub(super) scanning: bool,
    scan_began: Option<Instant>,
    /// When the last scan that has ended began: what was there before is captured.
    compared_since: Option<Instant>,
    /// How long the last scan took.
    pub(super) scan_took: Duration,
    /// Directories that the scan has listed.
    pub(super) listed: HashSet<FileId>,
    /// Inodes of a tree from another directory that were not found here so far: see [`super::takeover`].
    pub(super) elsewhere: HashSet<FileId>,
    /// What differs is looked for page by page: see [`super::pages`].
    pub(super) by_pages: bool,
    /// So it is in the first comparison, wherever the tree is from.
    import: bool,
    /// Directories the kernel refused to watch.
    pub(super) unwatched: BTreeSet<FileId>,
    /// Inodes whose change time could not be recorded when they were captured, with when that was and the time.
    pub(super) unsettled: BTreeMap<FileId, (Instant, Seen)>,
    /// Cores to compare with: more than one while the application stands still.
    pub(super) cores: usize,
    /// The root was found gone.
    pub(super) root_gone: bool,
    /// Looks for what the sources missed. Off until it is told its rate.
    pub(super) scrub: Scrub,
    /// Names that are left out; but for the defaults none until it is told.
    pub(super) excludes: Excludes,
    /// Some file has several names; one of them may be left out.
    pub(super) links_seen: bool,
    sockets: BTreeSet<(FileId, Name)>,
    pub(super) mounts: Mounts,
    /// Content of every chunk that was packed, for tests to compare with.
    #[cfg(test)]
    pub(super) tap: std::collections::HashMap<tidelock_proto::ChunkId, Vec<u8>>,
}

impl Engine {
    pub(crate) fn new(
        volume: Volume,
        watcher: Watcher,
        packer: Packer,
        outbox: Outbox,
        status: Arc<Status>,
    ) -> Self {
        Self {
            volume,
            watcher,
            stage: Stage::default(),
            dirty: Dirty::default(),
            packer,
            outbox,
            status,
            buffer: Vec::new(),
            events: Vec::new(),
            mapped: Some(HashSet::new()),
            nameless: BTreeMap::new(),
            unreadable_later: BTreeMap::new(),
            scanning: false,
            scan_began: None,
            compared_since: None,
            scan_took: Duration::ZERO,
            listed: HashSet::new(),
            elsewhere: HashSet::new(),
            by_pages: false,
            import: false,
            unwatched: BTreeSet::new(),
            unsettled: BTreeMap::new(),
            cores: 1,
            root_gone: false,
            scrub: Scrub::new(ScrubConfig::OFF, Instant::now()),
            excludes: Excludes::default(),
            links_seen: false,
            sockets: BTreeSet::new(),
            mounts: Mounts::default(),
            #[cfg(test)]
            tap: std::collections::HashMap::new(),
        }
    }

    /// Says how it is scrubbed and what is left out.
    pub(crate) fn set_up(mut self, scrub: ScrubConfig, excludes: Excludes) -> Self {
        self.scrub = Scrub::new(scrub, Instant::now());
        self.excludes = excludes;
        self.tell_tracker();
        self
    }

    /// It is for an import: there is nobody whose cuts would be late.
    pub(crate) fn for_import(mut self, import: bool) -> Self {
        self.import = import;
        self
    }

    /// Starts over from a tree that both sides agree on; everything is compared with it. What was dirty under the
    /// former tree's ids is compared by content, whatever its times say.
    pub(super) fn start_from(&mut self, tree: Tree) -> Result<(), CutError> {
        let mut suspects: BTreeSet<FileId> = self.dirty.take_ids();
        suspects.extend(self.nameless.keys().chain(self.unreadable_later.keys()).copied());
        let inodes: Vec<u64> = suspects
            .iter()
            .filter_map(|id| self.stage.identity(*id))
            .map(|identity| identity.inode)
            .collect();
        self.stage = Stage::new(tree);
        self.nameless.clear();
        self.unreadable_later.clear();
        self.unwatched.clear();
        self.unsettled.clear();
        self.scrub.start_over();
        self.forget_mounts();
        self.elsewhere.clear();
        self.by_pages = self.import;
        match self.stage.get(FileId::ROOT) {
            Some(_) => {
                if self.is_from_elsewhere() {
                    self.expect_by_name();
                    self.by_pages = true;
                }
                self.recognise_root()?;
            }
            None => self.create_root()?,
        }
        let mapped = self.mapped.iter().flatten().copied();
        let suspects: Vec<FileId> =
            inodes.into_iter().chain(mapped).filter_map(|inode| self.stage.at_inode(inode)).collect();
        suspects.into_iter().for_each(|id| self.suspect(id));
        self.scan();
        Ok(())
    }

    /// Compares the whole volume with the tree again, because something may have gone unseen.
    pub(super) fn rescan(&mut self) {
        self.status.counters.rescans.add(1);
        self.scan();
    }

    /// Compares the whole volume with the tree.
    fn scan(&mut self) {
        self.scanning = true;
        self.scan_began.get_or_insert_with(Instant::now);
        self.listed.clear();
        self.dirty.directory(FileId::ROOT, true);
    }

    /// Nothing is left to compare.
    pub(super) fn end_scan(&mut self) {
        if let Some(began) = self.scan_began.take() {
            self.scan_took = began.elapsed();
            self.compared_since = Some(began);
        }
        self.scanning = false;
        self.listed = HashSet::new();
        self.elsewhere = HashSet::new();
        self.by_pages = false;
    }

    /// Until when everything is known to be captured, if a drain that began at `started` found nothing. Where events tell of a
    /// part only, a comparison has to have begun since.
    pub(super) fn clean_at(&self, started: SystemTime) -> Option<SystemTime> {
        match self.polls() {
            true => self.compared_since.map(|began| SystemTime::now() - began.elapsed()),
            false => Some(started),
        }
    }

    pub(super) fn exact(&self) -> bool {
        self.watcher.tracker() == Tracker::Exact
    }

    /// Everything of the file is to be compared with the tree.
    pub(super) fn suspect(&mut self, id: FileId) {
        if self.is_file(id) {
            self.dirty.file(id).suspect_all();
        }
    }

    /// Whether the inode is a regular file: nothing else has bytes to capture.
    pub(super) fn is_file(&self, id: FileId) -> bool {
        self.stage.get(id).is_some_and(|inode| inode.extents().is_some())
    }

    pub(super) fn is_mapped(&self, inode: u64) -> bool {
        self.mapped.as_ref().is_none_or(|mapped| mapped.contains(&inode))
    }

    pub(super) fn note_mapped(&mut self, inode: u64) {
        if let Some(mapped) = &mut self.mapped {
            mapped.insert(inode);
            if mapped.len() > MAPPED_INODES_MAX {
                self.mapped = None;
            }
        }
    }

    /// Change times before this are recorded.
    pub(super) fn settled_before(&self) -> Timestamp {
        (SystemTime::now() - CTIME_SETTLES_AFTER).into()
    }

    /// Whether a file may have changed without an event and has yet to be compared. Its change time is what the comparison
    /// goes by, so until then none is recorded but of a file that is read as a `whole`.
    fn may_hide_changes(&self) -> bool {
        self.scanning || self.has_blind_spots()
    }

    /// Whether events tell of part of the changes only, so that all is compared again and again.
    pub(super) fn polls(&self) -> bool {
        self.watcher.tracker() == Tracker::Poll
    }

    /// Whether there are changes of which no event tells.
    fn has_blind_spots(&self) -> bool {
        self.polls() || (!self.exact() && !self.unwatched.is_empty())
    }

    /// Whether a change time may be recorded, so that later comparisons take the inode for captured while it has it: all
    /// that was changed under it is in the tree, or will be announced. That is so if all bytes are read now, after the
    /// barrier; or if it was seen settled before the last drain, which told of no loss (see "After a loss" in [`super`]).
    pub(super) fn is_sure(&self, id: FileId, found: &Found, whole: bool, seen: Option<Seen>) -> bool {
        let ctime = found.ctime();
        let recorded = self.stage.get(id).is_some_and(|inode| inode.meta.origin.ctime == ctime);
        let settled = seen == Some(Seen { ctime, settled: true }) && !self.may_hide_changes();
        whole || recorded || settled || !self.is_file(id)
    }

    /// Remembers to record the change time once it has settled.
    pub(super) fn note_unsettled(&mut self, id: FileId, ctime: Timestamp, settled_before: Timestamp) {
        let unsettled =
            self.stage.get(id).is_some_and(|inode| inode.meta.origin.ctime == Timestamp::default());
        if unsettled && !self.has_blind_spots() {
            let seen = Seen { ctime, settled: ctime < settled_before };
            self.unsettled.insert(id, (Instant::now(), seen));
        } else {
            self.unsettled.remove(&id);
        }
    }

    /// Queues inodes whose change time has settled by now.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        let settled: Vec<FileId> = self
            .unsettled
            .iter()
            .filter(|(_, (since, _))| now.duration_since(*since) > CTIME_SETTLES_AFTER * 2)
            .map(|(id, _)| *id)
            .collect();
        for id in settled {
            if let Some((_, seen)) = self.unsettled.remove(&id) {
                self.dirty.file(id).settle = Some(seen);
            }
        }
    }

    /// Watches a directory; where the kernel refuses for want of watches, says so and goes on without.
    pub(super) fn watch(&mut self, dir: FileId, fd: BorrowedFd<'_>) -> Result<(), CutError> {
        match self.watcher.watch_directory(dir, fd) {
            Ok(()) => {
                self.unwatched.remove(&dir);
                if self.watcher.take_changed() {
                    self.tell_tracker();
                }
                Ok(())
            }
            Err(error @ (WatchError::WatchLimit { .. } | WatchError::InstanceLimit { .. })) => {
                if self.status.set_condition(conditions::WATCH_LIMIT, error.to_string()) {
                    tracing::warn!(%error, "directories are not watched; points are fuzzy");
                }
                self.unwatched.insert(dir);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Something cannot be read: points are not proven until it can.
    pub(super) fn unreadable(&mut self, id: FileId, errno: Errno) {
        let path = self.stage.tree().path(id).unwrap_or_default();
        let path = self.volume.path().join(String::from_utf8_lossy(&path).as_ref());
        let reason = format!("cannot read {}: {errno}", path.display());
        if self.status.set_condition(conditions::UNREADABLE, &reason) {
            tracing::warn!(reason, "something is not captured; points are fuzzy");
        }
        self.unreadable_later
            .entry(id)
            .or_insert_with(|| FileDirt { attributes: true, ..FileDirt::default() });
    }

    /// Tries again what could not be read or watched.
    pub(super) fn retry_unreadable(&mut self) {
        for (id, dirt) in std::mem::take(&mut self.unreadable_later) {
            if self.stage.tree().entries(id).is_some() {
                self.dirty.directory(id, true);
            }
            self.dirty.put_back(id, dirt);
        }
        if !self.unwatched.is_empty() || self.polls() {
            // Also the only way to learn what happened there.
            self.scan();
        }
    }

    pub(super) fn note_socket(&mut self, dir: FileId, name: &Name) {
        if self.sockets.insert((dir, name.clone())) {
            self.status.counters.sockets_skipped.add(1);
        }
    }

    /// Whether an entry of the volume is none of the tree's.
    pub(super) fn is_left_out(&self, dir: FileId, name: &[u8]) -> bool {
        let Ok(name) = Name::new(name) else { return true };
        let entry = (dir, name);
        let special = self.sockets.contains(&entry) || self.mounts.contains(&entry);
        special || self.is_excluded(dir, entry.1.as_bytes())
    }

    /// How much there is to capture.
    pub(super) fn waiting(&self) -> Waiting {
        let size = |id| self.stage.get(id).and_then(|inode| inode.extents()).map_or(0, |file| file.size());
        Waiting { bytes: self.dirty.bytes(size), names: self.dirty.names() }
    }

    /// What may be believed of a cut taken now.
    pub(super) fn consistency(&self) -> Consistency {
        if self.unreadable_later.is_empty() && self.unwatched.is_empty() && !self.polls() {
            Consistency::Crash
        } else {
            Consistency::Fuzzy
        }
    }

    /// Captures part of what is dirty: at most about a slice of bytes, so that events never wait long.
    pub(super) fn step(&mut self) -> Result<(), CutError> {
        let mut looked_up = 0;
        while looked_up < ENTRIES_PER_STEP {
            if let Some((dir, hint)) = self.dirty.take_directory() {
                self.list_directory(dir, hint)?;
                looked_up += 1;
            } else if let Some((dir, entries)) = self.dirty.take_entries(ENTRIES_PER_STEP) {
                looked_up += entries.len();
                self.capture_entries(dir, entries)?;
            } else {
                break;
            }
        }
        let (mut read, mut captured) = (0, 0);
        while read < SLICE_BYTES
            && captured < ENTRIES_PER_STEP
            && let Some((id, dirt)) = self.dirty.take_file()
        {
            read += self.capture_inode(id, dirt)?;
            captured += 1;
        }
        self.hand_over(false);
        Ok(())
    }

    /// Gives staged operations to the session: in large groups, or all of them before a commit.
    pub(super) fn hand_over(&mut self, all: bool) {
        if self.stage.pending_ops() > 1024 || (all && self.stage.pending_ops() > 0) {
            self.outbox.ops(self.stage.take_ops());
        }
    }
}
