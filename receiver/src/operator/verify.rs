//! A verification for an operator, told while it runs, and the repair that may come before it.
//!
//! It reads on a thread of its own and waits when the operator does not listen; when the operator leaves, it ends.
//!
//! ```text
//! verify ─▶ damaged segments from the archive ─▶ damaged chunks from the sidecars ─▶ close what nobody needs ─▶ verify: what is told
//! ```
//! Nothing else waits for a repair: sessions go on, and a sidecar sends chunks again between its cuts. What no source has stays a finding.

use std::sync::Arc;

use tidelock_proto::{
    ChunkId, VolumeName,
    identity::Peer,
    limits::RESEND_MAX,
    wire::messages::{ReplyKind, VerifyRequest},
};
use tokio::{sync::mpsc, time::timeout};
use tracing::{error, info, warn};

use super::{OperatorError, Replies};
use crate::{
    limits,
    server::{Context, blocking},
    verify::{Broken, Event, Fault, Mending, Summary, examine},
};

pub(super) async fn answer(
    context: &Context,
    peer: &Peer,
    volume: Option<VolumeName>,
    request: &VerifyRequest,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    if let Some(volume) = volume.as_ref().filter(|volume| context.store.volume(volume).is_none()) {
        return Err(context.store.no_volume(volume).into());
    }
    let _turn = context.verifications.acquire().await.ok();
    info!(%peer, repair = request.repair, "verification begins");
    let verification = Verification { context, wanted: Arc::new(Wanted { volume, peer: peer.clone() }) };
    let mut told = verification.run(replies, !request.repair).await?;
    if let Some((found, broken)) = told.as_ref().filter(|(found, _)| request.repair && found.findings > 0) {
        let findings = found.findings;
        let (resent_chunks, restored_bytes) = verification.repair(broken).await?;
        info!(findings, resent_chunks, restored_bytes, "repair ended");
        told = verification.run(replies, true).await?;
        if let Some((summary, broken)) = &mut told {
            *summary = Summary { resent_chunks, restored_bytes, ..*summary };
            verification.renew_index(broken).await?;
        }
    }
    let Some((summary, _)) = told else { return Ok(()) };
    info!(?summary, "verification ended");
    replies.send(ReplyKind::VerifySummary(summary.into())).await
}

/// Whose volumes are looked at.
struct Wanted {
    volume: Option<VolumeName>,
    peer: Peer,
}

impl Wanted {
    fn has(&self, name: &VolumeName) -> bool {
        match &self.volume {
            Some(volume) => name == volume,
            None => self.peer.may_operate(name),
        }
    }
}

struct Verification<'a> {
    context: &'a Context,
    wanted: Arc<Wanted>,
}

impl Verification<'_> {
    /// Reads everything; the findings are told if they are what the operator is to know in the end. `None` if the operator left.
    async fn run(
        &self,
        replies: &mut Replies,
        findings: bool,
    ) -> Result<Option<(Summary, Broken)>, OperatorError> {
        let (store, wanted) = (self.context.store.clone(), self.wanted.clone());
        let (events, mut coming) = mpsc::channel(limits::VERIFY_EVENTS);
        let reading = blocking(move || {
            examine(&store, &|name| wanted.has(name), &mut |event| events.blocking_send(event).is_ok())
        });
        let sending = async {
            while let Some(event) = coming.recv().await {
                let reply = match event {
                    Event::Progress(progress) => ReplyKind::VerifyProgress(progress.into()),
                    Event::Finding(finding) if findings => {
                        if finding.fault.is_damage() {
                            error!(%finding, "store is damaged");
                        } else {
                            warn!(%finding, "store was not verified as a whole");
                        }
                        ReplyKind::VerifyFinding((&finding).into())
                    }
                    Event::Finding(finding) => {
                        warn!(%finding, "store is damaged; to be repaired");
                        continue;
                    }
                };
                if let Err(error) = replies.send(reply).await {
                    // The operator left; the reading sees it at its next word.
                    coming.close();
                    return Err(error);
                }
            }
            Ok(())
        };
        let (told, sent) = tokio::join!(reading, sending);
        sent?;
        Ok(told?)
    }

    /// Tells how many chunks are whole again because sidecars had them, and how many bytes of the log the archive had.
    async fn repair(&self, broken: &Broken) -> Result<(u64, u64), OperatorError> {
        let (store, faults) = (self.context.store.clone(), broken.faults.clone());
        let mending = blocking(move || Mending::of(&store, &faults)).await?;
        let restored = match &self.context.archive {
            Some(archive) => archive.mend(self.context.store.clone(), &mending.segments).await,
            None => 0,
        };
        let mut resent = 0;
        for (volume, chunks) in &broken.chunks {
            // The archive may have had them, or another volume.
            let lost = self.still_lost(volume, chunks.clone()).await;
            if !lost.is_empty() {
                self.ask(volume, &lost).await;
                let asked = lost.len();
                resent += (asked - self.still_lost(volume, lost).await.len()) as u64;
            }
        }
        if self.context.archive.is_none() {
            let store = self.context.store.clone();
            blocking(move || mending.close_scars(&store)).await?;
        }
        Ok((resent, restored))
    }

    /// An index that was made from a damaged log does not know what the log has got back. Nobody can be kept waiting for another one; the next start makes it.
    async fn renew_index(&self, left: &Broken) -> Result<(), OperatorError> {
        if left.faults.iter().any(|fault| matches!(fault, Fault::Index { .. })) {
            let store = self.context.store.clone();
            blocking(move || store.forget_index()).await?;
            warn!("the index lacks what the log has; the next start of the receiver makes it anew");
        }
        Ok(())
    }

    /// Those of the chunks that cannot be read.
    async fn still_lost(&self, volume: &VolumeName, mut chunks: Vec<ChunkId>) -> Vec<ChunkId> {
        let (store, volume) = (self.context.store.clone(), volume.clone());
        blocking(move || {
            chunks.retain(|id| !store.is_whole(volume.tenant(), *id));
            chunks
        })
        .await
    }

    /// Asks the volume's sidecar, if there is one, and waits until what it has is durable. What has come is to be seen in the store.
    async fn ask(&self, name: &VolumeName, chunks: &[ChunkId]) {
        let volume = self.context.volumes.get(name);
        for some in chunks.chunks(RESEND_MAX) {
            if !volume.live().connected {
                warn!(volume = %name, "damaged chunks are not asked for: no sidecar is connected");
                return;
            }
            let len = |id| match self.context.store.chunk_size(name.tenant(), id) {
                Ok(Some((len, _))) => u32::try_from(len).unwrap_or(0),
                _ => 0,
            };
            let wanted = some.iter().map(|id| (*id, len(id))).collect();
            match timeout(limits::RESEND_WITHIN, volume.resend(wanted)).await {
                Ok(Ok(Ok(found))) => {
                    info!(volume = %name, asked = some.len(), found, "damaged chunks asked for")
                }
                Ok(Ok(Err(reason))) => {
                    warn!(volume = %name, reason, "damaged chunks did not come again");
                    return;
                }
                Ok(Err(_)) | Err(_) => {
                    warn!(volume = %name, "damaged chunks did not come again in time");
                    return;
                }
            }
        }
    }
}
