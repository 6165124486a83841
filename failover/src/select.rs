//! Picks the point that is meant, out of those that exist. Pure.

use std::{
    collections::{BTreeMap, HashSet},
    time::SystemTime,
};

use tidelock_proto::{
    PointId, Seq, VolumeName,
    point::{Consistency, Point},
};

use crate::{
    at::{At, show_time},
    error::FailoverError,
};

/// The points from `last` back along their parents: the line that the current epoch builds on. What an old
/// primary wrote after a promotion's base is not on it. For a point no longer kept stands the one before it. Within an epoch there is one
/// line: a point that begins anew, because those before it were damaged, comes after them all the same.
pub(crate) fn line(points: &[Point], last: PointId) -> HashSet<PointId> {
    let parents: BTreeMap<PointId, Option<PointId>> =
        points.iter().map(|point| (point.id, point.parent)).collect();
    let mut found = HashSet::new();
    let mut next = Some(last);
    while let Some(wanted) = next {
        let kept = parents.range(PointId::new(wanted.epoch, Seq(0))..=wanted).next_back();
        let Some((id, parent)) = kept else { break };
        found.insert(*id);
        let before = || parents.range(PointId::new(id.epoch, Seq(0))..*id).next_back().map(|(id, _)| *id);
        next = parent.or_else(before);
    }
    found
}

/// The points that all other volumes of their group have, too, on the lines that are current there. A point of a volume that is
/// cut alone, and one of a group of which nothing else is known, is its own.
///
/// The lines matter once one volume of a group is promoted: for the others only what that one builds on remains, so
/// volumes that are promoted one after the other end up at one instant.
pub(crate) fn whole_groups(
    name: &VolumeName,
    points: Vec<Point>,
    others: &BTreeMap<VolumeName, HashSet<PointId>>,
) -> Vec<Point> {
    let has = |other: &VolumeName, id: &PointId| {
        other == name || others.get(other).is_none_or(|line| line.contains(id))
    };
    points.into_iter().filter(|point| point.cut.group.iter().all(|other| has(other, &point.id))).collect()
}

/// The point that `at` means. Fuzzy ones are passed over unless accepted or named.
pub(crate) fn select(
    volume: &VolumeName,
    points: &[Point],
    last: PointId,
    at: &At,
    accept_fuzzy: bool,
    now: SystemTime,
) -> Result<Point, FailoverError> {
    if let At::Point(id) = at {
        let named = points.iter().find(|point| point.id == *id).cloned();
        return named.ok_or_else(|| FailoverError::NoPoint { volume: volume.clone(), point: *id });
    }
    let line = line(points, last);
    let on_line: Vec<&Point> = points.iter().filter(|point| line.contains(&point.id)).collect();
    let usable = |point: &&&Point| accept_fuzzy || point.cut.consistency != Consistency::Fuzzy;
    let mut usable = on_line.iter().filter(usable).rev();
    let (Some(newest), oldest) = (usable.clone().next(), usable.clone().next_back()) else {
        let none = on_line.is_empty();
        return Err(if none {
            FailoverError::NoPoints(volume.clone())
        } else {
            FailoverError::OnlyFuzzy(volume.clone())
        });
    };
    if let At::Tag(tag) = at {
        let named = usable.find(|point| point.tags.contains(tag)).map(|point| (**point).clone());
        return named.ok_or_else(|| FailoverError::NoTag { volume: volume.clone(), tag: tag.clone() });
    }
    let Some(not_after_ns) = at.not_after_ns(now) else { return Ok((**newest).clone()) };
    match usable.find(|point| point.cut.time_ns <= not_after_ns) {
        Some(point) => Ok((**point).clone()),
        None => Err(FailoverError::TooEarly {
            volume: volume.clone(),
            wanted: show_time(not_after_ns),
            oldest: show_time(oldest.unwrap_or(newest).cut.time_ns),
            newest: show_time(newest.cut.time_ns),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, UNIX_EPOCH};

    use tidelock_proto::{TreeDigest, point::Cut};

    use super::*;

    fn point(id: &str, parent: Option<&str>, seconds: u64, consistency: Consistency) -> Point {
        let cut = Cut {
            time_ns: seconds * 1_000_000_000,
            consistency,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: tidelock_proto::point::How::Optimistic,
            group: Vec::new(),
            digest: TreeDigest::default(),
        };
        let parent = parent.map(|parent| parent.parse().unwrap());
        Point { id: id.parse().unwrap(), parent, cut, received_ns: 0, tags: Vec::new() }
    }

    /// 1.1 ─ 1.2 ─ 1.3 (the old primary's tail), and 1.2 ─ 2.1 ─ 2.2, the last fuzzy.
    fn history() -> Vec<Point> {
        use Consistency::{Crash, Fuzzy};
        vec![
            point("1.1", None, 10, Crash),
            point("1.2", Some("1.1"), 20, Crash),
            point("1.3", Some("1.2"), 30, Crash),
            point("2.1", Some("1.2"), 40, Crash),
            point("2.2", Some("2.1"), 50, Fuzzy),
        ]
    }

    fn chosen(at: &str, accept_fuzzy: bool) -> Result<String, FailoverError> {
        let volume = "t/v".parse().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(60);
        let found =
            select(&volume, &history(), "2.2".parse().unwrap(), &at.parse().unwrap(), accept_fuzzy, now);
        found.map(|point| point.id.to_string())
    }

    #[test]
    fn times_and_latest_stay_on_the_line() {
        assert_eq!(chosen("latest", false).unwrap(), "2.1");
        assert_eq!(chosen("latest", true).unwrap(), "2.2");
        assert_eq!(chosen("-25s", false).unwrap(), "1.2");
        assert_eq!(chosen("1970-01-01T00:00:20Z", false).unwrap(), "1.2");
        assert_eq!(chosen("1.3", false).unwrap(), "1.3");
        let early = chosen("-55s", false).unwrap_err().to_string();
        assert!(
            early.contains("begin at 1970-01-01T00:00:10.000Z and end at 1970-01-01T00:00:40.000Z"),
            "{early}"
        );
        assert!(matches!(chosen("1.4", false), Err(FailoverError::NoPoint { .. })));
    }

    #[test]
    fn a_point_of_a_group_counts_once_all_have_it() {
        let (data, wal): (VolumeName, VolumeName) = ("t/data".parse().unwrap(), "t/wal".parse().unwrap());
        let mut points = history();
        for point in &mut points[..4] {
            point.cut.group = vec![data.clone(), wal.clone()];
        }
        let ids = |others: &[(&VolumeName, &[&str])]| {
            let line = |ids: &[&str]| ids.iter().map(|id| id.parse().unwrap()).collect::<HashSet<PointId>>();
            let others = others.iter().map(|(name, ids)| ((*name).clone(), line(ids))).collect();
            let whole = whole_groups(&data, points.clone(), &others);
            whole.iter().map(|point| point.id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&[(&wal, &["1.1", "1.2", "1.9"])]), ["1.1", "1.2", "2.2"], "2.2 was cut alone");
        assert_eq!(ids(&[(&wal, &[])]), ["2.2"]);
        assert_eq!(ids(&[]).len(), 5, "nothing is known of the other volume");
    }

    #[test]
    fn a_name_means_the_newest_point_of_the_line_that_has_it() {
        let mut points = history();
        for index in [0, 1, 2] {
            points[index].tags = vec!["here".to_owned()];
        }
        let volume: VolumeName = "t/v".parse().unwrap();
        let named = |tag: &str| {
            select(&volume, &points, "2.2".parse().unwrap(), &At::Tag(tag.into()), false, UNIX_EPOCH)
        };
        assert_eq!(named("here").unwrap().id.to_string(), "1.2");
        assert!(matches!(named("nowhere"), Err(FailoverError::NoTag { .. })));
    }

    #[test]
    fn the_line_goes_on_over_points_no_longer_kept() {
        let mut kept = history();
        kept.remove(1);
        let found = line(&kept, "2.2".parse().unwrap());
        let mut found: Vec<String> = found.iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(found, ["1.1", "2.1", "2.2"]);
    }

    #[test]
    fn a_point_that_begins_anew_is_on_the_line_of_its_epoch() {
        let mut anew = history();
        let at = anew.iter().position(|point| point.id.to_string() == "2.2").unwrap();
        anew[at].parent = None;
        let last = anew[at].id;
        assert_eq!(line(&anew, last), line(&history(), last));
        assert!(line(&anew, last).len() > 2);
    }

    #[test]
    fn without_a_cut_there_is_no_latest() {
        let volume: VolumeName = "t/v".parse().unwrap();
        let fuzzy = [point("1.1", None, 10, Consistency::Fuzzy)];
        let latest = |points: &[Point]| {
            select(&volume, points, "1.1".parse().unwrap(), &At::Latest, false, UNIX_EPOCH)
        };
        assert!(latest(&fuzzy).unwrap_err().is_refusal());
        assert!(matches!(latest(&[]), Err(FailoverError::NoPoints(_))));
    }
}
