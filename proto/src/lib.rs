//! The words both sides of Tidelock share: ids, the tree model, operations, wire messages, transport, peer identity.

pub mod ids;
pub mod limits;

pub use ids::{ChunkId, Epoch, FileId, PointId, Seq, TreeDigest, VolumeName};
