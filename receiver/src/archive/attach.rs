//! Before the store opens: whose the archive is, and what of it is needed here.
//!
//! | the chain | this store | then |
//! | --- | --- | --- |
//! | empty | any | it is begun |
//! | written last from this directory | has a log | go on at once: the store's own lock says that nobody else does |
//! | written last from this directory | has none | the log is fetched |
//! | written last by somebody else | has none | wait until that one is gone, take over, fetch |
//! | written last by somebody else | has a log | refused: two histories |
//!
//! Taking over is an entry in the chain that says the same under another name. From then on the one before cannot add to it. So it comes last: what was fetched is opened
//! once before ([`Trial`]), and a newcomer that cannot use it (its key is another one, its disk is too small) has taken nothing from anybody.

use std::{path::Path, time::Duration};

use super::{
    bucket::Bucket,
    entry::{Entry, What},
    error::ArchiveError,
    hydrate::{Amount, Fetched, adopt, stage, staged},
    lease,
    local::Local,
    manifest::Head,
};
use crate::{limits, server::blocking, store::StoreError};

/// This store as a writer of the archive.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    pub(super) holder: [u8; 16],
    pub(super) who: String,
}

/// Opens a store that was fetched, and closes it: whether it can be used here.
pub(super) type Trial = Box<dyn FnOnce(&Path) -> Result<(), StoreError> + Send>;

/// What is to be done before the store opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Begin,
    Resume,
    Fetch,
    TakeOver,
}

fn way(holder: [u8; 16], has_log: bool, head: Option<&Head>) -> Result<Way, ArchiveError> {
    match head {
        None => Ok(Way::Begin),
        Some(head) if head.holder == holder => Ok(if has_log { Way::Resume } else { Way::Fetch }),
        Some(head) if has_log => Err(ArchiveError::TakenOver { who: head.who.clone() }),
        Some(_) => Ok(Way::TakeOver),
    }
}

impl Writer {
    pub(super) fn new(local: &Local) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().take(limits::ARCHIVE_WHO_CHARS).collect();
        Self { holder: local.holder, who: format!("{host}/{}", std::process::id()) }
    }

    pub(super) fn entry(&self, number: u64, what: What) -> Entry {
        Entry { number, holder: self.holder, who: self.who.clone(), what }
    }

    /// Makes the archive this store's, and the store's log what is archived if it has none. The store's directory is locked and not open.
    pub(super) async fn attach(
        &self,
        bucket: &Bucket,
        store: &Path,
        ttl: Duration,
        trial: Trial,
    ) -> Result<Head, ArchiveError> {
        bucket.prove().await?;
        let head = bucket.head().await?;
        let way = way(self.holder, has_log(store), head.as_ref())?;
        let mut head = match (way, head) {
            (Way::TakeOver, Some(head)) => lease::wait_for_end(bucket, head, ttl).await?,
            (_, Some(head)) => head,
            (_, None) => return self.claim(bucket, 1, Head::default()).await,
        };
        let fetches = matches!(way, Way::Fetch | Way::TakeOver) && head.manifest.mark.number > 0;
        if fetches {
            let begun = std::time::Instant::now();
            let Fetched { segments, bytes, later_bytes } =
                stage(bucket, &mut head, store, Amount::Needed).await?;
            tracing::info!(segments, bytes, later_bytes, took = ?begun.elapsed(), "store fetched from the archive");
            let staged = staged(store);
            blocking(move || trial(&staged)).await?;
        }
        if way == Way::TakeOver {
            tracing::warn!(from = head.who, entry = head.number, "archive taken over");
            head = self.claim(bucket, head.number + 1, head).await?;
        }
        if fetches {
            adopt(store)?;
        }
        Ok(head)
    }

    /// Goes on with a log that is there, or begins an archive: all that can be done while the store is open.
    pub(super) async fn attach_open(&self, bucket: &Bucket) -> Result<Head, ArchiveError> {
        bucket.prove().await?;
        let head = bucket.head().await?;
        match (way(self.holder, true, head.as_ref())?, head) {
            (_, Some(head)) => Ok(head),
            (_, None) => self.claim(bucket, 1, Head::default()).await,
        }
    }

    /// Adds an entry that says what was, under this name.
    async fn claim(&self, bucket: &Bucket, number: u64, before: Head) -> Result<Head, ArchiveError> {
        // The tails keep their entries: a manifest cannot say what they do. One of no bytes follows them.
        let what = match before.tails.is_empty() {
            true => What::Manifest(before.manifest.clone()),
            false => What::Tail {
                mark: before.manifest.mark,
                tail: super::manifest::Tail {
                    offset: u64::from(before.manifest.mark.offset),
                    bytes: bytes::Bytes::new(),
                },
            },
        };
        let entry = self.entry(number, what);
        match bucket.append(&entry).await? {
            Ok(()) => {
                let before = (number > 1).then_some(before);
                Ok(entry.onto(before).expect("it says what was"))
            }
            Err(other) => Err(ArchiveError::Held { who: other.who }),
        }
    }
}

/// Whether there is anything in the log of the store in this directory.
pub(super) fn has_log(store: &Path) -> bool {
    std::fs::read_dir(store.join("log")).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_histories_are_never_joined() {
        let me = [1; 16];
        let mine = Head { holder: me, ..Head::default() };
        let theirs = Head { holder: [2; 16], ..Head::default() };
        assert_eq!(way(me, true, None).expect("allowed"), Way::Begin);
        assert_eq!(way(me, true, Some(&mine)).expect("allowed"), Way::Resume);
        assert_eq!(way(me, false, Some(&mine)).expect("allowed"), Way::Fetch);
        assert_eq!(way(me, false, Some(&theirs)).expect("allowed"), Way::TakeOver);
        assert!(matches!(way(me, true, Some(&theirs)), Err(ArchiveError::TakenOver { .. })));
    }
}
