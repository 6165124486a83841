//! What a test failover has found, as it is written on the point: one of its names.
//!
//! ```text
//! verified at 2026-01-31T06:00:03Z, RTO 812 ms, mounted, again in 6h
//! test failed at 2026-01-31T06:00:03Z, again in 6h: exit status: 1
//! ```
//! The operator's side writes it and a receiver tells the last one, so both read it here. What a later version adds between two commas is passed over.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

const PASSED: &str = "verified at ";
const FAILED: &str = "test failed at ";
const AGAIN: &str = "again in ";
const MOUNTED: &str = "mounted";

/// The result of a test failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// When it ended, in whole seconds.
    pub time: SystemTime,
    /// How long a failover to the point would have taken, in milliseconds; `Err` why it cannot be started on.
    pub outcome: Result<u64, String>,
    /// The point was mounted and not copied; known of what passed.
    pub mounted: bool,
    /// When the next one is due, counted from this one, if it is one of many.
    pub again: Option<Duration>,
}

/// The text is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the result of a test")]
pub struct NoVerdict;

impl Verdict {
    /// Whether the next one should have been there by `now`: as long again as half of what was announced is left for it.
    pub fn is_overdue(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.time).unwrap_or_default();
        self.again.is_some_and(|again| age > again.saturating_add(again / 2))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = humantime::format_rfc3339_seconds(self.time);
        match &self.outcome {
            Ok(rto_ms) => write!(f, "{PASSED}{time}, RTO {rto_ms} ms")?,
            Err(_) => write!(f, "{FAILED}{time}")?,
        }
        if self.mounted && self.outcome.is_ok() {
            write!(f, ", {MOUNTED}")?;
        }
        if let Some(again) = self.again {
            write!(f, ", {AGAIN}{}", humantime::format_duration(again))?;
        }
        match &self.outcome {
            Ok(_) => Ok(()),
            Err(reason) => write!(f, ": {reason}"),
        }
    }
}

impl FromStr for Verdict {
    type Err = NoVerdict;

    fn from_str(text: &str) -> Result<Self, NoVerdict> {
        let (facts, reason) = match (text.strip_prefix(PASSED), text.strip_prefix(FAILED)) {
            (Some(facts), _) => (facts, None),
            (None, Some(rest)) => rest.split_once(": ").map_or((rest, Some("")), |(a, b)| (a, Some(b))),
            (None, None) => return Err(NoVerdict),
        };
        let mut facts = facts.split(", ");
        let time = facts.next().and_then(|time| humantime::parse_rfc3339(time).ok()).ok_or(NoVerdict)?;
        let (mut rto_ms, mut mounted, mut again) = (0, false, None);
        for fact in facts {
            if let Some(ms) = fact.strip_prefix("RTO ").and_then(|fact| fact.strip_suffix(" ms")) {
                rto_ms = ms.parse().map_err(|_| NoVerdict)?;
            } else if let Some(every) = fact.strip_prefix(AGAIN) {
                again = humantime::parse_duration(every).ok();
            } else {
                mounted |= fact == MOUNTED;
            }
        }
        let outcome = reason.map_or(Ok(rto_ms), |reason| Err(reason.to_owned()));
        Ok(Self { time, outcome, mounted, again })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let time = at(1_769_839_203);
        for (verdict, text) in [
            (
                Verdict { time, outcome: Ok(812), mounted: true, again: Some(6 * HOUR) },
                "verified at 2026-01-31T06:00:03Z, RTO 812 ms, mounted, again in 6h",
            ),
            (
                Verdict { time, outcome: Ok(0), mounted: false, again: None },
                "verified at 2026-01-31T06:00:03Z, RTO 0 ms",
            ),
            (
                Verdict {
                    time,
                    outcome: Err("exit status: 1, as it was".to_owned()),
                    mounted: false,
                    again: Some(HOUR + HOUR / 2),
                },
                "test failed at 2026-01-31T06:00:03Z, again in 1h 30m: exit status: 1, as it was",
            ),
        ] {
            assert_eq!(verdict.to_string(), text);
            assert_eq!(text.parse(), Ok(verdict));
        }
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over_and_other_names_are_none() {
        let later: Verdict =
            "verified at 2026-01-31T06:00:03Z, RTO 5 ms, twice, again in 1h".parse().expect("one");
        assert_eq!((later.outcome, later.again), (Ok(5), Some(HOUR)));
        for other in ["before the upgrade", "verified at noon", "held: by an operator", ""] {
            assert_eq!(other.parse::<Verdict>(), Err(NoVerdict), "{other}");
        }
    }

    #[test]
    fn it_is_overdue_once_the_next_one_could_have_been_there() {
        let verdict = |again| Verdict { time: at(0), outcome: Ok(0), mounted: false, again };
        for (seconds, again, overdue) in
            [(5400, Some(HOUR), false), (5401, Some(HOUR), true), (1 << 30, None, false)]
        {
            assert_eq!(verdict(again).is_overdue(at(seconds)), overdue, "{seconds}");
        }
        assert!(!Verdict { time: at(100), ..verdict(Some(HOUR)) }.is_overdue(at(0)), "clocks differ");
    }
}
