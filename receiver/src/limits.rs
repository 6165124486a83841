//! Every limit of the receiver, in one place. Those of the model and the wire are in [`tidelock_proto::limits`].

use std::time::Duration;

/// Size of a log segment, in bytes, unless the options say otherwise. A segment is also the unit of upload and deletion.
pub const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Smallest and largest segment the options may ask for, in bytes. Offsets in a segment are 32 bits.
pub const SEGMENT_BYTES_RANGE: std::ops::RangeInclusive<u64> = 64 * 1024..=1024 * 1024 * 1024;
/// Bytes of the disk that commits leave free, unless the options say otherwise: for promotions, and for the index to go on.
pub const STORE_RESERVE_BYTES: u64 = 128 * 1024 * 1024;
/// A store with a cap has segments of at most one part in so many of it.
pub const CAP_SEGMENTS: u64 = 16;
/// Promotions and upkeep may use one part in so many of the cap beyond it, and never more than the reserve of the disk.
pub const CAP_RESERVE: u64 = 8;
/// Smallest cap of a store, in bytes.
pub const CAP_MIN_BYTES: u64 = 64 * 1024 * 1024;
/// Points go before their time when the log has more than this part of its cap,
pub const CAP_RELIEVE_PERCENT: u64 = 92;
/// until no more than this part is needed: a compaction leaves a tenth more.
pub const CAP_LIVE_PERCENT: u64 = 75;
/// What a sidecar sends is counted in slots of this length,
pub const RATE_SLOT: Duration = Duration::from_millis(500);
/// of which so many are remembered.
pub const RATE_SLOTS: usize = 10;
/// One in so many of the points that may go goes at once.
pub const CAP_STEP: usize = 8;
/// Size of a segment that is begun in the reserve, in bytes.
pub const SMALL_SEGMENT_BYTES: u64 = 64 * 1024;
/// How often a full store looks whether there is space again.
pub const FULL_RETRY: Duration = Duration::from_secs(1);
/// Largest body of one log record, in bytes.
pub const RECORD_MAX_BYTES: usize = 8 * 1024 * 1024;
/// A commit whose operations are one part of at most this many bytes carries it in its own record.
pub const INLINE_OPS_MAX_BYTES: usize = 512 * 1024;
/// Bytes of batches that wait for the writer or for the disk; beyond it `append` waits.
pub const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes written before an `fdatasync` although more is waiting, so that the first in line is not held up by the last.
pub const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// Bytes the log collects before it hands them to the file system.
pub const WRITE_BUFFER_BYTES: usize = 1024 * 1024;
/// Zeros are written so many bytes ahead of the end of the log, in steps of at least half as many,
pub const AHEAD_BYTES: u64 = 1024 * 1024;
/// in whole blocks of this many bytes,
pub const AHEAD_PAGE_BYTES: u64 = 4096;
/// and only behind groups of at most this many bytes.
pub const AHEAD_GROUP_MAX_BYTES: u64 = 256 * 1024;
/// Segment files held open for reading.
pub const OPEN_SEGMENTS: usize = 128;
/// What is not readable is looked for in pieces of this many bytes.
pub const SECTOR_BYTES: usize = 512;
/// Damaged places listed one by one; more are only counted.
pub const DAMAGE_LISTED: usize = 1000;
/// Index entries that are durable in the log and not yet in the index; beyond it the writer waits for the index.
pub const INDEX_RECENT_ENTRIES: usize = 64 * 1024;
/// Pause between two writes into the index, and between two moments at which it is made durable. What lies between is
/// replayed from the log at the next open.
pub const INDEX_WRITE_PAUSE: Duration = Duration::from_millis(200);
/// See [`INDEX_WRITE_PAUSE`].
pub const INDEX_PERSIST_PAUSE: Duration = Duration::from_secs(10);
/// Memory for the index's blocks, in bytes.
pub const INDEX_CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// Memory for what the index has not yet written out, in bytes.
pub const INDEX_WRITE_BUFFER_BYTES: u64 = 16 * 1024 * 1024;
/// Journal of the index, in bytes. All of it is read back after a crash.
pub const INDEX_JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// A checkpoint is due when more than this would have to be replayed since the last one, in bytes of operations, or
/// more than that one is long: so checkpoints never cost more than the operations themselves.
pub const CHECKPOINT_REPLAY_BYTES: u64 = 8 * 1024 * 1024;
/// What replaying a commit costs besides its operations (a read of its own), in the same measure.
pub const CHECKPOINT_COMMIT_BYTES: u64 = 512;
/// Bytes of checkpoint chunks that are written before the next ones are cut.
pub const CHECKPOINT_WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// Pause between two rounds of upkeep, at least; see [`UPKEEP_REST`] and [`THIN_EVERY`].
pub const KEEP_PAUSE: Duration = Duration::from_secs(10);
/// How often points are dropped. Each time the tree of the oldest point that stays is built anew, which for a database of 300 MiB costs
/// as much as to take in 600 commits, however few points go.
pub const THIN_EVERY: Duration = Duration::from_secs(60);
/// Upkeep rests for so many times as long as it worked, so that it takes a small part of a core and of the disk.
pub const UPKEEP_REST: u32 = 9;
/// Memory for each of the three filters of chunks with which a forecast works, in bytes.
pub const PLAN_FILTER_BYTES: u64 = 32 * 1024 * 1024;
/// Forecasts that are made at once.
pub const PLANS_AT_ONCE: usize = 1;
/// How long a forecast waits for upkeep to end, so that nothing goes while it reads,
pub const PLAN_QUIET: Duration = Duration::from_secs(10);
/// and how often it begins where that did not help.
pub const PLAN_ATTEMPTS: u32 = 3;
/// How long a forecast works before it rests.
pub const PLAN_STEP: Duration = Duration::from_millis(20);
/// Ids of chunks that one session counts on, one by one; of more it counts on all, and nothing is removed meanwhile.
pub const OWED_PER_LEASE: usize = 1024 * 1024;
/// Memory for the filter of needed chunks, in bytes: 32 bits for each of 16 million.
pub const COMPACT_FILTER_BYTES: u64 = 64 * 1024 * 1024;
/// The log is compacted when it has grown beyond this part of what was needed the last time,
pub const COMPACT_FROM_PERCENT: u64 = 125;
/// and by this much more, in bytes.
pub const COMPACT_FROM_BYTES: u64 = 4 * SEGMENT_BYTES;
/// A compaction ends when the log is as long as this part of what is needed.
pub const COMPACT_GOAL_PERCENT: u64 = 110;
/// A segment of which more than this is needed is not worth its copy.
pub const COMPACT_FULLEST_PERCENT: u64 = 90;
/// Segments removed in one cycle, for which the journals are read once.
pub const COMPACT_CYCLE_SEGMENTS: usize = 256;
/// Segments that are removed together, and what may be copied of them, in bytes.
pub const COMPACT_ROUND_SEGMENTS: usize = 16;
/// See [`COMPACT_ROUND_SEGMENTS`].
pub const COMPACT_ROUND_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes copied at once.
pub const COMPACT_BATCH_BYTES: usize = 1024 * 1024;
/// The wall clock counts as wrong where it gains more than this on the steady clock while the receiver runs.
pub const CLOCK_STEP: Duration = Duration::from_secs(60);
/// Points of a deleted volume that leave the index at once.
pub const DELETE_POINTS: usize = 16 * 1024;
/// Points that one operator's connection keeps from being dropped; of more the oldest are let go.
pub const PINS_PER_CONNECTION: usize = 64;
/// Bytes of merged operations written at once by a thinning.
pub const THIN_BATCH_BYTES: usize = 1024 * 1024;
/// Runs of points that one record drops.
pub const THIN_RUNS: usize = 4096;

/// Threads of a reconcile that compare and fetch. More than processors: some of them wait for chunks.
pub const RECONCILE_WORKERS: usize = 4;
/// Directories that are looked into for what a receiver keeps, before the content of a target is deleted.
pub const RECONCILE_APART_DIRECTORIES: usize = 10_000;
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

// Archive.

/// Longest piece of a segment in one object, in bytes: what one request carries, also on a slow line.
pub const ARCHIVE_PIECE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes that an entry of the chain carries itself, at most.
pub const ARCHIVE_TAIL_BYTES: u64 = 1024 * 1024;
/// Outlines of segments made for one manifest.
pub const ARCHIVE_OUTLINES: usize = 16;
/// Block of a segment that is fetched and checked by itself, in bytes. A part of the format.
pub const OUTLINE_BLOCK_BYTES: u64 = 64 * 1024;
/// Bytes of a segment fetched at once, at most.
pub const PART_FILL_BYTES: u64 = 2 * 1024 * 1024;
/// How often a part of a segment that somebody waits for is asked for in vain.
pub const ARCHIVE_READ_ATTEMPTS: u32 = 2;
/// Entries with tails behind a manifest.
pub const ARCHIVE_TAILS: usize = 64;
/// Bytes in them.
pub const ARCHIVE_TAILS_BYTES: u64 = 8 * 1024 * 1024;
/// How often what is new is archived, unless the options say otherwise.
pub const ARCHIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The same where acknowledgements wait for it.
pub const ARCHIVE_ACK_INTERVAL: Duration = Duration::from_millis(250);
/// The shortest that may be asked for.
pub const ARCHIVE_INTERVAL_MIN: Duration = Duration::from_millis(10);
/// How long another receiver must see nothing of the holder, unless the options say otherwise.
pub const ARCHIVE_LEASE: Duration = Duration::from_secs(15);
/// The shortest that may be asked for: a third of it is how often the lease is renewed, and an object store answers within that.
pub const ARCHIVE_LEASE_MIN: Duration = Duration::from_secs(1);
/// The longest that a holder's word about that is taken for.
pub const ARCHIVE_LEASE_MAX: Duration = Duration::from_secs(10 * 60);
/// How often a newcomer looks at the holder's lease before it takes over.
pub const ARCHIVE_WATCHES: u32 = 20;
/// How long a connection to the object store may take.
pub const ARCHIVE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one request may take.
pub const ARCHIVE_REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// After a failure it is tried again after so long, and each time later by as much,
pub const ARCHIVE_RETRY_FIRST: Duration = Duration::from_millis(500);
/// at most so long.
pub const ARCHIVE_RETRY_LAST: Duration = Duration::from_secs(15);
/// How often one object is asked for in vain while a store is fetched.
pub const ARCHIVE_FETCH_ATTEMPTS: u32 = 5;
/// How often the chain is read anew because its holder has moved on.
pub const ARCHIVE_MOVED_ATTEMPTS: u32 = 5;
/// Objects fetched or removed at once.
pub const ARCHIVE_PARALLEL: usize = 4;
/// Writers that race when a store's preconditions are tried.
pub const ARCHIVE_RACERS: u8 = 6;
/// How long the end of a receiver may wait for its archive.
pub const ARCHIVE_LAST_WORDS: Duration = Duration::from_secs(5);
/// Characters shown of what an object store says.
pub const ARCHIVE_REASON_CHARS: usize = 240;
/// Characters of a host's name in the chain.
pub const ARCHIVE_WHO_CHARS: usize = 64;

// Images.

/// Pause between two steps of an image: what comes meanwhile is one difference.
pub const IMAGE_STEP_PAUSE: Duration = Duration::from_millis(100);
/// A step takes no more points once it has so many changes.
pub const IMAGE_STEP_CHANGES: usize = 64 * 1024;
/// Points looked up at once for a step.
pub const IMAGE_STEP_POINTS: usize = 512;
/// How long an image may hold what is not durable in it: so much of the writing is compared after a crash.
pub const IMAGE_SYNC_PAUSE: Duration = Duration::from_secs(5);
/// How often an image that follows is looked at though nothing was said of it.
pub const IMAGE_IDLE: Duration = Duration::from_secs(5);
/// After a failure an image is opened again in this time, doubled with each failure,
pub const IMAGE_RETRY: Duration = Duration::from_secs(10);
/// up to this.
pub const IMAGE_RETRY_MAX: Duration = Duration::from_secs(5 * 60);
/// By how much the threads of what nobody waits for stand back behind what acknowledges.
pub const BACKGROUND_NICE: i32 = 10;
/// How long an operator waits for an image that follows to be at the newest point.
pub const IMAGE_ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// Questions to one image that wait.
pub const IMAGE_QUESTIONS: usize = 16;

// Sessions.

/// Chunks that come without a commit wait this long for one, so that both are one append and one fsync.
pub const CHUNK_HOLD: Duration = Duration::from_millis(20);
/// Chunks are appended at the latest when this many bytes of them wait.
pub const APPEND_BYTES: usize = 1024 * 1024;
/// A session's input is not read while more bytes of it than this wait for their fsync. One commit may be larger.
pub const UNDURABLE_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Chunks up to this length are proven where they arrive: about 60 µs of work, less than two hand-overs cost.
pub const INLINE_CHECK_BYTES: usize = 64 * 1024;
/// Content of chunks of one session that is being proven elsewhere, in bytes; beyond it the session reads no further.
pub const CHECKING_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Frames of one session that wait behind a chunk that is being proven.
pub const HELD_FRAMES: usize = 256;
/// Operations longer than this are applied beside the runtime's own work, in bytes.
pub const INLINE_OPS_BYTES: usize = 64 * 1024;
/// Frames handled in one go before everything else of the session gets its turn.
pub const FRAMES_PER_TURN: usize = 32;
/// Bytes of frames that wait in a session's writer before no more are produced.
pub const OUTGOING_BYTES: usize = 128 * 1024;
/// The first frame of a stream must have come within this time.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last frames of a session may take to be sent.
pub const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a receiver that shuts down waits for its sessions.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it waits then until nobody has its store any more.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A volume's tree is dropped when its sidecar has been away for this long.
pub const IDLE_TREE: Duration = Duration::from_secs(10 * 60);
/// How often idle trees are looked for.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often the store is asked whether it still takes writes.
pub const STORE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

// Operators.

/// Points read from the store at once for a list.
pub const POINTS_PAGE: usize = 4096;
/// Chunks read from the store before they are sent, at most.
pub const CHUNKS_PER_READ: usize = 16;
/// Chunk ids in one request.
pub const CHUNKS_PER_REQUEST: usize = 16 * 1024;
/// Trees built for operators at once.
pub const TREES_AT_ONCE: usize = 4;

/// Longest pattern of names, in bytes.
pub const PATTERN_MAX_BYTES: usize = 4096;
/// What a search has found and nobody has taken yet; then it waits.
pub const FIND_EVENTS: usize = 256;
/// Distinct chunks that one question for sizes may count: about 200 MiB of memory.
pub const USAGE_CHUNKS_MAX: usize = 4 * 1024 * 1024;

// Verify.

/// Verifications that run at once; each reads the whole log.
pub const VERIFY_AT_ONCE: usize = 1;
/// What a verification has found and nobody has taken yet, in events; then it waits.
pub const VERIFY_EVENTS: usize = 64;
/// How long a sidecar may take to send chunks again.
pub const RESEND_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of the log, and points, between two words about how far it has come.
pub const VERIFY_PROGRESS_BYTES: u64 = 16 * 1024 * 1024;
/// See [`VERIFY_PROGRESS_BYTES`].
pub const VERIFY_PROGRESS_POINTS: u64 = 256;
