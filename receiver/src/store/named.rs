//! What the names of a volume's points say of it: its last test failover, and what is still fetched from it.
//!
//! It is asked for with every status and names are few, but nobody limits them; so what was found is kept until a name changes. A scan that a change overtakes is answered and not kept.

use std::collections::HashMap;

use parking_lot::Mutex;
use tidelock_proto::{Epoch, PointId, Seq, Verdict, VolumeName};

use super::{Shared, StoreError};
use crate::catalogue::INSTANT_HOLD;

/// What the names say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// The newest result of a test failover, and the point it is of.
    pub verdict: Option<(PointId, Verdict)>,
    /// Points that are held by instant promotions, each with the directory of one.
    pub instants: Vec<(PointId, String)>,
}

/// What is known already.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<HashMap<VolumeName, (u64, Option<Named>)>>);

impl Kept {
    /// Names of these volumes have changed, visibly.
    pub(super) fn forget<'a>(&self, volumes: impl Iterator<Item = &'a VolumeName>) {
        let mut kept = self.0.lock();
        for volume in volumes {
            let (changes, known) = kept.entry(volume.clone()).or_default();
            (*changes, *known) = (*changes + 1, None);
        }
    }
}

impl Shared {
    pub(super) fn named(&self, volume: &VolumeName) -> Result<Named, StoreError> {
        let (changes, known) = self.named.0.lock().get(volume).cloned().unwrap_or_default();
        if let Some(known) = known {
            return Ok(known);
        }
        let last = PointId::new(Epoch(u64::MAX), Seq(u64::MAX));
        let named = read(self.tags(volume, PointId::default(), last)?.into_iter());
        let mut kept = self.named.0.lock();
        let (now, known) = kept.entry(volume.clone()).or_default();
        if *now == changes {
            *known = Some(named.clone());
        }
        Ok(named)
    }
}

fn read(names: impl Iterator<Item = (PointId, Vec<String>)>) -> Named {
    let mut named = Named::default();
    for (point, names) in names {
        for name in names {
            if let Ok(verdict) = name.parse::<Verdict>() {
                let newest = named.verdict.as_ref().is_none_or(|(_, known)| known.time <= verdict.time);
                if newest {
                    named.verdict = Some((point, verdict));
                }
            } else if let Some(directory) = name.strip_prefix(INSTANT_HOLD) {
                named.instants.push((point, directory.to_owned()));
            }
        }
    }
    named
}
