//! Which files of an image may be other than its tree says, although they were written: those that points after the durable one touched.
//!
//! Only points that are durable in the log are ever applied, so the log itself is the list of what a crash may have left half done; nothing has to be written before
//! a change. That holds as long as the operations are there as they were applied: where retention has merged some, what was made and undone in between is not told
//! any more, and everything is in doubt. So it is where a point begins anew upon nothing, or cannot be read.

use std::collections::HashSet;

use tidelock_proto::{FileId, Op, PointId, Tree, VolumeName};

use crate::{
    catalogue::Step,
    limits,
    log::entry::Kind,
    store::{Store, StoreError},
};

/// Files of `tree` whose content points after `point`, on any line, may have touched; `None` if that cannot be told.
pub(super) fn since(
    store: &Store,
    volume: &VolumeName,
    point: PointId,
    tree: &Tree,
) -> Result<Option<HashSet<FileId>>, StoreError> {
    let mut doubted = HashSet::new();
    let mut next = after(point);
    loop {
        let page = store.placed_points(volume, next, limits::POINTS_PAGE)?;
        let Some((last, _)) = page.last() else { break };
        next = after(*last);
        for (_, step) in &page {
            // One that builds on nothing says what there is, and not what has become of what was there.
            let told = |step: &&Step| step.kind == Kind::Commit && step.on.is_some();
            let Some(step) = step.as_ref().filter(told) else { return Ok(None) };
            let noted = store.ops_of(volume, step, &mut |op| {
                note(&mut doubted, op);
                Ok(())
            });
            match noted {
                Err(error) if error.is_damage() || error.is_lost() => return Ok(None),
                noted => noted?,
            }
        }
    }
    add_below(tree, &mut doubted);
    Ok(Some(doubted))
}

fn note(doubted: &mut HashSet<FileId>, op: &Op) {
    match op {
        Op::Create { id, .. } | Op::Write { id, .. } | Op::Resize { id, .. } | Op::Link { id, .. } => {
            doubted.insert(*id);
        }
        // Names and attributes are looked at in any case.
        Op::Unlink { .. } | Op::SetMeta { .. } | Op::SetXattrs { .. } | Op::Reserve { .. } => {}
    }
}

/// What a directory holds that had another name may be something else.
fn add_below(tree: &Tree, doubted: &mut HashSet<FileId>) {
    let mut open: Vec<FileId> = doubted.iter().copied().filter(|id| tree.entries(*id).is_some()).collect();
    while let Some(dir) = open.pop() {
        for child in tree.entries(dir).into_iter().flatten().map(|(_, child)| *child) {
            if doubted.insert(child) && tree.entries(child).is_some() {
                open.push(child);
            }
        }
    }
}

/// The lowest id a point after this one can have.
pub(super) fn after(point: PointId) -> PointId {
    PointId::new(point.epoch, point.seq.next())
}
