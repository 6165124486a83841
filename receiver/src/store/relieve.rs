//! Room below a store's cap: what no point needs is given back, and if what is needed does not fit, the oldest points go before their time.
//!
//! Points go a few at a time, because how much a point takes is not known before it is gone: its chunks may be others' too. After each time what is needed is
//! counted again. That counts, and not the log's length: while somebody reads the log as a whole no segment is removed, and no point must go for that. What
//! sessions have sent for their next commits is needed too, but only up to what the reserve would hold.
//!
//! **It always gets on.** What it writes before something can go fits into the reserve beyond the cap: copies because they are planned to ([`super::space`]), and where
//! nothing can be copied, points go until a segment has nothing in it that must be.
//!
//! The price: the journals are read once for every eighth part of the points that goes.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use tidelock_proto::{PointId, VolumeName};

use super::{Store, StoreError};
use crate::{
    limits,
    retention::{Candidate, relieve},
};

/// What was done for room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relieved {
    /// Points that went before their time.
    pub dropped: u64,
    /// Length of the log afterwards, in bytes.
    pub log_bytes: u64,
    /// Bytes of it that are needed.
    pub live_bytes: u64,
    /// Bytes of the segments that were removed.
    pub freed_bytes: u64,
    /// Segments that were removed.
    pub segments: u64,
    /// There is no room, and nothing more may go.
    pub exhausted: bool,
}

impl Store {
    /// Makes room if the log is near its cap; `None` if it is not. After each piece of work `pace` is told how long it took. Not for a thread that must not
    /// block.
    pub fn relieve(
        &self,
        cap_bytes: u64,
        pace: &mut dyn FnMut(Duration),
    ) -> Result<Option<Relieved>, StoreError> {
        let most = cap_bytes / 100 * limits::CAP_RELIEVE_PERCENT;
        let mut log_bytes = self.log_len();
        if log_bytes <= most && !matches!(self.full(), Some(StoreError::Full { capped: true, .. })) {
            return Ok(None);
        }
        let (mut done, mut stuck) = (Relieved::default(), BTreeSet::new());
        loop {
            let retired = self.retire(pace)?;
            done.freed_bytes += retired.freed_bytes;
            done.segments += retired.segments;
            (done.log_bytes, done.live_bytes) = (retired.log_bytes, retired.live_bytes);
            let shorter = retired.log_bytes < log_bytes;
            log_bytes = retired.log_bytes;
            let needed = retired.live_bytes + retired.owed_bytes.min(cap_bytes / limits::CAP_RESERVE);
            if needed <= cap_bytes / 100 * limits::CAP_LIVE_PERCENT {
                if log_bytes > most && shorter {
                    continue;
                }
                if log_bytes <= most || !retired.cramped {
                    return Ok(Some(done));
                }
            }
            let dropped = self.drop_oldest(&mut stuck)?;
            if dropped == 0 {
                done.exhausted = true;
                return Ok(Some(done));
            }
            done.dropped += dropped;
        }
    }

    /// Drops some of the oldest points; how many went. Volumes of which none can be dropped are left out from then on.
    fn drop_oldest(&self, stuck: &mut BTreeSet<VolumeName>) -> Result<u64, StoreError> {
        loop {
            let names: Vec<VolumeName> =
                self.volumes().into_iter().filter(|name| !stuck.contains(name)).collect();
            let mut volumes: Vec<Vec<Candidate>> = Vec::new();
            for name in &names {
                volumes.push(self.candidates(name).unwrap_or_else(|error| {
                    tracing::warn!(volume = %name, %error, "points cannot go for room");
                    Vec::new()
                }));
            }
            let may = relieve(&volumes, usize::MAX).iter().flatten().filter(|goes| **goes).count();
            if may == 0 {
                return Ok(0);
            }
            let going = relieve(&volumes, (may / limits::CAP_STEP).max(1));
            let mut dropped = 0;
            for ((name, points), going) in names.iter().zip(&volumes).zip(&going) {
                let chosen = points.iter().zip(going).filter(|(_, goes)| **goes);
                let chosen: HashSet<PointId> = chosen.map(|(point, _)| point.id).collect();
                if chosen.is_empty() {
                    continue;
                }
                match self.drop_chosen(name, &chosen) {
                    Ok(done) if done.dropped > 0 => dropped += done.dropped,
                    Ok(_) => drop(stuck.insert(name.clone())),
                    Err(error @ (StoreError::Closed | StoreError::Poisoned(_) | StoreError::Full { .. })) => {
                        return Err(error);
                    }
                    Err(error) => {
                        tracing::warn!(volume = %name, %error, "points cannot go for room");
                        stuck.insert(name.clone());
                    }
                }
            }
            if dropped > 0 {
                return Ok(dropped);
            }
        }
    }
}
