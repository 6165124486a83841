//! The marker of an unfinished copy: a file in the target from before the first change until everything is durable.
//!
//! It tells people and start scripts not to use the directory, and a second run that it may go on although the
//! directory is not empty. A run that finds nothing to change never makes one.

use rustix::{
    fs::{self, OFlags},
    io::Errno,
};
use tidelock_proto::{FileId, tree::Name};

use super::{
    Result, Run,
    beneath::{Dir, Root},
    error::ReconcileError,
};
use crate::limits;

/// Its name.
pub(super) const NAME: &str = ".tidelock-incomplete";

impl Run<'_> {
    /// Whether `name` in the root of the target is not the tree's business.
    pub(super) fn is_foreign(&self, dir: FileId, name: &[u8]) -> bool {
        dir == FileId::ROOT
            && ((name == b"lost+found" && self.mounted && !self.tree_has(name))
                || (name == NAME.as_bytes() && !self.tree_has(name)))
    }

    fn tree_has(&self, name: &[u8]) -> bool {
        Name::new(name).is_ok_and(|name| self.tree.lookup(FileId::ROOT, &name).is_some())
    }

    /// Before any change. A tree that has a file of this name goes without a marker.
    pub(super) fn touch(&self) -> Result<()> {
        let mut marked = self.marked.lock();
        if *marked {
            return Ok(());
        }
        if !self.tree_has(NAME.as_bytes()) {
            self.mark()?;
        }
        *marked = true;
        Ok(())
    }

    fn mark(&self) -> Result<()> {
        let dir = self.root.dir(Vec::new())?;
        self.unlock(&dir)?;
        let place = dir.place(NAME.as_bytes());
        let create = match place.stat()? {
            Some(stat) if is_plain_file(&stat) => OFlags::TRUNC,
            Some(_) => return Err(ReconcileError::NotEmpty(place.full())),
            None => OFlags::CREATE | OFlags::EXCL,
        };
        let fd = place.open(OFlags::WRONLY | create)?;
        let fail = |errno| ReconcileError::io("write", place.full(), errno);
        retry(|| rustix::io::write(&fd, self.options.label.as_bytes())).map_err(fail)?;
        fs::fsync(&fd).map_err(fail)?;
        fs::fsync(&dir.fd).map_err(fail)
    }

    /// The directory is whole.
    pub(super) fn unmark(&self) -> Result<()> {
        let dir = self.root.dir(Vec::new())?;
        let place = dir.place(NAME.as_bytes());
        if !self.tree_has(NAME.as_bytes()) && place.stat()?.is_some() {
            place.unlink()?;
        }
        Ok(())
    }
}

/// What a directory is before anything is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vacancy {
    /// It is absent, or holds nothing.
    Vacant,
    /// It holds a copy that was not finished, with this label.
    Unfinished(String),
    /// It holds something else.
    Occupied,
}

pub(super) fn vacancy(root: &Root, mounted: bool) -> Result<Vacancy> {
    let dir = root.dir(Vec::new())?;
    let names = dir.list()?;
    if names.iter().any(|name| name == NAME.as_bytes()) {
        let label = label_there(root, &dir)?;
        return Ok(Vacancy::Unfinished(String::from_utf8_lossy(&label).into_owned()));
    }
    let foreign = |name: &Vec<u8>| mounted && name == b"lost+found";
    Ok(if names.iter().all(foreign) { Vacancy::Vacant } else { Vacancy::Occupied })
}

/// Without leave to overwrite the directory must be empty, or unfinished with the same label.
pub(super) fn check_vacant(root: &Root, mounted: bool, label: &str) -> Result<()> {
    match vacancy(root, mounted)? {
        Vacancy::Vacant => Ok(()),
        Vacancy::Unfinished(holds) if holds == label => Ok(()),
        Vacancy::Unfinished(holds) => Err(ReconcileError::Unfinished { path: root.full(b""), holds }),
        Vacancy::Occupied => Err(ReconcileError::NotEmpty(root.full(b""))),
    }
}

fn label_there(root: &Root, dir: &Dir<'_>) -> Result<Vec<u8>> {
    let place = dir.place(NAME.as_bytes());
    if !place.stat()?.as_ref().is_some_and(is_plain_file) {
        return Err(ReconcileError::NotEmpty(root.full(b"")));
    }
    let fd = place.open(OFlags::RDONLY)?;
    let mut label = vec![0; limits::RECONCILE_LABEL_MAX_BYTES];
    let len = retry(|| rustix::io::pread(&fd, &mut label, 0))
        .map_err(|errno| ReconcileError::io("read", place.full(), errno))?;
    label.truncate(len);
    Ok(label)
}

fn is_plain_file(stat: &fs::Stat) -> bool {
    fs::FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_nlink == 1
}

fn retry<T>(mut call: impl FnMut() -> std::result::Result<T, Errno>) -> std::result::Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
