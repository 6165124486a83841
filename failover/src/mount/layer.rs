//! The tree of a mounted point, and what is changed in it where the mount is writable.
//!
//! What is written is never part of a volume: it changes this tree, whose new content is in the scratch file, and both are gone with the mount. Every change is
//! checked before it is applied, because a tree that has refused an operation is of no use any more.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use fuser::Errno;
use tidelock_proto::{
    ChunkId, FileId, Op, Tree,
    limits::FILE_MAX_BYTES,
    tree::{ChunkRef, Content, ExtentMap, Inode, Piece},
};

use super::{
    durable::Durable,
    scratch::{SLOT_BYTES, is_slot},
    upper::Upper,
};

pub(super) type Answer<T> = Result<T, Errno>;

/// What there is.
pub(super) struct Layer {
    pub(super) tree: Tree,
    /// How much of each file is no hole.
    data_bytes: HashMap<FileId, u64>,
    upper: Option<Upper>,
    /// How often a file is open; only of a writable mount.
    opens: HashMap<FileId, u64>,
    /// Open, without a name.
    orphans: HashSet<FileId>,
    /// Pipes of the tree that are sockets: a volume has none.
    sockets: HashSet<FileId>,
}

impl Layer {
    /// With an upper layer it can be changed.
    pub(super) fn new(tree: Tree, upper: Option<Upper>) -> Self {
        let sum = |extents: &ExtentMap| extents.iter().map(|(_, extent)| u64::from(extent.len)).sum();
        let data_bytes =
            tree.iter().filter_map(|(id, inode)| Some((id, inode.extents().map(sum)?))).collect();
        Self {
            tree,
            data_bytes,
            upper,
            opens: HashMap::new(),
            orphans: HashSet::new(),
            sockets: HashSet::new(),
        }
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn inode(&self, id: FileId) -> Answer<&Inode> {
        self.tree.get(id).ok_or(Errno::ENOENT)
    }

    fn extents(&self, id: FileId) -> Answer<&ExtentMap> {
        match &self.inode(id)?.content {
            Content::File(extents) => Ok(extents),
            Content::Directory(_) => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }

    pub(super) fn data_bytes(&self, id: FileId) -> u64 {
        self.data_bytes.get(&id).copied().unwrap_or(0)
    }

    pub(super) fn is_socket(&self, id: FileId) -> bool {
        self.sockets.contains(&id)
    }

    pub(super) fn set_socket(&mut self, id: FileId) {
        self.sockets.insert(id);
    }

    pub(super) fn is_writable(&self) -> bool {
        self.upper.is_some()
    }

    /// Room for what is written, in bytes.
    pub(super) fn free_bytes(&self) -> u64 {
        self.upper.as_ref().map_or(0, Upper::free_bytes)
    }

    /// What was written, from where a piece says it is.
    pub(super) fn written(&self, from: ChunkRef, into: &mut [u8]) -> io::Result<()> {
        match &self.upper {
            Some(upper) => upper.read(from, into),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Applies what was found to be possible.
    pub(super) fn apply(&mut self, op: &Op) -> Answer<()> {
        if !self.is_writable() {
            return Err(Errno::EROFS);
        }
        let before = self.tree.totals().data_bytes;
        if let Err(error) = self.tree.apply(op) {
            tracing::error!(error = &error as &dyn std::error::Error, "a change was not checked; unmount");
            return Err(Errno::EIO);
        }
        if let Op::Write { id, .. } | Op::Resize { id, .. } = op {
            let bytes = self.data_bytes.entry(*id).or_default();
            *bytes = (*bytes + self.tree.totals().data_bytes).saturating_sub(before);
        }
        if let Some(durable) = self.durable() {
            durable.applied(op);
        }
        Ok(())
    }

    /// The upper layer, if it outlives the process.
    pub(super) fn durable(&mut self) -> Option<&mut Durable> {
        match &mut self.upper {
            Some(Upper::Durable(durable)) => Some(durable),
            _ => None,
        }
    }

    /// The tree, and what is kept of its changes.
    pub(super) fn parts(&mut self) -> (&Tree, Option<&mut Durable>) {
        match &mut self.upper {
            Some(Upper::Durable(durable)) => (&self.tree, Some(durable)),
            _ => (&self.tree, None),
        }
    }

    /// Nobody has a file open any more: what has no name goes.
    pub(super) fn abandon(&mut self) -> Answer<()> {
        self.opens.clear();
        self.orphans.clear();
        self.seal()
    }

    /// Writes bytes of a file, each stretch into its slot.
    pub(super) fn write(&mut self, id: FileId, offset: u64, mut bytes: &[u8]) -> Answer<()> {
        self.extents(id)?;
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= FILE_MAX_BYTES);
        let end = end.ok_or(Errno::EFBIG)?;
        let mut at = offset;
        while at < end {
            let stretch = at / SLOT_BYTES * SLOT_BYTES;
            let len = (stretch + SLOT_BYTES).min(end) - at;
            let (now, rest) = bytes.split_at(len as usize);
            self.own(id, stretch, (at, at + len), Some(now))?;
            (at, bytes) = (at + len, rest);
        }
        Ok(())
    }

    /// A range that is in the upper layer already, where the file has it.
    pub(super) fn adopt(&mut self, id: FileId, from: u64, to: u64) -> Answer<()> {
        let mut at = from;
        while at < to {
            let stretch = at / SLOT_BYTES * SLOT_BYTES;
            let end = (stretch + SLOT_BYTES).min(to);
            self.own(id, stretch, (at, end), None)?;
            at = end;
        }
        Ok(())
    }

    /// Makes a range of one stretch its slot's, with these bytes or those that are there.
    fn own(&mut self, id: FileId, stretch: u64, (at, end): (u64, u64), bytes: Option<&[u8]>) -> Answer<()> {
        let (mut slot, mut start, mut stop) = (None, at, end);
        for (offset, extent) in self.extents(id)?.touching(stretch, stretch.saturating_add(SLOT_BYTES)) {
            let extent_end = offset + u64::from(extent.len);
            if is_slot(extent.chunk.id) {
                slot = Some(extent.chunk.id);
                // One extent with what touches it.
                if extent_end >= at && offset <= end {
                    (start, stop) = (start.min(offset), stop.max(extent_end));
                }
            }
        }
        let upper = self.upper.as_mut().ok_or(Errno::EROFS)?;
        let slot: ChunkId = slot.unwrap_or_else(|| upper.new_slot(id, stretch));
        let within = |offset: u64| ChunkRef { id: slot, at: (offset - stretch) as u32 };
        if let Some(bytes) = bytes {
            upper.write(within(at), bytes).map_err(Errno::from)?;
        }
        let piece = Piece { len: stop - start, chunk: Some(within(start)) };
        let known = self.extents(id)?.pieces(at, end);
        if known.len() == 1 && known[0].chunk == Some(within(at)) {
            return Ok(());
        }
        self.apply(&Op::Write { id, offset: start, pieces: vec![piece] })
    }

    /// Makes a range a hole, as far as the file goes.
    pub(super) fn punch(&mut self, id: FileId, from: u64, to: u64) -> Answer<()> {
        let to = to.min(self.extents(id)?.size());
        if from >= to {
            return Ok(());
        }
        self.give_back(id, from, to)?;
        self.apply(&Op::Write { id, offset: from, pieces: vec![Piece { len: to - from, chunk: None }] })
    }

    pub(super) fn resize(&mut self, id: FileId, size: u64) -> Answer<()> {
        if size > FILE_MAX_BYTES {
            return Err(Errno::EFBIG);
        }
        let before = self.extents(id)?.size();
        if size < before {
            self.give_back(id, size, before)?;
        }
        self.apply(&Op::Resize { id, size })
    }

    fn give_back(&mut self, id: FileId, from: u64, to: u64) -> Answer<()> {
        let pieces = self.extents(id)?.pieces(from, to);
        let Some(upper) = &mut self.upper else { return Err(Errno::EROFS) };
        for piece in pieces {
            if let Some(chunk) = piece.chunk.filter(|chunk| is_slot(chunk.id)) {
                upper.give_back(chunk, piece.len);
            }
        }
        Ok(())
    }

    pub(super) fn opened(&mut self, id: FileId) {
        *self.opens.entry(id).or_default() += 1;
    }

    /// A file is closed; without a name that was its end.
    pub(super) fn released(&mut self, id: FileId) -> Answer<()> {
        let Some(opens) = self.opens.get_mut(&id) else { return Ok(()) };
        *opens -= 1;
        if *opens > 0 {
            return Ok(());
        }
        self.opens.remove(&id);
        if self.orphans.remove(&id) {
            self.resize(id, 0)?;
            self.seal()?;
        }
        Ok(())
    }

    /// An inode has lost a name, perhaps its last. If it is open it stays until it is closed.
    pub(super) fn unnamed(&mut self, id: FileId) -> Answer<()> {
        if self.tree.names(id).next().is_some() {
            return Ok(());
        }
        if self.opens.contains_key(&id) {
            self.orphans.insert(id);
            return Ok(());
        }
        if self.inode(id)?.extents().is_some() {
            self.resize(id, 0)?;
        }
        self.seal()
    }

    /// Lets go what has no name. Nothing goes as long as one of these is open: what is left of them by then is small.
    fn seal(&mut self) -> Answer<()> {
        if !self.orphans.is_empty() {
            return Ok(());
        }
        let (data_bytes, sockets, upper) = (&mut self.data_bytes, &mut self.sockets, &mut self.upper);
        let sealed = self.tree.seal_with(&mut |id, _| {
            data_bytes.remove(&id);
            sockets.remove(&id);
            if let Some(Upper::Durable(durable)) = upper {
                durable.gone(id);
            }
        });
        sealed.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "the tree is none any more; unmount");
            Errno::EIO
        })
    }
}
