//! Points that somebody has open: they are not dropped, and what is not dropped keeps its chunks.
//!
//! A restore asks for a tree and then, for as long as it takes, for the chunks in it. Between the two nothing else names the point, so the
//! reader holds a [`Pin`]. A pin and a drop may come at the same time: the writer looks at the pins and marks the points as going
//! under one lock, and a pin is refused while its point is going; so either the drop is refused or the reader is told that there is no such point.

use std::collections::HashMap;

use parking_lot::Mutex;
use tidelock_proto::{PointId, VolumeName};

use super::{Store, StoreError};

/// Keeps a point for as long as it lives.
#[derive(Debug)]
pub struct Pin {
    store: Store,
    volume: VolumeName,
    point: PointId,
}

#[derive(Default)]
pub(super) struct Pins {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: HashMap<(VolumeName, PointId), usize>,
    /// Runs that are being dropped: the index does not say so yet.
    going: Vec<(VolumeName, PointId, PointId)>,
}

impl Store {
    /// Keeps a point, whatever retention says, until the pin is dropped.
    pub fn pin(&self, volume: &VolumeName, point: PointId) -> Result<Pin, StoreError> {
        let shared = self.shared();
        shared.pins.hold(volume, point)?;
        let pin = Pin { store: self.clone(), volume: volume.clone(), point };
        // Dropped before it was held.
        shared.point(volume, point)?;
        Ok(pin)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.shared().pins.release(&self.volume, self.point);
    }
}

impl Pins {
    fn hold(&self, volume: &VolumeName, point: PointId) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        let goes = |(of, first, last): &(VolumeName, PointId, PointId)| {
            of == volume && (*first..=*last).contains(&point)
        };
        if state.going.iter().any(goes) {
            return Err(StoreError::NoSuchPoint(volume.clone(), point));
        }
        *state.held.entry((volume.clone(), point)).or_default() += 1;
        Ok(())
    }

    fn release(&self, volume: &VolumeName, point: PointId) {
        let mut state = self.state.lock();
        let key = (volume.clone(), point);
        match state.held.get_mut(&key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(state.held.remove(&key)),
        }
    }

    /// Whether somebody has it open.
    pub(super) fn holds(&self, volume: &VolumeName, point: PointId) -> bool {
        let state = self.state.lock();
        // Nearly always there are none.
        !state.held.is_empty() && state.held.contains_key(&(volume.clone(), point))
    }

    /// These points go, unless one of them is held; then none does, and the answer is that one.
    pub(super) fn let_go(&self, volume: &VolumeName, runs: &[(PointId, PointId)]) -> Result<(), PointId> {
        let mut state = self.state.lock();
        let in_runs = |point: &PointId| runs.iter().any(|(first, last)| (*first..=*last).contains(point));
        let held = state.held.keys().find(|(of, point)| of == volume && in_runs(point));
        if let Some((_, point)) = held {
            return Err(*point);
        }
        state.going.extend(runs.iter().map(|(first, last)| (volume.clone(), *first, *last)));
        Ok(())
    }

    /// What went is not in the index any more, or did not go.
    pub(super) fn settle(&self) {
        self.state.lock().going.clear();
    }
}
