//! A verification for an operator, told while it runs.
//!
//! It reads on a thread of its own and waits when the operator does not listen; when the operator leaves, it ends.

use tidelock_proto::{VolumeName, identity::Peer, wire::messages::ReplyKind};
use tokio::sync::mpsc;
use tracing::{error, info};

use super::{OperatorError, Replies};
use crate::{
    limits,
    server::{Context, blocking},
    verify::{Event, verify},
};

pub(super) async fn answer(
    context: &Context,
    peer: &Peer,
    volume: Option<VolumeName>,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    if let Some(volume) = volume.as_ref().filter(|volume| context.store.volume(volume).is_none()) {
        return Err(context.store.no_volume(volume).into());
    }
    let _turn = context.verifications.acquire().await.ok();
    info!(%peer, "verification begins");
    let (store, peer) = (context.store.clone(), peer.clone());
    let (events, mut coming) = mpsc::channel(limits::VERIFY_EVENTS);
    let reading = blocking(move || {
        let wanted = |name: &VolumeName| match &volume {
            Some(volume) => name == volume,
            None => peer.may_operate(name),
        };
        verify(&store, &wanted, &mut |event| events.blocking_send(event).is_ok())
    });
    let sending = async {
        while let Some(event) = coming.recv().await {
            if let Err(error) = replies.send(reply(event)).await {
                // The operator left; the reading sees it at its next word.
                coming.close();
                return Err(error);
            }
        }
        Ok(())
    };
    let (summary, sent) = tokio::join!(reading, sending);
    sent?;
    let Some(summary) = summary? else { return Ok(()) };
    info!(?summary, "verification ended");
    replies.send(ReplyKind::VerifySummary(summary.into())).await
}

fn reply(event: Event) -> ReplyKind {
    match event {
        Event::Progress(progress) => ReplyKind::VerifyProgress(progress.into()),
        Event::Finding(finding) => {
            error!(%finding, "store is damaged");
            ReplyKind::VerifyFinding((&finding).into())
        }
    }
}
