//! From an archive to a log on disk: every piece is fetched, checked against the hash in its name, and written where it was.
//!
//! Of a segment that has an outline only that is fetched, if the store can do without the rest for now ([`Amount::Needed`]): it opens at once, and the bytes come when they are read (`log/part.rs`). An outline that cannot be had costs no more than that;
//! it is struck from what the chain is taken to say, so that another is made.
//! It is written beside the store's log, as the log of a store of its own ([`stage`]), and becomes the store's with one rename when the last byte is synced ([`adopt`]); whoever is interrupted begins anew.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{
    bucket::Bucket,
    entry::encode_pieces,
    error::ArchiveError,
    manifest::{Head, Outlined, Piece},
};
use crate::{
    limits,
    log::{
        disk::{DirDisk, Disk, SegmentFile},
        outline::Outline,
        part,
    },
    server::blocking,
};

/// What was fetched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Fetched {
    /// Segments.
    pub segments: u64,
    /// Bytes of them, or of their outlines.
    pub bytes: u64,
    /// Bytes of them that are fetched when they are needed.
    pub later_bytes: u64,
}

/// How much of an archive is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Amount {
    /// All there is.
    All,
    /// What opening the store needs.
    Needed,
}

/// Where the new store is, within the store.
const NEW: &str = "fetch.new";

/// Gives the store in this directory, which has no log, the one that `head` describes.
pub(super) async fn hydrate(
    bucket: &Bucket,
    head: &mut Head,
    store: &Path,
    amount: Amount,
) -> Result<Fetched, ArchiveError> {
    let fetched = stage(bucket, head, store, amount).await?;
    adopt(store)?;
    Ok(fetched)
}

/// What [`stage`] makes is a store here, which may be opened before it is adopted.
pub(super) fn staged(store: &Path) -> PathBuf {
    store.join(NEW)
}

/// The staged log becomes the store's.
pub(super) fn adopt(store: &Path) -> Result<(), ArchiveError> {
    let new = staged(store);
    // Only an empty directory is replaced.
    let rename = || {
        std::fs::rename(new.join("log"), store.join("log"))?;
        File::open(store)?.sync_all()?;
        std::fs::remove_dir_all(&new)
    };
    rename().map_err(ArchiveError::local(&new))
}

/// Fetches the log that `head` describes, and syncs it.
pub(super) async fn stage(
    bucket: &Bucket,
    head: &mut Head,
    store: &Path,
    amount: Amount,
) -> Result<Fetched, ArchiveError> {
    clear(&staged(store))?;
    let log = staged(store).join("log");
    clear(&log)?;
    let failed = ArchiveError::local(&log);
    let disk: Arc<dyn Disk> = Arc::new(DirDisk::new(&log));
    let mut fetched = Fetched::default();
    let mut files = Vec::new();
    let mut wanted = VecDeque::new();
    let outlined = match amount {
        Amount::Needed => outline_all(bucket, head, &log, &mut fetched).await?,
        Amount::All => BTreeSet::new(),
    };
    for (segment, pieces) in head.manifest.segments.iter().filter(|(segment, _)| !outlined.contains(segment))
    {
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
    Ok(fetched)
}

/// Makes the segments that are not needed now of their outlines; tells which. Outlines that are not to be had are struck from the manifest.
async fn outline_all(
    bucket: &Bucket,
    head: &mut Head,
    log: &Path,
    fetched: &mut Fetched,
) -> Result<BTreeSet<u32>, ArchiveError> {
    let manifest = &head.manifest;
    let mut wanted = manifest.outlines.iter().filter_map(|(segment, outline)| {
        let pieces = manifest.segments.get(segment)?;
        (*segment != manifest.mark.segment).then(|| (*segment, *outline, pieces.clone()))
    });
    let (mut running, mut done, mut unusable) = (JoinSet::new(), BTreeSet::new(), Vec::new());
    loop {
        while running.len() < limits::ARCHIVE_PARALLEL
            && let Some((segment, outline, pieces)) = wanted.next()
        {
            let (bucket, log) = (bucket.clone(), log.to_owned());
            running.spawn(
                async move { (segment, outline_one(&bucket, &log, segment, &outline, &pieces).await) },
            );
        }
        match running.join_next().await {
            None => break,
            Some(Ok((segment, one))) => {
                let Some((outline_bytes, bytes)) = one? else {
                    unusable.push(segment);
                    continue;
                };
                done.insert(segment);
                fetched.segments += 1;
                fetched.bytes += outline_bytes;
                fetched.later_bytes += bytes;
            }
            Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
    head.manifest.outlines.retain(|segment, _| !unusable.contains(segment));
    Ok(done)
}

/// Makes a segment of its outline: the length of the outline and its own. `None` if the outline is not to be had.
async fn outline_one(
    bucket: &Bucket,
    log: &Path,
    segment: u32,
    outlined: &Outlined,
    pieces: &[Piece],
) -> Result<Option<(u64, u64)>, ArchiveError> {
    let name = outlined.name(segment);
    let bytes = fetch_object(bucket, &name).await?.filter(|bytes| outlined.is(bytes));
    let len = pieces.last().map_or(0, Piece::end);
    let outline = bytes.clone().and_then(|bytes| Outline::decode(bytes, segment));
    let Some((bytes, outline)) = bytes.zip(outline.filter(|outline| outline.len() == len)) else {
        tracing::warn!(name, "outline is missing or damaged; the segment is fetched as a whole");
        return Ok(None);
    };
    let (source, dir) = (encode_pieces(segment, pieces), log.to_owned());
    let made = blocking(move || part::create(&dir, segment, &outline, &bytes, source)).await;
    made.map_err(ArchiveError::local(log))?;
    Ok(Some((outlined.len, len)))
}

/// An empty directory.
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
    let bytes = fetch_object(bucket, &name).await?;
    let bytes = bytes.ok_or_else(|| ArchiveError::Missing(name.clone()))?;
    if piece.is(&bytes) {
        Ok(bytes)
    } else {
        Err(ArchiveError::Damaged { name, what: "is not what was uploaded" })
    }
}

async fn fetch_object(bucket: &Bucket, name: &str) -> Result<Option<Bytes>, ArchiveError> {
    let mut attempt = 0;
    loop {
        match bucket.get(name).await {
            Err(error @ ArchiveError::Request { .. }) if attempt < limits::ARCHIVE_FETCH_ATTEMPTS => {
                attempt += 1;
                tracing::debug!(%error, attempt, "fetching again");
                tokio::time::sleep(limits::ARCHIVE_RETRY_FIRST * attempt).await;
            }
            other => return other,
        }
    }
}

async fn write(file: Arc<dyn SegmentFile>, bytes: Bytes, offset: u64) -> std::io::Result<()> {
    blocking(move || file.write_at(&bytes, offset)).await
}
