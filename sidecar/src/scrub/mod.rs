//! The scrub: everything is compared with the tree now and then, because a source of events can miss what the kernel does not
//! tell it (with inotify alone: stores through a mapping; on shared file systems: what other hosts write).
//!
//! It walks over all inodes, a piece of work at a time, only between two cuts and only as fast as its rate allows. What it
//! finds is not believed at once: an event may be on its way. Only if none comes for [`DOUBT_LASTS`] the change was missed;
//! then it is counted, logged with its path, and captured by making it dirty.
//!
//! The price: an inode that changes all the time is never in doubt for long enough, and is left to the next round. And a
//! part of a chunk cannot be told by the chunk's id: such runs are shipped again as chunks of their own, once.
//!
//! This module is the plan, without hands: what to look at next, and when. The hands are in `cut::scrub`.

mod pace;

use std::time::{Duration, Instant};

use tidelock_proto::FileId;

use self::pace::Pace;

/// How long a difference must stay without an event before it counts as missed: longer than any call takes to return.
pub(crate) const DOUBT_LASTS: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 1000 });
/// Bytes looked at between two drains of the event sources.
pub(crate) const PIECE_BYTES: u64 = 256 * 1024;
/// What looking at an inode costs beyond its bytes, against the rate, in bytes.
pub(crate) const INODE_BYTES: u64 = 4096;

/// How the volume is scrubbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubConfig {
    /// Bytes compared per second; 0 for no scrub at all.
    pub rate_bytes: u64,
    /// From the start, and from the beginning of one round, to the beginning of the next.
    pub every: Duration,
}

impl ScrubConfig {
    /// No scrub.
    pub(crate) const OFF: Self = Self { rate_bytes: 0, every: *crate::limits::SCRUB_EVERY.end() };
}

/// Something that differs from the tree and was not announced yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Doubt {
    pub(crate) id: FileId,
    /// What differs, in words.
    pub(crate) what: &'static str,
    since: Instant,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Compare from here on, about [`PIECE_BYTES`].
    Compare {
        /// The first inode, if there is one of this number.
        id: FileId,
        /// Where in its bytes.
        offset: u64,
    },
    /// This was missed.
    Missed(Doubt),
}

/// Where the scrub is.
#[derive(Debug)]
pub(crate) struct Scrub {
    config: ScrubConfig,
    round_at: Instant,
    position: Option<(FileId, u64)>,
    pace: Pace,
    doubt: Option<Doubt>,
}

impl Scrub {
    pub(crate) fn new(config: ScrubConfig, now: Instant) -> Self {
        let pace = Pace::new(config.rate_bytes);
        Self { config, round_at: now + config.every, position: None, pace, doubt: None }
    }

    /// When there is something to do; `None` for never.
    pub(crate) fn due(&self, now: Instant) -> Option<Duration> {
        if self.config.rate_bytes == 0 {
            return None;
        }
        Some(match (&self.doubt, self.position) {
            (Some(doubt), _) => (doubt.since + DOUBT_LASTS).saturating_duration_since(now),
            (None, Some(_)) => self.pace.due(now),
            (None, None) => self.round_at.saturating_duration_since(now),
        })
    }

    /// What to do now, if anything.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Task> {
        if self.due(now)? > Duration::ZERO {
            return None;
        }
        if let Some(doubt) = self.doubt.take() {
            return Some(Task::Missed(doubt));
        }
        let (id, offset) = *self.position.get_or_insert_with(|| {
            self.round_at = now + self.config.every;
            (FileId::ROOT, 0)
        });
        Some(Task::Compare { id, offset })
    }

    /// So much was looked at; the next piece begins there, or the round is over.
    pub(crate) fn advance(&mut self, now: Instant, bytes: u64, next: Option<(FileId, u64)>) {
        self.pace.spend(now, bytes);
        self.position = next;
    }

    /// Something differs: wait whether an event tells of it.
    pub(crate) fn on_difference(&mut self, now: Instant, id: FileId, what: &'static str) {
        self.doubt = Some(Doubt { id, what, since: now });
    }

    /// What is in doubt.
    pub(crate) fn in_doubt(&self) -> Option<FileId> {
        self.doubt.as_ref().map(|doubt| doubt.id)
    }

    /// An event told of what is in doubt.
    pub(crate) fn on_announced(&mut self) {
        self.doubt = None;
    }

    /// Another tree is the measure now.
    pub(crate) fn start_over(&mut self) {
        (self.position, self.doubt) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: ScrubConfig = ScrubConfig { rate_bytes: 1 << 20, every: Duration::from_secs(100) };
    const COMPARE: Option<Task> = Some(Task::Compare { id: FileId::ROOT, offset: 0 });

    #[test]
    fn a_round_begins_after_its_time_and_keeps_to_the_rate() {
        let start = Instant::now();
        let mut scrub = Scrub::new(CONFIG, start);
        assert_eq!(scrub.due(start), Some(CONFIG.every));
        assert_eq!(scrub.poll(start), None);
        let now = start + CONFIG.every;
        assert_eq!(scrub.poll(now), COMPARE);
        scrub.advance(now, 1 << 19, Some((FileId(7), 42)));
        assert_eq!(scrub.poll(now), None);
        let now = now + scrub.due(now).expect("a round is under way");
        assert_eq!(now - start, CONFIG.every + Duration::from_millis(500));
        assert_eq!(scrub.poll(now), Some(Task::Compare { id: FileId(7), offset: 42 }));
        scrub.advance(now, 1, None);
        assert_eq!(scrub.due(now), Some(CONFIG.every - Duration::from_millis(500)));
    }

    #[test]
    fn a_difference_counts_only_if_nothing_tells_of_it() {
        let start = Instant::now();
        let mut scrub = Scrub::new(ScrubConfig { every: Duration::ZERO, ..CONFIG }, start);
        assert_eq!(scrub.poll(start), COMPARE);
        scrub.on_difference(start, FileId(3), "size");
        assert_eq!(scrub.poll(start + DOUBT_LASTS / 2), None);
        scrub.on_announced();
        assert_eq!(scrub.poll(start + DOUBT_LASTS / 2), COMPARE);
        scrub.on_difference(start, FileId(3), "size");
        let task = scrub.poll(start + DOUBT_LASTS);
        assert!(matches!(task, Some(Task::Missed(doubt)) if doubt.id == FileId(3)));
    }

    #[test]
    fn without_a_rate_nothing_is_ever_due() {
        let config = ScrubConfig { rate_bytes: 0, every: *crate::limits::SCRUB_EVERY.end() };
        let mut scrub = Scrub::new(config, Instant::now());
        assert_eq!(scrub.poll(Instant::now() + DOUBT_LASTS), None);
    }
}
