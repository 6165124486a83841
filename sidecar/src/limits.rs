//! Every limit of the sidecar, in one place. Limits of the model and the wire are in [`tidelock_proto::limits`].

use std::time::Duration;

// Packing.

/// Runs up to this length become one chunk, in bytes; longer ones are cut by their content.
pub const SMALL_RUN_MAX_BYTES: usize = 64 * 1024;
/// Shortest chunk that is cut by content, in bytes, but for the last one of a run.
pub const CHUNK_MIN_BYTES: usize = 16 * 1024;
/// Length that cutting by content aims for, in bytes.
pub const CHUNK_AVERAGE_BYTES: usize = 64 * 1024;
/// Threads that one volume packs with, the caller among them.
pub const PACK_THREADS_MAX: usize = 16;
/// Chunks that wait for each packing thread besides the one it works on.
pub const PACK_QUEUE_MAX: usize = 2;

// Shipping.

/// What may be packed and not yet acknowledged, in bytes: see [`crate::ship::Outbox::window_full`].
pub const WINDOW_BYTES: usize = 16 * 1024 * 1024;
/// Commits that may wait for their acknowledgement.
pub const COMMITS_MAX: usize = 64;
/// Operations of a commit that is still being built are kept for a resume up to this size, encoded, in bytes. A commit
/// that outgrows it can only be begun again after a disconnect.
pub const OPEN_OPS_KEPT_MAX_BYTES: usize = 16 * 1024 * 1024;
/// What a chunk or a record costs beyond its payload, as counted against the window, in bytes.
pub const ENTRY_BYTES: usize = 128;
/// `Have` questions that may wait for their replies.
pub const HAVE_IN_FLIGHT_MAX: usize = 4;
/// A further question is asked while another one waits only when it has this many ids.
pub const HAVE_BATCH_MIN: usize = 64;
/// The link is woken ahead of a commit when this much waits for it, in bytes.
pub const WAKE_BYTES: usize = 64 * 1024;
/// Frames gathered for one write, in bytes.
pub const FLUSH_BYTES: usize = 256 * 1024;
/// A heartbeat that cannot keep its place behind the commits before it is sent without its claim after this long.
pub const HEARTBEAT_WAIT_MAX: Duration = Duration::from_millis(500);
/// From `Hello` to `Welcome`. A receiver may have a log to read first.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// First pause between attempts to connect. Jitter adds up to as much again.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts to connect, before jitter.
pub const BACKOFF_MAX: Duration = Duration::from_millis(2500);
/// How long a finished session waits for the receiver to finish its side.
pub const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

// Watching over it.

/// Connections to the local HTTP port at once.
pub const HTTP_CONNECTIONS_MAX: usize = 32;
