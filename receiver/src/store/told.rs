//! A forecast as messages, for operators near and far.

use std::collections::BTreeMap;

use tidelock_proto::wire::messages::{PlanCap, PlanSizes, RulePlan, StorePlan, VolumePlan};

use super::{CapForecast, Forecast, Sizes, StoreError, VolumeForecast};
use crate::retention::{Policy, Verdict};

impl VolumeForecast {
    /// As it is told; `policy` is the one that was asked about.
    pub fn told(&self, policy: &Policy) -> VolumePlan {
        VolumePlan {
            volume: self.volume.to_string(),
            rules: rules(policy, &self.verdicts),
            freed_bytes: self.freed_bytes,
            written_bytes: self.written_bytes,
            capped: self.capped,
        }
    }
}

impl Forecast {
    /// What is told of the store, to somebody who may see all volumes or not.
    pub fn told(&self, policy: &Policy, whole: bool) -> StorePlan {
        StorePlan {
            keep: policy.to_string(),
            unknown: self.sizes.as_ref().err().map(StoreError::to_string),
            sizes: self.sizes.as_ref().ok().filter(|_| whole).map(|sizes| (*sizes).into()),
        }
    }
}

impl From<Sizes> for PlanSizes {
    fn from(sizes: Sizes) -> Self {
        Self {
            log: sizes.log_bytes,
            needed: sizes.needed_bytes,
            owed: sizes.owed_bytes,
            freed: sizes.freed_bytes,
            written: sizes.written_bytes,
            needed_after: sizes.needed_after_bytes,
            stopped: sizes.stopped_bytes,
            running: sizes.running_bytes,
            begins: sizes.begins_bytes,
            doubt: sizes.doubt,
            cap: sizes.cap.map(PlanCap::from),
        }
    }
}

impl From<CapForecast> for PlanCap {
    fn from(cap: CapForecast) -> Self {
        Self {
            cap: cap.cap_bytes,
            acts_beyond: cap.acts_bytes,
            fits: cap.fits_bytes,
            acts: cap.acts,
            dropped: cap.dropped,
            needed: cap.needed_bytes,
            exhausted: cap.exhausted,
        }
    }
}

/// What each rule keeps and drops, in the order of the policy.
fn rules(policy: &Policy, verdicts: &[Verdict]) -> Vec<RulePlan> {
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
    rules.into_iter().map(|((_, rule), (kept, dropped))| RulePlan { rule, kept, dropped }).collect()
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
        let rules = rules(&Policy::default(), &verdicts);
        let rules: Vec<_> = rules.iter().map(|rule| (rule.rule.as_str(), rule.kept, rule.dropped)).collect();
        assert_eq!(rules, [("all:1m", 1, 0), ("1s:1h", 1, 2), ("expired", 0, 1), ("protected", 1, 0)]);
    }
}
