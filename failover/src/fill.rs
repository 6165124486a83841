//! Filling empty volumes before an application starts: a restore that knows when there is nothing to do.
//!
//! A volume that holds anything is the application's, and the receiver is not even asked: it may be away, and the
//! application starts. An empty one is filled, or stays empty if nobody has ever replicated it; a receiver that cannot be
//! asked is an error, because an application that starts on nothing would make a new volume where the old one was wanted.
//!
//! Several volumes get one point. All of them keep the marker of an unfinished copy until each is written, so that an
//! interrupted run is recognised by the next, which takes the same point, whatever came to the receiver since. An empty
//! volume beside one with content, and no marker, is not the work of a run: nobody but the operator knows what is meant.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use serde::Serialize;
use tidelock_proto::{PointId, VolumeName};
use tidelock_receiver::reconcile::{self, Vacancy};

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    promote::check_places,
    report::choose,
    restore::{Event, RestoreReport, Step, restored, target_options, write},
};

/// What became of one directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Filled {
    /// It holds something already.
    Kept {
        /// `TENANT/NAME`.
        volume: String,
    },
    /// The receiver has no point of the volume.
    Unknown {
        /// `TENANT/NAME`.
        volume: String,
    },
    /// It was empty, and now has a point.
    Restored(Box<RestoreReport>),
}

/// Directories that were looked at.
#[derive(Debug)]
pub struct Fill {
    looked: Vec<(VolumeName, PathBuf, Vacancy)>,
    /// What an interrupted run was writing.
    point: Option<PointId>,
}

impl Fill {
    /// Looks at the directories; changes nothing and asks nobody.
    pub fn look(volumes: Vec<(VolumeName, PathBuf)>) -> Result<Self, FailoverError> {
        check_places(&volumes)?;
        let looked = volumes.into_iter().map(|(volume, directory)| {
            let state = reconcile::vacancy(&directory)?;
            Ok((volume, directory, state))
        });
        let looked: Vec<_> = looked.collect::<Result<_, FailoverError>>()?;
        let mut point = None;
        for (volume, directory, state) in &looked {
            if let Vacancy::Unfinished(label) = state {
                point = Some(begun(volume, directory, label)?);
            }
        }
        if point.is_none() {
            let of = |wanted: Vacancy| looked.iter().find(move |(.., state)| *state == wanted);
            if let (Some((_, full, _)), Some((_, empty, _))) = (of(Vacancy::Occupied), of(Vacancy::Vacant)) {
                return Err(FailoverError::PartlyFilled { full: full.clone(), empty: empty.clone() });
            }
        }
        Ok(Self { looked, point })
    }

    /// Whether there is an empty one, or one that is not finished.
    pub fn is_needed(&self) -> bool {
        self.looked.iter().any(|(.., state)| *state != Vacancy::Occupied)
    }

    /// What is to be said if none is.
    pub fn kept(&self) -> Vec<Filled> {
        self.looked.iter().map(|(volume, ..)| Filled::Kept { volume: volume.to_string() }).collect()
    }

    /// Fills those that are empty.
    pub fn run(
        &self,
        access: &Access,
        at: &At,
        events: &(dyn Fn(Event) + Sync),
    ) -> Result<Vec<Filled>, FailoverError> {
        let mut point = self.point;
        let mut done = Vec::new();
        let mut unfinished = Vec::new();
        for (volume, directory, state) in &self.looked {
            if *state == Vacancy::Occupied {
                done.push(Filled::Kept { volume: volume.to_string() });
                continue;
            }
            let begun = Instant::now();
            events(Event::Step(Step::Select));
            let wanted = point.map_or_else(|| at.clone(), At::Point);
            let choice = match choose(access, volume, &wanted, false, SystemTime::now()) {
                Err(FailoverError::NoVolume { .. } | FailoverError::NoPoints(_)) => {
                    done.push(Filled::Unknown { volume: volume.to_string() });
                    continue;
                }
                chosen => chosen?,
            };
            point = Some(choice.point.id);
            events(Event::Step(Step::Check));
            let tree = access.tree(volume, &choice.point)?;
            let mut target = target_options(volume, choice.point.id, false, false);
            target.unfinished = true;
            let work = write(access, volume, &tree, directory, &target, events)?;
            done.push(Filled::Restored(Box::new(restored(volume, &choice, directory, begun, work))));
            unfinished.push((directory, tree, target));
        }
        events(Event::Step(Step::Complete));
        for (directory, tree, target) in unfinished {
            reconcile::complete(directory, &tree, &target)?;
        }
        Ok(done)
    }
}

/// The point that an interrupted run has chosen.
fn begun(volume: &VolumeName, directory: &Path, label: &str) -> Result<PointId, FailoverError> {
    let point = label.strip_prefix(&format!("{volume} ")).and_then(|point| point.parse().ok());
    let other =
        || reconcile::ReconcileError::Unfinished { path: directory.to_owned(), holds: label.to_owned() };
    Ok(point.ok_or_else(other)?)
}
