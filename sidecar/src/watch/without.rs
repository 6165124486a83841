//! For tests only: sources to leave out, so that a test can be seen to fail without the event it is about.
//!
//! `TIDELOCK_TEST_WITHOUT` holds names of tracepoints (`ext4/ext4_da_write_end`), and `inotify/modify`,
//! `inotify/names`, `fanotify/modify` or `fanotify/names`, between commas.

use std::sync::OnceLock;

/// Whether this source is left out. Said loudly: what is replicated without it is not to be trusted.
pub(super) fn left_out(source: &str) -> bool {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let names = std::env::var("TIDELOCK_TEST_WITHOUT").unwrap_or_default();
        if !names.is_empty() {
            tracing::warn!(names, "event sources are left out, for a test: points cannot be trusted");
        }
        names.split(',').map(str::to_owned).collect()
    });
    names.iter().any(|name| name == source)
}
