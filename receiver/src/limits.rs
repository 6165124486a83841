//! Every limit of the receiver's store, in one place. Those of the model and the wire are in [`tidelock_proto::limits`].

/// Threads of a reconcile that compare and fetch. More than processors: some of them wait for chunks.
pub const RECONCILE_WORKERS: usize = 4;
/// A file is compared in spans of this many bytes, each by one thread.
pub const RECONCILE_SPAN_BYTES: u64 = 32 * 1024 * 1024;
/// Chunks that one fetch of a reconcile asks for.
pub const RECONCILE_BATCH_CHUNKS: usize = 512;
/// Bytes of extents that one fetch of a reconcile is for.
pub const RECONCILE_BATCH_BYTES: usize = 16 * 1024 * 1024;
/// Files that one thread of a reconcile holds open while it collects a batch.
pub const RECONCILE_BATCH_FILES: usize = 64;
/// Buffer of each thread, in bytes: an extent is no longer than a chunk.
pub const RECONCILE_BUFFER_BYTES: usize = tidelock_proto::limits::CHUNK_MAX_BYTES;
/// Longest path given to the kernel at once, in bytes; longer ones are walked in steps.
pub const RECONCILE_PATH_STEP_BYTES: usize = 4000;
/// Longest text in the marker of an unfinished copy that is read, in bytes.
pub const RECONCILE_LABEL_MAX_BYTES: usize = 512;
/// Refused attributes that a report names.
pub const RECONCILE_EXAMPLES: usize = 5;
/// Longest value of one extended attribute (`XATTR_SIZE_MAX` of Linux), in bytes.
pub const XATTR_VALUE_MAX_BYTES: usize = 64 * 1024;
