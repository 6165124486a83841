//! `reconcile(directory, tree)`: makes a directory equal to a tree, writing only what differs. The one operation behind
//! restore, clone, rollback, failback and the repair of an image.
//!
//! Four passes, each of which can be repeated:
//!
//! 1. **Names** (`names`): what does not belong is removed, what is missing is created empty, hard links are joined, and
//!    sizes are set. Only after all removals are links counted: a file is kept and written in place only if every name
//!    it has is one that the tree gives it, so that nothing outside the target changes through a link.
//!    Where a donor is given, files without data begin as clones of its files (`donor`): a guess, which the next pass compares.
//! 2. **Content** (`content`): files are compared along their extents, by the chunk's id where an extent is a whole chunk;
//!    what differs is fetched in batches and written, holes are punched.
//! 3. **Attributes** (`attributes`): owner, extended attributes, time, mode, in this order, because each may undo
//!    the next; directories after what they hold.
//! 4. **Sync.**
//!
//! Invariants: nothing outside the directory is read or changed (`beneath`). A crash at any instant leaves a
//! directory that a second run repairs, and until it is whole a marker file says so (`marker`). A file gets its
//! time only after all content is durable, so that a matching time vouches for the content
//! ([`Options::trust_mtime`]) even after a loss of power.
//!
//! `syncfs` of the target's file system stands in for an `fsync` of every file: nothing of the target lies on another
//! file system (`RESOLVE_NO_XDEV`), and the call reports errors of writeback since the root was opened. The price
//! is that it also waits for what others have written there.
//!
//! [`follow`] brings a directory that is equal to a tree to the next one, without looking at the rest of it.
//!
//! What a receiver keeps is never a target (`apart`). Nothing else may change the directory meanwhile; if it does, the result is wrong, though never outside of it.

mod apart;
mod attributes;
mod beneath;
mod changes;
mod content;
mod difference;
mod donor;
mod error;
mod marker;
mod names;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::{fs, io::Errno};
use serde::Serialize;
use tidelock_proto::{ChunkId, ChunkKey, FileId, Tree};

use crate::limits;
pub(crate) use apart::IMAGES;
pub use apart::Keeps;
use beneath::{Dir, Place, Root};
pub use changes::Changes;
pub use difference::follow;
pub use donor::Donor;
pub use error::{ChunksError, ReconcileError};
pub use marker::Vacancy;

type Result<T> = std::result::Result<T, ReconcileError>;

/// Where content comes from. Called from several threads at once.
pub trait Chunks: Sync {
    /// Hands every chunk, opened and verified, to `each` with its index in `ids`, in any order, one at a time so that
    /// memory stays bounded however many are asked for. Stops without error when `each` returns `false`.
    fn fetch(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(usize, Bytes) -> bool,
    ) -> std::result::Result<(), ChunksError>;
}

/// How to reconcile.
#[derive(Debug, Clone)]
pub struct Options {
    /// The key of the volume's tenant, which names local content.
    pub key: ChunkKey,
    /// Of what the directory becomes a copy, for the marker of an unfinished one: a run with the same text may go on
    /// where another was interrupted.
    pub label: String,
    /// The directory may hold something already: what differs is changed, what is not in the tree is deleted.
    pub overwrite: bool,
    /// A file with the right size and modification time is taken to have the right content and is not read.
    pub trust_mtime: bool,
    /// Threads that compare and fetch.
    pub workers: usize,
    /// What the directory is known to be equal to, because this process has made it so and nothing else has touched it: files that
    /// have the same extents there are not read again.
    pub known: Option<Arc<Tree>>,
    /// Files that are looked at all the same, though they are known: what was written to them may not have come to the disk.
    pub doubted: Arc<HashSet<FileId>>,
    /// Once this is set the run ends early, with [`ReconcileError::Stopped`].
    pub interrupt: Arc<AtomicBool>,
    /// The marker stays: another run is to follow, or [`complete`].
    pub unfinished: bool,
    /// Files without data begin as clones of its files, where the file system can; see [`Donor`].
    pub donor: Option<Arc<Donor>>,
    /// The program has made the directory itself, where it keeps such things: whether it is, or holds, what a receiver keeps is not asked.
    pub own: bool,
}

impl Options {
    /// Into an absent or empty directory, trusting nothing.
    pub fn new(key: ChunkKey, label: impl Into<String>) -> Self {
        let workers = limits::RECONCILE_WORKERS;
        let label = label.into();
        Self {
            key,
            label,
            overwrite: false,
            trust_mtime: false,
            workers,
            known: None,
            doubted: Arc::default(),
            interrupt: Arc::default(),
            unfinished: false,
            donor: None,
            own: false,
        }
    }
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Removing and creating names.
    Names,
    /// Comparing and writing content.
    Content,
    /// Setting attributes.
    Attributes,
    /// Waiting for the disk.
    Sync,
}

/// How far a run is. During `Content` the numbers are bytes, else inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Done of it.
    pub done: u64,
    /// Of this many.
    pub total: u64,
}

/// What a run found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Inodes of the tree.
    pub inodes: u64,
    /// Regular files that were created, or whose content or size was changed.
    pub files_written: u64,
    /// Regular files whose content was found to be right.
    pub files_unchanged: u64,
    /// Those of them that were not read, because their time is right or because they are known.
    pub files_trusted: u64,
    /// Inodes created, of any kind.
    pub created: u64,
    /// Names removed, with all below them.
    pub removed: u64,
    /// Names joined to another name of the same inode.
    pub linked: u64,
    /// Inodes of which an attribute was changed.
    pub attributes_set: u64,
    /// Content read from the directory, in bytes.
    pub bytes_compared: u64,
    /// Content written, in bytes.
    pub bytes_written: u64,
    /// Content of the chunks that were fetched, in bytes.
    pub bytes_fetched: u64,
    /// Files that began as clones of a donor's: what was right of them was compared and not written.
    pub files_cloned: u64,
    /// Their length, in bytes.
    pub bytes_cloned: u64,
    /// Why none could be, though there was a donor.
    pub clone_missed: Option<String>,
    /// Ranges that were turned into holes.
    pub holes_made: u64,
    /// Attributes that this user may not set, counted.
    pub refused: u64,
    /// The first of them, as `what of path`.
    pub refused_examples: Vec<String>,
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.created += other.created;
        self.removed += other.removed;
        self.linked += other.linked;
        self.attributes_set += other.attributes_set;
        self.bytes_compared += other.bytes_compared;
        self.bytes_written += other.bytes_written;
        self.bytes_fetched += other.bytes_fetched;
        self.files_cloned += other.files_cloned;
        self.bytes_cloned += other.bytes_cloned;
        if self.clone_missed.is_none() {
            self.clone_missed.clone_from(&other.clone_missed);
        }
        self.holes_made += other.holes_made;
        self.files_trusted += other.files_trusted;
        self.refused += other.refused;
        let room = limits::RECONCILE_EXAMPLES.saturating_sub(self.refused_examples.len());
        self.refused_examples.extend(other.refused_examples.iter().take(room).cloned());
    }

    /// Whether the directory was changed at all.
    pub fn changed(&self) -> bool {
        self.files_written + self.created + self.removed + self.linked + self.attributes_set > 0
    }

    fn refuse(&mut self, what: &str, place: &Place<'_>) {
        self.refused += 1;
        if self.refused_examples.len() < limits::RECONCILE_EXAMPLES {
            self.refused_examples.push(format!("{what} of {}", place.full().display()));
        }
    }
}

/// Makes `directory` equal to `tree`, which is sealed, and durable. The directory is created if it is absent.
///
/// After an error what was done stays; running it again with the same label goes on from there.
pub fn reconcile(
    directory: &Path,
    tree: &Tree,
    chunks: &dyn Chunks,
    options: &Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    check_apart(directory, options)?;
    let root = open_target(directory)?;
    check_instant(directory)?;
    let run = Run::new(root, tree, chunks, options, progress)?;
    if !options.overwrite {
        marker::check_vacant(&run.root, run.mounted, &options.label)?;
    }
    if options.unfinished {
        run.touch()?;
    }
    let mut files = names::run(&run)?;
    donor::run(&run, &mut files)?;
    content::run(&run, &files)?;
    run.sync()?;
    attributes::run(&run)?;
    run.sync()?;
    run.finish()
}

/// Ends what a run with [`Options::unfinished`] has left: the directory is equal to `tree`, and nothing has touched it since.
pub fn complete(directory: &Path, tree: &Tree, options: &Options) -> Result<()> {
    struct Nothing;
    impl Chunks for Nothing {
        fn fetch(
            &self,
            _: &[ChunkId],
            _: &mut dyn FnMut(usize, Bytes) -> bool,
        ) -> std::result::Result<(), ChunksError> {
            Ok(())
        }
    }
    let whole = Options { unfinished: false, ..options.clone() };
    Run::new(open_target(directory)?, tree, &Nothing, &whole, &|_| {})?.finish().map(drop)
}

/// Whether [`reconcile`] would be refused because of what is in `directory` now; changes nothing.
pub fn check_target(directory: &Path, options: &Options) -> Result<()> {
    check_apart(directory, options)?;
    if !directory.try_exists().unwrap_or(true) {
        return Ok(());
    }
    let root = open_target(directory)?;
    check_instant(directory)?;
    let mounted = is_mounted(&root)?;
    if options.overwrite { Ok(()) } else { marker::check_vacant(&root, mounted, &options.label) }
}

/// What `directory` holds now, as far as it matters to [`reconcile`]; changes nothing.
pub fn vacancy(directory: &Path) -> Result<Vacancy> {
    let vacancy = match directory.try_exists().unwrap_or(true) {
        false => Vacancy::Vacant,
        true => {
            let root = open_target(directory)?;
            check_instant(directory)?;
            marker::vacancy(&root, is_mounted(&root)?)?
        }
    };
    // What is occupied is not going to be written.
    if vacancy != Vacancy::Occupied {
        apart::check_above(directory)?;
    }
    Ok(vacancy)
}

/// Before anything is made: the target has nothing to do with what a receiver keeps.
fn check_apart(directory: &Path, options: &Options) -> Result<()> {
    if options.own {
        return Ok(());
    }
    apart::check_above(directory)?;
    // Nothing is deleted otherwise: it is empty, or a copy of the same that was begun.
    if options.overwrite { apart::check_within(directory) } else { Ok(()) }
}

/// Nobody but its own command touches an instant promotion.
fn check_instant(directory: &Path) -> Result<()> {
    match directory.join(INSTANT).is_dir() {
        true => Err(ReconcileError::Instant(directory.to_owned())),
        false => Ok(()),
    }
}

fn is_mounted(root: &Root) -> Result<bool> {
    let fail = |errno| ReconcileError::io("look at", root.full(b""), errno);
    let here = fs::fstat(&root.fd).map_err(fail)?;
    let above = fs::statat(&root.fd, "..", fs::AtFlags::empty()).map_err(fail)?;
    Ok(here.st_dev != above.st_dev)
}

fn open_target(directory: &Path) -> Result<Root> {
    let fail = |what| move |source| ReconcileError::Io { what, path: directory.to_owned(), source };
    match std::fs::metadata(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(directory).map_err(fail("create"))?;
        }
        Err(error) => return Err(fail("look at")(error)),
        Ok(_) => {}
    }
    let full = std::fs::canonicalize(directory).map_err(fail("look at"))?;
    if full == Path::new("/") {
        return Err(ReconcileError::FileSystemRoot);
    }
    Root::open(directory)
}

/// What the passes share.
struct Run<'a> {
    root: Root,
    tree: &'a Tree,
    chunks: &'a dyn Chunks,
    options: &'a Options,
    progress: &'a (dyn Fn(Progress) + Sync),
    /// The directory is where a file system is mounted, so that a `lost+found` in it is not ours.
    mounted: bool,
    privileged: bool,
    /// The allocation unit of the target's file system: holes are never finer.
    block_bytes: u64,
    marked: Mutex<bool>,
    changed: Mutex<HashSet<FileId>>,
    report: Mutex<Report>,
    stop: AtomicBool,
}

impl<'a> Run<'a> {
    fn new(
        root: Root,
        tree: &'a Tree,
        chunks: &'a dyn Chunks,
        options: &'a Options,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Result<Self> {
        let fail = |errno| ReconcileError::io("look at", root.full(b""), errno);
        let block = fs::fstatfs(&root.fd).map_err(fail)?.f_bsize;
        Ok(Self {
            tree,
            chunks,
            options,
            progress,
            mounted: is_mounted(&root)?,
            privileged: rustix::process::geteuid().is_root(),
            block_bytes: u64::try_from(block).ok().filter(|block| block.is_power_of_two()).unwrap_or(4096),
            marked: Mutex::new(false),
            changed: Mutex::default(),
            report: Mutex::new(Report { inodes: tree.totals().inodes, ..Report::default() }),
            stop: AtomicBool::new(false),
            root,
        })
    }

    /// The directory of the tree, opened in the target; made accessible for a user who is not root.
    fn dir(&self, id: FileId) -> Result<Dir<'_>> {
        let path = self.tree.path(id).unwrap_or_default();
        match self.root.dir(path.clone()) {
            Err(ReconcileError::Io { source, .. })
                if source.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) && !self.privileged =>
            {
                let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) => (&path[..slash], &path[slash + 1..]),
                    None => (&b""[..], &path[..]),
                };
                let above = self.root.dir(above.to_vec())?;
                self.touch()?;
                above.place(if name.is_empty() { b"." } else { name }).set_mode(0o700)?;
                self.root.dir(path)
            }
            done => done,
        }
    }

    /// Lets a user who is not root change a directory of theirs; its own mode is set at the end.
    fn unlock(&self, dir: &Dir<'_>) -> Result<()> {
        if !self.privileged {
            let mode = dir.itself().stat()?.map_or(0, |stat| stat.st_mode & 0o7777);
            if mode & 0o700 != 0o700 {
                dir.itself().set_mode(mode | 0o700)?;
            }
        }
        Ok(())
    }

    /// Before a change in `dir`.
    fn touch_in(&self, dir: &Dir<'_>) -> Result<()> {
        self.touch()?;
        self.unlock(dir)
    }

    /// Directories of the tree, each after the one that holds it.
    fn directories(&self) -> Vec<FileId> {
        let mut found = vec![FileId::ROOT];
        let mut next = 0;
        while let Some(id) = found.get(next) {
            let children = self.tree.entries(*id).into_iter().flatten().map(|(_, child)| *child);
            let below: BTreeSet<FileId> =
                children.filter(|child| self.tree.entries(*child).is_some()).collect();
            found.extend(below);
            next += 1;
        }
        found
    }

    /// Runs `work` on several threads until it has nothing more to do; the first error stops the others.
    fn on_workers(&self, work: impl Fn(&mut Report) -> Result<()> + Sync) -> Result<()> {
        let first_error = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.options.workers.max(1) {
                scope.spawn(|| {
                    let mut report = Report::default();
                    if let Err(error) = work(&mut report) {
                        self.stop.store(true, Ordering::Relaxed);
                        first_error.lock().get_or_insert(error);
                    }
                    self.report.lock().add(&report);
                });
            }
        });
        first_error.into_inner().map_or(Ok(()), Err)
    }

    fn check_stopped(&self) -> Result<()> {
        let stopped = self.stop.load(Ordering::Relaxed) || self.options.interrupt.load(Ordering::Relaxed);
        if stopped { Err(ReconcileError::Stopped) } else { Ok(()) }
    }

    fn mark_changed(&self, id: FileId) {
        self.changed.lock().insert(id);
    }

    fn sync(&self) -> Result<()> {
        (self.progress)(Progress { phase: Phase::Sync, done: 0, total: 0 });
        fs::syncfs(&self.root.fd)
            .map_err(|errno| ReconcileError::io("write to disk", self.root.full(b""), errno))
    }

    fn finish(self) -> Result<Report> {
        let mut report = Report::default();
        if !self.options.unfinished {
            self.unmark()?;
            attributes::set_root(&self, &mut report)?;
        }
        fs::fsync(&self.root.fd)
            .map_err(|errno| ReconcileError::io("write to disk", self.root.full(b""), errno))?;
        let mut whole = self.report.into_inner();
        whole.add(&report);
        let files = self.tree.iter().filter(|(_, inode)| inode.extents().is_some()).count() as u64;
        whole.files_written = self.changed.into_inner().len() as u64;
        whole.files_unchanged = files - whole.files_written;
        Ok(whole)
    }
}

/// The directory in which an instant promotion keeps what its application writes until it is complete: what holds one is not touched, whatever is asked for.
pub const INSTANT: &str = ".tidelock-instant";

/// The name of the marker of an unfinished copy.
pub const MARKER: &str = marker::NAME;

/// The path a run leaves in an unfinished target, below it.
pub fn marker_path(directory: &Path) -> PathBuf {
    directory.join(marker::NAME)
}
