//! What each event makes dirty.

use tidelock_proto::{FileId, Op, tree::Name};

use super::{CutError, conditions, dirty::EntryHint, engine::Engine};
use crate::{
    capture::Found,
    limits,
    watch::{Event, TO_END},
};

impl Engine {
    /// Takes every event that is queued and makes dirty what it announces.
    pub(super) fn drain(&mut self) -> Result<(), CutError> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let drained = self.watcher.drain(&mut events);
        for event in events.drain(..) {
            self.absorb(event);
        }
        self.events = events;
        drained?;
        self.look_at_mounts();
        self.revive_nameless();
        self.scrub_heard();
        Ok(())
    }

    pub(super) fn absorb(&mut self, event: Event) {
        match event {
            Event::Name { dir, name } => self.dirty.entry(dir, name, EntryHint::default()),
            Event::Attributes { dir, name } => {
                if let Some(id) = self.child(dir, &name) {
                    self.dirty.file(id).attributes = true;
                }
                // Also what the name means now, if that is another inode.
                self.dirty.entry(dir, name, EntryHint::default());
            }
            Event::DirectoryAttributes { dir } => {
                if self.stage.get(dir).is_some() {
                    self.dirty.file(dir).attributes = true;
                }
            }
            Event::Content { dir, name, closed_write } => self.absorb_content(dir, name, closed_write),
            Event::Range { inode, offset, len } => {
                let exact = self.exact();
                if !exact {
                    // A folio became dirty: its further changes are silent until it is clean again. The inode may be one
                    // that the tree does not know yet.
                    self.note_mapped(inode);
                }
                // The number may mean a directory by now: its bytes are none that could be captured.
                if let Some(id) = self.stage.at_inode(inode).filter(|id| self.is_file(*id)) {
                    let end = if len == TO_END { u64::MAX } else { offset.saturating_add(len) };
                    if exact {
                        self.dirty.written(id, offset, end);
                    } else {
                        let suspect = &mut self.dirty.file(id).suspect;
                        suspect.insert(offset, end);
                        suspect.limit(limits::DIRTY_RANGES_PER_FILE);
                    }
                }
            }
            Event::Size { inode } => {
                // What is beyond the size in the tree is compared when the new one is known.
                if let Some(id) = self.stage.at_inode(inode).filter(|id| self.is_file(*id)) {
                    self.dirty.file(id).times = true;
                }
            }
            Event::Cut { inode, size } => {
                if let Some(id) = self.stage.at_inode(inode).filter(|id| self.is_file(*id)) {
                    let dirt = self.dirty.file(id);
                    dirt.times = true;
                    dirt.suspect.insert(size, u64::MAX);
                }
            }
            Event::Mapped { inode } => {
                self.note_mapped(inode);
                if let Some(id) = self.stage.at_inode(inode).filter(|id| self.is_file(*id)) {
                    self.suspect(id);
                    self.dirty.file(id).write_back = true;
                }
            }
            Event::DirectoryGone { dir } => {
                if dir == FileId::ROOT {
                    self.root_gone = true;
                } else {
                    self.look_up_again(dir);
                }
            }
            Event::Lost(reason) => {
                if self.status.set_condition(conditions::UNVERIFIED, reason.to_string()) {
                    tracing::warn!(%reason, "events were lost; comparing the whole volume");
                }
                self.status.counters.events_lost.add(1);
                self.rescan();
            }
        }
    }

    fn absorb_content(&mut self, dir: FileId, name: Box<[u8]>, closed_write: bool) {
        if self.is_excluded_content(dir, &name) {
            return;
        }
        if !self.exact() {
            // What the name means in the tree, should the name be gone when it is looked up; and what it means then.
            if let Some(id) = self.child(dir, &name) {
                self.suspect(id);
            }
            self.dirty.entry(dir, name, EntryHint { content: true, scan: false });
        } else if !closed_write {
            // The bytes come as ranges; what is left is size and times.
            match self.child(dir, &name) {
                Some(id) => self.dirty.file(id).times = true,
                None => self.dirty.entry(dir, name, EntryHint::default()),
            }
        }
    }

    fn child(&self, dir: FileId, name: &[u8]) -> Option<FileId> {
        self.stage.tree().lookup(dir, &Name::new(name).ok()?)
    }

    /// What was dirty of an inode while it had no name is dirty again once it has one, and once no name waits to be looked
    /// up: until then its name may be the old one, and what is tried and parked again would keep the rest waiting.
    fn revive_nameless(&mut self) {
        if self.nameless.is_empty() || self.dirty.has_names() {
            return;
        }
        let named: Vec<FileId> =
            self.nameless.keys().copied().filter(|id| self.stage.tree().path(*id).is_some()).collect();
        for id in named {
            let Some(parked) = self.nameless.remove(&id) else { continue };
            for dirt in parked.dirt {
                self.dirty.put_back(id, dirt);
            }
            for (name, hint) in parked.entries {
                self.dirty.entry(id, name, hint);
            }
            if let Some(hint) = parked.list {
                self.dirty.directory(id, hint.scan);
            }
        }
    }

    /// The first inode of a new volume.
    pub(super) fn create_root(&mut self) -> Result<(), CutError> {
        let root = self.volume.root();
        let found = Found::of(root).map_err(crate::capture::CaptureError::from)?;
        let kind = tidelock_proto::tree::Kind::Directory;
        let meta = found.meta(self.settled_before());
        self.stage.apply(Op::Create { id: FileId::ROOT, kind, meta })?;
        self.dirty.file(FileId::ROOT).attributes = true;
        Ok(())
    }

    /// The volume's root is the tree's root, also where the tree was captured from another directory, as after a failover.
    pub(super) fn recognise_root(&mut self) -> Result<(), CutError> {
        let found = Found::of(self.volume.root()).map_err(crate::capture::CaptureError::from)?;
        if self.stage.identity(FileId::ROOT) != Some(found.identity()) {
            let settled_before = self.settled_before();
            self.stage.apply(Op::SetMeta { id: FileId::ROOT, meta: found.meta(settled_before) })?;
            self.note_unsettled(FileId::ROOT, found.ctime(), settled_before);
        }
        Ok(())
    }
}
