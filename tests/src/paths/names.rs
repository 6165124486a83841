//! Files whose names change around the bytes that are written.

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with};

use super::{Cell, Step, base, fresh};

pub(super) const CELLS: &[Cell] = &[
    Cell::new("rename over a file", rename_over).phases(3),
    Cell::new("rename over a file that is still written", rename_over_open).phases(2),
    Cell::new("exchange two names", exchange),
    Cell::new("write through one of two links", linked).phases(2),
    Cell::new("write after the opened link is gone", link_gone).phases(2),
    Cell::new("write after the last link is gone", unlinked),
    Cell::new("O_TMPFILE, linkat, more writes", nameless).phases(2),
    Cell::new("rename a directory with a deep tree", rename_deep).phases(2),
    Cell::new("exchange two directories", exchange_directories).phases(2),
    Cell::new("a tree moved in from outside", moved_in).phases(2),
    Cell::new("a tree made at once", made_at_once),
    Cell::new("a number used again", number_again),
];

fn rename_over(dir: &Path) -> Result<Step> {
    base(dir, "file")?;
    let (temporary, path) = (dir.join("file.new"), dir.join("file"));
    Ok(Box::new(move |_| {
        fs::write(&temporary, fresh(40_000))?;
        Ok(fs::rename(&temporary, &path)?)
    }))
}

fn rename_over_open(dir: &Path) -> Result<Step> {
    let former = base(dir, "file")?;
    let file = base(dir, "other")?;
    let (other, path) = (dir.join("other"), dir.join("file"));
    Ok(Box::new(move |phase| {
        if phase == 0 {
            fs::rename(&other, &path)?;
        }
        former.write_all_at(&fresh(5000), 10_000)?;
        Ok(file.write_all_at(&fresh(5000), 30_000)?)
    }))
}

fn exchange(dir: &Path) -> Result<Step> {
    let (a, b) = (base(dir, "a")?, base(dir, "b")?);
    let (path_a, path_b) = (dir.join("a"), dir.join("b"));
    Ok(Box::new(move |_| {
        a.write_all_at(&fresh(100), 5000)?;
        renameat_with(CWD, &path_a, CWD, &path_b, RenameFlags::EXCHANGE)?;
        a.write_all_at(&fresh(100), 9000)?;
        Ok(b.write_all_at(&fresh(100), 13_000)?)
    }))
}

fn linked(dir: &Path) -> Result<Step> {
    let file = base(dir, "a")?;
    fs::create_dir(dir.join("other"))?;
    fs::hard_link(dir.join("a"), dir.join("other/b"))?;
    let (again, third) = (dir.join("other/b"), dir.join("c"));
    Ok(Box::new(move |phase| {
        if phase == 0 {
            fs::hard_link(&again, &third)?;
        }
        file.write_all_at(&fresh(5000), 10_000)?;
        Ok(File::options().write(true).open(&again)?.write_all_at(&fresh(5000), 40_000)?)
    }))
}

fn link_gone(dir: &Path) -> Result<Step> {
    let file = base(dir, "a")?;
    fs::hard_link(dir.join("a"), dir.join("b"))?;
    let path = dir.join("a");
    Ok(Box::new(move |phase| {
        if phase == 0 {
            fs::remove_file(&path)?;
        }
        Ok(file.write_all_at(&fresh(5000), 10_000)?)
    }))
}

fn unlinked(dir: &Path) -> Result<Step> {
    let file = base(dir, "a")?;
    base(dir, "b")?;
    let path = dir.join("a");
    Ok(Box::new(move |_| {
        file.write_all_at(&fresh(5000), 10_000)?;
        fs::remove_file(&path)?;
        Ok(file.write_all_at(&fresh(5000), 30_000)?)
    }))
}

fn nameless(dir: &Path) -> Result<Step> {
    let mut file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(dir)?;
    let path = dir.join("file");
    Ok(Box::new(move |phase| {
        if phase == 0 {
            file.write_all(&fresh(50_000))?;
            let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(CWD, itself, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
        }
        Ok(file.write_all_at(&fresh(5000), 10_000 + u64::from(phase))?)
    }))
}

/// Five levels of directories with a file in each; the deepest file.
fn deep(root: &Path) -> Result<File> {
    let mut at = root.to_owned();
    let mut deepest = None;
    for level in 0..5 {
        at.push(format!("level {level}"));
        fs::create_dir_all(&at)?;
        deepest = Some(base(&at, "file")?);
    }
    deepest.context("there are levels")
}

fn rename_deep(dir: &Path) -> Result<Step> {
    let file = deep(&dir.join("a"))?;
    let names = ["a", "b", "c"].map(|name| dir.join(name));
    Ok(Box::new(move |phase| {
        file.write_all_at(&fresh(100), 5000)?;
        fs::rename(&names[phase as usize], &names[phase as usize + 1])?;
        Ok(file.write_all_at(&fresh(100), 13_000)?)
    }))
}

fn exchange_directories(dir: &Path) -> Result<Step> {
    let (a, b) = (deep(&dir.join("a"))?, deep(&dir.join("b"))?);
    let (path_a, path_b) = (dir.join("a/level 0"), dir.join("b/level 0"));
    Ok(Box::new(move |_| {
        renameat_with(CWD, &path_a, CWD, &path_b, RenameFlags::EXCHANGE)?;
        a.write_all_at(&fresh(100), 5000)?;
        Ok(b.write_all_at(&fresh(100), 13_000)?)
    }))
}

fn moved_in(dir: &Path) -> Result<Step> {
    // Beside the volume, on the same file system.
    let outside = dir.ancestors().nth(2).context("cells lie in a volume")?;
    let outside = outside.join("outside").join(dir.file_name().context("cells have names")?);
    let file = deep(&outside)?;
    let inside = dir.join("inside");
    Ok(Box::new(move |phase| {
        if phase == 0 {
            file.write_all_at(&fresh(100), 5000)?;
            fs::rename(&outside, &inside)?;
        }
        Ok(file.write_all_at(&fresh(100), 13_000)?)
    }))
}

fn made_at_once(dir: &Path) -> Result<Step> {
    let root = dir.join("new");
    Ok(Box::new(move |_| Ok(deep(&root)?.write_all_at(&fresh(100), 13_000)?)))
}

fn number_again(dir: &Path) -> Result<Step> {
    base(dir, "0")?;
    let dir = dir.to_owned();
    Ok(Box::new(move |_| {
        for next in 1..20u32 {
            fs::remove_file(dir.join((next - 1).to_string()))?;
            let mut file = File::create_new(dir.join(next.to_string()))?;
            file.write_all(&fresh(3000 * u64::from(next % 5 + 1)))?;
            ensure!(file.metadata()?.is_file());
        }
        Ok(())
    }))
}
