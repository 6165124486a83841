//! What to do so that the archive has what the log has: a pure function of both.

use std::collections::{BTreeMap, BTreeSet};

use super::manifest::{Head, Piece};
use crate::{limits, log::Mark};

/// A log at one instant: durable, and complete in itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The store's identity.
    pub(crate) store: [u8; 16],
    /// The length of each segment, in bytes; of the last one up to the mark.
    pub(crate) lens: BTreeMap<u32, u64>,
    /// Its end.
    pub(crate) mark: Mark,
    /// Segments before it that are not there and should be.
    pub(crate) lost: BTreeSet<u32>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The archive has all of it.
    Nothing,
    /// These bytes of the last segment in an entry of the chain.
    Tail { segment: u32, offset: u64, len: u64 },
    /// These pieces, then a manifest that names them beside those it keeps.
    Commit { upload: Vec<Want>, keep: BTreeMap<u32, Vec<Piece>> },
    /// The log lacks what the archive has.
    Behind,
}

/// Bytes of a segment that are to become a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The step from what is archived to a snapshot of the log; a manifest in any case if `anew`.
pub(super) fn plan(head: &Head, log: &Snapshot, anew: bool) -> Step {
    let archived = &head.manifest;
    // A store that was written anew under another identity has none of its segments there.
    let same = archived.store == log.store;
    if same && lacks_end(head, log) {
        return Step::Behind;
    }
    if same && archived.mark == log.mark && names_same(head, log) && !anew {
        return Step::Nothing;
    }
    let emptied = log.mark.number == 0 && archived.mark.number > 0;
    if emptied || same && archived.mark.number > log.mark.number {
        return Step::Behind;
    }
    if same
        && !anew
        && let Some(tail) = tail(head, log)
    {
        return tail;
    }
    let (mut upload, mut keep) = (Vec::new(), BTreeMap::new());
    let lost = archived.segments.iter().filter(|(segment, _)| same && log.lost.contains(segment));
    keep.extend(lost.map(|(segment, pieces)| (*segment, pieces.clone())));
    for (segment, len) in &log.lens {
        let mut pieces = match same {
            true => archived.segments.get(segment).cloned().unwrap_or_default(),
            false => Vec::new(),
        };
        let have = |pieces: &[Piece]| pieces.last().map_or(0, Piece::end);
        if have(&pieces) > *len && *segment == log.mark.segment {
            return Step::Behind;
        }
        // A sealed segment that is shorter than it was is damaged here, and not there.
        // Small pieces are written again within a larger one that is at least as long as they were: each byte at most once for each
        // doubling, and a segment never ends in many pieces.
        while have(&pieces) < *len
            && let Some(last) = pieces.last().copied()
            && last.len < limits::ARCHIVE_PIECE_BYTES
            && last.len <= len - last.end()
        {
            pieces.pop();
        }
        let mut at = have(&pieces);
        while at < *len {
            let want =
                Want { segment: *segment, offset: at, len: (len - at).min(limits::ARCHIVE_PIECE_BYTES) };
            at += want.len;
            upload.push(want);
        }
        keep.insert(*segment, pieces);
    }
    Step::Commit { upload, keep }
}

/// Whether the newest segment that is archived, and all after it, are not in the log. The record that lets a segment go is in a later one, so this one was not
/// retired: it was lost, and what is appended now takes the places of what was acknowledged and is archived. (A mark cannot tell: the index remembers the number of a record that is gone.)
fn lacks_end(head: &Head, log: &Snapshot) -> bool {
    let newest = head.manifest.segments.keys().next_back();
    newest.is_some_and(|archived| log.lens.keys().next_back().is_none_or(|here| here < archived))
}

/// Whether the archive has the log's segments and no others. What the log has lost does not count.
fn names_same(head: &Head, log: &Snapshot) -> bool {
    head.manifest.segments.keys().filter(|segment| !log.lost.contains(segment)).eq(log.lens.keys())
}

/// A little more of the same segment, if that is all there is.
fn tail(head: &Head, log: &Snapshot) -> Option<Step> {
    let archived = &head.manifest;
    let (from, to) = (archived.mark, log.mark);
    let grown = u64::from(to.offset).checked_sub(u64::from(from.offset))?;
    let fits = from.segment == to.segment
        && grown > 0
        && grown <= limits::ARCHIVE_TAIL_BYTES
        && head.tails.len() < limits::ARCHIVE_TAILS
        && head.tail_bytes() + grown <= limits::ARCHIVE_TAILS_BYTES
        && names_same(head, log);
    fits.then_some(Step::Tail { segment: to.segment, offset: u64::from(from.offset), len: grown })
}

/// The snapshot's bytes that the archive lacks.
pub(super) fn missing_bytes(head: &Head, log: &Snapshot) -> u64 {
    let same = head.manifest.store == log.store;
    let have = |segment| if same { head.covered(segment) } else { 0 };
    log.lens.iter().map(|(segment, len)| len.saturating_sub(have(*segment))).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens to a log.
    #[derive(Debug, Clone)]
    enum Change {
        Append(u64),
        Retire(usize),
    }

    const SEGMENT: u64 = 40 * 1024 * 1024;

    fn change(log: &mut Snapshot, change: &Change) {
        match change {
            Change::Append(len) => {
                let len = len & !7;
                let offset = u64::from(log.mark.offset);
                let (segment, offset) = match offset + len > SEGMENT || log.mark.segment == 0 {
                    true => (log.mark.segment + 1, 1024),
                    false => (log.mark.segment, offset),
                };
                let offset = u32::try_from(offset + len).expect("short");
                log.mark = Mark { segment, offset, number: log.mark.number + 1 };
                log.lens.insert(segment, u64::from(offset));
            }
            Change::Retire(which) => {
                let sealed = log.lens.keys().copied().filter(|segment| *segment < log.mark.segment);
                if let Some(segment) = sealed.clone().nth(which % sealed.count().max(1)) {
                    log.lens.remove(&segment);
                }
            }
        }
    }

    /// Does the step as the uploader does; tells what it has written.
    fn carry_out(head: &mut Head, log: &Snapshot, step: Step) -> u64 {
        let mut written = 0;
        match step {
            Step::Nothing => {}
            Step::Behind => panic!("the log only grows"),
            Step::Tail { segment, offset, len } => {
                assert_eq!((segment, offset), (head.manifest.mark.segment, head.covered(segment)));
                let bytes = vec![0; len as usize].into();
                head.tails.push(super::super::manifest::Tail { offset, bytes });
                head.manifest.mark = log.mark;
                written += len;
            }
            Step::Commit { upload, mut keep } => {
                for want in upload {
                    let piece = Piece { offset: want.offset, len: want.len, hash: [0; 16] };
                    keep.get_mut(&want.segment).expect("its segment is kept").push(piece);
                    written += want.len;
                }
                head.manifest = super::super::manifest::Manifest {
                    store: log.store,
                    segments: keep,
                    mark: log.mark,
                    ..Default::default()
                };
                head.tails.clear();
            }
        }
        written
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let append =
            prop_oneof![8..4096u64, 8..200_000u64, 1_000_000..16_000_000u64].prop_map(Change::Append);
        let retire = (0..8usize).prop_map(Change::Retire);
        proptest::collection::vec(prop_oneof![8 => append, 1 => retire], 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn one_step_brings_the_archive_to_the_log(changes in changes(), every in 1..5usize) {
            let (mut head, mut log) = (Head::default(), Snapshot { store: [1; 16], ..Snapshot::default() });
            let (mut written, mut total) = (0, 0);
            for (index, done) in changes.iter().enumerate() {
                change(&mut log, done);
                total += match done { Change::Append(len) => len + 1024, Change::Retire(_) => 0 };
                if index % every > 0 { continue }
                let step = plan(&head, &log, false);
                written += carry_out(&mut head, &log, step);
                prop_assert_eq!(plan(&head, &log, false), Step::Nothing);
                prop_assert_eq!(missing_bytes(&head, &log), 0);
                for (segment, len) in &log.lens {
                    let pieces = &head.manifest.segments[segment];
                    let mut at = 0;
                    for piece in pieces {
                        prop_assert_eq!(piece.offset, at);
                        prop_assert!(piece.len <= limits::ARCHIVE_PIECE_BYTES);
                        at = piece.end();
                    }
                    let tails = if *segment == log.mark.segment { head.tail_bytes() } else { 0 };
                    prop_assert_eq!(at + tails, *len, "segment {} has no gap", segment);
                    prop_assert!(pieces.len() < 40, "{} pieces", pieces.len());
                }
            }
            // Once as a tail, and once more for each doubling from a tail to a piece.
            prop_assert!(written <= total * 18, "{written} written for {total}");
        }
    }

    #[test]
    fn a_log_that_lacks_what_is_archived_is_behind() {
        let mut log = Snapshot { store: [1; 16], ..Snapshot::default() };
        let mut head = Head::default();
        change(&mut log, &Change::Append(5000));
        let before = log.clone();
        change(&mut log, &Change::Append(5000));
        let step = plan(&head, &log, false);
        carry_out(&mut head, &log, step);
        assert_eq!(plan(&head, &before, false), Step::Behind);
        let anew = Snapshot { store: [2; 16], ..before };
        let Step::Commit { upload, keep } = plan(&head, &anew, false) else { panic!("written anew") };
        assert!(upload.len() == 1 && keep.values().all(Vec::is_empty), "nothing of the other store is kept");
    }

    #[test]
    fn what_the_log_has_lost_of_its_sealed_segments_stays_archived() {
        let mut log = Snapshot { store: [1; 16], ..Snapshot::default() };
        let mut head = Head::default();
        for _ in 0..5 {
            change(&mut log, &Change::Append(15_000_000));
        }
        let step = plan(&head, &log, false);
        carry_out(&mut head, &log, step);
        let before = head.manifest.segments.clone();
        assert!(before.len() == 3);
        log.lens.remove(&1);
        log.lost.insert(1);
        log.lens.insert(2, 5000);
        assert_eq!(plan(&head, &log, false), Step::Nothing);
        change(&mut log, &Change::Append(SEGMENT - 1_000_000));
        let step = plan(&head, &log, false);
        carry_out(&mut head, &log, step);
        assert!([1, 2].iter().all(|segment| head.manifest.segments[segment] == before[segment]));
        // One that may be missing goes there as well.
        log.lost.clear();
        let step = plan(&head, &log, false);
        carry_out(&mut head, &log, step);
        assert!(!head.manifest.segments.contains_key(&1));
    }
}
