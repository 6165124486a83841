//! From point to point along one line.

use std::collections::BTreeSet;

use tidelock_proto::{ChunkId, Epoch, FileId, Op, PointId, Seq, Tree, VolumeName, point::Point, tree::Name};

use crate::{
    catalogue::Step,
    limits,
    store::{Store, StoreError},
};

/// What a point changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Inodes whose content or size was written.
    pub written: BTreeSet<FileId>,
    /// Inodes whose attributes were set.
    pub attributes: BTreeSet<FileId>,
    /// Entries that were made or removed, as (directory, name).
    pub entries: BTreeSet<(FileId, Name)>,
    /// Chunks that were referred to.
    pub chunks: Vec<ChunkId>,
}

impl Touched {
    fn note(&mut self, op: &Op) {
        match op {
            Op::Write { id, pieces, .. } => {
                self.written.insert(*id);
                self.chunks.extend(pieces.iter().filter_map(|piece| piece.chunk).map(|chunk| chunk.id));
            }
            Op::Resize { id, .. } => drop(self.written.insert(*id)),
            Op::SetMeta { id, .. } | Op::SetXattrs { id, .. } => drop(self.attributes.insert(*id)),
            Op::Link { dir, name, .. } | Op::Unlink { dir, name } => {
                self.entries.insert((*dir, name.clone()));
            }
            Op::Create { .. } | Op::Reserve { .. } => {}
        }
    }
}

/// A point on the way.
#[derive(Debug, Clone, Copy)]
pub struct Visit<'a> {
    /// The point, without tags.
    pub point: &'a Point,
    /// Its tree.
    pub tree: &'a Tree,
    /// What it changed of the tree shown before; `None` if there was none, or if everything may be different.
    pub touched: Option<&'a Touched>,
}

/// Shows the points of the line that leads to `last`, from `first` on, oldest first, until `each` answers `false`. Reads every
/// commit among them: not for a thread that must not block.
pub fn walk(
    store: &Store,
    volume: &VolumeName,
    first: PointId,
    last: PointId,
    each: &mut dyn FnMut(Visit<'_>) -> bool,
) -> Result<(), StoreError> {
    // Retention goes on meanwhile: the last point stays, and others that go are left out.
    let _pin = store.pin(volume, last)?;
    let mut carried: Option<(PointId, Tree)> = None;
    for (from, to) in line(store, volume, first, last)? {
        let mut next = from;
        loop {
            let page = store.placed_points(volume, next, limits::POINTS_PAGE)?;
            let Some((end, _)) = page.last() else { break };
            next = PointId::new(end.epoch, end.seq.next());
            for step in page
                .into_iter()
                .take_while(|(id, _)| *id <= to)
                .map(|(id, step)| step.ok_or_else(|| StoreError::NoSuchPoint(volume.clone(), id)))
            {
                let step = step?;
                let (tree, touched) = match advance(store, volume, carried.take(), &step) {
                    Err(StoreError::NoSuchPoint(..)) if step.point.id != last => continue,
                    advanced => advanced?,
                };
                let visit = Visit { point: &step.point, tree: &tree, touched: touched.as_ref() };
                if !each(visit) {
                    return Ok(());
                }
                carried = Some((step.point.id, tree));
            }
            if next > to {
                break;
            }
        }
    }
    Ok(())
}

/// The runs of points that lead to `last`, one an epoch, oldest first: within an epoch there is one line, up to where the
/// next epoch left it.
fn line(
    store: &Store,
    volume: &VolumeName,
    first: PointId,
    last: PointId,
) -> Result<Vec<(PointId, PointId)>, StoreError> {
    let mut runs = Vec::new();
    let mut to = last;
    loop {
        let begin = PointId::new(to.epoch, Seq(1));
        if first >= begin {
            runs.push((first, to));
            break;
        }
        runs.push((begin, to));
        let oldest = store.points_from(volume, begin, 1)?;
        let parent = oldest.first().filter(|point| point.id.epoch == to.epoch).and_then(|point| point.parent);
        // The oldest that is left may have begun anew; of the current epoch it is known what it builds on.
        let info = store.volume(volume).filter(|info| info.epoch == to.epoch);
        let parent = parent.or_else(|| info?.base);
        match parent.filter(|parent| parent.epoch < to.epoch && parent.epoch >= Epoch::FIRST) {
            Some(parent) if parent >= first => to = parent,
            _ => break,
        }
    }
    runs.reverse();
    Ok(runs)
}

fn advance(
    store: &Store,
    volume: &VolumeName,
    carried: Option<(PointId, Tree)>,
    step: &Step,
) -> Result<(Tree, Option<Touched>), StoreError> {
    match carried {
        Some((at, mut tree)) if step.on == Some(at) => {
            let mut touched = Touched::default();
            store.replay_commit(volume, step, &mut tree, &mut |op| touched.note(op))?;
            Ok((tree, Some(touched)))
        }
        _ => Ok((store.tree_at(volume, step.point.id)?, None)),
    }
}
