//! Bytes of segments that are in the archive and not here, for whoever reads them.
//!
//! Readers are threads that block, some of them within an asynchronous runtime; so requests are made by a runtime of this module's own, and the reader waits for the answer on a channel.
//! Only ranges are asked for. What comes is checked by whoever asked.

use std::{
    ops::Range,
    sync::{Arc, mpsc},
};

use bytes::{Bytes, BytesMut};
use tokio::runtime::{Builder, Runtime};

use super::{bucket::Bucket, entry::decode_pieces, error::ArchiveError, manifest::CHAIN, url::ArchiveUrl};
use crate::{
    limits,
    log::part::{Fetch, FetchError},
};

pub(super) struct Reach {
    bucket: Bucket,
    /// Gone only while this is dropped.
    runtime: Option<Runtime>,
}

impl Reach {
    /// A client of its own: its connections live in the runtime of this module.
    pub(super) fn open(url: &ArchiveUrl) -> Result<Arc<dyn Fetch>, ArchiveError> {
        let reach = Self::new(Bucket::new(url.open()?));
        Ok(Arc::new(reach.map_err(ArchiveError::local("archive-reads".as_ref()))?))
    }

    pub(super) fn new(bucket: Bucket) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("archive-reads")
            .enable_all()
            .build()?;
        Ok(Self { bucket, runtime: Some(runtime) })
    }
}

impl Drop for Reach {
    fn drop(&mut self) {
        // It may be dropped by a thread that must not wait.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fetch for Reach {
    fn name(&self, segment: u32, source: &Bytes, offset: u64) -> String {
        let pieces = decode_pieces(source).unwrap_or_default();
        let piece = pieces.iter().find(|piece| (piece.offset..piece.end()).contains(&offset));
        piece.map_or_else(|| format!("segment {segment}"), |piece| piece.name(segment))
    }

    fn fetch(&self, segment: u32, source: &Bytes, range: Range<u64>) -> Result<Bytes, FetchError> {
        let (bucket, source) = (self.bucket.clone(), source.clone());
        let (tell, told) = mpsc::sync_channel(1);
        let runtime = self.runtime.as_ref().expect("it is there until this is dropped");
        runtime.spawn(async move {
            // Nobody may wait any more.
            let _ = tell.send(read_or_tell(&bucket, segment, &source, range).await);
        });
        let closed = |_| FetchError { lost: false, source: Arc::new(ArchiveError::Empty) };
        told.recv().map_err(closed)?.map_err(|error| FetchError {
            // What is missing may have been moved on by another receiver: this one never gets it again.
            lost: matches!(error, ArchiveError::Damaged { .. } | ArchiveError::Missing(_)),
            source: Arc::new(error),
        })
    }
}

/// What is missing is lost only where the rest of the archive is: a directory that is not mounted has nothing, and will have it again.
async fn read_or_tell(
    bucket: &Bucket,
    segment: u32,
    source: &Bytes,
    range: Range<u64>,
) -> Result<Bytes, ArchiveError> {
    match read(bucket, segment, source, range).await {
        Err(missing @ ArchiveError::Missing(_)) => match bucket.list(CHAIN).await?.is_empty() {
            true => Err(ArchiveError::Empty),
            false => Err(missing),
        },
        read => read,
    }
}

async fn read(
    bucket: &Bucket,
    segment: u32,
    source: &Bytes,
    range: Range<u64>,
) -> Result<Bytes, ArchiveError> {
    let name = || format!("pieces of segment {segment}");
    let pieces = decode_pieces(source);
    let pieces = pieces.ok_or_else(|| ArchiveError::Damaged { name: name(), what: "are not known" })?;
    let mut all = BytesMut::new();
    for piece in pieces.iter().filter(|piece| piece.offset < range.end && piece.end() > range.start) {
        let (start, end) = (range.start.max(piece.offset), range.end.min(piece.end()));
        let name = piece.name(segment);
        let part = read_object(bucket, &name, start - piece.offset..end - piece.offset).await?;
        if part.len() as u64 != end - start {
            return Err(ArchiveError::Damaged { name, what: "is shorter than it was" });
        }
        all.extend_from_slice(&part);
    }
    Ok(all.freeze())
}

async fn read_object(bucket: &Bucket, name: &str, range: Range<u64>) -> Result<Bytes, ArchiveError> {
    let mut attempt = 0;
    loop {
        match bucket.get_range(name, range.clone()).await {
            Err(error) => {
                // An object that was cut short has no such range, however often it is asked for.
                if bucket.len(name).await.is_ok_and(|len| len.is_some_and(|len| len < range.end)) {
                    return Err(ArchiveError::Damaged {
                        name: name.to_owned(),
                        what: "is shorter than it was",
                    });
                }
                if !matches!(error, ArchiveError::Request { .. }) || attempt >= limits::ARCHIVE_READ_ATTEMPTS
                {
                    return Err(error);
                }
                attempt += 1;
                tracing::debug!(%error, attempt, "reading again");
                tokio::time::sleep(limits::ARCHIVE_RETRY_FIRST * attempt).await;
            }
            Ok(found) => return found.ok_or_else(|| ArchiveError::Missing(name.to_owned())),
        }
    }
}
