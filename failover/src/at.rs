//! Which point is meant: `latest`, a time, a number, or a name.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use thiserror::Error;
use tidelock_proto::PointId;

/// A way to name a recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum At {
    /// The newest point of the current line that is not fuzzy.
    #[default]
    Latest,
    /// The newest at or before this time, in nanoseconds since 1970.
    Time(u64),
    /// The newest at or before the time so long ago.
    Ago(Duration),
    /// Exactly this one, on whatever line it is.
    Point(PointId),
    /// The newest of the current line with this name.
    Tag(String),
}

/// Not a way to name a point.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} names no point: write `latest`, EPOCH.SEQ, tag:NAME, a time as 2026-01-31T12:30:00Z, or an age as -5m"
)]
pub struct AtError(String);

impl At {
    /// The latest time that is meant, in nanoseconds since 1970; none if no time is.
    pub fn not_after_ns(&self, now: SystemTime) -> Option<u64> {
        match self {
            Self::Latest | Self::Point(_) | Self::Tag(_) => None,
            Self::Time(time_ns) => Some(*time_ns),
            Self::Ago(age) => Some(to_ns(now.checked_sub(*age).unwrap_or(UNIX_EPOCH))),
        }
    }
}

impl FromStr for At {
    type Err = AtError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Some(tag) = text.strip_prefix("tag:").filter(|tag| !tag.is_empty()) {
            return Ok(Self::Tag(tag.to_owned()));
        }
        if let Ok(point) = text.parse() {
            return Ok(Self::Point(point));
        }
        if let Ok(time) = humantime::parse_rfc3339_weak(text) {
            return Ok(Self::Time(to_ns(time)));
        }
        let age = text.strip_prefix('-').or_else(|| text.strip_suffix(" ago"));
        age.and_then(|age| humantime::parse_duration(age.trim()).ok())
            .map(Self::Ago)
            .ok_or_else(|| AtError(text.to_owned()))
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Time(time_ns) => f.write_str(&show_time(*time_ns)),
            Self::Ago(age) => write!(f, "{} ago", humantime::format_duration(*age)),
            Self::Point(point) => point.fmt(f),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

/// Nanoseconds since 1970, at most what 64 bits hold (the year 2554).
pub(crate) fn to_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// RFC 3339 with milliseconds.
pub(crate) fn show_time(time_ns: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(time_ns)).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_ways_to_name_a_point() {
        assert_eq!("latest".parse(), Ok(At::Latest));
        assert_eq!("2.17".parse(), Ok(At::Point("2.17".parse().unwrap())));
        assert_eq!("1970-01-01T00:00:01.5Z".parse(), Ok(At::Time(1_500_000_000)));
        assert_eq!("1970-01-01 00:00:01".parse(), Ok(At::Time(1_000_000_000)));
        for text in ["-5m", "5m ago", "300s ago"] {
            assert_eq!(text.parse(), Ok(At::Ago(Duration::from_secs(300))));
        }
        assert_eq!("tag:before the upgrade".parse(), Ok(At::Tag("before the upgrade".to_owned())));
        for bad in ["", "tag:", "now", "5m", "1.x", "-", "yesterday"] {
            assert!(bad.parse::<At>().is_err(), "{bad:?} was accepted");
        }
        let now = UNIX_EPOCH + Duration::from_secs(400);
        assert_eq!("-5m".parse::<At>().unwrap().not_after_ns(now), Some(100_000_000_000));
    }
}
