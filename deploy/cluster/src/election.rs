//! One of several replicas does what only one should do: a Lease, as other programs of a cluster use it.
//!
//! Nobody compares clocks. A replica that sees the holder's mark unchanged for as long as the Lease says, by its own clock, takes
//! it; that two do so at one time is decided by the API, which takes a change only of what is there. The holder stops its work
//! before others may think it gone, so there is a pause between two holders, and never two of them, unless a process stands
//! still in the middle of a call. What is done under it has to bear that: an Event that is there twice is no harm.
//!
//! Not a crate: those there are compare the holder's clock with their own, and renew without looking whether they still hold it.

use std::{
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::{
    api::{ApiError, ElectionCalls},
    limits,
};

/// What a replica knows of the Lease.
pub struct Candidate {
    me: String,
    /// The mark of another holder, and since when it is the same.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What is to be done about it.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// There is none: create this one.
    Create(Lease),
    /// It is mine, or nobody's: put this in its place.
    Replace(Lease),
    /// Another one holds it.
    Wait,
}

impl Candidate {
    /// A replica by this name.
    pub fn new(me: &str) -> Self {
        Self { me: me.to_owned(), seen: None }
    }

    /// Decides on the Lease as it was read at `now`; `mark` is the wall clock, for people and as a mark.
    pub fn step(&mut self, lease: Option<Lease>, now: Instant, mark: Timestamp) -> Step {
        let Some(mut lease) = lease else {
            let spec = self.held(&LeaseSpec::default(), mark);
            return Step::Create(Lease { spec: Some(spec), ..Lease::default() });
        };
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        if holder.is_some_and(|holder| holder != self.me) && !self.is_over(&spec, now) {
            return Step::Wait;
        }
        self.seen = None;
        lease.spec = Some(self.held(&spec, mark));
        Step::Replace(lease)
    }

    /// Whether its holder has left the same mark for as long as it said that it may.
    fn is_over(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let said = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                now.duration_since(*since) >= said.map_or(limits::LEASE, Duration::from_secs)
            }
            _ => {
                self.seen = Some((spec.clone(), now));
                false
            }
        }
    }

    fn held(&self, before: &LeaseSpec, mark: Timestamp) -> LeaseSpec {
        let mine = before.holder_identity.as_deref() == Some(&self.me);
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(limits::LEASE.as_secs()).ok(),
            acquire_time: before.acquire_time.clone().filter(|_| mine).or(Some(MicroTime(mark))),
            renew_time: Some(MicroTime(mark)),
            lease_transitions: Some(if mine || before.holder_identity.is_none() {
                transitions
            } else {
                transitions + 1
            }),
            ..before.clone()
        }
    }
}

/// Does the work whenever this replica is the one to do it, for ever; looks at the Lease so often. Work that is no longer this one's is dropped.
pub async fn alone<C: ElectionCalls, F: Future<Output = ()>>(
    calls: &C,
    me: &str,
    look_every: Duration,
    work: impl Fn() -> F,
) {
    let mut candidate = Candidate::new(me);
    loop {
        let Some(mut until) = attempt(calls, &mut candidate).await else {
            sleep(look_every).await;
            continue;
        };
        info!(replica = me, "this replica looks after pods");
        let hold = async {
            // What cannot be renewed may be another's soon.
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                sleep(look_every.min(left)).await;
                let left = until.saturating_duration_since(Instant::now());
                match timeout(left, attempt(calls, &mut candidate)).await {
                    Ok(Some(renewed)) => until = renewed,
                    Ok(None) if candidate.seen.is_some() => break,
                    Ok(None) | Err(_) => {}
                }
            }
        };
        let hold = pin!(hold);
        let working = pin!(work());
        tokio::select! {
            () = hold => warn!(replica = me, "another replica looks after pods, or the API cannot be reached"),
            () = working => {}
        }
    }
}

/// Looks, and takes or renews what it can; until when that lets this replica work.
async fn attempt<C: ElectionCalls>(calls: &C, candidate: &mut Candidate) -> Option<Instant> {
    let asked = async {
        let lease = calls.lease().await?;
        let now = Instant::now();
        match candidate.step(lease, now, Timestamp::now()) {
            Step::Create(lease) => calls.create_lease(lease).await?,
            Step::Replace(lease) => calls.replace_lease(lease).await?,
            Step::Wait => return Ok(None),
        }
        // From before the mark was there: others count from when they saw it.
        Ok(Some(now + limits::LEASE_WORK))
    };
    match asked.await {
        Ok(until) => until,
        Err(ApiError::Conflict(_)) => None,
        Err(error) => {
            warn!(%error, "the lease cannot be looked at");
            None
        }
    }
}

/// Gives the Lease back if it is this replica's, so that the next need not wait.
pub async fn leave<C: ElectionCalls>(calls: &C, me: &str) {
    let give = async {
        let Some(mut lease) = calls.lease().await? else { return Ok(()) };
        match lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(me)) {
            Some(spec) => spec.holder_identity = Some(String::new()),
            None => return Ok(()),
        }
        calls.replace_lease(lease).await
    };
    // Nobody needs it: it ends by itself.
    if let Ok(Err(error)) = timeout(limits::LEASE_LEAVE, give).await {
        info!(%error, "the lease was not given back");
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
