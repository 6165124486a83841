//! `--keep`: a list of tiers, from young to old.
//!
//! ```text
//! all:1m,1s:1h,1m:24h,1h:7d,1d:30d
//! ```
//! Each tier is `STEP:AGE`: up to this age, one point for each step (`all` keeps every point). What is older than the last age
//! goes. The last age may be `forever`. Durations are written as `90s`, `5m`, `24h`, `30d`, `1h 30m`.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// What is kept unless the operator says otherwise.
pub const DEFAULT: &str = "all:1m,1s:1h,1m:24h,1h:7d,1d:30d";

/// Tiers, from young to old. Steps divide the next one, ages grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    tiers: Vec<Tier>,
}

/// One part of a [`Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// One point is kept for each step of this many nanoseconds; 0 keeps every point.
    pub step_ns: u64,
    /// Up to this age in nanoseconds; `u64::MAX` is for ever.
    pub age_ns: u64,
}

/// Why a text is no policy.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// A part is not of the form.
    #[error("{0:?} is not STEP:AGE, such as 1m:24h")]
    Shape(String),
    /// Neither a duration nor the word that is possible there.
    #[error("{0:?} is not a duration, such as 90s, 5m, 24h or 30d")]
    Duration(String),
    /// A step or an age of nothing.
    #[error("{0:?}: a step and an age are longer than nothing")]
    Zero(String),
    /// A step is longer than its tier.
    #[error("{0:?}: the step is longer than the age")]
    Step(String),
    /// A tier that is not beyond the one before.
    #[error("{0:?}: steps and ages grow from tier to tier")]
    Order(String),
    /// The step is not a multiple of the one before.
    #[error(
        "{0:?}: its step is not a multiple of the step before; thinned points would not be where it looks for them"
    )]
    Nesting(String),
}

impl Policy {
    /// The tiers, from young to old; at least one.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// Whether no point ever goes.
    pub fn keeps_everything(&self) -> bool {
        matches!(self.tiers[..], [Tier { step_ns: 0, age_ns: u64::MAX }])
    }
}

impl Default for Policy {
    fn default() -> Self {
        DEFAULT.parse().expect("the default is a policy")
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut tiers: Vec<Tier> = Vec::new();
        for part in text.split(',').map(str::trim) {
            let tier = parse_tier(part)?;
            if let Some(before) = tiers.last() {
                if tier.step_ns <= before.step_ns || tier.age_ns <= before.age_ns {
                    return Err(PolicyError::Order(part.to_owned()));
                }
                if before.step_ns > 0 && !tier.step_ns.is_multiple_of(before.step_ns) {
                    return Err(PolicyError::Nesting(part.to_owned()));
                }
            }
            tiers.push(tier);
        }
        Ok(Self { tiers })
    }
}

fn parse_tier(part: &str) -> Result<Tier, PolicyError> {
    let (step, age) = part.split_once(':').ok_or_else(|| PolicyError::Shape(part.to_owned()))?;
    let step_ns = if step == "all" { 0 } else { parse_duration(step)? };
    let age_ns = if age == "forever" { u64::MAX } else { parse_duration(age)? };
    if age_ns == 0 || (step_ns == 0 && step != "all") {
        return Err(PolicyError::Zero(part.to_owned()));
    }
    if step_ns > age_ns {
        return Err(PolicyError::Step(part.to_owned()));
    }
    Ok(Tier { step_ns, age_ns })
}

fn parse_duration(text: &str) -> Result<u64, PolicyError> {
    let bad = || PolicyError::Duration(text.to_owned());
    let duration = humantime::parse_duration(text).map_err(|_| bad())?;
    u64::try_from(duration.as_nanos()).map_err(|_| bad())
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, tier) in self.tiers.iter().enumerate() {
            write!(f, "{}{tier}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = if self.step_ns == 0 { "all".to_owned() } else { short(self.step_ns) };
        let age = if self.age_ns == u64::MAX { "forever".to_owned() } else { short(self.age_ns) };
        write!(f, "{step}:{age}")
    }
}

/// A duration without spaces, in hours where days would hide what was written (`24h`).
fn short(ns: u64) -> String {
    const HOUR: u64 = 3_600_000_000_000;
    if ns == 24 * HOUR {
        return "24h".to_owned();
    }
    humantime::format_duration(std::time::Duration::from_nanos(ns)).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_it_is_written() {
        let policy = Policy::default();
        let seconds: Vec<_> = policy
            .tiers()
            .iter()
            .map(|tier| (tier.step_ns / 1_000_000_000, tier.age_ns / 1_000_000_000))
            .collect();
        assert_eq!(seconds, [(0, 60), (1, 3600), (60, 86_400), (3600, 7 * 86_400), (86_400, 30 * 86_400)]);
        for text in ["all:forever", "1h:7d", "all:1m,1d:forever", "all:90s,1s:5m, 1m:2h"] {
            let policy: Policy = text.parse().expect(text);
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
    }

    #[test]
    fn what_is_no_policy_says_why() {
        let cases = [
            ("", "is not STEP:AGE"),
            ("all", "is not STEP:AGE"),
            ("all:1m,1s", "\"1s\" is not STEP:AGE"),
            ("all:soon", "\"soon\" is not a duration"),
            ("0s:1m", "longer than nothing"),
            ("all:0s", "longer than nothing"),
            ("1h:1m", "the step is longer than the age"),
            ("all:1h,1s:1h", "grow from tier to tier"),
            ("all:1h,1m:1d,1s:2d", "grow from tier to tier"),
            ("all:1m,all:1h", "grow from tier to tier"),
            ("40s:1h,1m:1d", "not a multiple"),
        ];
        for (text, reason) in cases {
            let error = text.parse::<Policy>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
