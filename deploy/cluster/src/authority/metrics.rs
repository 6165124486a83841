//! When the authority ends, and when its successor signs: read at each scrape.

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::{Rotation, Trusted};

/// The times of the authority as it is at any moment.
pub(crate) struct Ends<T> {
    trusted: T,
    rotation: Option<Rotation>,
}

impl<T: Fn() -> Arc<Trusted> + Send + Sync + 'static> Ends<T> {
    /// Nobody else knows when a successor signs than who sees to it.
    pub(crate) fn new(trusted: T, rotation: Option<Rotation>) -> Self {
        Self { trusted, rotation }
    }
}

impl<T> fmt::Debug for Ends<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").field("rotation", &self.rotation).finish_non_exhaustive()
    }
}

impl<T: Fn() -> Arc<Trusted> + Send + Sync + 'static> Collector for Ends<T> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let trusted = (self.trusted)();
        let signs_at = self.rotation.and_then(|rotation| trusted.successor_signs_at(rotation));
        let all = [
            (
                "authority_not_after_timestamp_seconds",
                "When the authority that signs identities ends",
                Some(trusted.authority.not_after()),
            ),
            (
                "authority_successor_signs_timestamp_seconds",
                "When the authority's successor signs in its place; only while there is one",
                signs_at,
            ),
        ];
        for (name, help, at) in all {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            if let Some(at) = at {
                ConstGauge::new(seconds(at)).encode(metric)?;
            }
        }
        Ok(())
    }
}

fn seconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::{encoding::text::encode, registry::Registry};
    use tidelock_proto::pki::{Authority, Validity};

    use super::{
        super::{read, write},
        *,
    };

    fn samples(trusted: Trusted) -> Vec<String> {
        let (mut registry, trusted) = (Registry::with_prefix("t"), Arc::new(trusted));
        registry.register_collector(Box::new(Ends::new(move || trusted.clone(), Some(Rotation::default()))));
        let mut page = String::new();
        encode(&mut page, &registry).expect("a page");
        page.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }

    #[test]
    fn an_authority_says_when_it_ends_and_whether_it_has_a_successor() {
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let ends = now + Duration::from_secs(10 * 24 * 3600);
        let authority = Authority::generate(Validity { not_before: now, not_after: ends }).expect("made");
        let secret = write(&authority);
        let alone = read(&secret, now).expect("an authority");
        let (_, with) = alone.turn(&secret, Rotation::default(), now).expect("made").expect("it is due");
        let end = format!("t_authority_not_after_timestamp_seconds {}", seconds(ends));
        assert_eq!(samples(alone).join("\n"), end);
        let signs = format!(
            "t_authority_successor_signs_timestamp_seconds {}",
            seconds(now + Duration::from_secs(5 * 24 * 3600))
        );
        assert_eq!(samples(read(&with, now).expect("both")), [end, signs]);
    }
}
