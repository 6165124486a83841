//! Every limit of the operator's side, in one place.

/// Chunk ids in one request to a receiver.
pub const CHUNKS_PER_REQUEST: usize = 256;
/// Chunks that are read to see whether a point is restorable, where asking for all of them would mean fetching them.
pub const PROBE_CHUNKS: usize = 128;
/// Content that is fetched at once when a file is read, in bytes.
pub const CAT_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Events that one search takes in; what comes after is left out, and the report says so.
pub const FIND_EVENTS_MAX: usize = 1_000_000;
/// Points asked for when the newest usable one is wanted, before all of them are.
pub const NEWEST_POINTS: usize = 256;
