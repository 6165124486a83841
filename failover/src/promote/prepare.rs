//! The part of a promotion before the fence: whatever can be refused, or can fail, does so here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tidelock_proto::{Tree, VolumeName, point::Consistency};
use tidelock_receiver::{
    image::promotion_label,
    reconcile::{self, Options, ReconcileError, Report},
};

use super::{
    PromoteOptions,
    handover::{self, Missed},
    is_promoted_to,
    target::is_equal,
};
use crate::{
    access::{Access, Probe},
    at::{At, to_ns},
    donor::write_beside,
    error::FailoverError,
    limits,
    openers::{not_in_use, outside_of_volumes},
    report::{Choice, choose},
    restore::{Event, Step, millis, target_options, write},
    room::Room,
};

/// The condition of a volume whose sidecar lost events.
const UNVERIFIED: &str = "unverified";

/// A copy that is written and checked, or an image that can be taken, of a volume whose epoch has not risen.
pub struct Prepared {
    pub(super) volume: VolumeName,
    pub(super) directory: PathBuf,
    pub(super) options: PromoteOptions,
    pub(super) choice: Choice,
    /// What the directory is equal to; nothing is known of an image that is to be taken.
    pub(super) tree: Arc<Tree>,
    pub(super) image: ImageUse,
    pub(super) target: Options,
    /// The directory was completed by an earlier run.
    pub(super) already: bool,
    pub(super) probe: Probe,
    pub(super) loss: Loss,
    /// Processes that could not be looked at.
    pub(super) unseen: u64,
    pub(super) work: Report,
    pub(super) select_ms: f64,
    pub(super) check_ms: f64,
    pub(super) copy_ms: f64,
}

/// Whether the receiver's hot image takes the place of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ImageUse {
    /// It is here, and will be taken after the fence.
    Ready,
    /// It cannot be; why, if one was looked for.
    Copy(Option<String>),
}

/// What is known to be lost, at the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    pub(super) rpo_ms: f64,
    pub(super) known: bool,
    pub(super) behind_bytes: Option<u64>,
    pub(super) point_age_ms: f64,
    /// The cut of the point that was newest at the start, in nanoseconds since 1970.
    pub(super) cut_ns: u64,
}

/// What is to be promoted, and where: nothing was changed for it.
pub(super) struct Selected {
    pub(super) choice: Choice,
    pub(super) target: Options,
    pub(super) loss: Loss,
    /// The target holds something that may be what an earlier run has completed.
    holds: bool,
    /// Processes that could not be looked at.
    pub(super) unseen: u64,
    pub(super) select_ms: f64,
}

/// What its content is, and whether it is there.
pub(super) struct Checked {
    pub(super) tree: Tree,
    pub(super) probe: Probe,
    pub(super) already: bool,
    /// What is free where it is to be, in bytes; not known if nothing is to be written.
    pub(super) free_bytes: Option<u64>,
}

/// Chooses the point and refuses what is to be refused.
pub(super) fn select(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    options: &PromoteOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Selected, FailoverError> {
    let (begun, now) = (Instant::now(), SystemTime::now());
    events(Event::Step(Step::Select));
    let choice = choose(access, volume, &options.at, options.accept_fuzzy, now)?;
    judge(&choice, options)?;
    judge_move(&choice, options)?;
    // The label names no point: by the time an interrupted run is repeated the newest may be another.
    let label = promotion_label(volume);
    let target =
        Options { label, ..target_options(volume, choice.point.id, options.overwrite, options.trust_mtime) };
    let vacant = reconcile::check_target(directory, &target);
    let holds = matches!(vacant, Err(ReconcileError::NotEmpty(_))) && is_promoted_to(&choice);
    if !holds {
        vacant?;
    }
    let mut unseen = 0;
    if !options.force && !holds {
        unseen = not_in_use(directory)?;
        outside_of_volumes(directory)?;
    }
    let loss = loss(&choice, now);
    Ok(Selected { choice, target, loss, holds, unseen, select_ms: millis(begun) })
}

impl Selected {
    /// Reads the tree and looks for the content.
    pub(super) fn check(
        &self,
        access: &Access,
        volume: &VolumeName,
        directory: &Path,
        room: Option<&mut Room>,
    ) -> Result<Checked, FailoverError> {
        let tree = access.tree(volume, &self.choice.point)?;
        let already = self.holds && is_equal(directory, &tree);
        if self.holds && !already {
            reconcile::check_target(directory, &self.target)?;
        }
        let probe = access.probe(volume, &tree)?;
        if probe.missing > 0 {
            return Err(FailoverError::Unrestorable { point: self.choice.point.id, missing: probe.missing });
        }
        let room = room.filter(|_| !already);
        let free_bytes = room.map(|room| room.check(directory, &tree, (access, &self.choice))).transpose()?;
        Ok(Checked { tree, probe, already, free_bytes: free_bytes.flatten() })
    }

    /// Looks whether an image can be taken instead.
    fn find_image(
        &self,
        access: &Access,
        volume: &VolumeName,
        directory: &Path,
        options: &PromoteOptions,
    ) -> ImageUse {
        let kept = self.choice.volume.live.as_ref().is_none_or(|live| live.image.is_some());
        if options.copy || options.at != At::Latest || self.holds || !kept {
            return ImageUse::Copy(None);
        }
        match handover::find(access, volume, directory) {
            Ok(_) => ImageUse::Ready,
            Err(Missed::Access(FailoverError::NoImages)) => ImageUse::Copy(None),
            Err(missed) => ImageUse::Copy(Some(missed.to_string())),
        }
    }
}

/// Chooses, checks and writes. What fails here has fenced nobody; running it again goes on.
pub fn prepare(
    access: &Access,
    volume: &VolumeName,
    directory: &Path,
    options: &PromoteOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Prepared, FailoverError> {
    let selected = select(access, volume, directory, options, events)?;
    let begun = Instant::now();
    events(Event::Step(Step::Check));
    let image = selected.find_image(access, volume, directory, options);
    let checked = match image {
        ImageUse::Ready => {
            let probe = Probe { looked_for: 0, missing: 0 };
            Checked { tree: Tree::new(), probe, already: false, free_bytes: None }
        }
        ImageUse::Copy(_) => {
            let mut room = Room::default();
            selected.check(access, volume, directory, (!options.force).then_some(&mut room))?
        }
    };
    let Checked { tree, probe, already, .. } = checked;
    let Selected { choice, target, loss, unseen, select_ms, .. } = selected;
    let check_ms = millis(begun);
    let target = Options { unfinished: true, ..target };
    let begun = Instant::now();
    let mut copy = Copy { access, volume, directory, target: &target, events, choice, tree: Arc::new(tree) };
    let mut work = Report::default();
    if !already && image != ImageUse::Ready {
        work = copy.write(None)?;
        // As the rounds of a live migration: each has less to do than the one before, until what is left is little.
        let mut last = begun.elapsed();
        for _ in 0..limits::PROMOTE_ROUNDS {
            if options.at != At::Latest || last < limits::PROMOTE_ROUND || is_promoted_to(&copy.choice) {
                break;
            }
            let round = Instant::now();
            if !copy.follow(options)? {
                break;
            }
            last = round.elapsed().max(Duration::from_nanos(1));
        }
    }
    let Copy { choice, tree, .. } = copy;
    let (volume, directory, options) = (volume.clone(), directory.to_owned(), options.clone());
    let copy_ms = millis(begun);
    Ok(Prepared {
        volume,
        directory,
        options,
        choice,
        tree,
        image,
        target,
        already,
        probe,
        loss,
        unseen,
        work,
        select_ms,
        check_ms,
        copy_ms,
    })
}

/// A copy on its way.
struct Copy<'a> {
    access: &'a Access,
    volume: &'a VolumeName,
    directory: &'a Path,
    target: &'a Options,
    events: &'a (dyn Fn(Event) + Sync),
    choice: Choice,
    tree: Arc<Tree>,
}

impl Copy<'_> {
    /// Makes the directory equal to the tree.
    fn write(&self, known: Option<Arc<Tree>>) -> Result<Report, FailoverError> {
        let first = known.is_none();
        let target = Options { known, ..self.target.clone() };
        let written = match first {
            true => write_beside(self.access, &self.choice, &self.tree, self.directory, &target, self.events),
            false => write(self.access, self.volume, &self.tree, self.directory, &target, self.events),
        };
        written.map_err(|error| match error {
            refused if refused.is_refusal() || refused.is_usage() => refused,
            source => FailoverError::BeforeFence { point: self.choice.point.id, source: Box::new(source) },
        })
    }

    /// Writes what has come since, if something has.
    fn follow(&mut self, options: &PromoteOptions) -> Result<bool, FailoverError> {
        let newer = choose(self.access, self.volume, &At::Latest, options.accept_fuzzy, SystemTime::now())?;
        if newer.point.id == self.choice.point.id || newer.volume.epoch != self.choice.volume.epoch {
            return Ok(false);
        }
        judge(&newer, options)?;
        let tree = Arc::new(self.access.tree(self.volume, &newer.point)?);
        let known = std::mem::replace(&mut self.tree, tree);
        self.choice = newer;
        self.write(Some(known)).map(|_| true)
    }
}

/// Refuses what is not to be promoted unless accepted.
pub(super) fn judge(choice: &Choice, options: &PromoteOptions) -> Result<(), FailoverError> {
    if choice.point.cut.consistency == Consistency::Fuzzy && !options.accept_fuzzy {
        return Err(FailoverError::Fuzzy(choice.point.id));
    }
    let live = choice.volume.live.as_ref();
    let heartbeat = live.and_then(|live| live.heartbeat.as_ref());
    // A point that ends the condition is right, and has it in its list; what counts is whether it holds now.
    let unverified = heartbeat.is_some_and(|beat| beat.conditions.iter().any(|held| held == UNVERIFIED));
    if unverified && !options.accept_unverified && !choice.volume.promoted {
        return Err(FailoverError::Unverified(choice.volume.name.clone()));
    }
    Ok(())
}

/// Refuses a planned move that the old primary's side cannot make.
fn judge_move(choice: &Choice, options: &PromoteOptions) -> Result<(), FailoverError> {
    if !options.planned || is_promoted_to(choice) {
        return Ok(());
    }
    let live = choice.volume.live.as_ref().ok_or(FailoverError::MoveNeedsReceiver)?;
    if !live.connected {
        return Err(FailoverError::MoveDisconnected(choice.volume.name.clone()));
    }
    // Older ones do not tell.
    match live.heartbeat.as_ref().and_then(|beat| beat.leaves) {
        Some(false) => Err(FailoverError::MoveWithoutStop(choice.volume.name.clone())),
        _ => Ok(()),
    }
}

/// What lies between the point and the start.
pub(super) fn loss(choice: &Choice, now: SystemTime) -> Loss {
    let age_ms = to_ns(now).saturating_sub(choice.point.cut.time_ns) as f64 / 1e6;
    let live = choice.volume.live.as_ref();
    let (rpo_ms, known) = match (live, &choice.volume.last) {
        (Some(live), Some(last)) if choice.current => {
            let earlier_ns = last.cut.time_ns.saturating_sub(choice.point.cut.time_ns);
            (live.lag_ns.saturating_add(earlier_ns) as f64 / 1e6, true)
        }
        _ => (age_ms, false),
    };
    let behind_bytes = live.and_then(|live| live.heartbeat.as_ref()).map(|beat| beat.behind_bytes);
    Loss { rpo_ms, known, behind_bytes, point_age_ms: age_ms, cut_ns: choice.point.cut.time_ns }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidelock_proto::{
        Epoch, TreeDigest,
        point::{Cut, How, Point},
        wire::messages::Heartbeat,
    };

    use super::*;
    use crate::access::{Live, Volume};

    fn choice(consistency: Consistency, conditions: &[&str]) -> Choice {
        let cut = Cut {
            time_ns: 3_000_000_000,
            consistency,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: How::Optimistic,
            group: Vec::new(),
            digest: TreeDigest::default(),
        };
        let id = "1.3".parse().unwrap();
        let point = Point { id, parent: None, cut, received_ns: 0, tags: Vec::new() };
        let conditions = conditions.iter().map(ToString::to_string).collect();
        let heartbeat = Some(Heartbeat { conditions, behind_bytes: 7, ..Heartbeat::default() });
        let live = Live {
            connected: false,
            lag_ns: 5_000_000,
            heartbeat,
            inodes: 1,
            data_bytes: 1,
            archive: String::new(),
            store_conditions: Vec::new(),
            image: None,
            throughput: None,
        };
        let volume = Volume {
            name: "t/v".parse().unwrap(),
            epoch: Epoch(1),
            promoted: false,
            last: Some(point.clone()),
            points: 3,
            oldest_ns: 0,
            named: Default::default(),
            live: Some(live),
        };
        Choice { volume, point, current: true }
    }

    #[test]
    fn what_must_be_accepted_is_refused_otherwise() {
        let refused = |choice: &Choice, options: PromoteOptions| {
            judge(choice, &options).err().map(|error| {
                assert!(error.is_refusal(), "{error}");
                error.to_string()
            })
        };
        let fuzzy = PromoteOptions { accept_fuzzy: true, ..PromoteOptions::default() };
        let unverified = PromoteOptions { accept_unverified: true, ..PromoteOptions::default() };
        let good = choice(Consistency::Crash, &["no-tracing"]);
        assert_eq!(refused(&good, PromoteOptions::default()), None);
        let lost = choice(Consistency::Crash, &["no-tracing", "unverified"]);
        assert!(refused(&lost, fuzzy.clone()).unwrap().contains("--accept unverified"));
        assert_eq!(refused(&lost, unverified.clone()), None);
        let copied = choice(Consistency::Fuzzy, &[]);
        assert!(refused(&copied, unverified).unwrap().contains("--accept fuzzy"));
        assert_eq!(refused(&copied, fuzzy), None);
    }

    #[test]
    fn what_is_lost_is_what_the_receiver_does_not_cover() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        let mut choice = choice(Consistency::Crash, &[]);
        let known = loss(&choice, now);
        assert_eq!((known.rpo_ms, known.known, known.behind_bytes), (5.0, true, Some(7)));
        // An earlier point loses what came between.
        choice.point.cut.time_ns -= 1_000_000_000;
        assert_eq!(loss(&choice, now).rpo_ms, 1005.0);
        choice.volume.live = None;
        let age = loss(&choice, now);
        assert_eq!((age.rpo_ms, age.known, age.behind_bytes), (8000.0, false, None));
    }
}
