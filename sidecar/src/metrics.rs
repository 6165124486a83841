//! Metrics for Prometheus, read from the volumes' [`Status`] at each scrape, so that there is one truth.
//!
//! All names begin with `tidelock_`; all but those of the identity carry the label `volume`. The headline is `tidelock_lag_seconds`.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{
        counter::ConstCounter,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use tidelock_proto::pki::Validity;

use crate::status::{State, Status};

/// From a tenth of a millisecond, a cut of an idle volume, to minutes, one that does not converge.
const CUT_BUCKETS_SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0, 60.0];
/// From a fast disk in the same room to another continent on a bad day.
const ACK_BUCKETS_SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Up to the longest pause that can be asked for.
const PAUSE_BUCKETS_SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 10.0];

/// How long things took, for one volume.
pub struct Histograms {
    cut_seconds: Histogram,
    ack_seconds: Histogram,
    pause_seconds: Histogram,
}

impl Default for Histograms {
    fn default() -> Self {
        Self {
            cut_seconds: Histogram::new(CUT_BUCKETS_SECONDS),
            ack_seconds: Histogram::new(ACK_BUCKETS_SECONDS),
            pause_seconds: Histogram::new(PAUSE_BUCKETS_SECONDS),
        }
    }
}

impl Histograms {
    /// A cut converged after this long.
    pub fn observe_cut(&self, took: Duration) {
        self.cut_seconds.observe(took.as_secs_f64());
    }

    /// The application was paused for this long.
    pub fn observe_pause(&self, took: Duration) {
        self.pause_seconds.observe(took.as_secs_f64());
    }

    /// A point was durable this long after its cut.
    pub fn observe_ack(&self, after: Duration) {
        self.ack_seconds.observe(after.as_secs_f64());
    }
}

/// The metrics of these volumes and of the identity, as text in the OpenMetrics format. `now_ns` is the time since 1970.
pub fn render(
    volumes: &[Arc<Status>],
    identity: Option<Validity>,
    now_ns: u64,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("tidelock");
    registry.register_collector(Box::new(Volumes { volumes: volumes.to_vec(), now_ns }));
    if let Some(Validity { not_before, not_after }) = identity {
        for (name, help, at) in [
            ("identity_not_before_timestamp", "When the certificate in use began", not_before),
            ("identity_not_after_timestamp", "When the certificate in use ends", not_after),
        ] {
            let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            let gauge: Gauge = Gauge::default();
            gauge.set(since.as_secs().try_into().unwrap_or(i64::MAX));
            registry.register_with_unit(name, help, Unit::Seconds, gauge);
        }
    }
    let mut page = String::new();
    text::encode(&mut page, &registry)?;
    Ok(page)
}

/// The content type of what [`render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

struct Volumes {
    volumes: Vec<Arc<Status>>,
    now_ns: u64,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} volumes", self.volumes.len())
    }
}

impl Collector for Volumes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.gauge(&mut encoder, "lag_seconds", "How far the newest durable point is behind", |status| {
            status.lag_ns(self.now_ns).map(|ns| ns as f64 / 1e9)
        })?;
        self.gauge(&mut encoder, "ready", "Whether a durable point exists and more can follow", |status| {
            Some(f64::from(u8::from(status.is_ready())))
        })?;
        self.gauge(&mut encoder, "protected", "Whether points that can be believed come", |status| {
            Some(f64::from(u8::from(status.is_protected())))
        })?;
        self.gauge(&mut encoder, "behind_bytes", "Bytes changed and not yet committed", |status| {
            Some(status.behind_bytes() as f64)
        })?;
        self.gauge(&mut encoder, "window_bytes", "Bytes that wait for their acknowledgement", |status| {
            Some(status.window_bytes() as f64)
        })?;
        self.gauge(&mut encoder, "pause_max_seconds", "The longest pause of the application", |status| {
            Some(status.longest_pause().as_secs_f64())
        })?;
        self.states(&mut encoder)?;
        self.conditions(&mut encoder)?;
        self.counters(&mut encoder)?;
        self.histogram(&mut encoder, "cut_seconds", "Time until a cut converged", |all| &all.cut_seconds)?;
        self.histogram(&mut encoder, "pause_seconds", "Time the application was paused", |all| {
            &all.pause_seconds
        })?;
        self.histogram(&mut encoder, "ack_seconds", "Time from a cut to its acknowledgement", |all| {
            &all.ack_seconds
        })
    }
}

impl Volumes {
    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: impl Fn(&Status) -> Option<f64>,
    ) -> fmt::Result {
        use prometheus_client::metrics::MetricType::Gauge;
        let mut family = encoder.encode_descriptor(name, help, None, Gauge)?;
        for status in &self.volumes {
            if let Some(value) = value(status) {
                ConstGauge::new(value).encode(family.encode_family(&labels(status))?)?;
            }
        }
        Ok(())
    }

    fn states(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        use prometheus_client::metrics::MetricType::Gauge;
        let mut family =
            encoder.encode_descriptor("state", "1 for the state the volume is in", None, Gauge)?;
        for status in &self.volumes {
            let now = status.state();
            for state in State::ALL {
                let labels = [("volume", status.volume().to_string()), ("state", state.as_str().to_owned())];
                ConstGauge::new(i64::from(state == now)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn conditions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        use prometheus_client::metrics::MetricType::Gauge;
        let mut family =
            encoder.encode_descriptor("condition", "1 for each condition that holds", None, Gauge)?;
        for status in &self.volumes {
            for condition in status.conditions() {
                let labels = [("volume", status.volume().to_string()), ("condition", condition)];
                ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        use prometheus_client::metrics::MetricType::Counter;
        let all: Vec<Vec<_>> = self.volumes.iter().map(|status| status.counters.each().collect()).collect();
        let Some(first) = all.first() else { return Ok(()) };
        for (index, (name, help, _)) in first.iter().enumerate() {
            let mut family = encoder.encode_descriptor(name, help, None, Counter)?;
            for (status, counters) in self.volumes.iter().zip(&all) {
                let (_, _, value) = counters[index];
                ConstCounter::new(value).encode(family.encode_family(&labels(status))?)?;
            }
        }
        Ok(())
    }

    fn histogram(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        of: impl Fn(&Histograms) -> &Histogram,
    ) -> fmt::Result {
        use prometheus_client::metrics::MetricType;
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for status in &self.volumes {
            of(&status.histograms).encode(family.encode_family(&labels(status))?)?;
        }
        Ok(())
    }
}

fn labels(status: &Status) -> [(&'static str, String); 1] {
    [("volume", status.volume().to_string())]
}

#[cfg(test)]
mod tests {
    use tidelock_proto::{Epoch, PointId, Seq};

    use super::*;

    #[test]
    fn a_page_has_every_volume_with_units_in_the_names() {
        let volumes: Vec<Arc<Status>> =
            ["t/a", "t/b"].map(|name| Arc::new(Status::new(name.parse().expect("valid"), Epoch(1)))).into();
        volumes[1].on_session(true, Some((PointId::new(Epoch(1), Seq(1)), 1_000_000_000)), 1_003_000_000);
        volumes[1].counters.missed_changes.add(3);
        volumes[1].set_condition("unverified", "events were lost");
        volumes[1].histograms.observe_cut(Duration::from_micros(200));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let identity = Validity { not_before: at(100), not_after: at(900) };
        let page = render(&volumes, Some(identity), 1_250_000_000).expect("a page");
        for line in [
            r#"tidelock_lag_seconds{volume="t/b"} 0.25"#,
            "tidelock_identity_not_before_timestamp_seconds 100",
            "tidelock_identity_not_after_timestamp_seconds 900",
            r#"tidelock_missed_changes_total{volume="t/a"} 0"#,
            r#"tidelock_missed_changes_total{volume="t/b"} 3"#,
            r#"tidelock_condition{volume="t/b",condition="unverified"} 1"#,
            r#"tidelock_state{volume="t/a",state="connecting"} 1"#,
            r#"tidelock_ack_seconds_bucket{le="0.005",volume="t/b"} 1"#,
            r#"tidelock_cut_seconds_bucket{le="0.00025",volume="t/b"} 1"#,
        ] {
            assert!(page.lines().any(|have| have == line), "no {line} in\n{page}");
        }
        assert!(!page.contains(r#"tidelock_lag_seconds{volume="t/a"}"#), "nobody knows the lag of t/a");
    }
}
