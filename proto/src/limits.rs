//! Every limit of the model and the wire, in one place.
//!
//! An encoder asserts them, a decoder returns an error that names the limit. Limits that belong to one side only
//! (memory of the sidecar, segments of the store) are in that crate's own `limits` module.

/// Longest name of one directory entry, in bytes (`NAME_MAX` of Linux).
pub const NAME_MAX_BYTES: usize = 255;
/// Longest symbolic link target, in bytes (`PATH_MAX` of Linux).
pub const SYMLINK_MAX_BYTES: usize = 4096;
/// Longest tenant or volume name, in bytes.
pub const VOLUME_NAME_MAX_BYTES: usize = 63;
/// Extended attributes of one inode, names and values together, in bytes.
pub const XATTRS_MAX_BYTES: usize = 256 * 1024;
/// Largest content of one chunk, uncompressed, in bytes. FastCDC cuts below it.
pub const CHUNK_MAX_BYTES: usize = 256 * 1024;
/// Largest file size, in bytes (`i64::MAX`, what the kernel allows).
pub const FILE_MAX_BYTES: u64 = i64::MAX as u64;
/// Largest frame on the wire, in bytes, without its length prefix.
pub const FRAME_MAX_BYTES: usize = 1024 * 1024;
/// Operations are split into `Ops` frames of about this size, in bytes, so that none comes near [`FRAME_MAX_BYTES`].
pub const OPS_FRAME_BYTES: usize = 256 * 1024;
/// Pieces of one `Write` operation; a longer run becomes several operations.
pub const PIECES_PER_OP_MAX: usize = 1024;
/// Operations of one commit, encoded, in bytes. Bounds what the receiver holds for a commit that is still arriving.
pub const COMMIT_OPS_MAX_BYTES: usize = 512 * 1024 * 1024;
/// Chunk ids in one `Have` question.
pub const HAVE_BATCH_MAX: usize = 1024;
/// Tags on one recovery point.
pub const TAGS_MAX: usize = 16;
/// Longest tag, in bytes.
pub const TAG_MAX_BYTES: usize = 128;
/// Longest human-readable reason or condition in a message, in bytes.
pub const TEXT_MAX_BYTES: usize = 1024;
