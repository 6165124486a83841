//! Numbers for people and for programs.

use std::{fmt, time::Duration};

use serde_json::{Value, json};
use tidelock_tests::cuts::Cut;

/// What most cuts must converge in.
const SOON: Duration = Duration::from_millis(20);
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

/// What one way of protecting did, over all its turns.
#[derive(Debug, Default)]
pub(crate) struct Series {
    tps: Vec<f64>,
    cuts: Vec<Cut>,
    /// From one point of a turn to the next, and from its beginning and to its end.
    gaps: Vec<Duration>,
}

impl Series {
    /// Adds a turn that lasted from one time to another, in nanoseconds since 1970.
    pub(crate) fn add(&mut self, tps: f64, cuts: &[Cut], (from, to): (u64, u64)) {
        self.tps.push(tps);
        self.cuts.extend(cuts);
        let points = cuts.iter().filter(|cut| cut.id.is_some()).map(|cut| cut.cut_ns);
        let times: Vec<u64> = [from].into_iter().chain(points).chain([to]).collect();
        self.gaps.extend(times.windows(2).map(|two| Duration::from_nanos(two[1].saturating_sub(two[0]))));
    }

    fn mean_tps(&self) -> f64 {
        self.tps.iter().sum::<f64>() / (self.tps.len().max(1) as f64)
    }

    fn converged(&self) -> impl Iterator<Item = &Cut> {
        self.cuts.iter().filter(|cut| cut.id.is_some())
    }

    /// How many pauses there were, how many of them in vain, and how many lasted longer than `limit`.
    fn pauses(&self, limit: Duration) -> (usize, usize, usize) {
        let pauses = || self.cuts.iter().filter(|cut| !cut.paused.is_zero());
        (
            pauses().count(),
            pauses().filter(|cut| cut.id.is_none()).count(),
            pauses().filter(|cut| cut.paused > limit).count(),
        )
    }

    /// The part of all cuts that converged soon and without a pause.
    fn soon(&self) -> f64 {
        let soon = self.converged().filter(|cut| cut.took <= SOON && cut.paused.is_zero()).count();
        soon as f64 / (self.converged().count().max(1) as f64)
    }

    fn rounds(&self) -> Vec<f64> {
        sorted(self.converged().map(|cut| f64::from(cut.rounds)))
    }

    fn cut_ms(&self) -> Vec<f64> {
        sorted(self.converged().map(|cut| cut.took.as_secs_f64() * 1e3))
    }

    fn gap_ms(&self) -> Vec<f64> {
        sorted(self.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3))
    }

    fn pause_ms(&self) -> Vec<f64> {
        let pauses = self.cuts.iter().map(|cut| cut.paused).filter(|paused| !paused.is_zero());
        sorted(pauses.map(|paused| paused.as_secs_f64() * 1e3))
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The value that this part of all values does not exceed.
fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = (last as f64 * part).ceil() as usize;
    values.get(index).copied()
}

/// Everything measured.
#[derive(Debug)]
pub(crate) struct Report {
    scale: u32,
    clients: u32,
    limit: Duration,
    pub(crate) alone: Series,
    pub(crate) exact: Series,
    pub(crate) pausing: Series,
}

impl Report {
    pub(crate) fn new(scale: u32, clients: u32, limit: Duration) -> Self {
        let (alone, exact, pausing) = Default::default();
        Self { scale, clients, limit, alone, exact, pausing }
    }

    fn rows(&self) -> [(&'static str, &Series); 2] {
        [("exact", &self.exact), ("inotify+pause", &self.pausing)]
    }

    /// All of it as one document.
    pub(crate) fn json(&self) -> Value {
        let spread = |values: &[f64]| {
            let each =
                QUANTILES.iter().map(|(name, part)| ((*name).to_owned(), json!(quantile(values, *part))));
            Value::Object(each.collect())
        };
        let rows = self.rows().into_iter().map(|(name, series)| {
            let (pauses, in_vain, too_long) = series.pauses(self.limit);
            let row = json!({
                "tps": series.mean_tps(),
                "tps_of_unprotected": series.mean_tps() / self.alone.mean_tps(),
                "cuts": series.converged().count(),
                "part_within_20_ms_without_pause": series.soon(),
                "rounds": spread(&series.rounds()),
                "cut_ms": spread(&series.cut_ms()),
                "between_points_ms": spread(&series.gap_ms()),
                "pauses": pauses,
                "pauses_in_vain": in_vain,
                "pauses_over_limit": too_long,
                "pause_ms": spread(&series.pause_ms()),
            });
            (name.to_owned(), row)
        });
        json!({
            "scale": self.scale,
            "clients": self.clients,
            "pause_limit_ms": self.limit.as_millis() as u64,
            "unprotected_tps": self.alone.mean_tps(),
            "results": Value::Object(rows.collect()),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "pgbench scale {}, {} clients, unprotected {:.0} TPS",
            self.scale,
            self.clients,
            self.alone.mean_tps()
        )?;
        for (name, series) in self.rows() {
            let (pauses, in_vain, too_long) = series.pauses(self.limit);
            writeln!(
                f,
                "\n{name}: {:.0} TPS, {:.2} of unprotected; {} cuts, {:.2} % within 20 ms without a pause",
                series.mean_tps(),
                series.mean_tps() / self.alone.mean_tps(),
                series.converged().count(),
                series.soon() * 100.0
            )?;
            if pauses > 0 {
                let limit = self.limit.as_millis();
                writeln!(f, "{pauses} pauses, {in_vain} in vain, {too_long} over the limit of {limit} ms")?;
            }
            writeln!(f, "{:<10} {:>10} {:>10} {:>10} {:>10}", "", "p50", "p90", "p99", "max")?;
            let rows = [
                ("rounds", series.rounds()),
                ("cut ms", series.cut_ms()),
                ("points ms", series.gap_ms()),
                ("pause ms", series.pause_ms()),
            ];
            for (what, values) in rows.iter().filter(|(_, values)| !values.is_empty()) {
                write!(f, "{what:<10}")?;
                for (_, part) in QUANTILES {
                    write!(f, " {:>10.2}", quantile(values, part).unwrap_or_default())?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        assert_eq!(quantile(&[], 0.5), None);
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        let seen: Vec<_> = [0.0, 0.5, 0.99, 1.0].iter().map(|part| quantile(&values, *part)).collect();
        assert_eq!(seen, [Some(1.0), Some(51.0), Some(100.0), Some(100.0)]);
    }

    #[test]
    fn a_pause_in_vain_is_no_cut() {
        let cut = |id: Option<&str>, took, paused| Cut {
            id: id.map(|id| id.parse().expect("a point")),
            cut_ns: 0,
            rounds: 1,
            took: Duration::from_millis(took),
            paused: Duration::from_millis(paused),
        };
        let mut series = Series::default();
        series.add(1.0, &[cut(Some("1.1"), 1, 0), cut(Some("1.2"), 900, 60), cut(None, 0, 300)], (0, 50));
        assert_eq!(series.gap_ms().len(), 3);
        assert_eq!(series.pauses(Duration::from_millis(250)), (2, 1, 1));
        assert!((series.soon() - 0.5).abs() < 1e-9);
    }
}
