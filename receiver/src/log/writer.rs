//! The appending end of the log.
//!
//! Space is reserved segment by segment, so that no append changes a file's length, and a record is on disk after
//! one `fdatasync`. A segment is sealed (cut to its length and synced) before the next one gets its header, and the next one's
//! header and name are synced before its first record: so only the last segment can ever be torn.
//!
//! **A full disk** is noticed before anything is written: a segment that does not fit, beside the reserve, is not begun, and the log
//! stays as it is. The reserve is not for sale but to [`LogWriter::spend_reserve`].
//!
//! After any other error the state of the file is unknown, in particular after a failed `fdatasync` (the kernel may have dropped
//! the pages): the caller must not use the writer again.

use std::{io, sync::Arc};

use super::{
    LogError, Mark, Place,
    ahead::Ahead,
    disk::{Disk, SegmentFile},
    entry::Kind,
    frame::{Frame, LOG_VERSION, RECORDS_START, SegmentHeader, stride},
};
use crate::{
    limits,
    vault::{Cipher, Context},
};

/// What does not change while a log is open.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// The store's identity, in every segment.
    pub store: [u8; 16],
    /// Size of a segment, in bytes.
    pub segment_bytes: u64,
    /// Bytes of the disk that a new segment must leave free.
    pub reserve_bytes: u64,
    /// Bytes that the log may have, if there is a limit; promotions and upkeep may use some more.
    pub cap_bytes: Option<u64>,
    /// Gives every segment its salt.
    pub salt: fn() -> u64,
}

/// The appending end.
pub struct LogWriter {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    open: Option<Open>,
    /// Number of the newest segment, 0 before the first.
    segment: u32,
    /// The last record that was appended.
    number: u64,
    /// The last record that is durable.
    durable: u64,
    /// Where the last record of a segment that takes no more ends.
    sealed_at: u64,
    /// What of the reserve may be used.
    spend: Spend,
    pub(super) ahead: Ahead,
    /// Bytes handed to the file system since the last sync.
    grown: u64,
}

/// How much of the reserve a new segment may use: of the disk's, and as much beyond the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spend {
    /// None of it.
    Nothing,
    /// Half of it.
    Half,
    /// Three quarters of it.
    Most,
    /// All of it.
    All,
}

impl Spend {
    /// Bytes of a reserve that may be used.
    pub fn of(self, reserve_bytes: u64) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Half => reserve_bytes / 2,
            Self::Most => reserve_bytes / 4 * 3,
            Self::All => reserve_bytes,
        }
    }
}

/// The reserve beyond a cap of this many bytes, where the disk's is so large.
pub fn reserve_beyond(cap_bytes: u64, reserve_bytes: u64) -> u64 {
    reserve_bytes.min(cap_bytes / limits::CAP_RESERVE)
}

/// The segment that is being appended to.
struct Open {
    file: Arc<dyn SegmentFile>,
    salt: u64,
    /// Where the next record goes.
    at: u64,
    /// Bytes for which there is space.
    capacity: u64,
    /// It is to take no more records.
    ended: bool,
    /// Records not yet handed to the file system; they end at `at`.
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Continues after the end that a scan has found. The rest of the segment is erased first: a stale record there, of
    /// a torn group, must never be found behind a new one.
    pub fn resume(disk: Arc<dyn Disk>, options: LogOptions, end: super::scan::End) -> Result<Self, LogError> {
        let mut writer = Self {
            ahead: Ahead::new(disk.clone()),
            grown: 0,
            disk,
            options,
            open: None,
            segment: end.segment,
            number: end.number,
            durable: end.number,
            sealed_at: end.offset,
            spend: Spend::Nothing,
        };
        if let Some(header) = end.continues {
            let file = writer.disk.open(end.segment).map_err(LogError::io("open", end.segment))?;
            file.truncate(end.offset).map_err(LogError::io("cut", end.segment))?;
            let header = SegmentHeader { version: LOG_VERSION, ..header };
            if end.offset == RECORDS_START {
                // The crash may have come before both copies of the header were there.
                file.write_at(&header.encode(), 0).map_err(LogError::io("begin", end.segment))?;
            }
            // What was found may have been read from memory and not be on disk yet; nothing may be offered before. If the last run
            // ended with a failed sync, the kernel may even hold it for clean: only what is written again is certain to be synced.
            rewrite(&*file, end.proven, end.offset).map_err(LogError::io("rewrite", end.segment))?;
            file.sync().map_err(LogError::io("sync", end.segment))?;
            // A segment of an older version takes no records that it does not know.
            let older = end.continues.is_some_and(|header| header.version < LOG_VERSION);
            let mut capacity = match older && end.offset > RECORDS_START {
                true => end.offset,
                false => options.segment_bytes.max(end.offset),
            };
            match file.allocate(capacity) {
                // Somebody else has taken the space: this segment takes no more.
                Err(error) if is_full(&error) => capacity = end.offset,
                other => other.map_err(LogError::io("reserve", end.segment))?,
            }
            file.sync().map_err(LogError::io("reserve", end.segment))?;
            let (salt, at) = (header.salt, end.offset);
            writer.open = Some(Open { file, salt, at, capacity, ended: false, buffer: Vec::new() });
        }
        Ok(writer)
    }

    /// Appends a record whose body is given in parts, encrypted if there is a cipher. It is durable after the next [`LogWriter::sync`].
    pub(crate) fn append(
        &mut self,
        cipher: Option<&Cipher>,
        kind: Kind,
        body: &[&[u8]],
    ) -> Result<Place, LogError> {
        let Some(cipher) = cipher else { return self.append_frame(kind, body, false) };
        let context = Context { store: self.options.store, number: self.number + 1, kind: kind as u8 };
        self.append_frame(kind, &[&cipher.encrypt(context, body)], true)
    }

    fn append_frame(&mut self, kind: Kind, body: &[&[u8]], encrypted: bool) -> Result<Place, LogError> {
        let len: usize = body.iter().map(|part| part.len()).sum();
        self.make_room(stride(len))?;
        let frame = Frame::of(self.number + 1, self.durable, kind as u8, body);
        let frame = if encrypted { frame.encrypted() } else { frame };
        let open = self.open.as_mut().expect("there is room");
        let place = Place { segment: self.segment, offset: offset_32(open.at), len: frame.body_len };
        let end = open.buffer.len() + frame.stride() as usize;
        open.buffer.extend_from_slice(&frame.encode(open.salt));
        body.iter().for_each(|part| open.buffer.extend_from_slice(part));
        open.buffer.resize(end, 0);
        open.at += frame.stride();
        self.number += 1;
        if end >= limits::WRITE_BUFFER_BYTES {
            self.write_out()?;
        }
        Ok(place)
    }

    /// Makes every appended record durable.
    pub fn sync(&mut self) -> Result<(), LogError> {
        if self.durable == self.number {
            return Ok(());
        }
        self.write_out()?;
        let grown = std::mem::take(&mut self.grown);
        if let Some(open) = &self.open {
            open.file.sync().map_err(LogError::io("sync", self.segment))?;
            self.ahead.follow(self.segment, open.at, open.capacity, grown);
        }
        self.durable = self.number;
        Ok(())
    }

    /// The end of what was appended.
    pub fn mark(&self) -> Mark {
        let offset = self.open.as_ref().map_or(self.sealed_at, |open| open.at);
        Mark { segment: self.segment, offset: offset_32(offset), number: self.number }
    }

    fn write_out(&mut self) -> Result<(), LogError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.buffer.is_empty() {
            return Ok(());
        }
        let start = open.at - open.buffer.len() as u64;
        self.ahead.claim(open.at);
        self.grown += open.buffer.len() as u64;
        open.file.write_at(&open.buffer, start).map_err(LogError::io("write to", self.segment))?;
        open.buffer.clear();
        Ok(())
    }

    /// What the next segment may use of the reserve. One that may is small, if it is begun within it.
    pub fn spend_reserve(&mut self, spend: Spend) {
        self.spend = spend;
    }

    /// The next record begins a segment, if there is space for one.
    pub fn end_segment(&mut self) {
        if let Some(open) = self.open.as_mut() {
            open.ended = true;
        }
    }

    /// Whether there is space for a whole segment beside the reserve, or why there is none.
    pub fn check_space(&self) -> Result<(), LogError> {
        self.space_for(self.options.segment_bytes)
    }

    fn space_for(&self, len: u64) -> Result<(), LogError> {
        let reserve = self.options.reserve_bytes;
        let wanted = len + reserve - self.spend.of(reserve);
        if let Some((used, cap)) = self.used()? {
            let cap = cap + self.spend.of(reserve_beyond(cap, reserve));
            if used + len > cap {
                return Err(LogError::Full {
                    capped: true,
                    available: cap.saturating_sub(used),
                    wanted: len,
                });
            }
        }
        // A file system that does not say is asked by reserving the space.
        match self.disk.available() {
            Ok(available) if available < wanted => Err(LogError::Full { capped: false, available, wanted }),
            _ => Ok(()),
        }
    }

    /// Bytes that the log has, and those that it may have, if there is a cap.
    fn used(&self) -> Result<Option<(u64, u64)>, LogError> {
        let Some(cap) = self.options.cap_bytes else { return Ok(None) };
        let segments = self.disk.list().map_err(LogError::io("list", self.segment))?;
        let len = |segment: &u32| self.disk.open(*segment).and_then(|file| file.len()).unwrap_or(0);
        let reserved: u64 = segments.iter().map(len).sum();
        // Of the open segment counts what is in it: it is cut to that before another one begins.
        let spare = self.open.as_ref().map_or(0, |open| open.capacity.saturating_sub(open.at));
        Ok(Some((reserved.saturating_sub(spare), cap)))
    }

    /// Length of a segment whose first record takes this many bytes. A record larger than a segment gets one of its own.
    fn segment_len(&self, bytes: u64) -> u64 {
        let whole = self.options.segment_bytes + self.options.reserve_bytes;
        let tight = self.disk.available().is_ok_and(|free| free < whole)
            || matches!(self.used(), Ok(Some((used, cap))) if used + self.options.segment_bytes > cap);
        let within = self.spend != Spend::Nothing && tight;
        let usual = if within { limits::SMALL_SEGMENT_BYTES } else { self.options.segment_bytes };
        usual.min(self.options.segment_bytes).max(RECORDS_START + bytes)
    }

    fn make_room(&mut self, bytes: u64) -> Result<(), LogError> {
        let len = self.segment_len(bytes);
        let Some(open) = &mut self.open else { return self.begin_segment(len) };
        let fits = open.at + bytes <= open.capacity;
        if fits && !(open.ended && open.at > RECORDS_START) {
            return Ok(());
        }
        if open.at == RECORDS_START {
            open.file.allocate(len).map_err(reserving(self.segment, len))?;
            open.capacity = len;
            return Ok(());
        }
        match self.space_for(len) {
            // It was only asked for.
            Err(LogError::Full { .. }) if fits => {
                self.open.as_mut().expect("checked above").ended = false;
                return Ok(());
            }
            other => other?,
        }
        self.write_out()?;
        let open = self.open.take().expect("checked above");
        self.ahead.rest();
        open.file
            .truncate(open.at)
            .and_then(|()| open.file.sync())
            .map_err(LogError::io("seal", self.segment))?;
        self.sealed_at = open.at;
        self.durable = self.number;
        self.begin_segment(len)
    }

    fn begin_segment(&mut self, len: u64) -> Result<(), LogError> {
        self.space_for(len)?;
        let segment = self.segment + 1;
        let header = SegmentHeader {
            version: LOG_VERSION,
            segment,
            store: self.options.store,
            first: self.number + 1,
            salt: (self.options.salt)(),
        };
        let file = self.disk.create(segment).map_err(LogError::io("create", segment))?;
        if let Err(error) = file.allocate(len) {
            // Nothing is in it yet; the next attempt creates it anew.
            drop(file);
            self.disk
                .remove(segment)
                .and_then(|()| self.disk.sync_names())
                .map_err(LogError::io("remove", segment))?;
            return Err(reserving(segment, len)(error));
        }
        file.write_at(&header.encode(), 0)
            .and_then(|()| file.sync())
            .and_then(|()| self.disk.sync_names())
            .map_err(LogError::io("begin", segment))?;
        self.segment = segment;
        let (salt, at) = (header.salt, RECORDS_START);
        self.open = Some(Open { file, salt, at, capacity: len, ended: false, buffer: Vec::new() });
        Ok(())
    }
}

/// Writes the bytes between two offsets once more.
fn rewrite(file: &dyn SegmentFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    let mut buffer = vec![0; limits::WRITE_BUFFER_BYTES];
    while at < to {
        let part = &mut buffer[..(to - at).min(limits::WRITE_BUFFER_BYTES as u64) as usize];
        file.read_at(part, at)?;
        file.write_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// What a failed reservation of space means.
fn reserving(segment: u32, wanted: u64) -> impl Fn(io::Error) -> LogError {
    move |error| match is_full(&error) {
        true => LogError::Full { capped: false, available: 0, wanted },
        false => LogError::io("reserve", segment)(error),
    }
}

fn offset_32(offset: u64) -> u32 {
    u32::try_from(offset).expect("a segment is shorter than 4 GiB")
}
