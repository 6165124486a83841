//! Reading single records by their place, with every checksum checked.

use std::{num::NonZeroUsize, sync::Arc};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use super::{
    Damage, DamageKind, LogError, Place,
    disk::{Disk, SegmentFile},
    entry::Kind,
    frame::{Frame, RECORD_HEADER_BYTES, RECORDS_START, SegmentHeader},
};
use crate::{
    limits,
    vault::{Unopened, Vault},
};

/// Reads records from anywhere in the log, from many threads.
pub struct LogReader {
    disk: Arc<dyn Disk>,
    vault: Arc<Vault>,
    open: Mutex<LruCache<u32, OpenSegment>>,
}

#[derive(Clone)]
struct OpenSegment {
    file: Arc<dyn SegmentFile>,
    salt: u64,
}

impl LogReader {
    /// A reader that has nothing open yet. Encrypted records are opened by the vault.
    pub(crate) fn new(disk: Arc<dyn Disk>, vault: Arc<Vault>) -> Self {
        let open = NonZeroUsize::new(limits::OPEN_SEGMENTS).expect("the limit is not zero");
        Self { disk, vault, open: Mutex::new(LruCache::new(open)) }
    }

    /// The disk that it reads.
    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// The body of the record at `place`, which must be of this kind, as it was before it was encrypted.
    pub fn read(&self, place: Place, kind: Kind) -> Result<Bytes, LogError> {
        let (frame, body) = self.read_record(place, kind)?;
        if !frame.encrypted {
            return Ok(body);
        }
        self.vault.open(frame.kind, frame.number, body).map_err(|error| match error {
            Unopened::Key(error, _) => LogError::Key(error),
            Unopened::Damaged(what) => {
                Damage { segment: place.segment, offset: u64::from(place.offset), what }.into()
            }
        })
    }

    /// Whether a record of this kind is at `place` as it was written.
    pub fn is_intact(&self, place: Place, kind: Kind) -> bool {
        self.read_record(place, kind).is_ok()
    }

    fn read_record(&self, place: Place, kind: Kind) -> Result<(Frame, Bytes), LogError> {
        let damage = |what| Damage { segment: place.segment, offset: u64::from(place.offset), what };
        let segment = self.segment(place.segment)?;
        let mut bytes = vec![0; RECORD_HEADER_BYTES + place.len as usize];
        match segment.file.read_at(&mut bytes, u64::from(place.offset)) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(damage(DamageKind::NotThere).into());
            }
            other => other.map_err(LogError::io("read", place.segment))?,
        }
        let frame = Frame::decode(&bytes, segment.salt)
            .filter(|frame| frame.kind == kind as u8 && frame.body_len == place.len)
            .ok_or(damage(DamageKind::NotThere))?;
        let body = Bytes::from(bytes).slice(RECORD_HEADER_BYTES..);
        if frame.covers(&body) {
            Ok((frame, body))
        } else {
            Err(damage(DamageKind::Body(frame.number)).into())
        }
    }

    /// Lets go of a segment that is about to be removed, so that its space comes back.
    pub(crate) fn forget(&self, number: u32) {
        self.open.lock().pop(&number);
    }

    fn segment(&self, number: u32) -> Result<OpenSegment, LogError> {
        if let Some(open) = self.open.lock().get(&number) {
            return Ok(open.clone());
        }
        let gone = Damage { segment: number, offset: 0, what: DamageKind::File };
        let file = self.disk.open(number).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => LogError::from(gone),
            _ => LogError::io("open", number)(error),
        })?;
        let unreadable = Damage { segment: number, offset: 0, what: DamageKind::Header };
        let mut page = vec![0; RECORDS_START as usize];
        file.read_at(&mut page, 0).map_err(|_| LogError::from(unreadable))?;
        let header = SegmentHeader::decode(&page).ok_or(unreadable)?;
        let open = OpenSegment { file, salt: header.salt };
        self.open.lock().put(number, open.clone());
        Ok(open)
    }
}
