//! Counters: numbers that only go up, added to from any thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// What was added so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// All counters of a volume, from the start of the sidecar.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        impl Counters {
            /// Every counter as (name, help, value).
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name.get())),+].into_iter()
            }
        }
    };
}

counters! {
    /// Cuts that converged
    cuts,
    /// Rounds of capture, over all cuts
    rounds,
    /// Cuts that did not converge within their deadline
    cuts_overdue,
    /// Pauses of the application
    pauses,
    /// Pauses of the application that ended before the cut converged
    pauses_abandoned,
    /// Bytes read from the volume
    read_bytes,
    /// Bytes handed to the transport, frames and all
    wire_bytes,
    /// Recovery points given to the receiver
    commits,
    /// Scans of the whole volume after its first
    rescans,
    /// Times that a source of events said it had lost some
    events_lost,
    /// Changes that a scrub found and no event had told
    missed_changes,
    /// Bytes that the scrub compared, with a share for each inode
    scrubbed_bytes,
    /// Sockets found in the volume, which are not replicated
    sockets_skipped,
    /// Times that a session ended or an attempt to connect failed
    disconnects,
}
