//! Recovery points: what is known of one cut.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{PointId, TreeDigest, VolumeName};

/// What may be believed of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// A proven cut: the state a crash at that instant would have left.
    Crash,
    /// A proven cut between quiesce hooks.
    App,
    /// Files copied one by one. Never promoted unless asked for by name.
    Fuzzy,
}

impl Consistency {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::App => "app",
            Self::Fuzzy => "fuzzy",
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not one of the three words.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a consistency: crash, app or fuzzy")]
pub struct ConsistencyError(String);

impl FromStr for Consistency {
    type Err = ConsistencyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "crash" => Ok(Self::Crash),
            "app" => Ok(Self::App),
            "fuzzy" => Ok(Self::Fuzzy),
            _ => Err(ConsistencyError(text.to_owned())),
        }
    }
}

/// How a cut found its quiet instant. The proof is the same for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// By looking until one was there; the application ran on.
    #[default]
    Optimistic,
    /// The application's processes were stopped for the last rounds.
    Pause,
    /// The application's own hooks brought it to rest.
    Hooks,
}

impl How {
    /// The word users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Optimistic => "optimistic",
            Self::Pause => "pause",
            Self::Hooks => "hooks",
        }
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the sidecar says of a cut when it commits it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The instant of the cut by the source's clock, in nanoseconds since 1970.
    pub time_ns: u64,
    /// What may be believed of it.
    pub consistency: Consistency,
    /// The tracker that saw the changes: `exact`, `inotify`, `poll`.
    pub tracker: String,
    /// Conditions that held while it was taken, as the sidecar names them; empty is best.
    pub conditions: Vec<String>,
    /// Rounds of capture it took.
    pub rounds: u32,
    /// How the quiet instant was found.
    pub how: How,
    /// The digest of the tree after the commit.
    pub digest: TreeDigest,
    /// The volumes that were cut at this instant, each with a point of the same number; empty for a volume on its own.
    pub group: Vec<VolumeName>,
}

/// A recovery point of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Its identity.
    pub id: PointId,
    /// The point this one was built on; `None` for the first of a volume.
    pub parent: Option<PointId>,
    /// What the sidecar said of it.
    pub cut: Cut,
    /// When the receiver took it in, by the receiver's clock, in nanoseconds since 1970.
    pub received_ns: u64,
    /// Names people gave it.
    pub tags: Vec<String>,
}
