//! What is known of a volume now: for `Status` and for the metrics.

use std::collections::BTreeSet;

use tidelock_proto::{
    PointId, VolumeName,
    identity::Peer,
    tree::Totals,
    wire::{
        self,
        messages::{Heartbeat, PointName, ReplyKind, VolumeStatus},
    },
};

use super::{OperatorError, Replies};
use crate::{
    image::ImageState,
    metrics::VolumeGauges,
    server::{Context, blocking},
    store::{Named, StoreError, VolumeInfo},
    volume::{Throughput, lag_ns},
};

/// A volume at one instant.
pub(crate) struct Observed {
    pub(crate) name: VolumeName,
    info: Option<VolumeInfo>,
    connected: bool,
    heartbeat: Option<Heartbeat>,
    heard_ns: u64,
    lag_ns: u64,
    image: Option<ImageState>,
    throughput: Throughput,
    /// Of the newest point, if it is known without building its tree.
    totals: Option<Totals>,
}

/// Everything in the store, and what is connected and has no point yet.
pub(crate) fn observe(context: &Context, now_ns: u64) -> Vec<Observed> {
    let mut names: BTreeSet<VolumeName> = context.store.volumes().into_iter().collect();
    names.extend(
        context.volumes.all().iter().filter(|volume| volume.live().connected).map(|v| v.name.clone()),
    );
    names.into_iter().map(|name| observe_one(context, name, now_ns)).collect()
}

fn observe_one(context: &Context, name: VolumeName, now_ns: u64) -> Observed {
    let info = context.store.volume(&name);
    let volume = context.volumes.get(&name);
    let live = volume.live();
    let cut_ns = info.as_ref().map_or(0, |info| info.last.cut.time_ns);
    let last = info.as_ref().map(|info| info.last.id);
    Observed {
        connected: live.connected,
        heartbeat: live.heartbeat.clone(),
        heard_ns: live.heard_ns,
        lag_ns: lag_ns(now_ns, live.covered_ns.max(cut_ns)),
        image: context.images.as_ref().map(|images| images.state(&name)),
        throughput: live.rate.over(crate::server::now().instant),
        totals: live
            .totals
            .filter(|(point, _)| live.connected || Some(*point) == last)
            .map(|(_, totals)| totals),
        info,
        name,
    }
}

impl Observed {
    /// The same as gauges.
    pub(crate) fn gauges(&self) -> VolumeGauges {
        let sent_ns = self.heartbeat.as_ref().map(|heartbeat| heartbeat.now_ns);
        VolumeGauges {
            lag_ns: self.lag_ns,
            clock_offset_ns: sent_ns.map(|sent_ns| self.heard_ns.wrapping_sub(sent_ns).cast_signed()),
            points: self.info.as_ref().map_or(0, |info| info.points),
            epoch: self.info.as_ref().map_or(1, |info| info.epoch.0),
            connected: self.connected,
            behind_bytes: self.heartbeat.as_ref().map_or(0, |heartbeat| heartbeat.behind_bytes),
            image: self.image.as_ref().map(|image| matches!(image, ImageState::Following(_))),
        }
    }

    fn status(self, named: Named, store: &[String], archive: Option<&str>) -> VolumeStatus {
        let gauges = self.gauges();
        let totals = self.totals.unwrap_or_default();
        let (image_point, image_failure) = match &self.image {
            Some(ImageState::Following(point)) => (Some(wire::point_id_to_wire(*point)), None),
            Some(ImageState::Failed(reason)) => (None, Some(reason.clone())),
            _ => (None, None),
        };
        VolumeStatus {
            volume: self.name.to_string(),
            epoch: gauges.epoch,
            connected: self.connected,
            promoted: self.info.as_ref().is_some_and(|info| info.promoted),
            last: self.info.as_ref().map(|info| wire::point_to_wire(&info.last)),
            heartbeat: self.heartbeat,
            lag_ns: self.lag_ns,
            points: gauges.points,
            inodes: totals.inodes,
            data_bytes: totals.data_bytes,
            oldest_ns: self.info.as_ref().map_or(0, |info| info.oldest_ns),
            store_full: store.iter().any(|condition| condition == FULL),
            archive: archive.unwrap_or_default().to_owned(),
            store_conditions: store.to_vec(),
            image: self.image.map(|image| image.word().to_owned()),
            image_point,
            image_failure,
            content_bytes_per_s: Some(self.throughput.content_bytes),
            wire_bytes_per_s: Some(self.throughput.wire_bytes),
            tested: named.verdict.map(|(point, verdict)| point_name(point, verdict.to_string())),
            instants: named.instants.into_iter().map(|(point, dir)| point_name(point, dir)).collect(),
        }
    }
}

fn point_name(point: PointId, name: String) -> PointName {
    PointName { point: Some(wire::point_id_to_wire(point)), name }
}

const FULL: &str = "store-full";
const NEWEST_DAMAGED: &str = "newest-damaged";

/// Whether the newest point is known to be damaged. It goes with the next point, which is stored whole.
fn newest_damaged(context: &Context, observed: &Observed) -> bool {
    let damaged = context.volumes.get(&observed.name).live().damaged;
    damaged.is_some() && damaged == context.store.volume(&observed.name).map(|info| info.last.id)
}

/// What the store has to say of itself.
fn conditions(context: &Context) -> Vec<String> {
    let full = context.store.full().map(|error| match error {
        StoreError::Full { capped: true, .. } => "store-cap",
        _ => FULL,
    });
    let near = context.cap.is_some_and(|cap| cap.is_near(context.store.log_len()));
    let filling = context.store.parts().is_some_and(|parts| parts.is_filling());
    let all = full.into_iter().chain(near.then_some("store-near-cap"));
    all.chain(filling.then_some("store-filling")).map(str::to_owned).collect()
}

pub(super) async fn answer(
    context: &Context,
    peer: &Peer,
    replies: &mut Replies,
) -> Result<(), OperatorError> {
    let store = conditions(context);
    for mut observed in observe(context, crate::server::now().wall_ns) {
        if !peer.may_read(&observed.name) {
            continue;
        }
        if observed.totals.is_none() {
            observed.totals = count(context, &observed).await;
        }
        let archive = context.archive.as_ref().and_then(|archive| archive.observe().condition);
        let named = names(context, &observed).await;
        let own = newest_damaged(context, &observed).then(|| NEWEST_DAMAGED.to_owned());
        let store: Vec<String> = store.iter().cloned().chain(own).collect();
        replies.send(ReplyKind::Volume(observed.status(named, &store, archive))).await?;
    }
    Ok(())
}

/// What its points are named. Status does not fail for it; nobody waits for the disk on a thread that others need.
async fn names(context: &Context, observed: &Observed) -> Named {
    if observed.info.is_none() {
        return Named::default();
    }
    let (store, name) = (context.store.clone(), observed.name.clone());
    let named = blocking(move || store.named(&name)).await;
    named.unwrap_or_else(|error| {
        tracing::warn!(%error, volume = %observed.name, "the names of its points cannot be read");
        Named::default()
    })
}

/// Sums over the newest point's tree, which is built once and then known until the volume changes. A tree that
/// cannot be built is found by whoever wants it; status does not fail for it.
async fn count(context: &Context, observed: &Observed) -> Option<Totals> {
    let last = observed.info.as_ref()?.last.id;
    let _turn = context.trees.acquire().await.ok()?;
    let (store, name) = (context.store.clone(), observed.name.clone());
    let totals = blocking(move || store.tree_at(&name, last).map(|tree| tree.totals())).await;
    let volume = context.volumes.get(&observed.name);
    let totals = totals.inspect_err(|error| {
        let mut live = volume.live();
        let known = live.damaged == Some(last);
        if error.is_absent() {
            tracing::warn!(%error, "newest tree cannot be built now");
        } else if !known {
            tracing::error!(%error, "newest tree cannot be built");
        }
        if error.is_damage() || error.is_lost() {
            live.damaged = Some(last);
        }
    });
    let totals = totals.ok()?;
    let mut live = volume.live();
    live.damaged = None;
    live.seen = true;
    live.totals = Some((last, totals));
    Some(totals)
}
