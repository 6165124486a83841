//! Answers as messages, for operators near and far.

use tidelock_proto::wire::{self, WireError, messages};

use super::{Found, Usage, What};

impl What {
    fn number(self) -> u32 {
        match self {
            Self::There => 1,
            Self::Created => 2,
            Self::Changed => 3,
            Self::Removed => 4,
            Self::Last => 5,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::There, Self::Created, Self::Changed, Self::Removed, Self::Last]
            .into_iter()
            .find(|what| what.number() == number)
    }
}

impl From<Found> for messages::Found {
    fn from(found: Found) -> Self {
        Self {
            path: found.path,
            what: found.what.number(),
            point: Some(wire::point_id_to_wire(found.point)),
            time_ns: found.time_ns,
            size_bytes: found.size_bytes,
            changes: found.changes,
            changed: found.changed.map(wire::point_id_to_wire),
        }
    }
}

impl TryFrom<messages::Found> for Found {
    type Error = WireError;

    fn try_from(found: messages::Found) -> Result<Self, WireError> {
        let changed = found.changed.map(|point| wire::point_id_from_wire(Some(point))).transpose()?;
        Ok(Self {
            path: found.path,
            what: What::from_number(found.what).ok_or(WireError::Bad("kind of event"))?,
            point: wire::point_id_from_wire(found.point)?,
            time_ns: found.time_ns,
            size_bytes: found.size_bytes,
            changes: found.changes,
            changed,
        })
    }
}

impl From<Usage> for messages::Usage {
    fn from(usage: Usage) -> Self {
        let Usage { points, files, directories, others, .. } = usage;
        let Usage { size_bytes, data_bytes, chunks, chunk_bytes, stored_bytes, missing_chunks, .. } = usage;
        Self {
            points,
            files,
            directories,
            others,
            size_bytes,
            data_bytes,
            chunks,
            chunk_bytes,
            stored_bytes,
            missing_chunks,
        }
    }
}

impl From<messages::Usage> for Usage {
    fn from(usage: messages::Usage) -> Self {
        let messages::Usage { points, files, directories, others, .. } = usage;
        let messages::Usage { size_bytes, data_bytes, chunks, chunk_bytes, .. } = usage;
        let messages::Usage { stored_bytes, missing_chunks, .. } = usage;
        Self {
            points,
            files,
            directories,
            others,
            size_bytes,
            data_bytes,
            chunks,
            chunk_bytes,
            stored_bytes,
            missing_chunks,
        }
    }
}
