//! Reading the log from a mark to its end: what is there, what was torn off, what is damaged.
//!
//! **Torn or damaged?** A crash leaves the records of the last group (everything written since the last `fdatasync`) in
//! any state: sectors may be on disk in any order, so an intact record may follow a torn one. Nothing of that group
//! was acknowledged, and cutting it off at its first torn record is right. Anything that was followed by an `fdatasync`
//! must still be intact, and a place where it is not is damage: it is reported, and what follows it is still read.
//!
//! The two are told apart by evidence that the record in question, number *n*, was durable once:
//! - there is a later segment (a segment is synced before the next one begins), or
//! - a later record of the same segment has an intact header that says `durable >= n`, or
//! - the index holds it (the index is told of a record only after its `fdatasync`): the caller passes `known`.
//!
//! Without any of them *n* belongs to the last group and is torn. The one thing this cannot see is damage to the very last
//! group when the index was lost as well; nothing on the disk tells it from a crash before the `fdatasync`.
//!
//! **Missing or retired?** A segment of which nothing is needed is removed after a `retired` record that names it is durable. The record
//! is always in a later segment, so a hole is judged at the end.
//!
//! The price is one look at the reserved rest of the last segment at every open.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use prost::Message;

use super::{
    Damage, DamageKind, LogError, Mark, Place,
    disk::{Disk, SegmentFile},
    entry::{Kind, RetiredBody},
    frame::{Frame, LOG_VERSION, RECORD_HEADER_BYTES, RECORDS_START, SegmentHeader},
    outline::Outline,
    part::absent,
};
use crate::limits;

/// One intact record.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub place: Place,
    /// Its number.
    pub number: u64,
    /// The tag of its kind.
    pub kind: u8,
    /// Whether its body is encrypted.
    pub encrypted: bool,
    /// It is of an outline, and its body only what the catalogue takes from it.
    pub outlined: bool,
    /// Its body, as it is in the log.
    pub body: Bytes,
}

/// Where the log ends and how it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The last segment, 0 if there is none.
    pub segment: u32,
    /// Where its last record ends.
    pub offset: u64,
    /// What is before this was durable when somebody said so; what is behind it has only been read.
    pub proven: u64,
    /// The number of the last record there ever was.
    pub number: u64,
    /// The segment's header if it takes more records; otherwise a new segment follows.
    pub continues: Option<SegmentHeader>,
}

/// What a scan has seen besides the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The end of the log.
    pub end: End,
    /// Whether a torn tail has to be cut off.
    pub torn: bool,
    /// A segment that was being created and has nothing in it; it has to be removed.
    pub unborn: Option<u32>,
    /// What is damaged, at most [`limits::DAMAGE_LISTED`] places.
    pub damage: Vec<Damage>,
    /// How many places are.
    pub damaged: u64,
}

/// Reads every record after `from` (from the oldest segment if `None`) and shows it to `visit`, in order. `known` is the
/// number of a record that is known to have been durable.
pub fn scan(
    disk: &dyn Disk,
    store: [u8; 16],
    from: Option<Mark>,
    known: u64,
    visit: &mut dyn FnMut(Found),
) -> Result<Outcome, LogError> {
    read(disk, store, from, known, None, visit)
}

/// How far a reading of a log goes that is being written.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// Nothing behind it is looked at.
    pub until: Mark,
    /// Once true, the rest is left out, and what is told of it means nothing.
    pub stop: &'a AtomicBool,
}

/// [`scan`] of everything up to a mark that is durable, beside a writer. What the file system cannot read is damage here, and
/// not an end of the reading; at an open it must be one, because a tail that is not readable now may be readable later.
pub fn scan_until(
    disk: &dyn Disk,
    store: [u8; 16],
    bound: Bound<'_>,
    visit: &mut dyn FnMut(Found),
) -> Result<Outcome, LogError> {
    read(disk, store, None, bound.until.number, Some(bound), visit)
}

/// Reads one segment that takes no more records, whether everything in it is as it was written.
pub fn read_sealed(
    disk: &dyn Disk,
    store: [u8; 16],
    segment: u32,
    visit: &mut dyn FnMut(Found),
) -> Result<bool, LogError> {
    let mut scan = Scan::new(disk, store, visit);
    scan.segment(segment, None, true, false)?;
    Ok(scan.out.damaged == 0 && scan.broken_at.is_some() && scan.whole_at_end)
}

fn read(
    disk: &dyn Disk,
    store: [u8; 16],
    from: Option<Mark>,
    known: u64,
    bound: Option<Bound<'_>>,
    visit: &mut dyn FnMut(Found),
) -> Result<Outcome, LogError> {
    let mut segments = disk.list().map_err(LogError::io("list", 0))?;
    segments.sort_unstable();
    let first = from.map_or(0, |mark| mark.segment);
    segments.retain(|segment| bound.is_none_or(|bound| *segment <= bound.until.segment));
    segments.retain(|segment| *segment >= first);
    // A verification reads the content, too.
    let outlines = bound.is_none();
    let mut scan = Scan { known, bound, outlines, ..Scan::new(disk, store, visit) };
    scan.out.end = End {
        segment: first,
        offset: from.map_or(RECORDS_START, |mark| u64::from(mark.offset)),
        proven: from.map_or(RECORDS_START, |mark| u64::from(mark.offset)),
        number: from.map_or(0, |mark| mark.number),
        continues: None,
    };
    let last = segments.last().copied();
    if let Some(oldest) = segments.first().filter(|_| from.is_none()) {
        scan.holes.push(Hole { segments: 1..*oldest, missing: None, torn: false });
    }
    for (index, segment) in segments.into_iter().enumerate() {
        let start = if index == 0 { from } else { None };
        scan.segment(segment, start, index == 0 && from.is_none(), Some(segment) == last)?;
    }
    scan.finish();
    Ok(scan.out)
}

/// Segments that are not there, and the damage that it is if they should be.
struct Hole {
    segments: std::ops::Range<u32>,
    missing: Option<Damage>,
    /// The segment before does not end where its file does, so that something is missing whatever was retired.
    torn: bool,
}

struct Scan<'a> {
    disk: &'a dyn Disk,
    store: [u8; 16],
    known: u64,
    bound: Option<Bound<'a>>,
    visit: &'a mut dyn FnMut(Found),
    /// A segment that is not here is read from its outline.
    outlines: bool,
    /// Where the readable part of an earlier segment ended before its end.
    broken_at: Option<(u32, u64)>,
    /// And that was the end of its file.
    whole_at_end: bool,
    /// Where segments are not there.
    holes: Vec<Hole>,
    /// What the newest record of this kind says.
    retired: RetiredBody,
    out: Outcome,
}

impl<'a> Scan<'a> {
    /// At the beginning of a log.
    fn new(disk: &'a dyn Disk, store: [u8; 16], visit: &'a mut dyn FnMut(Found)) -> Self {
        let end =
            End { segment: 0, offset: RECORDS_START, proven: RECORDS_START, number: 0, continues: None };
        Self {
            disk,
            store,
            known: 0,
            bound: None,
            outlines: false,
            visit,
            broken_at: None,
            whole_at_end: true,
            holes: Vec::new(),
            retired: RetiredBody::default(),
            out: Outcome { end, torn: false, unborn: None, damage: Vec::new(), damaged: 0 },
        }
    }

    fn segment(
        &mut self,
        segment: u32,
        from: Option<Mark>,
        oldest: bool,
        last: bool,
    ) -> Result<(), LogError> {
        let outline = || self.disk.outline(segment).map_err(LogError::io("read the outline of", segment));
        if self.outlines
            && let Some(outline) = outline()?
        {
            return self.outlined(segment, from, oldest, &outline);
        }
        let file = self.disk.open(segment).map_err(LogError::io("open", segment))?;
        let mut len = file.len().map_err(LogError::io("read", segment))?;
        if let Some(bound) = self.bound.filter(|bound| bound.until.segment == segment) {
            len = len.min(u64::from(bound.until.offset));
        }
        let tolerant = self.bound.is_some();
        let mut window = Window { file, segment, len, tolerant, start: 0, bytes: Vec::new() };
        let page = window.get(0, RECORDS_START.min(len) as usize)?.to_vec();
        let Some(header) = SegmentHeader::decode(&page) else {
            // Records are written only after the header is durable.
            if last && self.out.end.number >= self.known && window.is_zero_from(RECORDS_START)? {
                self.out.unborn = Some(segment);
                return Ok(());
            }
            self.report(segment, 0, DamageKind::Header);
            self.out.end = End { segment, offset: len, continues: None, ..self.out.end };
            return Ok(());
        };
        self.check(segment, &header)?;
        let mut at = RECORDS_START;
        match from {
            Some(mark) => at = u64::from(mark.offset),
            None if oldest => self.out.end.number = header.first - 1,
            None => self.expect_first(segment, header.first),
        }
        self.records(&mut window, &header, at, last)
    }

    /// A sealed segment, all of whose records were intact.
    fn outlined(
        &mut self,
        segment: u32,
        from: Option<Mark>,
        oldest: bool,
        outline: &Outline,
    ) -> Result<(), LogError> {
        let header = outline.header();
        self.check(segment, header)?;
        match from {
            Some(_) => {}
            None if oldest => self.out.end.number = header.first - 1,
            None => self.expect_first(segment, header.first),
        }
        let from = from.map_or(0, |mark| mark.offset);
        for found in outline.records().filter(|found| found.place.offset >= from) {
            if found.kind == Kind::Retired as u8 {
                self.retired = RetiredBody::decode(found.body.clone()).unwrap_or_default();
            }
            self.out.end.number = found.number;
            (self.visit)(found);
        }
        let len = outline.len();
        self.broken_at = Some((segment, len));
        self.whole_at_end = true;
        self.out.end = End { segment, offset: len, continues: None, ..self.out.end };
        Ok(())
    }

    /// Whether a segment is one of this log, and of a version that is read here.
    fn check(&self, segment: u32, header: &SegmentHeader) -> Result<(), LogError> {
        if header.version > LOG_VERSION {
            return Err(LogError::Version { segment, found: header.version });
        }
        match header.segment == segment && header.store == self.store {
            true => Ok(()),
            false => Err(LogError::Foreign(segment)),
        }
    }

    /// The last segment ended with the record before this one, or there is something missing between them.
    fn expect_first(&mut self, segment: u32, first: u64) {
        let expected = self.out.end.number + 1;
        let broken_at = self.broken_at.take();
        let (at, offset) = broken_at.unwrap_or((segment - 1, 0));
        let what = DamageKind::Missing { first: expected, last: first.saturating_sub(1) };
        let missing = (first > expected).then_some(Damage { segment: at, offset, what });
        if segment > self.out.end.segment + 1 {
            let segments = self.out.end.segment + 1..segment;
            self.holes.push(Hole { segments, missing, torn: !self.whole_at_end });
        } else if let Some(Damage { segment, offset, what }) = missing {
            self.report(segment, offset, what);
        }
        self.out.end.number = first - 1;
    }

    fn records(
        &mut self,
        window: &mut Window,
        header: &SegmentHeader,
        mut at: u64,
        last: bool,
    ) -> Result<(), LogError> {
        let (segment, proven) = (window.segment, at);
        loop {
            if self.bound.is_some_and(|bound| bound.stop.load(Ordering::Relaxed)) {
                return Ok(());
            }
            let number = self.out.end.number + 1;
            let frame = window.frame(at, header.salt)?.filter(|frame| frame.number == number);
            if let Some(frame) = frame {
                let body = window.body(at, &frame)?;
                if let Some(body) = body {
                    let place = Place { segment, offset: at as u32, len: frame.body_len };
                    if frame.kind == Kind::Retired as u8 {
                        self.retired = RetiredBody::decode(body.clone()).unwrap_or_default();
                    }
                    let Frame { kind, encrypted, .. } = frame;
                    (self.visit)(Found { place, number, kind, encrypted, outlined: false, body });
                    at += frame.stride();
                    self.out.end.number = number;
                    continue;
                }
            }
            let later = window.later(at + 8, header.salt)?;
            let was_durable = !last || self.known >= number || later.durable >= number;
            if !was_durable {
                self.out.torn = later.next.is_some() || !window.is_zero(at, RECORD_HEADER_BYTES)?;
                self.out.end =
                    End { segment, offset: at, proven, number: number - 1, continues: Some(*header) };
                return Ok(());
            }
            match (frame, later.next) {
                (Some(frame), _) => {
                    self.report(segment, at, DamageKind::Body(number));
                    at += frame.stride();
                    self.out.end.number = number;
                }
                (None, Some((next_at, next))) if next.number > number => {
                    self.report(segment, at, DamageKind::Missing { first: number, last: next.number - 1 });
                    at = next_at;
                    self.out.end.number = next.number - 1;
                }
                (None, Some((next_at, next))) => {
                    // A number that was seen before: nothing ever writes that.
                    self.report(segment, next_at, DamageKind::Nonsense(next.number));
                    at = next_at + next.stride();
                }
                (None, None) => {
                    self.broken_at = Some((segment, at));
                    self.whole_at_end = at == window.len;
                    self.out.end = End { segment, offset: at, continues: None, ..self.out.end };
                    return Ok(());
                }
            }
        }
    }

    /// What is not there and was not retired, and durable records beyond the end of what is there, have gone.
    fn finish(&mut self) {
        for Hole { segments, missing, torn } in std::mem::take(&mut self.holes) {
            let gone: Vec<u32> = segments.filter(|segment| !self.retired.contains(*segment)).collect();
            gone.iter().for_each(|segment| self.report(*segment, 0, DamageKind::File));
            if let Some(Damage { segment, offset, what }) = missing.filter(|_| torn || !gone.is_empty()) {
                self.report(segment, offset, what);
            }
        }
        let end = self.out.end;
        if self.known > end.number {
            let (segment, offset) = self.broken_at.take().unwrap_or((end.segment, end.offset));
            self.report(segment, offset, DamageKind::Missing { first: end.number + 1, last: self.known });
            self.out.end = End { number: self.known, continues: None, ..end };
        }
    }

    fn report(&mut self, segment: u32, offset: u64, what: DamageKind) {
        self.out.damaged += 1;
        if self.out.damage.len() < limits::DAMAGE_LISTED {
            self.out.damage.push(Damage { segment, offset, what });
        }
    }
}

/// What lies behind a place where the scan cannot go on.
struct Later {
    /// The next intact header.
    next: Option<(u64, Frame)>,
    /// The highest number that any of them says was durable.
    durable: u64,
}

/// A segment's bytes, read in large pieces.
struct Window {
    file: Arc<dyn SegmentFile>,
    segment: u32,
    len: u64,
    /// What cannot be read is zeros.
    tolerant: bool,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// `count` bytes from `at`, fewer at the end of the file.
    fn get(&mut self, at: u64, count: usize) -> Result<&[u8], LogError> {
        let count = count.min(self.len.saturating_sub(at) as usize);
        if count == 0 {
            return Ok(&[]);
        }
        let end = self.start + self.bytes.len() as u64;
        if at < self.start || at + count as u64 > end {
            let read = count.max(limits::WRITE_BUFFER_BYTES).min(self.len.saturating_sub(at) as usize);
            self.bytes.resize(read, 0);
            self.start = at;
            match self.file.read_at(&mut self.bytes, at) {
                // What may come back is no damage.
                Err(error) if self.tolerant && absent(&error).is_none_or(|absent| absent.lost) => {
                    self.read_sectors(at);
                }
                other => other.map_err(LogError::io("read", self.segment))?,
            }
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + count])
    }

    /// Reads as much of the window as can be read.
    fn read_sectors(&mut self, at: u64) {
        for (index, sector) in self.bytes.chunks_mut(limits::SECTOR_BYTES).enumerate() {
            if self.file.read_at(sector, at + (index * limits::SECTOR_BYTES) as u64).is_err() {
                sector.fill(0);
            }
        }
    }

    fn frame(&mut self, at: u64, salt: u64) -> Result<Option<Frame>, LogError> {
        Ok(Frame::decode(self.get(at, RECORD_HEADER_BYTES)?, salt))
    }

    /// The record's body; `None` if it is not what was written.
    fn body(&mut self, at: u64, frame: &Frame) -> Result<Option<Bytes>, LogError> {
        let body = self.get(at + RECORD_HEADER_BYTES as u64, frame.body_len as usize)?;
        Ok(frame.covers(body).then(|| Bytes::copy_from_slice(body)))
    }

    fn later(&mut self, from: u64, salt: u64) -> Result<Later, LogError> {
        let mut later = Later { next: None, durable: 0 };
        let mut at = from;
        while let Some((found, frame)) = self.next_header(at, salt)? {
            later.next.get_or_insert((found, frame));
            later.durable = later.durable.max(frame.durable);
            at = found + frame.stride();
        }
        Ok(later)
    }

    /// The first intact header at or after `from`; records begin at multiples of 8.
    fn next_header(&mut self, from: u64, salt: u64) -> Result<Option<(u64, Frame)>, LogError> {
        let mut at = from;
        while at + RECORD_HEADER_BYTES as u64 <= self.len {
            let salt_bytes = salt.to_le_bytes();
            let bytes = self.get(at, limits::WRITE_BUFFER_BYTES)?;
            let Some(hit) = bytes.chunks_exact(8).position(|word| word == salt_bytes) else {
                at += (bytes.len() / 8 * 8).max(8) as u64;
                continue;
            };
            at += 8 * hit as u64;
            if let Some(frame) = self.frame(at, salt)? {
                return Ok(Some((at, frame)));
            }
            at += 8;
        }
        Ok(None)
    }

    fn is_zero(&mut self, at: u64, count: usize) -> Result<bool, LogError> {
        Ok(self.get(at, count)?.iter().all(|byte| *byte == 0))
    }

    fn is_zero_from(&mut self, from: u64) -> Result<bool, LogError> {
        let mut at = from;
        while at < self.len {
            let bytes = self.get(at, limits::WRITE_BUFFER_BYTES)?;
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }
}
