//! What a command is about: one volume, or a workload with all of its volumes.

use std::str::FromStr;

use tidelock_manifests::Key;
use tidelock_proto::VolumeName;

/// A volume or a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// `TENANT/NAME`.
    Volume(VolumeName),
    /// `statefulset/NAME` or `deployment/NAME`.
    Workload(Key),
}

impl FromStr for Subject {
    type Err = String;

    /// The words for workloads beat tenants of the same name, which are written with `volume:` before them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let volume = |text: &str| text.parse().map(Self::Volume).map_err(|error| format!("{error}"));
        if let Some(name) = text.strip_prefix("volume:") {
            return volume(name);
        }
        text.parse().map(Self::Workload).or_else(|_| volume(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_told_from_a_volume_by_its_first_word() {
        for text in ["statefulset/db", "sts/db", "Deployment/db", "deploy/db"] {
            assert!(matches!(text.parse(), Ok(Subject::Workload(_))), "{text}");
        }
        for text in ["shop/db", "volume:sts/db", "pod/db"] {
            assert!(matches!(text.parse(), Ok(Subject::Volume(_))), "{text}");
        }
        for text in ["db", "volume:db", "volume:", "sts/", "a/b/c"] {
            assert!(text.parse::<Subject>().is_err(), "{text}");
        }
    }
}
