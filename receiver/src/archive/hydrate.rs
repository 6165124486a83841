//! From an archive to a log on disk: every piece is fetched, checked against the hash in its name, and written where it was.
//!
//! All of it, before the store opens: reading parts of it on demand would save the wait and the space, and is not done. It is written
//! beside the store's log, and becomes it with one rename when the last byte is synced; whoever is interrupted begins anew.

use std::{
    collections::VecDeque,
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    bucket::Bucket,
    error::ArchiveError,
    manifest::{Head, Piece},
};
use crate::{
    limits,
    log::disk::{DirDisk, Disk, SegmentFile},
    server::blocking,
};

/// What was fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Fetched {
    /// Segments.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Where the log is written, within the store.
const NEW: &str = "fetch.new";

/// Gives the store in this directory, which has no log, the one that `head` describes.
pub(super) async fn hydrate(bucket: &Bucket, head: &Head, store: &Path) -> Result<Fetched, ArchiveError> {
    let log = store.join(NEW);
    clear(&log)?;
    let failed = ArchiveError::local(&log);
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::new(&log));
    let mut fetched = Fetched::default();
    let mut files = Vec::new();
    let mut wanted = VecDeque::new();
    for (segment, pieces) in &head.manifest.segments {
        let file = disk.create(*segment).map_err(&failed)?;
        wanted.extend(pieces.iter().map(|piece| (*segment, *piece, file.clone())));
        fetched.segments += 1;
        fetched.bytes += pieces.last().map_or(0, Piece::end);
        files.push((*segment, file));
    }
    let mut running = JoinSet::new();
    loop {
        while running.len() < limits::ARCHIVE_PARALLEL
            && let Some((segment, piece, file)) = wanted.pop_front()
        {
            let (bucket, log) = (bucket.clone(), log.clone());
            running.spawn(async move {
                let bytes = fetch(&bucket, segment, &piece).await?;
                write(file, bytes, piece.offset).await.map_err(ArchiveError::local(&log))
            });
        }
        match running.join_next().await {
            None => break,
            Some(Ok(done)) => done?,
            Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    if let Some((_, last)) = files.last().filter(|(segment, _)| *segment == head.manifest.mark.segment) {
        for tail in &head.tails {
            fetched.bytes += tail.bytes.len() as u64;
            write(last.clone(), tail.bytes.clone(), tail.offset).await.map_err(&failed)?;
        }
    }
    let sync = move || files.iter().try_for_each(|(_, file)| file.sync()).and_then(|()| disk.sync_names());
    blocking(sync).await.map_err(&failed)?;
    // Only an empty directory is replaced.
    let rename = || std::fs::rename(&log, store.join("log")).and_then(|()| File::open(store)?.sync_all());
    rename().map_err(failed)?;
    Ok(fetched)
}

/// An empty directory for the log.
fn clear(log: &Path) -> Result<(), ArchiveError> {
    match std::fs::remove_dir_all(log) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ArchiveError::local(log)(error));
        }
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(log).map_err(ArchiveError::local(log))
}

pub(super) async fn fetch(bucket: &Bucket, segment: u32, piece: &Piece) -> Result<Bytes, ArchiveError> {
    let name = piece.name(segment);
    let mut attempt = 0;
    let bytes = loop {
        match bucket.get(&name).await {
            Err(error @ ArchiveError::Request { .. }) if attempt < limits::ARCHIVE_FETCH_ATTEMPTS => {
                attempt += 1;
                tracing::debug!(%error, attempt, "fetching again");
                tokio::time::sleep(limits::ARCHIVE_RETRY_FIRST * attempt).await;
            }
            other => break other?,
        }
    };
    let bytes = bytes.ok_or_else(|| ArchiveError::Missing(name.clone()))?;
    if piece.is(&bytes) {
        Ok(bytes)
    } else {
        Err(ArchiveError::Damaged { name, what: "is not what was uploaded" })
    }
}

async fn write(file: Arc<dyn SegmentFile>, bytes: Bytes, offset: u64) -> std::io::Result<()> {
    blocking(move || file.write_at(&bytes, offset)).await
}
