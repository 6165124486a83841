//! What can be wrong with a store, and what it touches.

use std::fmt;

use thiserror::Error;
use tidelock_proto::{ChunkId, PointId, VolumeName, chunk::ChunkError};

use crate::{
    log::{Damage, Place},
    store::Cause,
};

/// Something that is not as it was written.
#[derive(Debug, Clone, Error)]
pub enum Fault {
    /// Bytes of the log.
    #[error(transparent)]
    Log(Damage),
    /// A chunk's record is intact, its content is not what its id says.
    #[error("{place}: {error}")]
    Chunk {
        /// Where it is.
        place: Place,
        /// What is wrong.
        error: ChunkError,
    },
    /// Chunks that files are made of are nowhere in the index.
    #[error("{count} chunks are not in the store, {example} among them")]
    Lost {
        /// How many different ones.
        count: u64,
        /// One of them.
        example: ChunkId,
    },
    /// Records that were not looked into. This is no damage.
    #[error(
        "tenant {tenant} was not looked at for want of its key: of its {count} records nothing but the checksums, and none of its points; \
         give the key with --tenant-key {tenant}=FILE or --tenant-keys DIR (a receiver has its own)"
    )]
    Locked {
        /// Whose they are.
        tenant: String,
        /// How many.
        count: u64,
    },
    /// The index says other things than the log.
    #[error(
        "the index is wrong about {count} records, the one in {example} among them; after `tidelock verify --repair` the next start of the receiver makes it anew, or `tidelock store rebuild` does"
    )]
    Index {
        /// How many.
        count: u64,
        /// One of them.
        example: Place,
    },
    /// The tree of a point is not to be had, though what it is made of can be read.
    #[error("point {point}: {cause}")]
    Point {
        /// The point where it begins.
        point: PointId,
        /// Why.
        cause: Cause,
    },
}

impl Fault {
    /// Where in the log it is, if that is known: the segment, and the offset in bytes.
    pub fn place(&self) -> Option<(u32, u64)> {
        match self {
            Self::Log(damage) => Some((damage.segment, damage.offset)),
            Self::Chunk { place, .. } => Some((place.segment, u64::from(place.offset))),
            Self::Lost { .. } | Self::Locked { .. } | Self::Index { .. } | Self::Point { .. } => None,
        }
    }

    /// Whether something is not as it was written; otherwise it could not be looked at.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Self::Locked { .. })
    }

    /// A word for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Log(_) => "log",
            Self::Chunk { .. } => "chunk",
            Self::Lost { .. } => "lost-chunks",
            Self::Locked { .. } => "locked",
            Self::Index { .. } => "index",
            Self::Point { .. } => "point",
        }
    }
}

impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_string() == other.to_string()
    }
}

/// The points of a volume that a fault touches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Touched {
    /// The first and the last point that cannot be restored whole; not every one between them need be touched.
    pub points: Option<(PointId, PointId)>,
    /// How many are touched.
    pub count: u64,
    /// Checkpoints that cannot be used. Points are then built from an older one.
    pub checkpoints: u64,
    /// A file that is touched, in the first point where one is.
    pub file: Option<String>,
}

impl Touched {
    pub(super) fn point(&mut self, id: PointId) {
        let first = self.points.map_or(id, |(first, _)| first);
        self.points = Some((first, id));
        self.count += 1;
    }
}

/// A fault and what it touches.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What is wrong.
    pub fault: Fault,
    /// The volume it touches; a fault that touches several is told for each. `None` if it touches none of those looked at.
    pub volume: Option<VolumeName>,
    /// What it touches there.
    pub touched: Option<Touched>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Fault::Locked { .. } = self.fault {
            return self.fault.fmt(f);
        }
        let (Some(volume), Some(touched)) = (&self.volume, &self.touched) else {
            return write!(f, "{}; it touches no point", self.fault);
        };
        write!(f, "{volume}: {}; ", self.fault)?;
        match touched.points {
            Some((first, last)) => {
                write!(f, "{} points cannot be restored, {first} to {last}", touched.count)?;
            }
            None => write!(f, "all points can be restored")?,
        }
        if touched.checkpoints > 0 {
            write!(f, ", {} checkpoints cannot be used", touched.checkpoints)?;
        }
        touched.file.as_ref().map_or(Ok(()), |file| write!(f, ", {file} is damaged"))
    }
}
