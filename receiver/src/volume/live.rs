//! What the running receiver knows of a volume beyond its store.

use tidelock_proto::{PointId, tree::Totals, wire::messages::Heartbeat};

use super::Rate;

/// For status and metrics; nothing is decided by it.
#[derive(Debug, Default)]
pub struct Live {
    /// A session has begun since the start.
    pub seen: bool,
    /// A session is running.
    pub connected: bool,
    /// The newest heartbeat.
    pub heartbeat: Option<Heartbeat>,
    /// When it came, by the receiver's clock, in nanoseconds since 1970.
    pub heard_ns: u64,
    /// The newest instant that durable points cover, by the source's clock, in nanoseconds since 1970; 0 if only the
    /// store knows.
    pub covered_ns: u64,
    /// Sums over the tree of a point.
    pub totals: Option<(PointId, Totals)>,
    /// A point that could not be opened when it was the newest one, because bytes that it rests on are damaged.
    pub damaged: Option<PointId>,
    /// What its sidecar sends.
    pub rate: Rate,
}
