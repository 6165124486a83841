//! Every limit of the operator's side, in one place.

use std::time::Duration;

/// Chunk ids in one request to a receiver.
pub const CHUNKS_PER_REQUEST: usize = 256;
/// Chunks that are read to see whether a point is restorable, where asking for all of them would mean fetching them.
pub const PROBE_CHUNKS: usize = 128;
/// Content that is fetched at once when a file is read, in bytes.
pub const CAT_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Events that one search takes in; what comes after is left out, and the report says so.
pub const FIND_EVENTS_MAX: usize = 1_000_000;
/// Rounds in which a promotion follows a primary that still writes, before it is fenced.
pub const PROMOTE_ROUNDS: usize = 5;
/// A round that took no longer than this is the last: what came since is written after the fence.
pub const PROMOTE_ROUND: Duration = Duration::from_millis(500);
/// A point that has so many names gets none for a result: a few are left for people.
pub const RESULTS_PER_POINT: usize = 12;
/// How often the check of a test failover is asked whether it has ended.
pub const CHECK_POLL: Duration = Duration::from_millis(10);
/// Processes that are named when a directory is in use.
pub const OPENERS_TOLD: usize = 5;
/// Points asked for when the newest usable one is wanted, before all of them are.
pub const NEWEST_POINTS: usize = 256;
/// Content of a mounted point that is kept in memory, unless another amount is asked for, in bytes.
pub const MOUNT_CACHE_BYTES: u64 = 256 * 1024 * 1024;
/// What a chunk of a mounted point is taken to be long, in bytes, when room for them is made.
pub const MOUNT_CHUNK_BYTES: u64 = 32 * 1024;
/// Calls to a mounted point that are answered at once; each may wait for the receiver.
pub const MOUNT_THREADS: usize = 8;
/// The longest read or write of a mounted point that the kernel asks for in one piece, in bytes.
pub const MOUNT_REQUEST_BYTES: u32 = 1024 * 1024;
/// For how long the end of an unmounted mount is waited for.
pub const MOUNT_END: Duration = Duration::from_secs(2);
/// Files with local content of an instant promotion that are kept open.
pub const INSTANT_OPEN_FILES: usize = 512;
/// How long the journal of an instant promotion gets, at least, before it is begun anew, in bytes. Tests see it happen.
pub const INSTANT_JOURNAL_BYTES: u64 = if cfg!(test) { 16 * 1024 } else { 32 * 1024 * 1024 };
/// Reads of an instant promotion that wait for the receiver, each on a thread of its own.
pub const INSTANT_WAITERS: usize = 128;
/// For how long a read of an instant promotion is tried until it is an error.
pub const INSTANT_PATIENCE: Duration = Duration::from_secs(60);
/// How long a read, or hydration, rests before it tries again.
pub const INSTANT_RETRY: Duration = Duration::from_millis(500);
/// How often changes that nobody waits for are made durable.
pub const INSTANT_COMMIT_PAUSE: Duration = Duration::from_secs(1);
/// Content that hydration fetches at once, in bytes.
pub const INSTANT_BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// How often the log says how far hydration is.
pub const INSTANT_TOLD: Duration = Duration::from_secs(30);
/// How much lower than others the thread that hydrates stands.
pub const INSTANT_NICE: i32 = 15;
/// For how long a mount is asked how far it is, when the status is told.
pub const HYDRATION_PATIENCE: Duration = Duration::from_secs(1);
/// How long the answer may be that tells how far hydration is, in bytes.
pub const INSTANT_STATUS_BYTES: usize = 4096;
