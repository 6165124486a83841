//! A directory that is equal to a tree follows it: only what [`Changes`] name is touched, and nothing else is looked at.
//!
//! 1. **Leave**, deepest first, so that the way to each entry is still what it was: what goes is removed; what stays under another name waits in `staging`, a
//!    directory beside the target, where all ids have room. So names can be swapped and directories turned inside out.
//! 2. **Come**, highest first, so that the way to each entry is there: from `staging`, as a link to another name, or new.
//! 3. **Content**: sizes, data, holes, in whole blocks.
//! 4. **Attributes** of whatever was touched; directories after what they hold. Not of the root, which has them from [`complete`](super::complete).
//!
//! Nothing is synced: that is for the caller, who knows when. The price of not looking is that a directory which is not what the changes began with ends in an error
//! at best; then [`reconcile`](super::reconcile) makes it right.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
};

use rustix::{
    fd::OwnedFd,
    fs::{self, FallocateFlags, OFlags},
    io::Errno,
};
use tidelock_proto::{
    ChunkId, FileId, Tree,
    tree::{Content, Inode, Name, Piece},
};

use super::{
    Chunks, Options, Report, Result, Run, attributes,
    beneath::{Place, Root},
    changes::Changes,
    error::ReconcileError,
    names::create,
    open_target,
};
use crate::limits;

/// Brings `directory` from what it was when `changes` began to `tree`, which they were noted of. `staging` is an empty directory beside it.
pub fn follow(
    directory: &Path,
    staging: &Path,
    tree: &Tree,
    changes: &Changes,
    chunks: &dyn Chunks,
    options: &Options,
) -> Result<Report> {
    let run = Run::new(open_target(directory)?, tree, chunks, options, &|_| {})?;
    // It has been there since the directory was made.
    *run.marked.lock() = true;
    let mut following = Following {
        run: &run,
        staging: &Root::open(staging)?,
        changes,
        before: names_before(tree, changes),
        staged: HashSet::new(),
        placed: HashMap::new(),
        moved: BTreeSet::new(),
        report: Report::default(),
    };
    following.leave()?;
    following.come()?;
    for (id, ranges) in &changes.written {
        if let Some(extents) = tree.get(*id).and_then(Inode::extents) {
            following.content(*id, ranges.blocks(run.block_bytes, extents.size()))?;
        }
    }
    following.attributes()?;
    Ok(following.report)
}

struct Following<'a, 'r> {
    run: &'r Run<'a>,
    staging: &'r Root,
    changes: &'r Changes,
    /// The names of directories then, where they may be others now.
    before: HashMap<FileId, (FileId, Name)>,
    staged: HashSet<FileId>,
    /// Inodes that came, by their first name.
    placed: HashMap<FileId, (FileId, Name)>,
    moved: BTreeSet<FileId>,
    report: Report,
}

/// An entry to be changed, with the path of its directory.
struct Change<'r> {
    path: Vec<u8>,
    dir: FileId,
    name: &'r Name,
    id: FileId,
}

fn names_before(tree: &Tree, changes: &Changes) -> HashMap<FileId, (FileId, Name)> {
    let is_dir = |id: FileId| changes.gone.contains(&id) || tree.entries(id).is_some();
    let named = |(entry, before): (&(FileId, Name), &Option<FileId>)| {
        before.filter(|id| is_dir(*id)).map(|id| (id, entry.clone()))
    };
    changes.entries.iter().filter_map(named).collect()
}

fn depth(path: &[u8]) -> usize {
    if path.is_empty() { 0 } else { 1 + path.iter().filter(|byte| **byte == b'/').count() }
}

impl Following<'_, '_> {
    fn leave(&mut self) -> Result<()> {
        let tree = self.run.tree;
        let leaves = |((dir, name), before): (&(FileId, Name), &Option<FileId>)| {
            let is_there = tree.lookup(*dir, name);
            before.filter(|id| is_there != Some(*id)).map(|id| (*dir, name.clone(), id))
        };
        let leaving: Vec<_> = self.changes.entries.iter().filter_map(leaves).collect();
        let mut leaving: Vec<_> = leaving
            .iter()
            .map(|(dir, name, id)| Change { path: self.path_before(*dir), dir: *dir, name, id: *id })
            .collect();
        leaving.sort_by_key(|change| std::cmp::Reverse(depth(&change.path)));
        let staging = self.staging.dir(Vec::new())?;
        for Change { path, name, id, .. } in leaving {
            let dir = self.run.root.dir(path)?;
            self.run.unlock(&dir)?;
            let place = dir.place(name.as_bytes());
            if self.changes.gone.contains(&id) {
                // What it held has left before it.
                place.remove_dir()?;
                self.report.removed += 1;
            } else if tree.get(id).is_some() && self.staged.insert(id) {
                place.rename_to(&staging.place(staged_name(id).as_bytes()))?;
                self.moved.insert(id);
            } else {
                place.unlink()?;
                self.report.removed += 1;
            }
        }
        Ok(())
    }

    /// Where a directory was.
    fn path_before(&self, dir: FileId) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = dir;
        while at != FileId::ROOT {
            let Some((above, name)) = self.before.get(&at).or_else(|| self.run.tree.names(at).next()) else {
                unreachable!("a directory that was there had a name")
            };
            names.push(name.as_bytes());
            at = *above;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn come(&mut self) -> Result<()> {
        let tree = self.run.tree;
        let mut coming = Vec::new();
        for ((dir, name), before) in &self.changes.entries {
            if let Some(id) = tree.lookup(*dir, name).filter(|id| *before != Some(*id)) {
                coming.push(Change { path: tree.path(*dir).unwrap_or_default(), dir: *dir, name, id });
            }
        }
        coming.sort_by_key(|change| depth(&change.path));
        let staging = self.staging.dir(Vec::new())?;
        let mut links = Vec::new();
        for Change { dir: dir_id, name, id, .. } in coming {
            let Some(inode) = tree.get(id) else { continue };
            let dir = self.run.dir(dir_id)?;
            self.run.unlock(&dir)?;
            let place = dir.place(name.as_bytes());
            if self.staged.remove(&id) {
                staging.place(staged_name(id).as_bytes()).rename_to(&place)?;
            } else if let Some(there) = self.name_there(id) {
                links.push((dir_id, name, there));
                continue;
            } else {
                create(&place, inode)?;
                self.report.created += 1;
            }
            if !matches!(inode.content, Content::Directory(_)) {
                self.placed.insert(id, (dir_id, name.clone()));
            }
        }
        // Only now the way to every name that stayed is there.
        for (dir, name, (there_dir, there)) in links {
            let (dir, there_dir) = (self.run.dir(dir)?, self.run.dir(there_dir)?);
            dir.place(name.as_bytes()).make_link(&there_dir.place(there.as_bytes()))?;
            self.report.linked += 1;
        }
        // Files that keep other names.
        for id in self.staged.drain() {
            staging.place(staged_name(id).as_bytes()).unlink()?;
        }
        Ok(())
    }

    /// A name that the inode has in the directory already.
    fn name_there(&self, id: FileId) -> Option<(FileId, Name)> {
        if let Some(placed) = self.placed.get(&id) {
            return Some(placed.clone());
        }
        let stayed =
            |name: &&(FileId, Name)| self.changes.entries.get(*name).is_none_or(|before| *before == Some(id));
        self.run.tree.names(id).find(stayed).filter(|_| !self.changes.is_new(id)).cloned()
    }

    /// Makes ranges of a file what they are to be.
    fn content(&mut self, id: FileId, ranges: impl Iterator<Item = (u64, u64)>) -> Result<()> {
        let Some(extents) = self.run.tree.get(id).and_then(Inode::extents) else { return Ok(()) };
        let Some((dir, name)) = self.run.tree.names(id).next() else { return Ok(()) };
        let dir = self.run.dir(*dir)?;
        let place = dir.place(name.as_bytes());
        if !self.run.privileged {
            place.set_mode(0o600)?;
        }
        let fd = place.open(OFlags::RDWR)?;
        let fail = |what| move |errno| ReconcileError::io(what, place.full(), errno);
        let stat = fs::fstat(&fd).map_err(fail("look at"))?;
        let there_bytes = u64::try_from(stat.st_size).unwrap_or(0).min(extents.size());
        if there_bytes != extents.size() || stat.st_size.cast_unsigned() > extents.size() {
            fs::ftruncate(&fd, extents.size()).map_err(fail("set the size of"))?;
        }
        let mut data = Vec::new();
        for (start, end) in ranges {
            let mut at = start;
            for piece in extents.pieces(start, end) {
                match piece.chunk {
                    Some(_) => data.push((at, piece)),
                    None if at < there_bytes => {
                        self.punch(&fd, at, at + piece.len, extents.size(), &place)?
                    }
                    None => {}
                }
                at += piece.len;
            }
        }
        for batch in data.chunks(limits::RECONCILE_BATCH_CHUNKS) {
            self.write(&fd, batch, &place)?;
        }
        self.report.files_written += 1;
        Ok(())
    }

    fn punch(&self, fd: &OwnedFd, start: u64, end: u64, size: u64, place: &Place<'_>) -> Result<()> {
        // The last block ends behind the file.
        let end = if end >= size { end.next_multiple_of(self.run.block_bytes) } else { end };
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fs::fallocate(fd, mode, start, end - start) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => {
                let zeros = vec![0; limits::RECONCILE_BUFFER_BYTES];
                let mut at = start;
                while at < end.min(size) {
                    let len = usize::try_from(end.min(size) - at).unwrap_or(usize::MAX).min(zeros.len());
                    write_all(fd, &zeros[..len], at, place)?;
                    at += len as u64;
                }
                Ok(())
            }
            Err(errno) => Err(ReconcileError::io("make a hole in", place.full(), errno)),
        }
    }

    /// Writes pieces of chunks where they belong.
    fn write(&mut self, fd: &OwnedFd, pieces: &[(u64, Piece)], place: &Place<'_>) -> Result<()> {
        let mut wanted: HashMap<ChunkId, Vec<(u64, u32, u64)>> = HashMap::new();
        let mut ids = Vec::new();
        for (at, piece) in pieces {
            let Some(chunk) = piece.chunk else { continue };
            let places = wanted.entry(chunk.id).or_default();
            if places.is_empty() {
                ids.push(chunk.id);
            }
            places.push((*at, chunk.at, piece.len));
        }
        let mut outcome = Ok(());
        let report = &mut self.report;
        let fetched = self.run.chunks.fetch(&ids, &mut |index, content| {
            let Some((id, places)) = ids.get(index).and_then(|id| wanted.remove_entry(id)) else {
                return true;
            };
            report.bytes_fetched += content.len() as u64;
            outcome = places.into_iter().try_for_each(|(at, from, len)| {
                let from = from as usize;
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                let part = content.get(from..from.saturating_add(len)).ok_or(ReconcileError::Chunk(id))?;
                report.bytes_written += part.len() as u64;
                write_all(fd, part, at, place)
            });
            outcome.is_ok()
        });
        outcome?;
        fetched.map_err(ReconcileError::Chunks)?;
        match wanted.into_keys().next() {
            Some(missing) => Err(ReconcileError::Chunk(missing)),
            None => Ok(()),
        }
    }

    fn attributes(&mut self) -> Result<()> {
        let (tree, changes) = (self.run.tree, self.changes);
        let mut touched: BTreeSet<FileId> =
            changes.written.keys().chain(&changes.attributes).copied().collect();
        touched.extend(&self.moved);
        touched.extend(changes.entries.keys().map(|(dir, _)| *dir));
        if !self.run.privileged {
            // Their modes may have been in the way.
            let above: Vec<FileId> =
                touched.iter().filter_map(|id| tree.ancestry(*id)).flatten().map(|(dir, _)| *dir).collect();
            touched.extend(above);
        }
        let mut directories = Vec::new();
        for id in touched {
            let Some(inode) = tree.get(id).filter(|_| id != FileId::ROOT) else { continue };
            if matches!(inode.content, Content::Directory(_)) {
                directories.push((depth(&tree.path(id).unwrap_or_default()), id, inode));
                continue;
            }
            let Some((dir, name)) = tree.names(id).next() else { continue };
            let dir = self.run.dir(*dir)?;
            self.set(&dir.place(name.as_bytes()), inode)?;
        }
        directories.sort_by_key(|(depth, ..)| std::cmp::Reverse(*depth));
        for (_, id, inode) in directories {
            let dir = self.run.dir(id)?;
            self.set(&dir.itself(), inode)?;
        }
        Ok(())
    }

    fn set(&mut self, place: &Place<'_>, inode: &Inode) -> Result<()> {
        if place.stat()?.is_none() {
            return Err(ReconcileError::io("find", place.full(), Errno::NOENT));
        }
        attributes::set(self.run, place, inode, &mut self.report)
    }
}

fn staged_name(id: FileId) -> String {
    id.0.to_string()
}

fn write_all(fd: &OwnedFd, content: &[u8], offset: u64, place: &Place<'_>) -> Result<()> {
    let mut done = 0;
    while done < content.len() {
        match rustix::io::pwrite(fd, &content[done..], offset + done as u64) {
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(ReconcileError::io("write", place.full(), errno)),
        }
    }
    Ok(())
}
