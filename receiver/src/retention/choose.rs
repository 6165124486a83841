//! The choice itself.

use std::collections::HashMap;

use tidelock_proto::{Epoch, PointId};

use super::Policy;

/// A point, as far as retention looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The point. Points of different epochs do not compete: each has its own buckets.
    pub id: PointId,
    /// When the receiver took it in, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Its files were copied one by one. It gives way to any proven point of its bucket.
    pub fuzzy: bool,
    /// It has a tag, somebody has it open, or it is the newest.
    pub protected: bool,
}

/// What becomes of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// Kept whatever the policy says; nothing else loses its place by that.
    Protected,
    /// Kept by the tier of this number, counted from 0.
    Kept(usize),
    /// A better point of the same bucket is kept by the tier of this number.
    Thinned(usize),
    /// Older than everything the policy keeps.
    Expired,
}

impl Verdict {
    /// Whether the point goes.
    pub fn is_drop(self) -> bool {
        matches!(self, Self::Thinned(_) | Self::Expired)
    }
}

/// Judges every point, in the order given.
pub fn choose(points: &[Candidate], policy: &Policy, now_ns: u64) -> Vec<Verdict> {
    let mut best: HashMap<(usize, Epoch, u64), (bool, u64, PointId)> = HashMap::new();
    let places: Vec<_> = points.iter().map(|point| place(point, policy, now_ns)).collect();
    for (point, place) in points.iter().zip(&places) {
        // The best of a bucket is looked for among all of its points, those not yet in a ripe bucket of this tier included:
        // a bucket is ripe as a whole.
        if let Place::Bucket(tier, bucket) = place {
            let rank = best.entry((*tier, point.id.epoch, *bucket)).or_insert(rank(point));
            *rank = (*rank).max(self::rank(point));
        }
    }
    let judge = |(point, place): (&Candidate, &Place)| match *place {
        _ if point.protected => Verdict::Protected,
        Place::Expired => Verdict::Expired,
        Place::Young => Verdict::Kept(0),
        Place::Bucket(tier, bucket) if best.get(&(tier, point.id.epoch, bucket)) == Some(&rank(point)) => {
            Verdict::Kept(tier)
        }
        Place::Bucket(tier, _) => Verdict::Thinned(tier),
    };
    points.iter().zip(&places).map(judge).collect()
}

/// What makes a point better than another of its bucket: proven before fuzzy, then the later one.
fn rank(point: &Candidate) -> (bool, u64, PointId) {
    (!point.fuzzy, point.time_ns, point.id)
}

/// Where a point stands now.
enum Place {
    /// In no ripe bucket.
    Young,
    /// In the ripe bucket of this number of this tier, and in none of a later tier.
    Bucket(usize, u64),
    /// In a bucket of the last tier that is older than it as a whole.
    Expired,
}

fn place(point: &Candidate, policy: &Policy, now_ns: u64) -> Place {
    let tiers = policy.tiers();
    // The end of the point's bucket; a step of 0 is a bucket for each point.
    let end = |step: u64| match step {
        0 => point.time_ns,
        step => (point.time_ns / step + 1).saturating_mul(step),
    };
    let past = |step: u64, age: u64| end(step).checked_add(age).is_some_and(|ripe| ripe <= now_ns);
    let last = tiers[tiers.len() - 1];
    if past(last.step_ns, last.age_ns) {
        return Place::Expired;
    }
    for (index, tier) in tiers.iter().enumerate().rev().filter(|(_, tier)| tier.step_ns > 0) {
        let before = if index == 0 { 0 } else { tiers[index - 1].age_ns };
        if past(tier.step_ns, before) {
            return Place::Bucket(index, point.time_ns / tier.step_ns);
        }
    }
    Place::Young
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use tidelock_proto::Seq;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn policy() -> Policy {
        "all:10s,2s:60s,10s:300s,60s:900s".parse().expect("a policy")
    }

    fn point(seq: u64, time_ns: u64) -> Candidate {
        let id = PointId::new(Epoch(1 + seq % 2), Seq(seq));
        Candidate { id, time_ns, fuzzy: seq.is_multiple_of(5), protected: seq.is_multiple_of(17) }
    }

    fn thin(points: &[Candidate], now_ns: u64) -> Vec<Candidate> {
        let verdicts = choose(points, &policy(), now_ns);
        points
            .iter()
            .zip(verdicts)
            .filter(|(_, verdict)| !verdict.is_drop())
            .map(|(point, _)| *point)
            .collect()
    }

    /// The rule, said as plainly as it can be: of every bucket that is past the age before its tier, only the best stays.
    fn oracle(points: &[Candidate], now_ns: u64) -> Vec<Candidate> {
        let ripe = [(2, 10), (10, 60), (60, 300)];
        let keep = |point: &&Candidate| {
            let bucket = |of: &Candidate, step: u64| (of.id.epoch, of.time_ns / (step * SECOND));
            let end = |step: u64| (point.time_ns / (step * SECOND) + 1) * step * SECOND;
            let loses = ripe.iter().any(|(step, age)| {
                let rivals = points.iter().filter(|other| bucket(other, *step) == bucket(point, *step));
                end(*step) + age * SECOND <= now_ns && rivals.map(rank).max() != Some(rank(point))
            });
            point.protected || !(loses || end(60) + 900 * SECOND <= now_ns)
        };
        points.iter().filter(keep).copied().collect()
    }

    proptest! {
        #[test]
        fn the_choice_is_the_rule(
            times in prop::collection::vec(0..1500 * SECOND, 0..200),
            now in 0..3000 * SECOND,
        ) {
            let points: Vec<_> = times.iter().enumerate().map(|(seq, time)| point(seq as u64, *time)).collect();
            prop_assert_eq!(thin(&points, now), oracle(&points, now));
        }

        /// Points come in any order of time; after each of some of them everything so far is thinned.
        #[test]
        fn often_or_once_is_the_same(
            arrivals in prop::collection::vec((0..30 * SECOND, 0..60 * SECOND, any::<bool>()), 0..200),
            rest in 0..1200 * SECOND,
        ) {
            let (mut often, mut all, mut now) = (Vec::new(), Vec::new(), 100 * SECOND);
            for (seq, (passed, behind, thin_now)) in arrivals.into_iter().enumerate() {
                now += passed;
                let new = point(seq as u64, now - behind);
                often.push(new);
                all.push(new);
                if thin_now {
                    often = thin(&often, now);
                }
            }
            now += rest;
            let once = thin(&all, now);
            prop_assert_eq!(thin(&often, now), once.clone());
            prop_assert_eq!(thin(&once, now), once);
        }
    }

    /// 100 points a second for two hours, by the default policy.
    #[test]
    fn a_steady_stream_leaves_the_documented_number() {
        let (policy, start, end) = (Policy::default(), 1_000_000 * SECOND, 1_007_200 * SECOND);
        let points: Vec<_> = (start / 10_000_000..end / 10_000_000)
            .map(|tick| Candidate {
                id: PointId::new(Epoch(1), Seq(tick)),
                time_ns: tick * 10_000_000,
                fuzzy: false,
                protected: false,
            })
            .collect();
        let verdicts = choose(&points, &policy, end);
        let count = |wanted| verdicts.iter().filter(|verdict| **verdict == wanted).count();
        // The last minute whole, a point for each second of the hour before, rounded up to whole minutes, and for each
        // minute of the rest.
        assert_eq!(
            (count(Verdict::Kept(0)), count(Verdict::Kept(1)), count(Verdict::Kept(2))),
            (6000, 3540 + 40, 60)
        );
        assert_eq!(count(Verdict::Expired), 0);
        let kept: BTreeSet<_> = points
            .iter()
            .zip(&verdicts)
            .filter(|(_, verdict)| !verdict.is_drop())
            .map(|(point, _)| point.id)
            .collect();
        assert!(kept.contains(&points[points.len() - 1].id));
    }
}
