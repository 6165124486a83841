//! What goes when a store is at its cap and what its points need does not fit any more: the oldest points, whatever the policy says.
//!
//! A pure function, like the policy itself. How many must go is not known before they are gone, because points share chunks; so a few go at a time, and
//! whoever asks for fewer gets a part of what he would get by asking for more.

use super::Candidate;

/// Whether each point of each volume goes, so that the `count` oldest of all that may go are gone. What stays whatever happens: protected points, the newest point of
/// a volume, and its newest one that is proven.
pub fn relieve(volumes: &[Vec<Candidate>], count: usize) -> Vec<Vec<bool>> {
    let mut going: Vec<Vec<bool>> = volumes.iter().map(|points| vec![false; points.len()]).collect();
    let mut may: Vec<_> = Vec::new();
    for (volume, points) in volumes.iter().enumerate() {
        let newest = points.iter().map(|point| point.id).max();
        let proven = points.iter().filter(|point| !point.fuzzy).map(|point| point.id).max();
        for (index, point) in points.iter().enumerate() {
            let stays = point.protected || Some(point.id) == newest || Some(point.id) == proven;
            if !stays {
                may.push((point.time_ns, point.id, volume, index));
            }
        }
    }
    may.sort_unstable();
    for (_, _, volume, index) in may.into_iter().take(count) {
        going[volume][index] = true;
    }
    going
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidelock_proto::{Epoch, PointId, Seq};

    use super::*;

    fn volumes() -> impl Strategy<Value = Vec<Vec<Candidate>>> {
        let point = (0..50u64, prop::bool::weighted(0.3), prop::bool::weighted(0.2));
        let volume = prop::collection::vec(point, 0..20).prop_map(|points| {
            let point = |(number, (time_ns, fuzzy, protected))| {
                let id = PointId::new(Epoch(1 + number as u64 / 7), Seq(number as u64));
                Candidate { id, time_ns, fuzzy, protected }
            };
            points.into_iter().enumerate().map(point).collect::<Vec<_>>()
        });
        prop::collection::vec(volume, 0..5)
    }

    fn flat<'a>(
        volumes: &'a [Vec<Candidate>],
        going: &'a [Vec<bool>],
    ) -> impl Iterator<Item = (&'a Candidate, bool)> {
        volumes.iter().zip(going).flat_map(|(points, going)| points.iter().zip(going.iter().copied()))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_oldest_go_and_what_must_stay_stays(volumes in volumes(), count in 0..60usize) {
            let going = relieve(&volumes, count);
            let gone = flat(&volumes, &going).filter(|(_, goes)| *goes).count();
            let all = relieve(&volumes, usize::MAX);
            let may = flat(&volumes, &all).filter(|(_, goes)| *goes).count();
            prop_assert_eq!(gone, count.min(may), "as many as were asked for, if there are so many");
            let youngest = flat(&volumes, &going).filter(|(_, goes)| *goes).map(|(point, _)| point.time_ns).max();
            for ((points, going), all) in volumes.iter().zip(&going).zip(&all) {
                for ((point, goes), may) in points.iter().zip(going).zip(all) {
                    prop_assert!(!goes || !point.protected);
                    prop_assert!(*goes || !may || youngest.is_none_or(|youngest| point.time_ns >= youngest));
                }
                let stays = |fuzzy: bool| points.iter().zip(going).any(|(point, goes)| !goes && (fuzzy || !point.fuzzy));
                prop_assert!(points.is_empty() || stays(true), "a volume keeps a point");
                prop_assert!(points.iter().all(|point| point.fuzzy) || stays(false), "a proven one, if it has any");
                let newest = points.iter().zip(going).max_by_key(|(point, _)| point.id);
                prop_assert!(newest.is_none_or(|(_, goes)| !goes));
            }
        }

        #[test]
        fn fewer_are_a_part_of_more_and_asking_again_goes_on(volumes in volumes(), first in 0..20usize, second in 0..20usize) {
            let (fewer, both) = (relieve(&volumes, first), relieve(&volumes, first + second));
            prop_assert!(flat(&volumes, &fewer).zip(flat(&volumes, &both)).all(|((_, few), (_, more))| !few || more));
            let left: Vec<Vec<Candidate>> = volumes
                .iter()
                .zip(&fewer)
                .map(|(points, going)| points.iter().zip(going).filter(|(_, goes)| !**goes).map(|(point, _)| *point).collect())
                .collect();
            let again = relieve(&left, second);
            let stay = |volumes: &[Vec<Candidate>], going: &[Vec<bool>]| -> Vec<PointId> {
                flat(volumes, going).filter(|(_, goes)| !goes).map(|(point, _)| point.id).collect()
            };
            prop_assert_eq!(stay(&left, &again), stay(&volumes, &both));
        }
    }
}
