//! A promotion that can be used at once, and becomes an ordinary directory while it is used.
//!
//! ```text
//! select ─▶ check ─▶ place ─▶ raise the epoch ─▶ journal ─▶ mount ══ used, and hydrated ══▶ unmounted ─▶ a plain directory
//!    nothing is fenced so far │ fenced from here on   │ the command needs no receiver to go on
//! ```
//! The point is mounted below a layer that keeps what is written on the file system of the directory ([`crate::mount::durable`] argues what survives what). A thread fetches the rest meanwhile. When all
//! is local and nobody uses the mount any more, renaming makes it the plain directory ([`complete`]).
//!
//! Safe to repeat: before the journal is there a run has fenced at most, which the next one finds as any promotion does; with a journal the same command mounts what is there and goes on, or, if
//! all is local already, completes it. The point is held by a name until then, so no retention takes it away.
//!
//! The prices: a process that has to go on until the directory is plain; reads of what is absent wait for the receiver and are errors when it stays away; a sidecar sees a file system
//! without exact ranges, and a change of file systems at the end.

pub(crate) mod complete;
mod place;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Instant as Time, SystemTime},
};

use serde::Serialize;
use tidelock_proto::{Epoch, PointId, Tree, VolumeName, tree::Name};
use tidelock_receiver::{
    reconcile::{self, INSTANT, Report},
    store::{INSTANT_HOLD, is_hold},
};

use self::place::{Found, Place, look};
use super::{
    PromoteOptions, PromoteReport, command,
    finish::fence,
    is_promoted_to,
    prepare::{Checked, ImageUse, Prepared, Selected, select},
};
use crate::{
    access::{Access, Volume},
    at::At,
    error::FailoverError,
    limits,
    mount::{
        HYDRATION, Held, Hydration, PointFs, Reach, Unmounted, check_mountable,
        disk::real,
        journal::{Header, Journal},
        over, prepare, serve_at,
    },
    report::{Choice, choose},
    restore::{Event, Step, millis},
    room::Room,
    window,
};

/// What can be used now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstantReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point that is the primary now.
    pub point: String,
    /// The epoch that was ended.
    pub old_epoch: u64,
    /// The epoch of the new primary.
    pub epoch: u64,
    /// An earlier run had begun it; this one goes on.
    pub resumed: bool,
    /// Where the volume is now.
    pub directory: PathBuf,
    /// It is mounted there, and this process has to go on; if not, the plain directory is there.
    pub mounted: bool,
    /// What of the point was to be fetched, in bytes.
    pub total_bytes: u64,
    /// What of it is still, in bytes.
    pub absent_bytes: u64,
    /// From the beginning until it could be used, in milliseconds.
    pub took_ms: f64,
    /// What the promotion was, if this run has fenced.
    pub promotion: Option<Box<PromoteReport>>,
    /// The command that protects the new primary.
    pub next_command: String,
}

/// How one run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum InstantEnd {
    /// The plain directory is there, whole.
    Complete,
    /// It is not: the same command goes on.
    Unfinished {
        /// What is absent, in bytes.
        absent_bytes: u64,
        /// Somebody still has files of the mount open.
        used: bool,
    },
}

/// An instant promotion that is served.
pub struct Instant {
    report: InstantReport,
    volume: VolumeName,
    directory: PathBuf,
    serving: Option<Serving>,
}

struct Serving {
    point: PointFs,
    held: Held,
    threads: Vec<JoinHandle<()>>,
    place: Place,
}

/// Whether an earlier run has come so far that no receiver is needed to go on.
pub fn is_begun(directory: &Path) -> bool {
    // What is mounted by a process that was killed hides it.
    prepare(directory).is_ok() && look(directory) != Found::Nothing
}

/// How far the instant promotion that is mounted at a directory is.
pub fn hydration(directory: &Path) -> Result<serde_json::Value, FailoverError> {
    let mut told = Vec::with_capacity(limits::INSTANT_STATUS_BYTES);
    let name = std::str::from_utf8(HYDRATION).map_err(|_| FailoverError::NotInstant(directory.to_owned()))?;
    let read = rustix::fs::getxattr(directory, name, rustix::buffer::spare_capacity(&mut told));
    let known = read.ok().and_then(|_| serde_json::from_slice(&told).ok());
    known.ok_or_else(|| FailoverError::NotInstant(directory.to_owned()))
}

/// Fences and mounts, or goes on with what an earlier run has begun.
pub fn instant(
    (access, reach): (Option<Arc<Access>>, Option<Reach>),
    volume: &VolumeName,
    directory: &Path,
    options: &PromoteOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Instant, FailoverError> {
    let begun = Time::now();
    prepare(directory)?;
    if hydration(directory).is_ok() {
        return Err(FailoverError::InstantMounted(directory.to_owned()));
    }
    match look(directory) {
        Found::Nothing => {
            let access = access.ok_or(FailoverError::Unreached)?;
            begin((access, reach), volume, directory, options, events, begun)
        }
        Found::Journal => resume((access, reach), volume, directory, events, begun),
        Found::Moving => {
            let own = directory.join(INSTANT);
            let lock = Journal::lock(&own)?;
            let read = Journal::is_there(&own).then(|| Journal::open((own, real()), lock)).transpose()?;
            if let Some((journal, _)) = &read {
                check_volume(volume, directory, &journal.header)?;
            }
            let (header, tree) = read.map(|(journal, tree)| (journal.header, Arc::new(tree))).unzip();
            complete::move_up(volume, directory, tree.as_ref(), events)?;
            let header = header.or_else(|| known(access, reach, volume));
            Ok(completed(volume, directory, header, begun))
        }
    }
}

/// The first run.
fn begin(
    (access, reach): (Arc<Access>, Option<Reach>),
    volume: &VolumeName,
    directory: &Path,
    options: &PromoteOptions,
    events: &(dyn Fn(Event) + Sync),
    begun: Time,
) -> Result<Instant, FailoverError> {
    // Of a run that was interrupted before it had fenced, or right after.
    place::clear(volume, directory)?;
    let selected =
        select(&access, volume, directory, options, events).map_err(FailoverError::without_overwrite)?;
    let checking = Time::now();
    events(Event::Step(Step::Check));
    // All of it is fetched in the end.
    let mut room = Room::default();
    let room = (!options.force).then_some(&mut room);
    let Checked { tree, probe, already, .. } = selected.check(&access, volume, directory, room)?;
    let Selected { mut choice, target, loss, unseen, select_ms, .. } = selected;
    let resumed = is_promoted_to(&choice);
    if already {
        return Ok(completed(volume, directory, Some(header(volume, &choice.volume)), begun));
    }
    check_begin(volume, directory, &tree)?;
    events(Event::Step(Step::Place));
    let place = Place::make(volume, directory)?;
    let lock = Journal::lock(&place.own())?;
    let check_ms = millis(checking);
    let fencing = Time::now();
    events(Event::Step(Step::Fence));
    let copied = choice.point.id;
    let before = choice.volume.last.as_ref().map_or(copied, |last| last.id);
    let current = choice.volume.epoch;
    let old_epoch = if resumed { current.0 - 1 } else { current.0 };
    let (epoch, later) = match resumed {
        true => (current, None),
        false => fence(&access, volume, &choice, options)?,
    };
    let fence_ms = millis(fencing);
    let window = options.window.map(|window| {
        window::open(&access, volume, (Epoch(old_epoch), epoch), before, window, SystemTime::now())
    });
    let mounting = Time::now();
    events(Event::Step(Step::Difference));
    let after = |choice: &Choice| {
        let point = choice.point.id;
        move |source| FailoverError::AfterFence { epoch, point, source: Box::new(source) }
    };
    let tree = match later {
        Some(later) => {
            choice = later;
            access.tree(volume, &choice.point).map_err(after(&choice))?
        }
        None => tree,
    };
    events(Event::Step(Step::Journal));
    let journal = (|| {
        hold(&access, volume, directory, &choice)?;
        let header = Header {
            volume: volume.to_string(),
            point: choice.point.id.to_string(),
            digest: choice.point.cut.digest.to_string(),
            old_epoch,
            epoch: epoch.0,
            total_bytes: tree.totals().data_bytes,
        };
        Journal::create((place.own(), real()), lock, header, &tree)
    })();
    let journal = journal.map_err(after(&choice))?;
    events(Event::Step(Step::Mount));
    let mut instant =
        serve((Some(access), reach), volume, place, (journal, tree), begun).map_err(after(&choice))?;
    let prepared = Prepared {
        volume: volume.clone(),
        directory: instant.directory.clone(),
        options: options.clone(),
        choice,
        tree: Arc::new(Tree::new()),
        image: ImageUse::Copy(None),
        target,
        already: false,
        probe,
        loss,
        unseen,
        work: Report::default(),
        select_ms,
        check_ms,
        copy_ms: 0.0,
    };
    let mut promotion = prepared.report((old_epoch, epoch), resumed, None, fence_ms, millis(mounting));
    match window {
        Some(Ok(window)) => promotion.window = Some(window),
        Some(Err(missed)) => promotion.window_missed = Some(missed.to_string()),
        None => {}
    }
    instant.report.resumed = resumed;
    instant.report.promotion = Some(Box::new(promotion));
    events(Event::Step(Step::Done));
    Ok(instant)
}

/// A later run.
fn resume(
    reaching: (Option<Arc<Access>>, Option<Reach>),
    volume: &VolumeName,
    directory: &Path,
    events: &(dyn Fn(Event) + Sync),
    begun: Time,
) -> Result<Instant, FailoverError> {
    let place = Place::open(directory)?;
    let lock = Journal::lock(&place.own())?;
    let (journal, tree) = Journal::open((place.own(), real()), lock)?;
    check_volume(volume, directory, &journal.header)?;
    let files = place.files()?;
    files.sweep(&tree).map_err(FailoverError::Instant)?;
    if is_local(&tree) {
        let header = journal.header.clone();
        let tree = Arc::new(tree);
        complete::complete(volume, &place.directory, &files, Tree::clone(&tree), events)?;
        drop(journal);
        let (access, reach) = reaching;
        if let Some(access) = access.or_else(|| reach.and_then(|reach| reach().ok()).map(Arc::new)) {
            release(&access, volume, &header);
        }
        return Ok(completed(volume, directory, Some(header), begun));
    }
    events(Event::Step(Step::Mount));
    let mut instant = serve(reaching, volume, place, (journal, tree), begun)?;
    instant.report.resumed = true;
    Ok(instant)
}

fn check_volume(volume: &VolumeName, directory: &Path, header: &Header) -> Result<(), FailoverError> {
    if header.volume == volume.to_string() {
        return Ok(());
    }
    Err(FailoverError::InstantOther { path: directory.to_owned(), holds: header.volume.clone() })
}

fn is_local(tree: &Tree) -> bool {
    let extents = tree.iter().filter_map(|(_, inode)| inode.extents());
    extents.flat_map(|extents| extents.iter()).all(|(_, extent)| crate::mount::is_slot(extent.chunk.id))
}

/// Mounts, and begins to hydrate.
fn serve(
    reaching: (Option<Arc<Access>>, Option<Reach>),
    volume: &VolumeName,
    place: Place,
    (journal, tree): (Journal, Tree),
    begun: Time,
) -> Result<Instant, FailoverError> {
    let header = journal.header.clone();
    let directory = place.directory.clone();
    let point = over(volume, reaching, place.files()?, (journal, tree));
    let held = serve_at(point.clone(), &directory, format!("{volume}@{}", header.point))?;
    let mut report = report(volume, &directory, &header);
    report.mounted = true;
    report.absent_bytes = point.absent_bytes();
    report.took_ms = millis(begun);
    let mut serving = Serving { point, held, threads: Vec::new(), place };
    let spawn = |name: &str, work: fn(&PointFs, &VolumeName)| {
        let (point, volume) = (serving.point.clone(), volume.clone());
        thread::Builder::new().name(name.to_owned()).spawn(move || work(&point, &volume))
    };
    let threads = [
        spawn("commit", |point, _| point.commit_now_and_then()),
        spawn("hydrate", |point, volume| {
            // Always allowed; the application comes first.
            let _ = rustix::process::nice(limits::INSTANT_NICE);
            if point.hydrate() && point.commit_all().is_ok() {
                tracing::info!("everything is local");
                if let (Some(access), Some(header)) = (point.access(), point.header()) {
                    release(&access, volume, header);
                }
            }
        }),
    ];
    for started in threads {
        serving.threads.push(started.map_err(FailoverError::Start)?);
    }
    Ok(Instant { report, volume: volume.clone(), directory, serving: Some(serving) })
}

fn report(volume: &VolumeName, directory: &Path, header: &Header) -> InstantReport {
    InstantReport {
        volume: volume.to_string(),
        point: header.point.clone(),
        old_epoch: header.old_epoch,
        epoch: header.epoch,
        resumed: false,
        directory: directory.to_owned(),
        mounted: false,
        total_bytes: header.total_bytes,
        absent_bytes: 0,
        took_ms: 0.0,
        promotion: None,
        next_command: command([(volume.to_string(), directory)].into_iter(), header.epoch),
    }
}

/// Whatever cannot be had here is found before the fence.
pub(super) fn check_begin(volume: &VolumeName, directory: &Path, tree: &Tree) -> Result<(), FailoverError> {
    if hydration(directory).is_ok() {
        return Err(FailoverError::InstantMounted(directory.to_owned()));
    }
    let reserved = Name::new(INSTANT.as_bytes()).expect("a valid name");
    if tree.lookup(tidelock_proto::FileId::ROOT, &reserved).is_some() {
        return Err(reconcile::ReconcileError::Instant(directory.to_owned()).into());
    }
    place::check(volume, directory).map_err(FailoverError::without_overwrite)?;
    check_mountable().map_err(FailoverError::Mount)
}

/// What a receiver knows of a promotion whose journal has gone, if it can be asked.
fn known(access: Option<Arc<Access>>, reach: Option<Reach>, volume: &VolumeName) -> Option<Header> {
    let access = access.or_else(|| reach?().ok().map(Arc::new))?;
    access.volume(volume).ok().map(|known| header(volume, &known))
}

/// Of the volume's last promotion. The point is known until the new primary has written another.
fn header(volume: &VolumeName, known: &Volume) -> Header {
    let point = known.last.as_ref().filter(|_| known.promoted).map(|base| base.id.to_string());
    Header {
        volume: volume.to_string(),
        point: point.unwrap_or_default(),
        digest: String::new(),
        old_epoch: known.epoch.0.saturating_sub(1),
        epoch: known.epoch.0,
        total_bytes: 0,
    }
}

/// The plain directory is there; what is not known of it any more is empty.
fn completed(volume: &VolumeName, directory: &Path, header: Option<Header>, begun: Time) -> Instant {
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let header = header.unwrap_or_else(|| Header {
        volume: volume.to_string(),
        point: String::new(),
        digest: String::new(),
        old_epoch: 0,
        epoch: 0,
        total_bytes: 0,
    });
    let mut report = report(volume, &directory, &header);
    report.resumed = true;
    report.took_ms = millis(begun);
    Instant { report, volume: volume.clone(), directory, serving: None }
}

fn reason(directory: &Path) -> String {
    format!("{INSTANT_HOLD}{}", directory.display())
}

/// Holds the point as long as something of it is to be fetched.
fn hold(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    choice: &Choice,
) -> Result<(), FailoverError> {
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    let reason = reason(&directory);
    match choice.point.tags.contains(&reason) {
        true => Ok(()),
        false => access.tag(volume, choice.point.id, &reason),
    }
}

/// Lets the point go, unless somebody else holds it, too: all holds of a point go together.
fn release(access: &Access, volume: &VolumeName, header: &Header) {
    let Ok(point) = header.point.parse::<PointId>() else { return };
    let Ok(choice) = choose(access, volume, &At::Point(point), true, SystemTime::now()) else { return };
    let ours = |tag: &&String| tag.starts_with(INSTANT_HOLD);
    let mut holds = choice.point.tags.iter().filter(|tag| is_hold(tag)).peekable();
    if holds.peek().is_some() && holds.all(|tag| ours(&tag)) && access.release(volume, point).is_err() {
        tracing::warn!(%point, "the point is still held: tidelock release lets it go");
    }
}

impl Instant {
    /// What can be used.
    pub fn report(&self) -> &InstantReport {
        &self.report
    }

    /// How far hydration is; nothing if the plain directory is there.
    pub fn hydration(&self) -> Option<Hydration> {
        self.serving.as_ref().and_then(|serving| serving.point.hydration())
    }

    /// Whether nobody needs this process any more: it was unmounted, or never mounted.
    pub fn is_gone(&self) -> bool {
        self.serving.as_ref().is_none_or(|serving| serving.held.is_gone())
    }

    /// Unmounts; if everything is local, the plain directory takes the place of the mount.
    pub fn end(self, events: &(dyn Fn(Event) + Sync)) -> Result<InstantEnd, FailoverError> {
        let Some(Serving { point, held, threads, place }) = self.serving else {
            return Ok(InstantEnd::Complete);
        };
        // What was acknowledged is durable; this is for what nobody waited for.
        let committed = point.commit_all();
        let unmounted = held.end()?;
        if unmounted == Unmounted::Used {
            return Ok(InstantEnd::Unfinished { absent_bytes: point.absent_bytes(), used: true });
        }
        let closed = point.close();
        threads.into_iter().for_each(|thread| drop(thread.join()));
        let journal = closed.map_err(|_| FailoverError::InstantLost)?;
        committed.map_err(|_| FailoverError::InstantLost)?;
        let absent_bytes = point.absent_bytes();
        if absent_bytes > 0 {
            return Ok(InstantEnd::Unfinished { absent_bytes, used: false });
        }
        let files = place.files()?;
        complete::complete(&self.volume, &self.directory, &files, point.tree(), events)?;
        drop(journal);
        Ok(InstantEnd::Complete)
    }
}
