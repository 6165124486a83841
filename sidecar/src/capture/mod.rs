//! Reading a volume: what is at a name, what an inode is, which bytes it holds.
//!
//! Every access starts at a descriptor of the volume's root and stays beneath it (`openat2` with `RESOLVE_BENEATH`,
//! `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_XDEV`), and every file opened is checked to be the inode that was meant: names move
//! under the capture at any time.

mod content;
mod identity;
mod inode;
mod volume;

pub(crate) use content::{Segment, barrier, data_segments, read_at, write_back};
pub(crate) use identity::Identity;
pub(crate) use inode::{Found, read_xattrs};
pub(crate) use volume::Volume;
pub use volume::{CaptureError, VolumeError};
