//! Making a damaged log whole again, in place: with bytes that somebody else still has, and by closing places that nobody needs.
//!
//! A log is never written before its end but here, and only where it is damaged.
//!
//! - **Bytes of the archive** are a prefix of this log: the caller has seen that the archive is this store's own. Yet they are not believed byte by byte, because what is read
//!   wrongly once is uploaded wrongly. What is taken are records that are intact there, each under the segment's own salt, in places where no intact record is here.
//!   So no record that can be read is ever written over, nothing becomes a record that the writer did not write there, and nothing is touched behind the durable end, where the writer writes.
//! - **A scar** is the record of a chunk whose body is lost, after the chunk was written again elsewhere: the index named this place for it, and now names
//!   another one. The record's header is intact, so number and length are known: it becomes an `ops` record of as many zeros, which means nothing to anybody
//!   (no commit names it). The price: a lost body that no index ever named stays as it is, and is told as touching no point.
//!
//! A segment that was retired is neither mended nor made again, and none is retired meanwhile.
//!
//! # A crash in between
//! - **While bytes of the archive are written**: the ranges written held no intact record before, so whatever mixture of sectors is left, no intact record is lost; the
//!   records that arrived whole are this log's. The rest is damage as before, and the next repair goes on. All of it is before the durable end. What proves that to an open (the index, a later
//!   segment, `durable` in a later record) is not touched, so the rest is not taken for a torn tail more than it was.
//! - **A segment that is made again** has its name before its content: until then it is one without a header, which is damage as its absence was. Only one before the segment
//!   of the durable end is made: that one may still be written, by a writer whose file has no name.
//! - **While a chunk comes again**: it is an append like any other. The index names the new place only when that is durable, and a log that is read from its beginning takes the later one of two.
//! - **While a scar is closed**: first the body becomes zeros and is synced. Until then the header is what it was, and the body is not what it says. Then the twelve bytes of
//!   the header that differ are written (kind, flags, the two checksums), and the record is one or the other. In one place of 64 they lie in two sectors; if only one of these arrives, the header
//!   is lost too: one record is missing there, the next one is found by the salt. Nothing else was in it. A later record is known to be durable by then, with `durable` not below the scar's
//!   number: it is the chunk's new one. So the place is damage even to an open without an index, and never cuts off what follows.
//!
//! An index that says other things than the log is not relied on: then no scar is closed.

use std::{collections::BTreeSet, ops::Range};

use super::Fault;
use crate::{
    log::{
        Damage, DamageKind, LogError,
        disk::SegmentFile,
        entry::Kind,
        frame::{Frame, RECORD_HEADER_BYTES, RECORDS_START, SegmentHeader, intact_record, intact_records},
    },
    store::{Store, StoreError},
};

/// Where in a record's header the bytes begin that tell a closed one from what it was.
const DIFFERS_FROM: usize = 28;

/// What of a log can be mended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mending {
    /// Segments with any damage.
    pub(crate) segments: BTreeSet<u32>,
    /// Where bodies are lost that the index names for chunks.
    scars: BTreeSet<(u32, u32)>,
}

impl Mending {
    /// To be asked before anything is mended.
    pub(crate) fn of(store: &Store, faults: &[Fault]) -> Result<Self, StoreError> {
        let (mut mending, mut blind) = (Self::default(), false);
        for fault in faults {
            mending.segments.extend(fault.place().map(|(segment, _)| segment));
            match fault {
                Fault::Log(Damage { segment, offset, what: DamageKind::Body(_) }) => {
                    mending.scars.extend(u32::try_from(*offset).ok().map(|offset| (*segment, offset)));
                }
                Fault::Chunk { place, .. } => _ = mending.scars.insert((place.segment, place.offset)),
                Fault::Index { .. } | Fault::Locked { .. } => blind = true,
                _ => {}
            }
        }
        mending.scars = match blind || mending.scars.is_empty() {
            true => BTreeSet::new(),
            false => store.chunks_at(&mending.scars)?,
        };
        Ok(mending)
    }

    /// Closes the scars of chunks that are elsewhere now; tells how many. Whoever has an archive must not: its copy of the
    /// segment would be another one from then on.
    pub(crate) fn close_scars(&self, store: &Store) -> Result<u64, StoreError> {
        if self.scars.is_empty() {
            return Ok(0);
        }
        let mut closed = 0;
        let needed = store.chunks_at(&self.scars)?;
        for (segment, offset) in self.scars.difference(&needed) {
            closed += u64::from(close(store, *segment, *offset)?);
        }
        Ok(closed)
    }
}

/// Makes the record of a lost chunk one that means nothing; whether it did.
fn close(store: &Store, segment: u32, offset: u32) -> Result<bool, StoreError> {
    let io = |what| LogError::io(what, segment);
    let _stays = store.keep_segments();
    if store.is_retired(segment)? {
        return Ok(false);
    }
    let file = store.log_disk().open(segment).map_err(io("open"))?;
    let mut page = vec![0; RECORDS_START as usize];
    file.read_at(&mut page, 0).map_err(io("read"))?;
    let mut header = [0; RECORD_HEADER_BYTES];
    file.read_at(&mut header, u64::from(offset)).map_err(io("read"))?;
    let Some(salt) = SegmentHeader::decode(&page).map(|header| header.salt) else { return Ok(false) };
    let Some(lost) = Frame::decode(&header, salt).filter(|frame| frame.kind == Kind::Chunk as u8) else {
        return Ok(false);
    };
    let body = vec![0; lost.body_len as usize];
    let empty = Frame::of(lost.number, lost.durable, Kind::Ops as u8, &[&body]).encode(salt);
    let differs = &empty[DIFFERS_FROM..];
    let at = u64::from(offset);
    // In this order, each durable before the next: see the module.
    let write = |bytes: &[u8], at| file.write_at(bytes, at).and_then(|()| file.sync());
    write(&body, at + RECORD_HEADER_BYTES as u64).map_err(io("mend"))?;
    write(differs, at + DIFFERS_FROM as u64).map_err(io("mend"))?;
    tracing::info!(segment, offset, record = lost.number, "place of a lost chunk closed");
    Ok(true)
}

impl Store {
    /// Writes those records of a copy of a segment that are intact there and not here, up to the durable end; tells how many bytes. The caller is certain
    /// that the copy was this log's; what of it is missing is zeros.
    pub(crate) fn mend(&self, segment: u32, mut copy: Vec<u8>) -> Result<u64, StoreError> {
        let io = |what| LogError::io(what, segment);
        let _stays = self.keep_segments();
        let Some(mark) = self.durable_mark() else { return Ok(0) };
        let Some(header) = SegmentHeader::decode(&copy).filter(|header| header.segment == segment) else {
            return Ok(0);
        };
        if segment > mark.segment
            || self.is_retired(segment)?
            || self.log_id()?.is_some_and(|id| id != header.store)
        {
            return Ok(0);
        }
        let file = match self.log_disk().open(segment) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && segment < mark.segment => {
                let file = self.log_disk().create(segment).map_err(io("create"))?;
                self.log_disk().sync_names().map_err(io("create"))?;
                file
            }
            other => other.map_err(io("open"))?,
        };
        if segment == mark.segment {
            copy.truncate(mark.offset as usize);
        }
        // One of the two may be damaged in the copy.
        copy[..RECORDS_START as usize].copy_from_slice(&header.encode());
        let lost = lost(&*file, &header, &copy);
        for range in &lost {
            file.write_at(&copy[range.clone()], range.start as u64).map_err(io("mend"))?;
        }
        let written = lost.iter().map(|range| range.len() as u64).sum();
        if written > 0 {
            file.sync().map_err(io("mend"))?;
            self.forget_segment(segment);
            tracing::warn!(segment, bytes = written, "damaged bytes of the log written again");
        }
        Ok(written)
    }

    /// Whether a chunk can be read and is what its id says.
    pub(crate) fn is_whole(&self, tenant: &str, id: tidelock_proto::ChunkId) -> bool {
        self.read_content(tenant, id).is_ok()
    }
}

/// What of a segment is intact in the copy and not in the file, in runs as long as they can be: a page that cannot be read can only be written whole.
fn lost(file: &dyn SegmentFile, header: &SegmentHeader, copy: &[u8]) -> Vec<Range<usize>> {
    let read = |range: &Range<usize>| {
        let mut bytes = vec![0; range.len()];
        file.read_at(&mut bytes, range.start as u64).is_ok().then_some(bytes)
    };
    let start = RECORDS_START as usize;
    let page = read(&(0..start));
    if page.as_deref().and_then(SegmentHeader::decode).is_some_and(|there| there != *header) {
        return Vec::new();
    }
    let mut lost: Vec<Range<usize>> = Vec::new();
    if page.is_none_or(|page| page != copy[..start]) {
        lost.push(0..start);
    }
    for (offset, frame) in intact_records(&copy[start..], header.salt) {
        let at = start + offset;
        let record = at..copy.len().min(at + frame.stride() as usize);
        if read(&record).is_some_and(|there| intact_record(&there, header.salt).is_some()) {
            continue;
        }
        match lost.last_mut().filter(|last| last.end == record.start) {
            Some(last) => last.end = record.end,
            None => lost.push(record),
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{fs, os::unix::fs::FileExt, path::Path};

    use tidelock_proto::ChunkId;

    use super::*;
    use crate::{
        store::{
            Batch, Record, StoreOptions,
            tests::harness::{Source, key_of, volume},
        },
        verify::{Broken, examine},
    };

    fn options(keyed: &[&str]) -> StoreOptions {
        let keys = key_of(keyed);
        StoreOptions { segment_bytes: 64 * 1024, reserve_bytes: 0, keys, ..StoreOptions::default() }
    }

    fn segment(dir: &Path, number: u32) -> std::path::PathBuf {
        dir.join(format!("log/{number:010}.seg"))
    }

    fn flip(path: &Path, at: u64) {
        let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    }

    fn broken(store: &Store) -> (u64, Broken) {
        let (summary, broken) = examine(store, &|_| true, &mut |_| true).unwrap().unwrap();
        (summary.findings, broken)
    }

    /// A store of 30 commits, and a chunk of the first of them as it was written.
    fn store(dir: &Path, keyed: &[&str]) -> (Store, Source, Record, ChunkId) {
        let store = Store::open(dir, options(keyed)).unwrap();
        let (mut source, mut first) = (Source::new(volume("t/a"), 3), None);
        for _ in 0..30 {
            let batch = source.commit();
            first.get_or_insert_with(|| batch.records[0].clone());
            store.append_and_wait(batch).unwrap();
        }
        let first = first.unwrap();
        let Record::Chunk(chunk) = &first else { panic!("{first:?}") };
        let id = chunk.id;
        (store, source, first, id)
    }

    #[test]
    fn a_chunk_that_was_lost_and_written_again_leaves_no_trace() {
        lose_and_write_again(&[]);
        lose_and_write_again(&["t"]);
    }

    fn lose_and_write_again(keyed: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let (store, source, first, id) = store(dir.path(), keyed);
        let place = store.chunk_place("t", &id).unwrap().unwrap();
        flip(&segment(dir.path(), place.segment), u64::from(place.offset) + 40 + 60);
        let (findings, found) = broken(&store);
        assert_eq!((findings, &found.chunks[&source.volume]), (1, &vec![id]));
        let mending = Mending::of(&store, &found.faults).unwrap();
        assert_eq!(mending.close_scars(&store).unwrap(), 0, "it is where the index has the chunk");
        assert!(!store.is_whole("t", id));
        store.append_and_wait(Batch::of(first)).unwrap();
        assert!(store.is_whole("t", id));
        assert_eq!(broken(&store).0, 1, "the place is still told");
        assert_eq!(mending.close_scars(&store).unwrap(), 1);
        assert_eq!(broken(&store).0, 0);
        source.check_all(&store);
        drop(store);
        let store = Store::rebuild(dir.path(), options(keyed)).unwrap();
        assert_eq!(broken(&store).0, 0, "the log alone says the same");
        source.check_all(&store);
        assert_eq!(mending.close_scars(&store).unwrap(), 0, "there is nothing left to close");
    }

    #[test]
    fn bytes_of_a_segment_are_written_again_where_they_differ() {
        let dir = tempfile::tempdir().unwrap();
        let (store, source, ..) = store(dir.path(), &[]);
        let mark = store.durable_mark().unwrap();
        assert!(mark.segment > 1);
        for number in [1, mark.segment] {
            let path = segment(dir.path(), number);
            let right = fs::read(&path).unwrap();
            assert_eq!(store.mend(number, right.clone()).unwrap(), 0);
            for harm in ["flip", "zero", "truncate", "remove"] {
                let mut bad = right.clone();
                match harm {
                    "flip" => bad[2000] ^= 1,
                    "zero" => bad[1024..5000].fill(0),
                    _ => bad.truncate(3000),
                }
                // As a disk would: the file is the same.
                match harm {
                    "remove" if number < mark.segment => fs::remove_file(&path).unwrap(),
                    _ => {
                        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                        file.write_all_at(&bad, 0).unwrap();
                        file.set_len(bad.len() as u64).unwrap();
                    }
                }
                assert!(
                    broken(&store).0 > 0 || harm == "remove",
                    "{harm} {number}: the test damages nothing"
                );
                assert!(store.mend(number, right.clone()).unwrap() > 0, "{harm} {number}");
                assert_eq!(broken(&store).0, 0, "{harm} {number}");
                let end = if number < mark.segment { right.len() } else { mark.offset as usize };
                assert!(fs::read(&path).unwrap()[..end] == right[..end], "{harm} {number}");
            }
        }
        source.check_all(&store);
    }

    #[test]
    fn an_index_made_from_a_damaged_log_is_made_anew_once_that_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (first, source, ..) = store(dir.path(), &[]);
        drop(first);
        let path = segment(dir.path(), 1);
        let right = fs::read(&path).unwrap();
        let mut bad = right.clone();
        bad[5000..20_000].fill(0);
        fs::write(&path, bad).unwrap();
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let open = || Store::open(dir.path(), options(&[])).unwrap();
        let points = |store: &Store| store.points(&source.volume, None).unwrap().len();
        let damaged = open();
        assert!(points(&damaged) < source.points.len());
        assert!(damaged.mend(1, right).unwrap() > 0);
        let (_, left) = broken(&damaged);
        assert!(left.faults.iter().all(|fault| matches!(fault, Fault::Index { .. })), "{left:?}");
        assert!(!left.faults.is_empty() && points(&damaged) < source.points.len());
        damaged.forget_index().unwrap();
        drop(damaged);
        let whole = open();
        assert!(whole.opened().rebuilt);
        assert_eq!(broken(&whole).0, 0);
        source.check_all(&whole);
        drop(whole);
        assert!(!open().opened().rebuilt, "once");
    }

    #[test]
    fn what_is_damaged_in_the_copy_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, source, first, id) = store(dir.path(), &[]);
        let place = store.chunk_place("t", &id).unwrap().unwrap();
        let path = segment(dir.path(), place.segment);
        let right = fs::read(&path).unwrap();
        let salt = SegmentHeader::decode(&right).unwrap().salt;
        let start = RECORDS_START as usize;
        let records: Vec<_> = intact_records(&right[start..], salt).map(|(at, _)| start + at).collect();
        let (lost, both) = (records[3], records[5]);
        for at in [lost, both] {
            flip(&path, at as u64 + 50);
        }
        let mut copy = right.clone();
        copy[10] ^= 1;
        copy[both + 8] ^= 1;
        for at in records.iter().filter(|at| **at != lost && **at != both) {
            copy[at + 41] ^= 1;
        }
        assert!(store.mend(place.segment, copy).unwrap() > 0);
        let mut expected = right.clone();
        expected[both + 50] ^= 0x40;
        assert!(fs::read(&path).unwrap() == expected, "one record came, and nothing else changed");
        assert!(store.mend(place.segment, right.clone()).unwrap() > 0);
        assert!(fs::read(&path).unwrap() == right);
        source.check_all(&store);

        // A closed place stays closed.
        flip(&path, u64::from(place.offset) + 60);
        let mending = Mending::of(&store, &broken(&store).1.faults).unwrap();
        store.append_and_wait(Batch::of(first)).unwrap();
        assert_eq!(mending.close_scars(&store).unwrap(), 1);
        assert_eq!(store.mend(place.segment, right.clone()).unwrap(), 0);

        // And nothing of another log is taken.
        fs::write(&path, vec![0; right.len()]).unwrap();
        let mut header = SegmentHeader::decode(&right).unwrap();
        header.store = [7; 16];
        let other = [header.encode(), right[start..].to_vec()].concat();
        assert_eq!(store.mend(place.segment, other).unwrap(), 0);
        assert_eq!(store.mend(place.segment + 1, right).unwrap(), 0);
        assert_eq!(store.mend(place.segment, vec![0; 50]).unwrap(), 0);
    }
}
