//! What was found, as metrics.
//!
//! Only the replica that watches says anything of pods: what another one knew before is no news.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge},
    registry::Registry,
};

use super::watched::Finding;

/// Counts what was found last, and what was told.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pods: Pods,
    told: Family<Outcome, Counter>,
}

#[derive(Debug, Clone, Default)]
struct Pods(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    watches: bool,
    unprotected: BTreeMap<(String, &'static str), i64>,
    protected: BTreeMap<String, i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    namespace: String,
    reason: &'static str,
}

/// As long as this is there, this replica watches.
pub(super) struct Watching(Pods);

impl Drop for Watching {
    fn drop(&mut self) {
        *self.0.lock() = Counts::default();
    }
}

impl Tally {
    /// Shown by `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.pods.clone()));
        registry.register(
            "events",
            "Events about pods that are not protected, by outcome",
            self.told.clone(),
        );
    }

    pub(super) fn watching(&self) -> Watching {
        Watching(self.pods.clone())
    }

    /// What there is now.
    pub(super) fn set(&self, findings: &[Finding], protected: BTreeMap<String, i64>) {
        let mut unprotected = BTreeMap::new();
        for finding in findings {
            let count = unprotected.entry((finding.namespace.clone(), finding.reason.code())).or_default();
            *count += i64::try_from(finding.pods.len()).unwrap_or(i64::MAX);
        }
        *self.pods.lock() = Counts { watches: true, unprotected, protected };
    }

    pub(super) fn told(&self, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.told.get_or_create(&Outcome { outcome }).inc();
    }
}

impl Pods {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Pods {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let counts = self.lock();
        let kind = MetricType::Gauge;
        let help = "Whether this replica has seen all pods and looks after them; one of all does";
        let one = encoder.encode_descriptor("watches", help, None, kind)?;
        ConstGauge::new(i64::from(counts.watches)).encode(one)?;
        let help = "Pods that asked for protection and are not protected";
        let mut family = encoder.encode_descriptor("unprotected_pods", help, None, kind)?;
        for ((namespace, reason), count) in &counts.unprotected {
            let labels = OfReason { namespace: namespace.clone(), reason };
            ConstGauge::new(*count).encode(family.encode_family(&labels)?)?;
        }
        let help = "Pods whose sidecar runs";
        let mut family = encoder.encode_descriptor("protected_pods", help, None, kind)?;
        for (namespace, count) in &counts.protected {
            let labels = Of { namespace: namespace.clone() };
            ConstGauge::new(*count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prometheus_client::encoding::text::encode;
    use tidelock_injector::{Reason, server::METRICS_PREFIX};

    use super::{super::Owner, *};

    #[test]
    fn what_is_over_is_gone_and_who_watches_no_more_says_nothing() {
        let (tally, mut registry) = (Tally::default(), Registry::with_prefix(METRICS_PREFIX));
        tally.register(&mut registry);
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).expect("a String takes every text");
            let mut lines: Vec<_> =
                text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(shown(), ["tidelock_injector_watches 0"]);
        let owner = |name: &str| Owner {
            api_version: String::new(),
            kind: String::new(),
            name: name.to_owned(),
            uid: String::new(),
        };
        let finding = |name: &str, pods: &[&str]| Finding {
            namespace: "shop".to_owned(),
            owner: owner(name),
            reason: Reason::UnknownUser,
            message: String::new(),
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect::<BTreeSet<_>>(),
        };
        let watching = tally.watching();
        tally.set(
            &[finding("a", &["a-0", "a-1"]), finding("b", &["b-0"])],
            BTreeMap::from([("shop".to_owned(), 4)]),
        );
        tally.told(true);
        assert_eq!(
            shown(),
            [
                "tidelock_injector_events_total{outcome=\"sent\"} 1",
                "tidelock_injector_protected_pods{namespace=\"shop\"} 4",
                "tidelock_injector_unprotected_pods{namespace=\"shop\",reason=\"unknown-user\"} 3",
                "tidelock_injector_watches 1",
            ]
        );
        tally.set(&[], BTreeMap::new());
        assert_eq!(shown().len(), 2);
        drop(watching);
        assert_eq!(shown()[1], "tidelock_injector_watches 0");
    }
}
