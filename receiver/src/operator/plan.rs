//! What retention, compaction and the size cap would do, for an operator.
//!
//! It is calculated on a thread that stands back behind everything else, works half of the time, and ends when the operator leaves or the receiver shuts down.

use std::time::Duration;

use tidelock_proto::{
    VolumeName,
    identity::{Peer, Role},
    wire::messages::{PlanRequest, ReplyKind},
};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{OperatorError, Replies};
use crate::{
    background,
    retention::Policy,
    server::{Context, now},
    store::{Ask, Forecast, StoreError},
};

pub(super) async fn answer(
    context: &Context,
    peer: &Peer,
    volume: Option<VolumeName>,
    request: &PlanRequest,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    if let Some(volume) = volume.as_ref().filter(|volume| context.store.volume(volume).is_none()) {
        return Err(context.store.no_volume(volume).into());
    }
    let policy = match &request.keep {
        Some(keep) => keep.parse().map_err(|_| OperatorError::BadRequest("that is no retention policy"))?,
        None => context.keep.clone(),
    };
    let _turn = context.plans.acquire().await.ok();
    info!(%peer, %policy, "forecast begins");
    let whole = volume.is_none() && matches!(peer.role, Role::Operator { tenant: None });
    let cap_bytes = request.cap_bytes.or(context.cap.map(|cap| cap.bytes));
    let forecast = calculate(context, peer, volume, policy.clone(), cap_bytes).await?;
    if let Err(error) = &forecast.sizes {
        warn!(%error, "forecast has no sizes");
    }
    for volume in &forecast.volumes {
        replies.send(ReplyKind::VolumePlan(volume.told(&policy))).await?;
    }
    replies.send(ReplyKind::StorePlan(forecast.told(&policy, whole))).await
}

async fn calculate(
    context: &Context,
    peer: &Peer,
    volume: Option<VolumeName>,
    policy: Policy,
    cap_bytes: Option<u64>,
) -> Result<Forecast, StoreError> {
    let (store, peer, closing) = (context.store.clone(), peer.clone(), context.closing.clone());
    let (tell, told) = oneshot::channel();
    let work = move || {
        let wanted = |name: &VolumeName| match &volume {
            Some(volume) => name == volume,
            None => peer.may_operate(name),
        };
        let ask = Ask { policy: &policy, now_ns: now().wall_ns, cap_bytes, wanted: &wanted };
        let forecast = store.forecast(&ask, &mut |took: Duration| {
            std::thread::sleep(took);
            !tell.is_closed() && !*closing.borrow()
        });
        // Nobody may be there any more.
        let _ = tell.send(forecast);
    };
    // The thread is small, and where there is none left much else has ended before.
    background::spawn("forecast", work).map_err(|_| StoreError::Restless)?;
    told.await.unwrap_or(Err(StoreError::Closed))
}
