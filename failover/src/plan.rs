//! What retention would make of the points now.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tidelock_proto::{PointId, VolumeName, point::Consistency};
use tidelock_receiver::retention::{Candidate, Policy, Verdict, choose};

use crate::{access::Access, error::FailoverError};

/// What a policy makes of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// Points there are.
    pub points: u64,
    /// Points that stay.
    pub kept: u64,
    /// Points that go.
    pub dropped: u64,
    /// The same by rule: a tier of the policy, `protected` (a tag, or the newest) or `expired`.
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

/// Judges the points of a volume, or of all of them, by this policy and the clock of this machine. Nothing is changed.
pub fn plan(
    access: &Access,
    volume: Option<&VolumeName>,
    policy: &Policy,
) -> Result<Vec<PlanReport>, FailoverError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let names = match volume {
        Some(name) => vec![access.volume(name)?],
        None => access.volumes()?,
    };
    let judge = |volume: crate::access::Volume| {
        let newest = volume.last.as_ref().map_or_else(PointId::default, |last| last.id);
        let points = access.points(&volume.name, None)?;
        let candidate = |point: &tidelock_proto::point::Point| Candidate {
            id: point.id,
            time_ns: point.received_ns,
            fuzzy: point.cut.consistency == Consistency::Fuzzy,
            protected: !point.tags.is_empty() || point.id >= newest,
        };
        let candidates: Vec<_> = points.iter().map(candidate).collect();
        Ok(report(&volume.name, policy, &choose(&candidates, policy, now_ns)))
    };
    names.into_iter().map(judge).collect()
}

fn report(volume: &VolumeName, policy: &Policy, verdicts: &[Verdict]) -> PlanReport {
    let mut rules: BTreeMap<(usize, String), (u64, u64)> = BTreeMap::new();
    for verdict in verdicts {
        let tier = |index: usize| (index, policy.tiers()[index].to_string());
        let key = match verdict {
            Verdict::Kept(index) | Verdict::Thinned(index) => tier(*index),
            Verdict::Protected => (usize::MAX, "protected".to_owned()),
            Verdict::Expired => (usize::MAX, "expired".to_owned()),
        };
        let counts = rules.entry(key).or_default();
        if verdict.is_drop() { counts.1 += 1 } else { counts.0 += 1 }
    }
    let dropped = verdicts.iter().filter(|verdict| verdict.is_drop()).count() as u64;
    let rules = rules.into_iter().map(|((_, rule), (kept, dropped))| RuleReport { rule, kept, dropped });
    PlanReport {
        volume: volume.to_string(),
        points: verdicts.len() as u64,
        kept: verdicts.len() as u64 - dropped,
        dropped,
        rules: rules.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_by_rule() {
        let verdicts = [
            Verdict::Kept(0),
            Verdict::Thinned(1),
            Verdict::Thinned(1),
            Verdict::Kept(1),
            Verdict::Protected,
            Verdict::Expired,
        ];
        let report = report(&"t/a".parse().expect("a name"), &Policy::default(), &verdicts);
        assert_eq!((report.points, report.kept, report.dropped), (6, 3, 3));
        let rules: Vec<_> =
            report.rules.iter().map(|rule| (rule.rule.as_str(), rule.kept, rule.dropped)).collect();
        assert_eq!(rules, [("all:1m", 1, 0), ("1s:1h", 1, 2), ("expired", 0, 1), ("protected", 1, 0)]);
    }
}
