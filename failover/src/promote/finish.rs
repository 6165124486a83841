//! The part of a promotion from the fence on: short, and the only way is on.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use tidelock_proto::{Epoch, PointId, VolumeName};
use tidelock_receiver::reconcile::{self, Options, Report};

use super::{
    PromoteOptions, PromoteReport, Recovery, command, handover, is_promoted_to,
    prepare::{ImageUse, Prepared, judge},
    whole,
};
use crate::{
    access::Access,
    at::At,
    donor::write_beside,
    error::FailoverError,
    report::{Choice, choose},
    restore::{Event, Step, millis, write},
    window,
};

impl Prepared {
    /// Raises the epoch and brings the copy to the point that it builds on: the one that was prepared, a later one
    /// if `latest` was asked for and the old primary still wrote, or `at`, to which another volume of the group was promoted.
    pub fn finish(
        mut self,
        access: &Access,
        at: Option<&At>,
        events: &(dyn Fn(Event) + Sync),
    ) -> Result<PromoteReport, FailoverError> {
        let begun = Instant::now();
        let copied = self.choice.point.id;
        if let Some(at) = at {
            self.choice = choose(access, &self.volume, at, self.options.accept_fuzzy, SystemTime::now())?;
            self.options.at = at.clone();
            // The first volume's sidecar has taken the last cut of all of them.
            self.options.planned = false;
            judge(&self.choice, &self.options)?;
        }
        events(Event::Step(Step::Fence));
        let resumed = is_promoted_to(&self.choice);
        let current = self.choice.volume.epoch;
        let before = self.choice.volume.last.as_ref().map_or(copied, |last| last.id);
        let old_epoch = if resumed { current.0 - 1 } else { current.0 };
        let (epoch, later) = match resumed {
            true => (current, None),
            false => fence(access, &self.volume, &self.choice, &self.options)?,
        };
        if let Some(later) = later {
            self.choice = later;
        }
        let fence_ms = millis(begun);
        // What fails here must not keep anybody from being primary.
        let window = self.options.window.map(|window| {
            let epochs = (Epoch(old_epoch), epoch);
            window::open(access, &self.volume, epochs, before, window, SystemTime::now())
        });
        events(Event::Step(Step::Difference));
        let mut taken = None;
        let settled = match self.image {
            ImageUse::Ready => self.take_image(access, &mut taken, events),
            ImageUse::Copy(_) => self.settle(access, copied, events),
        };
        let difference = settled.map_err(|source| FailoverError::AfterFence {
            epoch,
            point: self.choice.point.id,
            source: Box::new(source),
        })?;
        events(Event::Step(Step::Done));
        let mut report =
            self.report((old_epoch, epoch), resumed, difference, fence_ms, millis(begun) - fence_ms);
        report.image = taken;
        match window {
            Some(Ok(window)) => report.window = Some(window),
            Some(Err(missed)) => report.window_missed = Some(missed.to_string()),
            None => {}
        }
        Ok(report)
    }

    /// Makes the receiver's image the directory. If it cannot be had any more, a copy is written after all: the fence is up, and the way is on.
    fn take_image(
        &mut self,
        access: &Access,
        taken: &mut Option<PathBuf>,
        events: &(dyn Fn(Event) + Sync),
    ) -> Result<Option<Report>, FailoverError> {
        let released = || events(Event::Step(Step::Handover));
        match handover::take(access, &self.volume, &self.directory, self.choice.point.id, &released) {
            Ok((given, root)) => {
                events(Event::Step(Step::Complete));
                reconcile::complete(&self.directory, &root, &self.target)?;
                *taken = Some(given.path);
                Ok(None)
            }
            Err(missed) => {
                self.image = ImageUse::Copy(Some(missed.to_string()));
                let tree = access.tree(&self.volume, &self.choice.point)?;
                let work = write_beside(access, &self.choice, &tree, &self.directory, &self.target, events)?;
                events(Event::Step(Step::Complete));
                reconcile::complete(&self.directory, &tree, &self.target)?;
                Ok(Some(work))
            }
        }
    }

    /// Brings the directory from the point that was copied to the one that is promoted, and completes it.
    fn settle(
        &mut self,
        access: &Access,
        copied: PointId,
        events: &(dyn Fn(Event) + Sync),
    ) -> Result<Option<Report>, FailoverError> {
        let mut difference = None;
        if self.choice.point.id != copied {
            let tree = Arc::new(access.tree(&self.volume, &self.choice.point)?);
            let known = Some(std::mem::replace(&mut self.tree, tree));
            let target = Options { known, ..self.target.clone() };
            difference = Some(write(access, &self.volume, &self.tree, &self.directory, &target, events)?);
        } else if self.already {
            return Ok(None);
        }
        events(Event::Step(Step::Complete));
        reconcile::complete(&self.directory, &self.tree, &self.target)?;
        Ok(difference)
    }

    pub(super) fn report(
        self,
        (old_epoch, epoch): (u64, Epoch),
        resumed: bool,
        difference: Option<Report>,
        fence_ms: f64,
        difference_ms: f64,
    ) -> PromoteReport {
        let Self { select_ms, check_ms, copy_ms, loss, unseen, .. } = self;
        let directory = whole(&self.directory);
        let gained_ms = self.choice.point.cut.time_ns.saturating_sub(loss.cut_ns) as f64 / 1e6;
        PromoteReport {
            volume: self.volume.to_string(),
            point: self.choice.report(),
            old_epoch,
            epoch: epoch.0,
            resumed,
            already: self.already,
            next_command: command([(self.volume.to_string(), &*directory)].into_iter(), epoch.0),
            directory,
            chunks_checked: self.probe.looked_for,
            recovery: Recovery {
                rpo_ms: (loss.rpo_ms - gained_ms).max(0.0),
                rpo_known: loss.known && !resumed,
                behind_bytes: loss.behind_bytes,
                point_age_ms: loss.point_age_ms,
                select_ms,
                check_ms,
                copy_ms,
                fence_ms,
                difference_ms,
                rto_ms: select_ms + check_ms + copy_ms + fence_ms + difference_ms,
            },
            work: self.work,
            difference,
            image: None,
            unseen,
            window: None,
            window_missed: None,
            image_missed: match self.image {
                ImageUse::Ready => None,
                ImageUse::Copy(missed) => missed,
            },
        }
    }
}

/// Raises the epoch. A live volume goes on until its writer is stopped, and `latest` means what is there then: a point
/// that came after the chosen one is told. If it is fuzzy and must not be, the epoch is raised once more, upon the
/// newest that is not.
pub(super) fn fence(
    access: &Access,
    volume: &VolumeName,
    choice: &Choice,
    options: &PromoteOptions,
) -> Result<(Epoch, Option<Choice>), FailoverError> {
    if options.planned {
        let (epoch, base) = access.move_away(volume, choice.volume.epoch)?;
        let later = choose(access, volume, &At::Point(base), options.accept_fuzzy, SystemTime::now())?;
        return Ok((epoch, Some(later)));
    }
    let newest = choice.volume.last.as_ref().map(|last| last.id);
    let open = options.at == At::Latest && newest == Some(choice.point.id);
    let wanted = (!open).then_some(choice.point.id);
    let (epoch, base) = access.raise_epoch(volume, choice.volume.epoch, wanted)?;
    if base == choice.point.id {
        return Ok((epoch, None));
    }
    let later = choose(access, volume, &At::Latest, options.accept_fuzzy, SystemTime::now())?;
    let epoch = match later.point.id == base {
        true => epoch,
        false => access.raise_epoch(volume, epoch, Some(later.point.id))?.0,
    };
    Ok((epoch, Some(later)))
}
