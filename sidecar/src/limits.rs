//! Every limit of the sidecar, in one place. Limits of the model and the wire are in [`tidelock_proto::limits`].

use std::{ops::RangeInclusive, time::Duration};

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

/// How long a question that the cutter waits for may take.
pub const PAGES_WITHIN: Duration = Duration::from_secs(10);
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
/// For how long a sidecar that was fenced or superseded still serves its status before it exits.
pub const LAST_WORDS: Duration = Duration::from_secs(2);

// Watching over it.

/// Connections to the local HTTP port at once.
pub const HTTP_CONNECTIONS_MAX: usize = 32;
/// Names and questions that wait for an answer.
pub const REQUESTS_MAX: usize = 256;
/// How long a question is waited for where nobody asked to wait.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// The longest that a request may ask to wait.
pub const WAIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

// Capturing.

/// Bytes read between two drains of the event sources: bounds both the buffer and how long events wait.
pub const SLICE_BYTES: u64 = 4 * 1024 * 1024;
/// Entries looked up between two drains.
pub const ENTRIES_PER_STEP: usize = 1024;
/// Ranges kept for one file before they become one.
pub const DIRTY_RANGES_PER_FILE: usize = 4096;
/// Granularity of what is read and shipped, in bytes.
pub const PAGE_BYTES: u64 = tidelock_proto::limits::PAGE_BYTES as u64;
/// An extent found changed without exact ranges is shipped again in this many parts, so that hot regions refine.
pub const REFINE_PARTS: u64 = 8;
/// A change time younger than this could be carried by a later change, too (kernels keep times in ticks of up to 10 ms).
pub const CTIME_SETTLES_AFTER: Duration = Duration::from_secs(1);
/// Cuts of a volume under load become rarer to stay within their share of the processor, but not rarer than this.
pub const STRETCH_MAX: Duration = Duration::from_millis(10);
/// Inodes outside the tree that are remembered as mapped.
pub const MAPPED_INODES_MAX: usize = 65_536;
/// Rounds of one cut that follow each other at once before the search for a quiet instant rests.
pub const SEARCH_BURST_ROUNDS: u32 = 100;
/// The part of one core that a long search for a quiet instant may take.
pub const SEARCH_SHARE: f64 = 0.5;
/// It does not rest longer than this at a time, whatever a burst has cost: late is a loss.
pub const SEARCH_REST_MAX: Duration = Duration::from_millis(250);
/// Rounds without convergence after which status says so.
pub const ROUNDS_BEFORE_CONDITION: u32 = 1000;
/// How often the root is checked to be still in place.
pub const ROOT_CHECK_EVERY: Duration = Duration::from_secs(1);
/// How often the receiver hears from an idle volume.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(250);
/// How long events may wait while nothing can be sent.
pub const DRAIN_WHEN_BLOCKED_EVERY: Duration = Duration::from_millis(5);
/// Wakeups for nothing, by what others do on the same file system, after which the rings are left alone for a while: for a
/// shortest interval of cuts, then for two, and so on.
pub const FOR_NOTHING_BEFORE_REST: u32 = 2;
/// The longest such while: as long as what wakes nobody may wait anyway.
pub const OTHERS_REST_MAX: Duration = Duration::from_millis(20);
/// How often what could not be read or watched is tried again.
pub const UNREADABLE_RETRY_EVERY: Duration = Duration::from_secs(5);
/// Where directories cannot be watched the whole volume is compared again, after this many times as long as that takes.
pub const RETRY_AFTER_SCANS: u32 = 10;

/// Places of the volume in which a chunk is looked for that the receiver has lost: enough for one that files share.
pub const RESEND_PLACES_MAX: usize = 16;

// An import.

/// How long it may take: as good as for ever, in a clock that can still add it to now.
pub const IMPORT_WITHIN: Duration = Duration::from_secs(365 * 24 * 3600);

// A planned move.

/// How long nothing must have changed after the last cut: whoever writes on although the application stands still shows himself.
pub const LEAVE_QUIET: Duration = Duration::from_millis(20);

// What may be asked for.

/// `--cut-interval`: below, the cutter would never rest; above, a point comes later than a backup would.
pub const CUT_INTERVALS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// `--cut-deadline`: 0 escalates at once.
pub const CUT_DEADLINES: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);
/// `--hook-timeout`: below, a shell does not even start.
pub const HOOK_TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);
/// `--scrub-every`: below, one round would follow the other without rest; `--scrub-rate 0` is how there is none.
pub const SCRUB_EVERY: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600);

// Pausing the application.

/// Processes that are stopped at once: each takes a descriptor here and one in the watchdog.
pub const PAUSE_PROCESSES_MAX: usize = 4096;
/// Shortest `--pause-limit` that leaves time to stop anybody.
pub const PAUSE_LIMIT_MIN: Duration = Duration::from_millis(20);
/// Longest `--pause-limit`: clients give up on an application that stands still for longer.
pub const PAUSE_LIMIT_MAX: Duration = Duration::from_secs(10);
/// After a pause the application runs for at least this many times as long.
pub const PAUSE_REST_FACTOR: u32 = 9;
/// While pauses fail in a row the rest doubles up to this many times.
pub const PAUSE_BACKOFF_MAX: u32 = 6;
/// Names to look up that fit into any pause.
pub const PAUSE_NAMES_MAX: usize = 2048;
/// Threads that compare while the application stands still.
pub const PAUSE_THREADS_MAX: usize = 8;
/// Bytes captured in a second, until measured.
pub const PAUSE_RATE_FIRST: f64 = 256.0 * 1024.0 * 1024.0;
/// Rounds that read less say nothing about the rate, in bytes.
pub const PAUSE_SAMPLE_MIN_BYTES: u64 = 256 * 1024;
/// How often an overdue cut is weighed against the limit.
pub const PAUSE_WEIGH_EVERY: Duration = Duration::from_millis(5);
/// Pauses in a row that were too short before status says so.
pub const PAUSE_FAILURES_BEFORE_CONDITION: u32 = 3;
/// How long a cut is overdue and too large for any pause before status says so.
pub const PAUSE_MISFITS_BEFORE_CONDITION: Duration = Duration::from_secs(10);
/// How often it is checked that a pause would be possible.
pub const PAUSE_PROBE_EVERY: Duration = Duration::from_secs(2);
/// How often a process that was told to stop is looked at.
pub const STOPPED_LOOK_EVERY: Duration = Duration::from_micros(50);
/// Processes named to the watchdog in one message.
pub const WATCHDOG_BATCH: usize = 64;
/// How long a watchdog may take until it listens.
pub const WATCHDOG_STARTS_WITHIN: Duration = Duration::from_secs(5);
/// How often a watchdog whose deadline has passed resumes everybody again.
pub const WATCHDOG_TICK: Duration = Duration::from_millis(5);
