//! The third pass: owner, extended attributes, mode and time of everything.
//!
//! The order is the kernel's doing: `chown` takes away set-id bits and capabilities, a POSIX ACL changes the mode, a
//! mode can end one's own access, and any change of a directory's entries changes its time. What names a user other than oneself needs root; without it such
//! attributes are left out, counted and reported, and a file that did not get its owner does not get set-id
//! bits either.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::FileType;
use tidelock_proto::{
    FileId,
    tree::{Content, Inode, Xattrs},
};

use super::{Phase, Progress, Report, Result, Run, beneath::Place, names::mtime};

const SET_ID_BITS: u32 = 0o6000;

/// Sets the attributes of everything but the root directory.
pub(super) fn run(run: &Run<'_>) -> Result<()> {
    let directories = run.directories();
    let total = run.tree.totals().inodes;
    let next = AtomicUsize::new(0);
    run.on_workers(|report| {
        while let Some(id) = directories.get(next.fetch_add(1, Ordering::Relaxed)) {
            run.check_stopped()?;
            set_entries(run, *id, report)?;
            let done = next.load(Ordering::Relaxed) as u64;
            (run.progress)(Progress { phase: Phase::Attributes, done: done.min(total), total });
        }
        Ok(())
    })?;
    let mut report = Report::default();
    // Deepest first: a directory that may not be entered any more has nothing left to be done in it.
    let done = directories.iter().rev().filter(|id| **id != FileId::ROOT).try_for_each(|id| {
        let Some(inode) = run.tree.get(*id) else { return Ok(()) };
        let dir = run.dir(*id)?;
        set(run, &dir.itself(), inode, &mut report)
    });
    run.report.lock().add(&report);
    done
}

/// Sets the attributes of the root directory: the last of all.
pub(super) fn set_root(run: &Run<'_>, report: &mut Report) -> Result<()> {
    let Some(inode) = run.tree.get(FileId::ROOT) else { return Ok(()) };
    set(run, &run.root.dir(Vec::new())?.itself(), inode, report)
}

/// All entries of a directory that are not directories; an inode with several names by its first only.
fn set_entries(run: &Run<'_>, id: FileId, report: &mut Report) -> Result<()> {
    let mut dir = None;
    for (name, child) in run.tree.entries(id).into_iter().flatten() {
        let Some(inode) = run.tree.get(*child) else { continue };
        let first = run.tree.names(*child).next().is_some_and(|first| *first == (id, name.clone()));
        if matches!(inode.content, Content::Directory(_)) || !first {
            continue;
        }
        let dir = match &mut dir {
            Some(dir) => dir,
            None => dir.insert(run.dir(id)?),
        };
        set(run, &dir.place(name.as_bytes()), inode, report)?;
    }
    Ok(())
}

/// Sets what differs at one place.
pub(super) fn set(run: &Run<'_>, place: &Place<'_>, inode: &Inode, report: &mut Report) -> Result<()> {
    let Some(before) = place.stat()? else { return Ok(()) };
    let meta = &inode.meta;
    // The root's own attributes come when the marker is gone.
    let touch = || if place.path().is_empty() { Ok(()) } else { run.touch() };
    let mut changed = false;
    let mut owned = true;
    if (before.st_uid, before.st_gid) != (meta.uid, meta.gid) {
        touch()?;
        owned = place.set_owner(meta.uid, meta.gid)?;
        changed |= owned;
        if !owned {
            report.refuse("owner", place);
        }
    }
    changed |= set_xattrs(place, &inode.xattrs, &touch, report)?;
    let now = if changed { place.stat()?.unwrap_or(before) } else { before };
    if mtime(&now) != meta.mtime {
        touch()?;
        place.set_mtime(meta.mtime)?;
        changed = true;
    }
    let mode = if owned { meta.mode & 0o7777 } else { meta.mode & 0o7777 & !SET_ID_BITS };
    if !FileType::from_raw_mode(now.st_mode).is_symlink() && now.st_mode & 0o7777 != mode {
        touch()?;
        let done = place.set_mode(mode)?;
        changed |= done;
        if !done {
            report.refuse("mode", place);
        }
    }
    report.attributes_set += u64::from(changed);
    Ok(())
}

fn set_xattrs(
    place: &Place<'_>,
    wanted: &Xattrs,
    touch: &dyn Fn() -> Result<()>,
    report: &mut Report,
) -> Result<bool> {
    let there = place.xattrs()?;
    let mut changed = false;
    for name in there.keys().filter(|name| !wanted.contains_key(*name) && is_ours(name)) {
        touch()?;
        changed |= done_or_refused(place.remove_xattr(name)?, place, report);
    }
    let differs = |(name, value): &(&Vec<u8>, &Vec<u8>)| !is_echo(name) && there.get(*name) != Some(value);
    for (name, value) in wanted.iter().filter(differs) {
        touch()?;
        changed |= done_or_refused(place.set_xattr(name, value)?, place, report);
    }
    Ok(changed)
}

fn done_or_refused(done: bool, place: &Place<'_>, report: &mut Report) -> bool {
    if !done {
        report.refuse("extended attribute", place);
    }
    done
}

/// What the kernel or a security module puts on a file by itself (`security.selinux`) is not removed.
fn is_ours(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security.capability", b"system.posix_acl_"]
        .iter()
        .any(|ours| name.starts_with(ours))
        && !is_echo(name)
}

/// xfs shows root its access lists a second time in a form of its own; removing that one would remove the list.
fn is_echo(name: &[u8]) -> bool {
    name.starts_with(b"trusted.SGI_ACL_")
}
