//! What retention, compaction and the size cap would make of a store, in points and in bytes. Nothing is changed.
//!
//! ```text
//! choose ─▶ survey every volume: needed now, needed after ─▶ weigh the chunks in the index ─▶ which segments would go
//!                      └─ a cap: again with more points gone, until it fits
//! ```
//! **How exact it is.** A chunk counts once, however many points and volumes name it, and goes only if nothing needs it any more. What is needed, and what a thinning writes
//! before it drops, is calculated by the code that does it. So the log that `tidelock store compact` leaves is told to within the records that are no points (names, volumes); three things make the rest
//! an estimate, and are told beside it: the filters of ids are bounded ([`Sizes::doubt`]), a running receiver gives space back by segments and stops at a tenth of garbage, and what comes meanwhile is not known.
//!
//! **It stands back.** Points are not dropped and segments not removed while it reads, unless that makes it the reason why commits wait: then it ends ([`StoreError::Restless`]). Where it cannot have that
//! quiet at once, because a compaction is under way, it reads beside it and begins anew when something that it needs has gone.
//!
//! The price: all operations are read, those of volumes that lose points twice, and once more for each of the some steps of a search where a cap has points dropped; three filters of at most
//! [`limits::PLAN_FILTER_BYTES`]; the points' entries of one volume, and two trees.

use std::{collections::HashSet, time::Duration};

use tidelock_proto::{PointId, VolumeName};

use super::{
    Shared, Store, StoreError,
    retire::choose as choose_segments,
    survey::{Found, Meter, Needs, freed_chunks, nothing_counted, survey, weigh_chunks},
};
use crate::{
    limits,
    log::{Mark, frame::RECORDS_START},
    retention::{Candidate, Policy, Verdict, choose, relieve},
};

/// What is asked.
pub struct Ask<'a> {
    /// Which points stay.
    pub policy: &'a Policy,
    /// The time to count ages from, in nanoseconds since 1970.
    pub now_ns: u64,
    /// How long the log may get; looked at only where all volumes are.
    pub cap_bytes: Option<u64>,
    /// Whose points the policy is for. The others stay as they are.
    pub wanted: &'a dyn Fn(&VolumeName) -> bool,
}

/// The answer.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// The volumes that were asked for, by name.
    pub volumes: Vec<VolumeForecast>,
    /// What becomes of the log; or why that cannot be told: something is damaged, a key is missing.
    pub sizes: Result<Sizes, StoreError>,
}

/// What becomes of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeForecast {
    /// Its name.
    pub volume: VolumeName,
    /// What the policy says of its points, oldest first.
    pub verdicts: Vec<Verdict>,
    /// Bytes of the log that are needed and would not be. A chunk that several volumes let go counts with the first of them.
    pub freed_bytes: u64,
    /// Bytes that are written first: merged operations, checkpoints.
    pub written_bytes: u64,
    /// Points that the policy keeps and the cap does not.
    pub capped: u64,
}

/// What becomes of the log, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sizes {
    /// Its length now.
    pub log_bytes: u64,
    /// What of it points need now.
    pub needed_bytes: u64,
    /// What of it nothing needs, and sessions count on.
    pub owed_bytes: u64,
    /// What of `needed_bytes` the policy lets go.
    pub freed_bytes: u64,
    /// What is written for that.
    pub written_bytes: u64,
    /// What points need after it.
    pub needed_after_bytes: u64,
    /// How long a compaction of the stopped store leaves it, after the policy.
    pub stopped_bytes: u64,
    /// How long a running receiver leaves it: segments with little garbage stay.
    pub running_bytes: u64,
    /// Beyond which length a running receiver begins to give space back.
    pub begins_bytes: u64,
    /// The part of what goes that may have been taken for what stays.
    pub doubt: f64,
    /// What the cap does then.
    pub cap: Option<CapForecast>,
}

/// What a size cap does after the policy has been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapForecast {
    /// The cap.
    pub cap_bytes: u64,
    /// Beyond which length of the log it acts.
    pub acts_bytes: u64,
    /// How much may be needed, when it acts, so that no point has to go for it.
    pub fits_bytes: u64,
    /// It acts now.
    pub acts: bool,
    /// Points that go before their time.
    pub dropped: u64,
    /// What points need after that.
    pub needed_bytes: u64,
    /// All have gone that may, and it is still too much: commits will wait.
    pub exhausted: bool,
}

impl Store {
    /// What the policy, compaction and the cap would do. After each piece of work `pace` is told how long it took; it may wait, and ends this by `false` ([`StoreError::Closed`]). Not for a thread that must not
    /// block.
    pub fn forecast(
        &self,
        ask: &Ask<'_>,
        pace: &mut dyn FnMut(Duration) -> bool,
    ) -> Result<Forecast, StoreError> {
        let shared = self.shared();
        let full = shared.inbox.full().is_some();
        for _ in 0..limits::PLAN_ATTEMPTS {
            // Who makes room needs it more.
            let wait = if full { Duration::ZERO } else { limits::PLAN_QUIET };
            let _alone = shared.thinning.try_lock_for(wait);
            let before = shared.moves.count();
            let mut work = Work::begin(self, ask)?;
            match self.check_keys().and_then(|()| work.sizes(&mut Meter::new(shared, pace))) {
                Err(error @ (StoreError::Closed | StoreError::Restless)) => return Err(error),
                Err(error) if gone(&error) && shared.moves.since(before) => {}
                sizes => return Ok(Forecast { volumes: work.forecasts(), sizes }),
            }
        }
        Err(StoreError::Restless)
    }
}

/// Whether it may be because something went meanwhile.
fn gone(error: &StoreError) -> bool {
    error.is_damage() || matches!(error, StoreError::NoSuchPoint(..) | StoreError::NoSuchVolume(_))
}

struct Work<'a> {
    store: &'a Store,
    shared: &'a Shared,
    ask: &'a Ask<'a>,
    volumes: Vec<Volume>,
}

struct Volume {
    name: VolumeName,
    candidates: Vec<Candidate>,
    /// None of a volume that was not asked for.
    verdicts: Option<Vec<Verdict>>,
    gone: HashSet<PointId>,
    freed: u64,
    written: u64,
    capped: u64,
}

impl<'a> Work<'a> {
    fn begin(store: &'a Store, ask: &'a Ask<'a>) -> Result<Self, StoreError> {
        let mut volumes = Vec::new();
        for name in store.volumes() {
            let candidates = store.candidates(&name)?;
            let verdicts = (ask.wanted)(&name).then(|| choose(&candidates, ask.policy, ask.now_ns));
            let judged = candidates.iter().zip(verdicts.iter().flatten());
            let gone = judged.filter(|(_, verdict)| verdict.is_drop()).map(|(point, _)| point.id).collect();
            volumes.push(Volume { name, candidates, verdicts, gone, freed: 0, written: 0, capped: 0 });
        }
        Ok(Self { store, shared: store.shared(), ask, volumes })
    }

    fn forecasts(self) -> Vec<VolumeForecast> {
        let forecast = |volume: Volume| {
            Some(VolumeForecast {
                verdicts: volume.verdicts?,
                volume: volume.name,
                freed_bytes: volume.freed,
                written_bytes: volume.written,
                capped: volume.capped,
            })
        };
        self.volumes.into_iter().filter_map(forecast).collect()
    }

    fn sizes(&mut self, meter: &mut Meter<'_>) -> Result<Sizes, StoreError> {
        let Some(mark) = self.store.durable_mark() else { return Ok(Sizes::default()) };
        let log_bytes = self.store.log_bytes(mark);
        let (mut now, mut after) = (Needs::new(log_bytes), Needs::new(log_bytes));
        let mut found = Vec::new();
        for volume in &self.volumes {
            let (name, gone) = (&volume.name, &volume.gone);
            found.push(survey(self.shared, name, gone, Some(&mut now), &mut after, meter)?);
        }
        let (freed_chunks, owed) = weigh_chunks(self.shared, Some(&mut now), &mut after, meter)?;
        self.attribute(log_bytes, &found, &after, meter)?;
        let needed_after_bytes = after.total();
        let owed_bytes = owed.values().sum();
        let freed = found.iter().map(|found| found.freed).sum::<u64>() + freed_chunks;
        let log_then = log_bytes + after.written;
        let mut segments = self.shared.candidates_below(mark.segment, [&after.bytes, &owed])?;
        let (running_bytes, _) =
            choose_segments(&mut segments, log_then, needed_after_bytes + owed_bytes, u64::MAX);
        let mut sizes = Sizes {
            log_bytes,
            needed_bytes: now.total(),
            owed_bytes,
            freed_bytes: freed,
            written_bytes: after.written,
            needed_after_bytes,
            stopped_bytes: self.with_headers(needed_after_bytes, mark),
            running_bytes,
            begins_bytes: needed_after_bytes / 100 * limits::COMPACT_FROM_PERCENT
                + limits::COMPACT_FROM_BYTES,
            doubt: after.doubt(),
            cap: None,
        };
        drop((now, after));
        sizes.cap = match self.ask.cap_bytes {
            Some(cap) if self.volumes.iter().all(|volume| volume.verdicts.is_some()) => {
                Some(self.cap(cap, &sizes, log_then, meter)?)
            }
            _ => None,
        };
        Ok(sizes)
    }

    /// With the headers of as many segments as that takes.
    fn with_headers(&self, bytes: u64, mark: Mark) -> u64 {
        let segment = self.shared.log.disk().open(mark.segment).and_then(|file| file.len());
        let segment = segment.unwrap_or(limits::SEGMENT_BYTES).max(limits::SMALL_SEGMENT_BYTES);
        bytes + bytes.div_ceil(segment) * RECORDS_START
    }

    /// What each volume lets go.
    fn attribute(
        &mut self,
        log_bytes: u64,
        found: &[Found],
        after: &Needs,
        meter: &mut Meter<'_>,
    ) -> Result<(), StoreError> {
        let mut counted = nothing_counted(log_bytes);
        for (volume, found) in self.volumes.iter_mut().zip(found) {
            volume.written = found.written;
            volume.freed = found.freed;
            if !volume.gone.is_empty() {
                let of = (after, &mut counted);
                volume.freed += freed_chunks(self.shared, &volume.name, &volume.gone, found, of, meter)?;
            }
        }
        Ok(())
    }

    /// What [`Store::relieve`] would do, which lets points go by the same steps and counts after each. Here the step at which it ends is looked for by halves.
    fn cap(
        &mut self,
        cap_bytes: u64,
        sizes: &Sizes,
        log_then: u64,
        meter: &mut Meter<'_>,
    ) -> Result<CapForecast, StoreError> {
        let acts_bytes = cap_bytes / 100 * limits::CAP_RELIEVE_PERCENT;
        let owed = sizes.owed_bytes.min(cap_bytes / limits::CAP_RESERVE);
        let fits_bytes = (cap_bytes / 100 * limits::CAP_LIVE_PERCENT).saturating_sub(owed);
        let mut done = CapForecast {
            cap_bytes,
            acts_bytes,
            fits_bytes,
            acts: log_then > acts_bytes,
            dropped: 0,
            needed_bytes: sizes.needed_after_bytes,
            exhausted: false,
        };
        if !done.acts || done.needed_bytes <= fits_bytes {
            return Ok(done);
        }
        let left = |volume: &Volume| -> Vec<Candidate> {
            volume.candidates.iter().filter(|point| !volume.gone.contains(&point.id)).copied().collect()
        };
        let left: Vec<Vec<Candidate>> = self.volumes.iter().map(left).collect();
        let may = relieve(&left, usize::MAX).iter().flatten().filter(|goes| **goes).count();
        let steps = steps_of(may);
        let mut needed = |count: usize| -> Result<u64, StoreError> {
            let going = relieve(&left, count);
            let mut after = Needs::new(sizes.log_bytes);
            for ((volume, points), going) in self.volumes.iter().zip(&left).zip(&going) {
                let more = points.iter().zip(going).filter(|(_, goes)| **goes).map(|(point, _)| point.id);
                let gone = volume.gone.iter().copied().chain(more).collect();
                survey(self.shared, &volume.name, &gone, None, &mut after, meter)?;
            }
            weigh_chunks(self.shared, None, &mut after, meter)?;
            Ok(after.total())
        };
        // Between a step that does not suffice and one that does, if any does.
        let (mut few, mut enough) = (0, steps.len());
        while few + 1 < enough {
            let middle = (few + enough) / 2;
            let bytes = needed(steps[middle - 1])?;
            if bytes <= fits_bytes {
                (enough, done.needed_bytes) = (middle, bytes);
            } else {
                few = middle;
            }
        }
        if enough == steps.len() && may > 0 {
            done.needed_bytes = needed(may)?;
            done.exhausted = done.needed_bytes > fits_bytes;
        }
        done.exhausted |= may == 0;
        let count = if may == 0 { 0 } else { steps[enough - 1] };
        for (volume, going) in self.volumes.iter_mut().zip(relieve(&left, count)) {
            volume.capped = going.iter().filter(|goes| **goes).count() as u64;
            done.dropped += volume.capped;
        }
        Ok(done)
    }
}

/// How many points have gone after each step, if so many may go.
fn steps_of(may: usize) -> Vec<usize> {
    let mut steps = Vec::new();
    let mut gone = 0;
    while gone < may {
        gone += ((may - gone) / limits::CAP_STEP).max(1);
        steps.push(gone);
    }
    steps
}
