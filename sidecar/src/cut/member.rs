//! One volume of the group that is cut together: its capture, its session, and where they stand.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidelock_proto::{
    Epoch, FileId, PointId, Seq, Tree, VolumeName,
    point::{Consistency, Cut, How},
    wire::messages::Heartbeat,
};

use super::{CutError, Ended, conditions, engine::Engine};
use crate::{
    limits::{HEARTBEAT_EVERY, RETRY_AFTER_SCANS, ROOT_CHECK_EVERY, UNREADABLE_RETRY_EVERY},
    ship::{AgreedTree, ShipEvent},
    status::Activity,
};

/// A volume of the group.
pub(super) struct Member {
    pub(super) name: VolumeName,
    pub(super) engine: Engine,
    /// Both sides agree on a tree.
    agreed: bool,
    /// The root is not in its place.
    halted: bool,
    /// The tree has been equal to the volume since the last comparison of all of it began.
    caught_up: bool,
    was_scanning: bool,
    /// The last commit, or the point that the agreed tree is of.
    last: Option<PointId>,
    /// The newest durable point of the agreed tree.
    durable: Option<PointId>,
    /// It began again from the receiver's tree; commits that were not durable are gone.
    began_again: bool,
    /// Its session has begun, or gone on, since this was last asked.
    agreed_again: bool,
    /// A planned move waits for an answer.
    leave_waits: bool,
    /// The cutter has not heard of it yet.
    leave_is_new: bool,
    /// The session said that everything is durable, and is over.
    finished: bool,
    /// The newest point that was ever acknowledged.
    acked: Option<PointId>,
    /// The point that the receiver cannot open, until a newer one is durable.
    damaged: Option<PointId>,
    /// The root had entries at the last commit.
    root_had_entries: bool,
    heartbeat_at: Instant,
    /// The application may be stopped for a planned move.
    pub(super) leaves: bool,
    root_check_at: Instant,
    retry_at: Instant,
}

/// What all commits of one cut have in common.
#[derive(Default)]
pub(super) struct Common<'a> {
    pub(super) id: PointId,
    pub(super) time_ns: u64,
    pub(super) rounds: u32,
    pub(super) took: Duration,
    pub(super) how: How,
    /// How long the application was paused for it.
    pub(super) paused: Duration,
    /// The application stood still, as its own hooks say.
    pub(super) app: bool,
    pub(super) tags: &'a [String],
    /// The volumes that are cut together; empty if there is only one.
    pub(super) group: &'a [VolumeName],
}

impl Member {
    pub(super) fn new(name: VolumeName, engine: Engine) -> Self {
        let now = Instant::now();
        Self {
            name,
            engine,
            agreed: false,
            halted: false,
            caught_up: false,
            was_scanning: false,
            last: None,
            durable: None,
            began_again: false,
            agreed_again: false,
            leave_waits: false,
            leave_is_new: false,
            finished: false,
            acked: None,
            damaged: None,
            root_had_entries: false,
            heartbeat_at: now,
            leaves: false,
            root_check_at: now,
            retry_at: now,
        }
    }

    /// Whether it can be part of a cut.
    pub(super) fn is_ready(&self) -> bool {
        self.agreed && !self.halted
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halted
    }

    pub(super) fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Something that was announced is not captured.
    pub(super) fn is_dirty(&self) -> bool {
        !self.engine.dirty.is_empty()
    }

    /// Something is captured that no commit covers.
    pub(super) fn has_staged(&self) -> bool {
        !self.engine.stage.is_empty()
    }

    pub(super) fn last(&self) -> Option<PointId> {
        self.last
    }

    /// Every commit is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.agreed && self.durable == self.last
    }

    /// Whether this point, or all there is of the volume, is durable.
    pub(super) fn has_durable(&self, point: PointId) -> bool {
        self.is_durable() || (self.agreed && self.durable >= Some(point))
    }

    /// Whether it began again since this was last asked.
    pub(super) fn take_began_again(&mut self) -> bool {
        std::mem::take(&mut self.began_again)
    }

    /// Whether its session has begun, or gone on after a break, since this was last asked.
    pub(super) fn take_agreed_again(&mut self) -> bool {
        std::mem::take(&mut self.agreed_again)
    }

    /// See [`Self::take_agreed_again`].
    pub(super) fn forget_agreed(&mut self) {
        self.agreed_again = false;
    }

    /// Whether a planned move was asked for since this was last asked.
    pub(super) fn take_leave(&mut self) -> bool {
        std::mem::take(&mut self.leave_is_new)
    }

    /// Answers a planned move, if one waits for it.
    pub(super) fn answer_leave(&mut self, answer: &Result<PointId, String>) {
        if std::mem::take(&mut self.leave_waits) {
            self.engine.outbox.left(answer.clone());
        }
    }

    /// The number of the newest commit in this epoch, or of one that the receiver acknowledged and has lost: no number means two points.
    pub(super) fn last_seq(&self, epoch: Epoch) -> Seq {
        let newest = self.last.max(self.acked);
        newest.filter(|newest| newest.epoch == epoch).map_or(Seq(0), |newest| newest.seq)
    }

    /// Takes what the session has to say.
    pub(super) fn hear(&mut self) -> Result<(), Ended> {
        for event in self.engine.outbox.events() {
            let volume = self.name.clone();
            match event {
                ShipEvent::Agreed { last, tree } => {
                    self.agreed_again = true;
                    (self.leave_waits, self.leave_is_new) = (false, false);
                    self.agree(last, tree)?;
                }
                ShipEvent::Leave => (self.leave_waits, self.leave_is_new) = (true, true),
                ShipEvent::Resend(wanted) => self.engine.resend(&wanted),
                ShipEvent::Acked { point } => self.on_acked(point),
                ShipEvent::Disconnected { .. } | ShipEvent::WindowOpen => {}
                ShipEvent::Finished => self.finished = true,
                ShipEvent::Fenced { epoch } => return Err(Ended::Fenced { volume, epoch }),
                ShipEvent::Superseded => return Err(Ended::Superseded(volume)),
                ShipEvent::Denied { reason } => return Err(Ended::Denied { volume, reason }),
            }
        }
        Ok(())
    }

    fn on_acked(&mut self, point: PointId) {
        self.durable = self.durable.max(Some(point));
        self.acked = self.acked.max(Some(point));
        if self.damaged.is_some_and(|damaged| point > damaged) {
            self.damaged = None;
            self.engine.status.clear_condition(conditions::NEWEST_DAMAGED);
        }
    }

    fn agree(&mut self, last: Option<PointId>, tree: AgreedTree) -> Result<(), Ended> {
        let seeding = matches!(tree, AgreedTree::Empty);
        let tree = match tree {
            // A resumed session needs what it was promised: the tree as it is here.
            AgreedTree::Resumed => {
                if let Some(last) = last.filter(|last| self.damaged != Some(*last)) {
                    self.on_acked(last);
                }
                return Ok(());
            }
            AgreedTree::Manifest(tree) => tree,
            AgreedTree::Empty => Tree::new(),
        };
        let inodes = tree.totals().inodes;
        if let Some(acknowledged) = self.acked.filter(|acked| Some(*acked) > last) {
            tracing::warn!(
                volume = %self.name, %acknowledged, left = ?last,
                "the receiver has lost points that it had acknowledged; it gets their changes again, under new numbers"
            );
        }
        self.damaged = last.filter(|_| seeding);
        if let Some(damaged) = self.damaged {
            tracing::warn!(
                volume = %self.name, %damaged,
                "the receiver cannot open its newest point any more; the volume is compared as a whole, and what the receiver lacks is sent"
            );
            let reason = format!(
                "the receiver cannot open {damaged}: the volume is sent as a whole; see the receiver's log"
            );
            self.engine.status.set_condition(conditions::NEWEST_DAMAGED, reason);
        } else {
            self.engine.status.clear_condition(conditions::NEWEST_DAMAGED);
        }
        tracing::info!(volume = %self.name, ?last, inodes, "agreed on a tree; comparing the volume with it");
        self.engine.status.set_activity(if seeding { Activity::Seeding } else { Activity::Scanning });
        self.root_had_entries = match tree.entries(FileId::ROOT) {
            Some(root) => !root.is_empty(),
            // What the volume had is not known; a root without entries is rather a volume that is not mounted.
            None => last.is_some(),
        };
        self.engine.status.on_agreed(last.filter(|_| !seeding));
        // Nobody who waits for a durable point is content with one that is damaged.
        (self.last, self.durable) = (last, last.filter(|_| self.damaged.is_none()));
        self.agreed = true;
        self.began_again = true;
        let started = self.engine.start_from(tree);
        self.tolerate(started)?;
        self.note_progress();
        Ok(())
    }

    /// What happens now and then, whatever the loop is doing.
    pub(super) fn upkeep(&mut self) -> Result<(), Ended> {
        let kept = self.try_upkeep();
        self.tolerate(kept)
    }

    fn try_upkeep(&mut self) -> Result<(), CutError> {
        let now = Instant::now();
        if now >= self.root_check_at {
            self.root_check_at = now + ROOT_CHECK_EVERY;
            self.check_root()?;
        }
        if now >= self.retry_at && self.agreed {
            self.retry_at = now + UNREADABLE_RETRY_EVERY.max(self.engine.scan_took * RETRY_AFTER_SCANS);
            self.engine.retry_unreadable();
            self.engine.settle();
            self.engine.try_exact()?;
        }
        Ok(())
    }

    fn check_root(&mut self) -> Result<(), CutError> {
        let gone = std::mem::take(&mut self.engine.root_gone);
        let in_place = self.engine.volume.in_place() || (self.halted && self.engine.take_up_again()?);
        if !in_place && !self.halted {
            let path = self.engine.volume.path().display().to_string();
            tracing::error!(path, "the volume is no longer at its path; replication halted");
            let reason = format!("{path} is no longer the directory that was protected: mount it again");
            self.engine.status.set_condition(conditions::ROOT_GONE, reason);
            self.engine.status.set_activity(Activity::Halted);
            self.halted = true;
        } else if in_place && (self.halted || gone) {
            if self.halted {
                tracing::info!(volume = %self.name, "the volume is back; comparing it");
            }
            self.halted = false;
            self.engine.status.clear_condition(conditions::ROOT_GONE);
            self.engine.status.set_activity(Activity::Scanning);
            self.engine.rescan();
        }
        Ok(())
    }

    /// Does what the scrub has to do now. Called when nothing is dirty; afterwards something may be.
    pub(super) fn scrub(&mut self) -> Result<(), Ended> {
        let scrubbed = self.engine.scrub(Instant::now());
        self.tolerate(scrubbed)
    }

    /// When the scrub has something to do again, if ever.
    pub(super) fn scrub_due(&self) -> Option<Duration> {
        self.engine.scrub.due(Instant::now())
    }

    /// Takes every event that is queued.
    pub(super) fn drain(&mut self) -> Result<(), Ended> {
        let drained = self.engine.drain();
        self.tolerate(drained)?;
        self.note_progress();
        Ok(())
    }

    /// A comparison of the whole volume that begins leaves it behind, and the first moment without anything dirty catches up.
    fn note_progress(&mut self) {
        let begins = self.engine.scanning && !self.was_scanning;
        self.was_scanning = self.engine.scanning;
        self.caught_up = (self.caught_up && !begins) || !self.is_dirty();
    }

    /// Captures part of what is dirty.
    pub(super) fn step(&mut self) -> Result<(), Ended> {
        let stepped = self.engine.step();
        self.tolerate(stepped)
    }

    /// Commits what is staged, which may be nothing: the point is then its parent's tree again.
    pub(super) fn commit(&mut self, common: &Common<'_>) -> Result<(), Ended> {
        let committed = self.try_commit(common);
        self.tolerate(committed)
    }

    fn try_commit(&mut self, common: &Common<'_>) -> Result<(), CutError> {
        let consistency = self.consistency(common.app);
        let engine = &mut self.engine;
        for gone in engine.stage.seal()? {
            engine.dirty.forget(gone);
            engine.nameless.remove(&gone);
            engine.unreadable_later.remove(&gone);
            engine.unwatched.remove(&gone);
            engine.unsettled.remove(&gone);
            engine.watcher.forget_directory(gone);
        }
        engine.end_conditions();
        let cut = Cut {
            time_ns: common.time_ns,
            consistency,
            tracker: engine.watcher.tracker().as_str().to_owned(),
            conditions: engine.status.conditions(),
            rounds: common.rounds,
            digest: engine.stage.tree().digest(),
            how: common.how,
            group: common.group.to_vec(),
        };
        engine.hand_over(true);
        engine.status.on_cut(common.id, common.time_ns, common.rounds, common.took, common.paused);
        engine.status.on_committed(common.id, common.time_ns);
        engine.outbox.commit(common.id, cut, common.tags.to_vec());
        self.last = Some(common.id);
        Ok(())
    }

    /// What may be believed of a cut taken now, if the application stands still.
    pub(super) fn consistency(&self, app: bool) -> Consistency {
        match self.engine.consistency() {
            Consistency::Crash if app => Consistency::App,
            other => other,
        }
    }

    /// The instant `time_ns` is captured and committed.
    pub(super) fn on_converged(&mut self, time_ns: u64) {
        self.engine.end_scan();
        self.engine.end_conditions();
        self.engine.status.clear_condition(conditions::UNVERIFIED);
        self.engine.status.set_activity(Activity::Replicating);
        let started = UNIX_EPOCH + Duration::from_nanos(time_ns);
        let clean_at_ns = self.engine.clean_at(started).map(nanos);
        if let Some(clean_at_ns) = clean_at_ns {
            self.engine.status.on_clean(clean_at_ns);
        }
        self.heartbeat(clean_at_ns);
    }

    /// A volume that lost everything in its root at once was more likely unmounted or wiped than used: that is not
    /// replicated as a mass deletion. It goes on by itself when something is there again.
    pub(super) fn root_turned_empty(&mut self) -> bool {
        let now_empty = self.engine.stage.tree().entries(FileId::ROOT).is_none_or(|root| root.is_empty());
        let emptied = now_empty && self.last.is_some() && self.root_had_entries;
        if emptied {
            self.engine.status.set_condition(
                conditions::ROOT_EMPTY,
                "every entry of the volume's root is gone; not replicated until there are entries again",
            );
        } else {
            self.engine.status.clear_condition(conditions::ROOT_EMPTY);
            self.root_had_entries = !now_empty;
        }
        emptied
    }

    pub(super) fn note_not_converging(&mut self, rounds: u32) {
        let (waiting, first) = self.engine.dirty.describe();
        let path = first.and_then(|id| self.engine.stage.tree().path(id)).unwrap_or_default();
        let path = String::from_utf8_lossy(&path[..path.len().min(200)]);
        let reason = format!("no quiet instant in {rounds} rounds: {waiting}, first {path:?}");
        self.engine.status.set_condition(conditions::NOT_CONVERGING, reason);
    }

    /// Tells the receiver of itself, not too often.
    pub(super) fn heartbeat(&mut self, clean_at_ns: Option<u64>) {
        if Instant::now() < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = Instant::now() + HEARTBEAT_EVERY;
        let engine = &self.engine;
        let behind_bytes = engine.waiting().bytes;
        engine.status.set_behind_bytes(behind_bytes);
        engine.outbox.heartbeat(Heartbeat {
            now_ns: nanos(SystemTime::now()),
            clean_at_ns: clean_at_ns.unwrap_or(0),
            behind_bytes,
            state: engine.status.state().as_str().to_owned(),
            conditions: engine.status.conditions(),
            tracker: engine.watcher.tracker().as_str().to_owned(),
            leaves: Some(self.leaves),
        });
    }

    /// When the next heartbeat is due.
    pub(super) fn heartbeat_at(&self) -> Instant {
        self.heartbeat_at
    }

    /// What makes no tree is begun again from the receiver's; everything else ends the sidecar.
    fn tolerate(&mut self, result: Result<(), CutError>) -> Result<(), Ended> {
        match result {
            Ok(()) => Ok(()),
            Err(CutError::Tree(error)) => {
                tracing::error!(volume = %self.name, %error, "captured state makes no tree; starting over");
                self.agreed = false;
                self.engine.outbox.abandon();
                Ok(())
            }
            Err(source) => Err(Ended::Failed { volume: self.name.clone(), source }),
        }
    }
}

pub(super) fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
