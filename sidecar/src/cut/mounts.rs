//! What is mounted within the volume: none of its files, and what it hides cannot be seen.
//!
//! An entry where something is mounted is left out of the tree, with a condition that names it. Neither a mount nor its end
//! raises an event in the directory it is in. So while there is one the kernel is asked at every drain whether the table of mounts
//! has changed, and then every such entry is looked up again before that drain may count as empty: a point never leaves out what is
//! uncovered again. A mount that comes over something that was captured is seen at the next look at its name; until then
//! points hold what it hides, which is what the volume has.
//!
//! A btrfs subvolume shows itself like a mount, and is treated as one.

use std::{collections::BTreeSet, fs::File, time::Duration};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tidelock_proto::{FileId, tree::Name};

use super::{conditions, dirty::EntryHint, engine::Engine};

/// The table of mounts of this process's namespace. Its poll says once whether it has changed.
const TABLE: &str = "/proc/self/mountinfo";

/// The entries where something is mounted.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    entries: BTreeSet<(FileId, Name)>,
    table: Option<File>,
}

impl Mounts {
    pub(super) fn contains(&self, entry: &(FileId, Name)) -> bool {
        self.entries.contains(entry)
    }

    /// Returns whether it is new.
    fn insert(&mut self, dir: FileId, name: &Name) -> bool {
        if self.table.is_none() {
            // Before the entry is trusted to stay: what changes from here on is told. Without the table every look is due.
            self.table = File::open(TABLE).ok();
        }
        self.entries.insert((dir, name.clone()))
    }

    /// Whether the entries are to be looked up again.
    fn have_changed(&self) -> bool {
        let Some(table) = &self.table else { return !self.entries.is_empty() };
        let mut polled = [PollFd::new(table, PollFlags::PRI)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        !self.entries.is_empty() && !matches!(poll(&mut polled, now.as_ref()), Ok(0))
    }
}

impl Engine {
    /// Something is mounted there.
    pub(super) fn note_mount(&mut self, dir: FileId, name: &Name) {
        if self.mounts.insert(dir, name) {
            tracing::warn!(%name, "what is mounted within the volume is not replicated");
            self.tell_mounts();
        }
    }

    /// Nothing is mounted there (any more).
    pub(super) fn forget_mount(&mut self, dir: FileId, name: &Name) {
        if !self.mounts.entries.is_empty() && self.mounts.entries.remove(&(dir, name.clone())) {
            self.tell_mounts();
        }
    }

    /// The tree is another one; the scan that follows finds what is mounted.
    pub(super) fn forget_mounts(&mut self) {
        self.mounts.entries.clear();
        self.tell_mounts();
    }

    /// After a drain: entries that may be uncovered are dirty.
    pub(super) fn look_at_mounts(&mut self) {
        if self.mounts.have_changed() {
            for (dir, name) in self.mounts.entries.clone() {
                if self.stage.get(dir).is_some() {
                    self.dirty.entry(dir, name.as_bytes().into(), EntryHint { content: false, scan: true });
                } else {
                    self.forget_mount(dir, &name);
                }
            }
        }
    }

    fn tell_mounts(&self) {
        let Some((dir, name)) = self.mounts.entries.first() else {
            self.status.clear_condition(conditions::MOUNT_WITHIN);
            return;
        };
        let mut path = self.stage.tree().path(*dir).unwrap_or_default();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let others = match self.mounts.entries.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        let reason = format!(
            "{}{others}: another file system or subvolume is there, which is not replicated; protect it with a --volume of its \
             own, and leave it out here with --exclude",
            String::from_utf8_lossy(&path)
        );
        self.status.set_condition(conditions::MOUNT_WITHIN, reason);
    }
}
