//! What the archive asks of a store: its segments as files of bytes. It knows nothing of what is in them.

use std::{collections::BTreeSet, io};

use bytes::Bytes;

use super::plan::Snapshot;
use crate::{
    archive::Mend,
    log::{Mark, frame::RECORDS_START},
    store::Store,
};

/// A log that is being written.
pub(crate) trait Source: Send + Sync + 'static {
    /// The log at one instant.
    ///
    /// Whatever is missing in it was retired by a record that is in it: the segments are listed before the mark is taken, and a
    /// segment is removed only after the record that permits that is durable. Whatever is in it never changes, but where damage is mended.
    /// What is lost without that permission is named, so that the archive keeps what it has of it.
    fn snapshot(&self) -> io::Result<Snapshot>;
    /// The outline of a sealed segment; `None` if it cannot have one.
    fn outline(&self, segment: u32) -> io::Result<Option<Bytes>>;
    /// Bytes of a segment.
    fn read(&self, segment: u32, offset: u64, len: u64) -> io::Result<Vec<u8>>;
}

/// How often a snapshot is tried while segments come and go.
const ATTEMPTS: usize = 16;

impl Source for Store {
    fn snapshot(&self) -> io::Result<Snapshot> {
        for _ in 0..ATTEMPTS {
            if let Some(snapshot) = try_snapshot(self)? {
                return Ok(snapshot);
            }
        }
        Err(io::Error::other("segments come and go too fast"))
    }

    fn outline(&self, segment: u32) -> io::Result<Option<Bytes>> {
        Store::outline(self, segment).map_err(io::Error::other)
    }

    fn read(&self, segment: u32, offset: u64, len: u64) -> io::Result<Vec<u8>> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        self.log_disk().open(segment)?.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Mend for Store {
    fn id(&self) -> io::Result<Option<[u8; 16]>> {
        self.log_id().map_err(io::Error::other)
    }

    fn mend(&self, segment: u32, copy: Vec<u8>) -> io::Result<u64> {
        Store::mend(self, segment, copy).map_err(io::Error::other)
    }
}

fn try_snapshot(store: &Store) -> io::Result<Option<Snapshot>> {
    let disk = store.log_disk();
    let listed = disk.list()?;
    let Some(mark) = store.durable_mark() else { return Ok(Some(Snapshot::default())) };
    let mut snapshot = Snapshot {
        store: store.log_id().map_err(io::Error::other)?.unwrap_or_default(),
        mark,
        ..Snapshot::default()
    };
    let known: BTreeSet<u32> = listed.into_iter().collect();
    snapshot.lost = store.lost_segments(&known, mark.segment).map_err(io::Error::other)?;
    for segment in known.into_iter().filter(|segment| *segment < mark.segment) {
        match disk.open(segment).and_then(|file| file.len()) {
            Ok(len) => snapshot.lens.insert(segment, len),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    // A segment without records is not archived: what is there of it may still change.
    if u64::from(mark.offset) > RECORDS_START {
        if disk.open(mark.segment).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        snapshot.lens.insert(mark.segment, u64::from(mark.offset));
    } else {
        snapshot.mark = Mark { offset: 0, ..mark };
    }
    Ok(Some(snapshot))
}
