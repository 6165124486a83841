//! One receiver's end of an archive: brings what the log has into it, step by step.
//!
//! Every step ends with an entry of the chain, and only then is anything removed that the entry does not name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use super::{
    attach::Writer,
    bucket::Bucket,
    entry::{Entry, What},
    error::ArchiveError,
    lease,
    manifest::{CHAIN, DATA, Head, Manifest, Outlined, Piece, Tail, entry_name, entry_number},
    plan::{Snapshot, Step, Want, missing_bytes, plan},
    source::Source,
    state::State,
};
use crate::{limits, server::blocking};

pub(super) struct Uploader {
    bucket: Bucket,
    writer: Writer,
    source: Arc<dyn Source>,
    state: Arc<State>,
    /// What the chain says.
    head: Head,
    /// An entry of which it is not known whether it is there: it is tried again as it is.
    pending: Option<Entry>,
    /// Pieces that are there and that no manifest names yet: their lengths by name.
    stray: BTreeMap<String, u64>,
    /// Something may be there that nobody needs.
    sweep: bool,
    /// Sealed segments lack outlines that they may have: a manifest is due even if the log does not grow. Once, because some cannot have one.
    outline: bool,
}

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The archive has what the log had.
    Done,
    /// Something was added; there may be more.
    More,
}

impl Uploader {
    /// Goes on from what the chain says. The log must be what was archived, and what came after.
    pub(super) async fn new(
        bucket: Bucket,
        writer: Writer,
        source: Arc<dyn Source>,
        state: Arc<State>,
        head: Head,
    ) -> Result<Self, ArchiveError> {
        let (stray, mark) = (BTreeMap::new(), head.manifest.mark.segment);
        let outlined = |segment: &u32| *segment >= mark || head.manifest.outlines.contains_key(segment);
        let outline = !head.manifest.segments.keys().all(outlined);
        let mut uploader =
            Self { bucket, writer, source, state, head, pending: None, stray, sweep: true, outline };
        let log = uploader.snapshot().await?;
        if plan(&uploader.head, &log, false) == Step::Behind || !uploader.agrees(&log).await? {
            return Err(ArchiveError::Diverged);
        }
        let listed = uploader.bucket.list(DATA).await?;
        let known = uploader.head.names();
        let strays = listed.into_iter().filter(|found| !known.contains(&found.name));
        uploader.stray = strays.map(|found| (found.name, found.len)).collect();
        uploader.state.on_missing(Instant::now(), missing_bytes(&uploader.head, &log));
        if uploader.head.manifest.store == log.store {
            uploader.state.on_agreed();
            uploader.state.on_archived(uploader.head.manifest.mark.number);
        }
        Ok(uploader)
    }

    /// What the chain says.
    #[cfg(test)]
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// One step towards the log as it is now.
    pub(super) async fn step(&mut self) -> Result<Progress, ArchiveError> {
        if let Some(entry) = self.pending.take() {
            self.append(entry).await?;
        }
        let log = self.snapshot().await?;
        self.state.on_missing(Instant::now(), missing_bytes(&self.head, &log));
        let entry = match plan(&self.head, &log, self.outline) {
            Step::Nothing => {
                self.state.on_archived(log.mark.number);
                if self.sweep {
                    self.sweep().await?;
                }
                return Ok(Progress::Done);
            }
            Step::Behind => return Err(ArchiveError::Diverged),
            Step::Tail { segment, offset, len } => {
                let bytes = self.read(segment, offset, len).await?;
                self.state.on_uploaded(len);
                What::Tail { mark: log.mark, tail: Tail { offset, bytes: bytes.into() } }
            }
            Step::Commit { upload, mut keep } => {
                for want in upload {
                    let piece = self.upload(want).await?;
                    keep.entry(want.segment).or_default().push(piece);
                }
                let outlines = self.outlines(&log, &keep).await?;
                What::Manifest(Manifest { store: log.store, segments: keep, outlines, mark: log.mark })
            }
        };
        let before = (self.head.base, self.head.names());
        let entry = self.writer.entry(self.head.number + 1, entry);
        let whole = entry.is_manifest();
        self.append(entry).await?;
        self.state.on_missing(Instant::now(), 0);
        if whole {
            self.outline = false;
            let needed = self.head.names();
            self.sweep |= self.stray.keys().any(|name| !needed.contains(name));
            self.stray.clear();
            let removed = match self.sweep {
                true => self.sweep().await,
                false => self.remove_unneeded(before.0, before.1).await,
            };
            if let Err(error) = removed {
                tracing::debug!(%error, "objects nobody needs are left for later");
                self.sweep = true;
            }
        }
        Ok(Progress::More)
    }

    async fn append(&mut self, entry: Entry) -> Result<(), ArchiveError> {
        match self.bucket.append(&entry).await {
            Ok(Ok(())) => {}
            Ok(Err(other)) => return Err(ArchiveError::TakenOver { who: other.who }),
            Err(error) => {
                self.pending = Some(entry);
                return Err(error);
            }
        }
        let head = std::mem::take(&mut self.head);
        self.head = entry.onto(Some(head)).expect("it was made to follow");
        self.state.on_entry();
        self.state.on_agreed();
        self.state.on_archived(self.head.manifest.mark.number);
        Ok(())
    }

    /// Makes a piece of these bytes, unless an earlier attempt has done so.
    async fn upload(&mut self, want: Want) -> Result<Piece, ArchiveError> {
        let bytes = self.read(want.segment, want.offset, want.len).await?;
        let piece = Piece::of(want.offset, &bytes);
        let name = piece.name(want.segment);
        if self.stray.get(&name) != Some(&piece.len) {
            self.bucket.put(&name, bytes.into()).await?;
            self.state.on_uploaded(piece.len);
            self.stray.insert(name, piece.len);
        }
        Ok(piece)
    }

    /// The outlines that there are of these segments, and some more where sealed segments have none.
    async fn outlines(
        &mut self,
        log: &Snapshot,
        segments: &BTreeMap<u32, Vec<Piece>>,
    ) -> Result<BTreeMap<u32, Outlined>, ArchiveError> {
        let manifest = &self.head.manifest;
        let mut outlines = match manifest.store == log.store {
            true => manifest.outlines.clone(),
            false => BTreeMap::new(),
        };
        outlines.retain(|segment, _| segments.contains_key(segment));
        let lacking = log.lens.keys().filter(|at| **at < log.mark.segment && !outlines.contains_key(at));
        let lacking: Vec<u32> = lacking.copied().take(limits::ARCHIVE_OUTLINES).collect();
        for segment in lacking {
            let source = self.source.clone();
            // Without one the segment is fetched as a whole.
            let made = blocking(move || source.outline(segment)).await;
            let made = made.inspect_err(|error| tracing::debug!(segment, %error, "segment has no outline"));
            let Ok(Some(bytes)) = made else { continue };
            let outline = Outlined::of(&bytes);
            let name = outline.name(segment);
            // What is there under this name may be the damaged one in whose place this is made.
            let there = self.stray.get(&name) == Some(&outline.len)
                && self.bucket.get(&name).await?.is_some_and(|found| outline.is(&found));
            if !there {
                self.bucket.put(&name, bytes).await?;
                self.state.on_uploaded(outline.len);
                self.stray.insert(name, outline.len);
            }
            outlines.insert(segment, outline);
        }
        Ok(outlines)
    }

    /// What only older manifests needed. What cannot be removed now is found by a sweep.
    async fn remove_unneeded(&self, base: u64, names: BTreeSet<String>) -> Result<(), ArchiveError> {
        let needed = self.head.names();
        let pieces = names.into_iter().filter(|name| !needed.contains(name));
        let entries = (base..self.head.base).map(entry_name);
        let gone: Vec<String> = pieces.chain(entries.filter(|_| base > 0)).collect();
        self.state.on_removed(self.bucket.remove(gone).await?);
        Ok(())
    }

    /// Removes everything that the chain does not name: what an interrupted attempt has left, or another holder.
    async fn sweep(&mut self) -> Result<(), ArchiveError> {
        let needed = self.head.names();
        let pieces = self.bucket.list(DATA).await?.into_iter().map(|found| found.name);
        let mut gone: Vec<String> = pieces.filter(|name| !needed.contains(name)).collect();
        let entries = self.bucket.list(CHAIN).await?.into_iter().map(|found| found.name);
        gone.extend(entries.filter(|name| entry_number(name).is_some_and(|number| number < self.head.base)));
        self.state.on_removed(self.bucket.remove(gone).await?);
        lease::forget_others(&self.bucket, &self.writer.holder).await?;
        self.sweep = false;
        Ok(())
    }

    async fn snapshot(&self) -> Result<Snapshot, ArchiveError> {
        let source = self.source.clone();
        blocking(move || source.snapshot()).await.map_err(ArchiveError::local("log".as_ref()))
    }

    async fn read(&self, segment: u32, offset: u64, len: u64) -> Result<Vec<u8>, ArchiveError> {
        let source = self.source.clone();
        let read = blocking(move || source.read(segment, offset, len)).await;
        read.map_err(ArchiveError::local(format!("log segment {segment}").as_ref()))
    }

    /// Whether the newest archived bytes that are still here are the same here. Segments have random salts, so a log with another
    /// history differs there.
    async fn agrees(&self, log: &Snapshot) -> Result<bool, ArchiveError> {
        let manifest = &self.head.manifest;
        if manifest.store != log.store {
            return Ok(true);
        }
        for (segment, pieces) in manifest.segments.iter().rev() {
            let Some(len) = log.lens.get(segment) else { continue };
            let Some(piece) = pieces.last() else { continue };
            if self.head.covered(*segment) > *len {
                return Ok(false);
            }
            let mut same = piece.is(&self.read(*segment, piece.offset, piece.len).await?);
            for tail in self.head.tails.iter().filter(|_| *segment == manifest.mark.segment) {
                same &= tail.bytes == self.read(*segment, tail.offset, tail.bytes.len() as u64).await?;
            }
            return Ok(same);
        }
        Ok(true)
    }
}
