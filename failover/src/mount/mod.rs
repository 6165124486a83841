//! A point as a mounted file system, at once, whatever its size: names and attributes come with its tree, content when it is read.
//!
//! Nothing is copied and nothing is left behind. The point stays as long as the mount reaches its receiver ([`content`] says what happens when it does not).
//! The price is a process that must go on: if it is killed, the mount answers every call with an error until somebody unmounts it.

mod acl;
mod attributes;
mod changes;
mod commit;
mod content;
pub(crate) mod disk;
pub(crate) mod durable;
#[cfg(test)]
mod durable_tests;
mod filesystem;
mod hydrate;
pub(crate) mod journal;
mod kernel;
mod layer;
mod reading;
mod scratch;
#[cfg(test)]
mod tests;
mod upper;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Instant, SystemTime},
};

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::{io::Errno, thread::CapabilitySet};
use serde::Serialize;
use tidelock_proto::{Tree, VolumeName};
use tidelock_receiver::reconcile;

pub use self::commit::Hydration;
pub(crate) use self::{commit::HYDRATION, reading::PointFs, scratch::is_slot};
use self::{
    commit::Keeper,
    content::Content,
    durable::{Durable, Files},
    journal::Journal,
    kernel::unmount,
    layer::Layer,
    scratch::Scratch,
    upper::Upper,
};
use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    limits,
    report::{Choice, PointReport, choose},
    restore::{millis, target_options},
};

/// How to reach the receiver again when the connection is lost.
pub type Reach = Box<dyn Fn() -> Result<Access, FailoverError> + Send + Sync>;

/// What to mount, and how.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Which point.
    pub at: At,
    /// `latest` and times may mean a fuzzy point.
    pub accept_fuzzy: bool,
    /// Content that is kept in memory, at most, in bytes.
    pub cache_bytes: u64,
    /// It can be written to; what is written goes with it.
    pub writable: bool,
    /// Where what is written is kept, in a file without a name; otherwise on the file system of the directory.
    pub scratch: Option<PathBuf>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            at: At::default(),
            accept_fuzzy: false,
            cache_bytes: limits::MOUNT_CACHE_BYTES,
            writable: false,
            scratch: None,
        }
    }
}

/// What was mounted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MountReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point.
    pub point: PointReport,
    /// Where.
    pub directory: PathBuf,
    /// Whether it can be written to.
    pub writable: bool,
    /// From the beginning until it could be read, in milliseconds.
    pub took_ms: f64,
}

/// A mounted point. Dropped it ends, but nobody hears how.
pub struct Mounted {
    report: MountReport,
    held: Held,
}

/// What is mounted, as long as this is there.
pub(crate) struct Held {
    /// Until it has ended.
    session: Option<BackgroundSession>,
    directory: PathBuf,
    made: bool,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// Nobody was there any more.
    Free,
    /// Somebody still had files open, or another mount namespace has it: their calls fail when this process ends.
    Used,
}

/// Mounts a point at `directory`, which must be absent or empty. Needs root, or the setuid program `fusermount3` and then only this user sees it.
pub fn mount(
    access: Arc<Access>,
    reach: Option<Reach>,
    volume: &VolumeName,
    directory: &Path,
    options: &MountOptions,
) -> Result<Mounted, FailoverError> {
    let begun = Instant::now();
    let choice = choose(&access, volume, &options.at, options.accept_fuzzy, SystemTime::now())?;
    let made = prepare(directory)?;
    let opened = open(access, reach, volume, directory, &choice, options);
    let (directory, session) = opened.inspect_err(|_| {
        if made {
            // Empty, and ours.
            let _ = fs::remove_dir(directory);
        }
    })?;
    let report = MountReport {
        volume: volume.to_string(),
        point: choice.report(),
        directory: directory.clone(),
        writable: options.writable,
        took_ms: millis(begun),
    };
    Ok(Mounted { report, held: Held { session: Some(session), directory, made } })
}

/// Fetches the tree and begins to serve it.
fn open(
    access: Arc<Access>,
    reach: Option<Reach>,
    volume: &VolumeName,
    directory: &Path,
    choice: &Choice,
    options: &MountOptions,
) -> Result<(PathBuf, BackgroundSession), FailoverError> {
    let target = target_options(volume, choice.point.id, false, false);
    let vacant = reconcile::check_target(directory, &target);
    vacant.map_err(|error| FailoverError::from(error).without_overwrite())?;
    // Where it is, however the caller moves.
    let directory = fs::canonicalize(directory).map_err(FailoverError::Mount)?;
    // Before it is mounted over: the file has no name there.
    let scratch = options.writable.then(|| Scratch::new(options.scratch.as_deref().unwrap_or(&directory)));
    let scratch = scratch.transpose().map_err(FailoverError::Scratch)?;
    let layer = Layer::new(access.tree(volume, &choice.point)?, scratch.map(Upper::Scratch));
    let point = Some(choice.point.clone());
    let content = Content::new(Some(access), reach, volume.clone(), point, options.cache_bytes);
    let source = format!("{volume}@{}", choice.point.id);
    let session = serve(PointFs::new(layer, content, None), &directory, source, options.writable);
    Ok((directory, session.map_err(FailoverError::Mount)?))
}

/// A point below an upper layer that outlives the process: what is changed is in `files` and in the journal, whose tree this is.
pub(crate) fn over(
    volume: &VolumeName,
    (access, reach): (Option<Arc<Access>>, Option<Reach>),
    files: Arc<Files>,
    (journal, tree): (Journal, Tree),
) -> PointFs {
    let layer = Layer::new(tree, Some(Upper::Durable(Durable::new(files))));
    // The point is held by a name.
    let content = Content::new(access, reach, volume.clone(), None, limits::MOUNT_CACHE_BYTES);
    PointFs::new(layer, content, Some(Keeper::new(journal)))
}

/// Serves it at a directory, which it hides.
pub(crate) fn serve_at(point: PointFs, directory: &Path, source: String) -> Result<Held, FailoverError> {
    let session = serve(point, directory, source, true).map_err(FailoverError::Mount)?;
    Ok(Held { session: Some(session), directory: directory.to_owned(), made: false })
}

/// Whether something could be mounted by this process, as far as that shows without doing it.
pub(crate) fn check_mountable() -> io::Result<()> {
    fs::File::options().read(true).write(true).open(kernel::DEVICE)?;
    let powers = rustix::thread::capabilities(None)?.effective;
    let helpers = ["fusermount3", "fusermount"];
    if powers.contains(CapabilitySet::SYS_ADMIN)
        || std::env::var_os("FUSERMOUNT_PATH").is_some()
        || helpers.iter().any(|name| is_in_path(name))
    {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "fusermount3 is not installed"))
}

/// Where programs are looked for, and where this one is by tradition.
fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/sbin".into(), "/bin".into()]);
    dirs.map(|dir| dir.join(program)).any(|file| file.is_file())
}

/// Whoever may not mount has `fusermount3` do it.
fn serve(point: PointFs, directory: &Path, source: String, writable: bool) -> io::Result<BackgroundSession> {
    match kernel::mount(directory, &source, writable) {
        Ok(device) => {
            let session = Session::from_fd(point, device, SessionACL::All, config(source, writable));
            session.and_then(Session::spawn).inspect_err(|_| {
                // Nobody serves it.
                let _ = unmount(directory, true);
            })
        }
        Err(error) if kernel::is(&error, Errno::PERM) => {
            Session::new(point, directory, &config(source, writable)).and_then(Session::spawn)
        }
        Err(error) => Err(error),
    }
}

/// Makes the directory; tells whether it was not there. A mount whose process was killed is taken away.
pub(crate) fn prepare(directory: &Path) -> Result<bool, FailoverError> {
    match fs::metadata(directory) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(directory).map_err(FailoverError::Mount)?;
            Ok(true)
        }
        Err(error) if kernel::is(&error, Errno::NOTCONN) => {
            unmount(directory, true).map_err(FailoverError::Mount)?;
            Ok(false)
        }
        Err(error) => Err(FailoverError::Mount(error)),
    }
}

/// What is mounted is for `fusermount3`, and then for this user alone.
fn config(source: String, writable: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source),
        MountOption::Subtype("tidelock".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        MountOption::NoDev,
        MountOption::NoSuid,
        if writable { MountOption::RW } else { MountOption::RO },
    ];
    config.n_threads = Some(limits::MOUNT_THREADS);
    config.clone_fd = true;
    config
}

impl Mounted {
    /// What was mounted.
    pub fn report(&self) -> &MountReport {
        &self.report
    }

    /// Whether somebody has unmounted it.
    pub fn is_gone(&self) -> bool {
        self.held.is_gone()
    }

    /// Unmounts it, and removes the directory if it was made for it.
    pub fn end(self) -> Result<Unmounted, FailoverError> {
        self.held.end()
    }
}

impl Held {
    /// Whether somebody has unmounted it.
    pub(crate) fn is_gone(&self) -> bool {
        self.session.as_ref().is_none_or(|session| session.guard.is_finished())
    }

    /// Unmounts it, and removes the directory if it was made for it.
    pub(crate) fn end(mut self) -> Result<Unmounted, FailoverError> {
        self.finish().map_err(FailoverError::Mount)
    }

    fn finish(&mut self) -> io::Result<Unmounted> {
        // What is there by now may be somebody else's.
        let unmounted = if self.is_gone() { Ok(()) } else { unmount(&self.directory, false) };
        let ended = match unmounted {
            // Without privilege fusermount3 does it.
            Err(error) if kernel::is(&error, Errno::PERM) => Unmounted::Free,
            Err(error) if kernel::is(&error, Errno::BUSY) => {
                unmount(&self.directory, true)?;
                self.settle()
            }
            // If there was nothing to unmount, somebody else has done it.
            _ => self.settle(),
        };
        if let Some(session) = self.session.take() {
            match ended {
                Unmounted::Free => session.umount_and_join()?,
                // It serves those who are left.
                Unmounted::Used => drop(session),
            }
        }
        if self.made {
            fs::remove_dir(&self.directory)?;
        }
        Ok(ended)
    }

    /// The end of the session follows the last unmounting and the last file that is closed, unless another mount namespace has a copy of it.
    fn settle(&self) -> Unmounted {
        let begun = Instant::now();
        while !self.is_gone() {
            if begun.elapsed() >= limits::MOUNT_END {
                return Unmounted::Used;
            }
            thread::sleep(limits::CHECK_POLL);
        }
        Unmounted::Free
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.session.is_some() {
            // Whoever wants to know ends it.
            let _ = self.finish();
        }
    }
}
