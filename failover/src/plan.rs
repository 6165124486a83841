//! What retention, compaction and the size cap would make of the store now.
//!
//! The receiver calculates it where the store is, with its own policy and cap unless others are asked about; here it is put into words, and what of it is an estimate is said.

use serde::Serialize;
use tidelock_proto::{
    VolumeName,
    wire::messages::{PlanCap, PlanSizes, VolumePlan},
};
use tidelock_receiver::retention::Policy;

use crate::{access::Access, error::FailoverError};

/// What would become of the store. Nothing is changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanReport {
    /// The policy that was applied.
    pub keep: String,
    /// By volume, those that were asked for.
    pub volumes: Vec<VolumePlanReport>,
    /// Of the whole store; absent if one volume was asked for, if the operator may not see all, or if they cannot be told.
    pub sizes: Option<SizesReport>,
    /// Why there are no sizes at all.
    pub unknown: Option<String>,
    /// What of the sizes is an estimate, and why.
    pub estimates: Vec<String>,
}

/// What would become of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumePlanReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// Points there are.
    pub points: u64,
    /// Points that stay.
    pub kept: u64,
    /// Points that go.
    pub dropped: u64,
    /// Of those that stay, points that go for the size cap.
    pub capped: u64,
    /// Bytes that nothing would need any more; what several volumes let go counts with the first of them. Absent where sizes cannot be told.
    pub freed_bytes: Option<u64>,
    /// Bytes that are written for it first.
    pub written_bytes: Option<u64>,
    /// The same points by rule: a tier of the policy, `protected` (a tag, somebody reads it, or the newest) or `expired`.
    pub rules: Vec<RuleReport>,
}

/// What one rule keeps and drops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleReport {
    /// `STEP:AGE`, `protected` or `expired`.
    pub rule: String,
    /// Points it keeps.
    pub kept: u64,
    /// Points it drops.
    pub dropped: u64,
}

/// Sizes of the store's log.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SizesReport {
    /// Its length now.
    pub log_bytes: u64,
    /// What of it points need now.
    pub needed_bytes: u64,
    /// What of it nothing needs, and sessions count on.
    pub owed_bytes: u64,
    /// What of `needed_bytes` the policy lets go.
    pub freed_bytes: u64,
    /// What is written for that.
    pub written_bytes: u64,
    /// What points need then.
    pub needed_after_bytes: u64,
    /// How long `tidelock store compact` leaves the log after the policy, with the receiver stopped.
    pub stopped_bytes: u64,
    /// How long a running receiver leaves it.
    pub running_bytes: u64,
    /// Beyond which length a running receiver begins with it.
    pub begins_bytes: u64,
    /// What a size cap does then, if there is one.
    pub cap: Option<CapReport>,
}

/// What a size cap does after the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CapReport {
    /// The cap.
    pub cap_bytes: u64,
    /// Beyond which length of the log it acts.
    pub acts_bytes: u64,
    /// How much may be needed then without any point going.
    pub fits_bytes: u64,
    /// It acts now.
    pub acts: bool,
    /// Points that go before their time.
    pub dropped: u64,
    /// What points need after that.
    pub needed_bytes: u64,
    /// All have gone that may, and it is still too much.
    pub exhausted: bool,
}

/// Asks what would become of a volume, or of all of them. Without a policy or a cap these are a running receiver's own; of a store the default
/// policy, and none.
pub fn plan(
    access: &Access,
    volume: Option<&VolumeName>,
    policy: Option<&Policy>,
    cap_bytes: Option<u64>,
) -> Result<PlanReport, FailoverError> {
    if let Some(name) = volume {
        access.volume(name)?;
    }
    let (volumes, store) = access.plan(volume, policy, cap_bytes)?;
    let known = store.unknown.is_none();
    let estimates = store.sizes.as_ref().map(estimates).unwrap_or_default();
    Ok(PlanReport {
        keep: store.keep,
        volumes: volumes.into_iter().map(|plan| report(plan, known)).collect(),
        sizes: store.sizes.map(SizesReport::from),
        unknown: store.unknown,
        estimates,
    })
}

fn report(plan: VolumePlan, known: bool) -> VolumePlanReport {
    let rules: Vec<RuleReport> = plan
        .rules
        .into_iter()
        .map(|rule| RuleReport { rule: rule.rule, kept: rule.kept, dropped: rule.dropped })
        .collect();
    let (kept, dropped) =
        rules.iter().fold((0, 0), |(kept, dropped), rule| (kept + rule.kept, dropped + rule.dropped));
    VolumePlanReport {
        volume: plan.volume,
        points: kept + dropped,
        kept,
        dropped,
        capped: plan.capped,
        freed_bytes: known.then_some(plan.freed_bytes),
        written_bytes: known.then_some(plan.written_bytes),
        rules,
    }
}

/// Why the sizes are not to be taken for promises.
fn estimates(sizes: &PlanSizes) -> Vec<String> {
    let mut all = vec!["what comes meanwhile is not in it".to_owned()];
    all.push(
        "a running receiver gives space back by segments and leaves up to a tenth of garbage, and more in segments that are nearly full"
            .to_owned(),
    );
    if sizes.doubt >= 0.001 {
        let percent = (sizes.doubt * 1000.0).round() / 10.0;
        all.push(format!(
            "the store has more chunks than are told apart here: up to {percent} % of what goes may be counted among what stays"
        ));
    }
    if sizes.cap.is_some_and(|cap| cap.dropped > 0) {
        all.push("for the cap points go a few at a time until the rest fits; how many that are may differ by such a step".to_owned());
    }
    all
}

impl From<PlanSizes> for SizesReport {
    fn from(sizes: PlanSizes) -> Self {
        Self {
            log_bytes: sizes.log,
            needed_bytes: sizes.needed,
            owed_bytes: sizes.owed,
            freed_bytes: sizes.freed,
            written_bytes: sizes.written,
            needed_after_bytes: sizes.needed_after,
            stopped_bytes: sizes.stopped,
            running_bytes: sizes.running,
            begins_bytes: sizes.begins,
            cap: sizes.cap.map(CapReport::from),
        }
    }
}

impl From<PlanCap> for CapReport {
    fn from(cap: PlanCap) -> Self {
        Self {
            cap_bytes: cap.cap,
            acts_bytes: cap.acts_beyond,
            fits_bytes: cap.fits,
            acts: cap.acts,
            dropped: cap.dropped,
            needed_bytes: cap.needed,
            exhausted: cap.exhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_says_why_it_is_one() {
        let sizes = PlanSizes { doubt: 0.0004, ..PlanSizes::default() };
        assert_eq!(estimates(&sizes).len(), 2);
        let crowded = PlanSizes { doubt: 0.0213, ..sizes };
        assert!(estimates(&crowded)[2].contains("up to 2.1 %"), "{:?}", estimates(&crowded));
        let capped = PlanSizes { cap: Some(PlanCap { dropped: 4, ..PlanCap::default() }), ..sizes };
        assert!(estimates(&capped)[2].contains("a few at a time"));
    }
}
