//! Who writes an archive, and when somebody else may.
//!
//! What keeps two writers apart is the chain: an entry is created only where there is none, so of two that would be the same number one
//! fails, whatever either believes about time. The lease is for manners: the holder renews an object of its own every third of the time,
//! and a newcomer takes over only when neither that nor the chain has changed while *it* watched for the whole of that time, by its own
//! steady clock. No two machines' clocks are ever compared.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::{bucket::Bucket, error::ArchiveError, manifest::Head};
use crate::limits;

/// What a holder's object says.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Beat {
    /// Grows with every renewal.
    #[prost(uint64, tag = "1")]
    pub(super) count: u64,
    /// How long it holds without one, in milliseconds.
    #[prost(uint64, tag = "2")]
    pub(super) ttl_ms: u64,
    /// The holder has ended and wants it no more.
    #[prost(bool, tag = "3")]
    pub(super) released: bool,
}

fn name(holder: &[u8; 16]) -> String {
    let holder: String = holder.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("lease/{holder}")
}

pub(super) async fn renew(bucket: &Bucket, holder: &[u8; 16], beat: &Beat) -> Result<(), ArchiveError> {
    bucket.put(&name(holder), Bytes::from(prost::Message::encode_to_vec(beat))).await
}

/// The leases of everybody but this holder are of no use any more.
pub(super) async fn forget_others(bucket: &Bucket, holder: &[u8; 16]) -> Result<(), ArchiveError> {
    let own = name(holder);
    let others = bucket.list("lease").await?.into_iter().map(|found| found.name).filter(|name| *name != own);
    bucket.remove(others).await.map(drop)
}

async fn read(bucket: &Bucket, holder: &[u8; 16]) -> Result<Option<Beat>, ArchiveError> {
    let bytes = bucket.get(&name(holder)).await?;
    Ok(bytes.and_then(|bytes| prost::Message::decode(bytes).ok()))
}

/// Waits until the holder of this head is seen to be gone, and returns the head as it was all that time. [`ArchiveError::Held`] as
/// soon as it shows a sign of life.
pub(super) async fn wait_for_end(bucket: &Bucket, seen: Head, ttl: Duration) -> Result<Head, ArchiveError> {
    let beat = read(bucket, &seen.holder).await?;
    if beat.as_ref().is_some_and(|beat| beat.released) {
        return Ok(seen);
    }
    let theirs = Duration::from_millis(beat.as_ref().map_or(0, |beat| beat.ttl_ms));
    let ttl = ttl.max(theirs).min(limits::ARCHIVE_LEASE_MAX);
    tracing::info!(
        holder = seen.who,
        seconds = ttl.as_secs_f64(),
        "archive has a holder; waiting whether it lives"
    );
    let until = Instant::now() + ttl;
    while Instant::now() < until {
        sleep((ttl / limits::ARCHIVE_WATCHES).min(until.saturating_duration_since(Instant::now()))).await;
        let now = read(bucket, &seen.holder).await?;
        if now.as_ref().is_some_and(|beat| beat.released) {
            break;
        }
        if now != beat {
            return Err(ArchiveError::Held { who: seen.who });
        }
    }
    // Beats may have failed while entries came.
    let head = bucket.head().await?.ok_or(ArchiveError::Empty)?;
    match head.number == seen.number {
        true => Ok(head),
        false
            if head.holder == seen.holder
                && read(bucket, &seen.holder).await?.is_some_and(|beat| beat.released) =>
        {
            Ok(head)
        }
        false => Err(ArchiveError::Held { who: head.who }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::archive::{
        entry::{Entry, What},
        manifest::Manifest,
    };

    const TTL: Duration = Duration::from_millis(400);

    async fn held(holder: u8) -> (Bucket, Head) {
        let bucket = Bucket::new(Arc::new(InMemory::new()));
        let what = What::Manifest(Manifest::default());
        let entry = Entry { number: 1, holder: [holder; 16], who: "a/1".to_owned(), what };
        bucket.append(&entry).await.expect("answered").expect("first");
        let head = bucket.head().await.expect("read").expect("there");
        (bucket, head)
    }

    fn beat(count: u64, released: bool) -> Beat {
        Beat { count, ttl_ms: 400, released }
    }

    #[tokio::test]
    async fn a_holder_that_is_silent_is_gone_after_its_time() {
        let (bucket, head) = held(1).await;
        renew(&bucket, &[1; 16], &beat(7, false)).await.expect("written");
        let begun = Instant::now();
        let found = wait_for_end(&bucket, head.clone(), TTL / 8).await.expect("expired");
        assert_eq!(found, head);
        assert!(begun.elapsed() >= TTL, "as long as the holder was promised");
    }

    #[tokio::test]
    async fn a_holder_that_renews_keeps_it() {
        let (bucket, head) = held(1).await;
        renew(&bucket, &[1; 16], &beat(1, false)).await.expect("written");
        let other = bucket.clone();
        let renewing = tokio::spawn(async move {
            sleep(TTL / 3).await;
            renew(&other, &[1; 16], &beat(2, false)).await.expect("written");
        });
        let found = wait_for_end(&bucket, head, TTL).await;
        assert!(matches!(found, Err(ArchiveError::Held { who }) if who == "a/1"));
        renewing.await.expect("done");
    }

    #[tokio::test]
    async fn a_lease_that_was_given_up_is_free_at_once() {
        let (bucket, head) = held(1).await;
        renew(&bucket, &[1; 16], &beat(9, true)).await.expect("written");
        let begun = Instant::now();
        wait_for_end(&bucket, head, TTL).await.expect("free");
        assert!(begun.elapsed() < TTL);
    }
}
