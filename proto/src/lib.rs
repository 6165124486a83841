//! The words both sides of Tidelock share: ids, the tree model, operations, wire messages, transport, peer identity.

pub mod chunk;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod pki;
pub mod point;
pub mod transport;
pub mod tree;
pub mod verdict;
pub mod wire;

pub use chunk::ChunkKey;
pub use ids::{ChunkId, Epoch, FileId, PointId, Seq, TreeDigest, VolumeName};
pub use tree::{Op, Tree};
pub use verdict::Verdict;
