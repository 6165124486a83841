//! Several volumes that are promoted by one command.
//!
//! All of them get the point of the first, whose epoch is raised first. So they must have been cut together, or the others would be fenced, upon a point
//! that has nothing to do with that one; and no copy may lie in another.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use tidelock_proto::VolumeName;

use super::PromoteOptions;
use crate::{access::Access, error::FailoverError, report::choose};

/// Refuses what cannot be meant by a promotion of these volumes to these directories.
pub fn check_group(
    access: &Access,
    volumes: &[(VolumeName, PathBuf)],
    options: &PromoteOptions,
) -> Result<(), FailoverError> {
    check_places(volumes)?;
    let [(first, _), others @ ..] = volumes else { return Ok(()) };
    if others.is_empty() {
        return Ok(());
    }
    let point = choose(access, first, &options.at, options.accept_fuzzy, SystemTime::now())?.point;
    match others.iter().find(|(other, _)| !point.cut.group.contains(other)) {
        None => Ok(()),
        Some((other, _)) => Err(FailoverError::NotOfGroup {
            volume: first.clone(),
            other: other.clone(),
            group: match &point.cut.group[..] {
                [] => "that alone".into(),
                group => group.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ").into(),
            },
        }),
    }
}

/// Refuses a volume that is named twice, and directories of which one is, or holds, the other.
pub(crate) fn check_places(volumes: &[(VolumeName, PathBuf)]) -> Result<(), FailoverError> {
    for (at, (volume, directory)) in volumes.iter().enumerate() {
        let (place, before) = (resolved(directory), &volumes[..at]);
        if before.iter().any(|(other, _)| other == volume) {
            return Err(FailoverError::VolumeTwice(volume.clone()));
        }
        let meets = |other: &Path| place.starts_with(other) || other.starts_with(&place);
        if let Some((_, other)) = before.iter().find(|(_, other)| meets(&resolved(other))) {
            return Err(FailoverError::PlacesMeet { one: other.clone(), other: directory.clone() });
        }
    }
    Ok(())
}

/// The path without links, as far as it is there.
fn resolved(path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = whole.ancestors().find_map(|above| {
        let rest = whole.strip_prefix(above).ok()?;
        Some(fs::canonicalize(above).ok()?.join(rest))
    });
    // An empty rest leaves a slash behind.
    there.unwrap_or(whole).components().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn no_copy_lies_in_another() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("there")).unwrap();
        std::os::unix::fs::symlink("there", dir.path().join("link")).unwrap();
        let check = |names: [&str; 2], places: [&str; 2]| {
            let volume = |at: usize| (names[at].parse().unwrap(), dir.path().join(places[at]));
            check_places(&[volume(0), volume(1)])
        };
        let both = ["t/a", "t/b"];
        for places in [["a", "b"], ["there", "there2"], ["there/a", "link/b"]] {
            check(both, places).unwrap();
        }
        for places in [["a", "a/"], ["a", "a/b"], ["a/b/c", "a"], ["there", "link/b"], ["link", "there"]] {
            let error = check(both, places).unwrap_err();
            assert!(matches!(error, FailoverError::PlacesMeet { .. }) && error.is_usage(), "{places:?}");
        }
        let twice = check(["t/a", "t/a"], ["a", "b"]).unwrap_err();
        assert!(matches!(twice, FailoverError::VolumeTwice(_)) && twice.is_usage());
    }
}
