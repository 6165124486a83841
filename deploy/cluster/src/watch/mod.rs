//! Pods that asked for protection and do not have it: counted, told of, and written to the log.
//!
//! ```text
//! pods, namespaces ─ Watched ─▶ findings ─┬▶ Tally      metrics, at once
//!                                         └▶ Announcer ─▶ Events on the owners, not too often
//! ```
//! Pods are judged by the function that decides on them when they are created, so Events come from here and not from the webhook: a
//! review has no side effects, a dry run least of all, and a pod that nobody asked about is found, too. The price is that an Event
//! comes some seconds after the pod.
//!
//! One replica watches at a time ([`crate::election`]); what it knows of a pod is a few words, not the pod.

mod announce;
mod event;
mod tally;
mod watched;

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use tidelock_injector::Config;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

pub use announce::Announcer;
pub use event::event;
pub use tally::Tally;
pub use watched::{Finding, Owner, Watched};

use crate::{api::WatchCalls, limits};

/// What looks after pods.
pub struct Watcher<C> {
    /// The calls it makes.
    pub calls: C,
    /// How the injector decides.
    pub config: Config,
    /// Where it counts.
    pub tally: Tally,
    /// This replica's name.
    pub replica: String,
    /// How soon it says what.
    pub pace: Pace,
}

/// How soon what is found is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// How often pods are counted.
    pub every: Duration,
    /// How long something has to last before anybody is told.
    pub after: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { every: limits::REPORT_EVERY, after: limits::REPORT_AFTER }
    }
}

impl<C: WatchCalls> Watcher<C> {
    /// Watches for ever. What cannot be asked is told of and asked again.
    pub async fn run(&self) {
        let _watching = self.tally.watching();
        let mut watched = Watched::new(self.config.clone());
        let mut announcer = Announcer::new(self.pace.after, Instant::now());
        let mut pods = pin!(self.calls.pods());
        let mut namespaces = pin!(self.calls.namespaces());
        let mut look = interval(self.pace.every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = pods.next() => match event {
                    Ok(event) => watched.on_pod(event),
                    Err(error) => warn!(%error, "pods cannot be watched"),
                },
                Some(event) = namespaces.next() => match event {
                    Ok(event) => watched.on_namespace(event),
                    Err(error) => warn!(%error, "namespaces cannot be watched"),
                },
                _ = look.tick() => self.report(&watched, &mut announcer).await,
            }
        }
    }

    async fn report(&self, watched: &Watched, announcer: &mut Announcer) {
        let Some(findings) = watched.findings() else { return };
        self.tally.set(&findings, watched.protected());
        for finding in announcer.due(&findings, Instant::now()) {
            self.tell(finding).await;
        }
    }

    async fn tell(&self, finding: &Finding) {
        let Finding { namespace, reason, .. } = finding;
        let owner = self.top(finding).await;
        warn!(%namespace, owner = %owner, %reason, pods = finding.pods.len(), "pods are not protected: {}", finding.message);
        let told = self.calls.tell(event(finding, &owner, &self.replica, Timestamp::now())).await;
        self.tally.told(told.is_ok());
        if let Err(error) = told {
            // Metric and log have it, and it is told again.
            info!(%namespace, owner = %owner, %error, "an Event was not sent");
        }
    }

    /// A Deployment's pods belong to ReplicaSets, at which nobody looks.
    async fn top(&self, finding: &Finding) -> Owner {
        let owner = &finding.owner;
        if owner.kind != "ReplicaSet" {
            return owner.clone();
        }
        match self.calls.maker(&finding.namespace, &owner.name).await {
            Ok(Some(maker)) => Owner::from(&maker),
            Ok(None) => owner.clone(),
            Err(error) => {
                info!(%error, replica_set = owner.name, "whose ReplicaSet this is cannot be asked");
                owner.clone()
            }
        }
    }
}

#[cfg(test)]
mod tests;
