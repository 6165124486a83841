//! Every limit of the model and the wire, in one place.
//!
//! An encoder asserts them, a decoder returns an error that names the limit. Limits that belong to one side only
//! (memory of the sidecar, segments of the store) are in that crate's own `limits` module.

use std::time::Duration;

/// The highest writer epoch. Each promotion takes one; the rest of the numbers is room for sums.
pub const EPOCH_MAX: u64 = u32::MAX as u64;
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
/// Chunks that are asked for again at once: so many of the longest fit a window.
pub const RESEND_MAX: usize = 64;
/// Chunk ids in one `Have` question.
pub const HAVE_BATCH_MAX: usize = 1024;
/// Chunk ids in one `WantPages` question. The answer has [`PAGE_SUM_BYTES`] for each page of them: at most a quarter of a frame.
pub const PAGES_BATCH_MAX: usize = 256;
/// What a chunk is divided into where only a part of it differs, in bytes.
pub const PAGE_BYTES: usize = 4096;
/// What tells one page from another, in bytes: as hard to forge as a chunk's id is to collide.
pub const PAGE_SUM_BYTES: usize = 16;
/// Volumes that are cut together.
pub const GROUP_VOLUMES_MAX: usize = 32;
/// Tags on one recovery point.
pub const TAGS_MAX: usize = 16;
/// Longest tag, in bytes.
pub const TAG_MAX_BYTES: usize = 128;
/// Longest human-readable reason or condition in a message, in bytes.
pub const TEXT_MAX_BYTES: usize = 1024;

// Identity.

/// Longest SPIFFE id, in bytes (the limit of the SPIFFE standard).
pub const SPIFFE_ID_MAX_BYTES: usize = 2048;
/// Longest trust domain of a SPIFFE id, in bytes.
pub const TRUST_DOMAIN_MAX_BYTES: usize = 255;
/// SPIFFE ids of one certificate.
pub const SPIFFE_IDS_MAX: usize = 64;
/// Largest file of an identity directory, in bytes.
pub const IDENTITY_FILE_MAX_BYTES: u64 = 1024 * 1024;

// Transport.

/// From the first packet to an accepted peer; afterwards the attempt has failed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// In a planned move: from the question whether the application stands still to the new epoch. Later the answer counts for nothing.
pub const LEAVE_WITHIN: Duration = Duration::from_secs(5);
/// In a planned move the application stands still for this long, if nothing comes of it. Longer than [`LEAVE_WITHIN`] by what a sidecar
/// that hangs may be late, so that it never runs again before the receiver has given up.
pub const LEAVE_HOLD: Duration = Duration::from_secs(10);
/// A connection that heard nothing for this long is lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// An otherwise silent connection is probed this often.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Handshakes a server carries at once; further ones are refused.
pub const HANDSHAKES_MAX: usize = 256;
/// With this many handshakes under way, a client must first prove its address (stateless retry).
pub const HANDSHAKES_UNPROVEN_MAX: usize = 64;
/// Clients a server has heard of and not begun a handshake with; further ones get no answer at all.
pub const HANDSHAKE_BACKLOG_MAX: usize = 2 * HANDSHAKES_MAX;
/// Initial packets a server keeps for handshakes it has not begun, in bytes.
pub const HANDSHAKE_BACKLOG_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Connections of one server, handshakes included.
pub const CONNECTIONS_MAX: usize = 4096;
/// Streams a client may have open at once in each connection.
pub const STREAMS_MAX: u32 = 64;
/// Bytes a peer may send on one stream before they are read.
pub const STREAM_RECEIVE_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Bytes a peer may send on all streams of a connection before they are read.
pub const RECEIVE_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Bytes written but not yet acknowledged by the peer's transport; further writes wait. Part of the sidecar's memory.
pub const SEND_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// Addresses of one name that are tried.
pub const ADDRESSES_MAX: usize = 8;
/// Longest reason in the closing of a connection, in bytes.
pub const CLOSE_REASON_MAX_BYTES: usize = 256;
/// Frames waiting in a writer are sent when they reach this size, in bytes, even without a flush.
pub const WRITE_COALESCE_MAX_BYTES: usize = 256 * 1024;
/// What a frame reader asks for at once, in bytes.
pub const READ_BUFFER_BYTES: usize = 64 * 1024;
