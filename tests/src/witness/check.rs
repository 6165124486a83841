//! The judge of a history of points.

use tidelock_proto::PointId;

use super::{Counters, Done};

/// The counters of one point.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The point.
    pub id: PointId,
    /// The instant it claims, in nanoseconds since 1970.
    pub cut_ns: u64,
    /// What it holds.
    pub counters: Counters,
}

/// Everything wrong with the points, given what the writer says it did. Readings are in the order of their points.
pub fn violations(readings: &[Reading], log: &[Done]) -> Vec<String> {
    let mut wrong: Vec<String> = readings.iter().filter_map(|reading| judge(reading, log)).collect();
    for pair in readings.windows(2) {
        let (before, after) = (&pair[0], &pair[1]);
        let back = after.counters.iter().zip(&before.counters).any(|(after, before)| after < before);
        if back || after.cut_ns < before.cut_ns {
            wrong.push(format!("{} goes back behind {}: {after:?} {before:?}", after.id, before.id));
        }
    }
    wrong
}

fn judge(reading: &Reading, log: &[Done]) -> Option<String> {
    let Reading { id, cut_ns, counters } = reading;
    let (first, last) = (counters[0], counters[counters.len() - 1]);
    if counters.windows(2).any(|pair| pair[1] > pair[0]) || first > last + 1 {
        return Some(format!("{id} was never: {counters:?}"));
    }
    // What was complete before the cut must be in it: a point may not claim a later instant than it has.
    let complete = log.partition_point(|done| done.done_ns < *cut_ns);
    let promised = complete.checked_sub(1).map_or(0, |index| log[index].value);
    (last < promised)
        .then(|| format!("{id} claims {cut_ns}, when {promised} was written, but has {counters:?}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tidelock_proto::{Epoch, Seq};

    use super::{
        super::{ALL, CALLS, Directory, LENGTH, Source, Writer, counters_in, read_log},
        *,
    };

    fn reading(seq: u64, counters: impl Into<Counters>) -> Reading {
        Reading { id: PointId::new(Epoch(1), Seq(seq)), cut_ns: seq * 100, counters: counters.into() }
    }

    #[test]
    fn instants_of_the_chain_pass() {
        let history = [
            reading(1, [0; LENGTH]),
            reading(2, [1, 0, 0, 0, 0, 0, 0, 0, 0]),
            reading(3, [1, 1, 1, 1, 1, 1, 1, 1, 0]),
            reading(4, [7, 7, 7, 7, 6, 6, 6, 6, 6]),
        ];
        assert_eq!(violations(&history, &[]), Vec::<String>::new());
    }

    #[test]
    fn states_that_never_were_are_found() {
        for never in [
            [0, 0, 0, 0, 0, 0, 0, 0, 1],
            [5, 5, 4, 5, 5, 5, 5, 5, 5],
            [6, 6, 6, 5, 5, 5, 5, 5, 4],
            [9, 7, 7, 7, 7, 7, 7, 7, 7],
        ] {
            assert_eq!(violations(&[reading(1, never)], &[]).len(), 1, "{never:?} passed");
        }
    }

    #[test]
    fn a_history_that_goes_back_is_found() {
        assert_eq!(violations(&[reading(1, [4; LENGTH]), reading(2, [3; LENGTH])], &[]).len(), 1);
    }

    #[test]
    fn a_point_that_claims_too_late_an_instant_is_found() {
        let log =
            [Done { value: 1, begun_ns: 10, done_ns: 20 }, Done { value: 2, begun_ns: 90, done_ns: 99 }];
        assert_eq!(violations(&[reading(1, [2; LENGTH])], &log), Vec::<String>::new());
        assert_eq!(violations(&[reading(1, [2, 2, 2, 2, 2, 2, 2, 2, 1])], &log).len(), 1);
        assert_eq!(violations(&[reading(1, [1; LENGTH])], &log).len(), 1);
    }

    /// Files copied one by one while the writer runs: what every tool does that has no cut.
    struct OneByOne<'a>(Directory<'a>, std::cell::RefCell<&'a mut Writer>);

    impl Source for OneByOne<'_> {
        fn list(&self, dir: &str) -> Result<Vec<Vec<u8>>, String> {
            self.0.list(dir)
        }

        fn read(&self, dir: &str, name: &[u8]) -> Result<Vec<u8>, String> {
            self.1.borrow_mut().bump(Duration::ZERO).expect("writable");
            self.0.read(dir, name)
        }
    }

    #[test]
    fn the_writer_is_read_back_and_a_copy_under_way_is_found() {
        for chain in [CALLS, ALL] {
            // Direct I/O is not for every temporary directory.
            let dir = tempfile::tempdir_in("/var/tmp").expect("temporary directory");
            let (root, log) = (dir.path().join("volume"), dir.path().join("log"));
            let mut writer = Writer::create(chain, &[&root], &log).expect("writable");
            for value in 1..=2200 {
                writer.bump(Duration::ZERO).expect("writable");
                if value % 200 == 0 {
                    assert_eq!(counters_in(chain, &[&Directory(&root)]), Ok(vec![value; chain.len()]));
                }
            }
            assert_eq!(read_log(&log).expect("readable").last().map(|done| done.value), Some(2200));

            let copied = OneByOne(Directory(&root), std::cell::RefCell::new(&mut writer));
            let torn = counters_in(chain, &[&copied]).expect("each file is whole");
            assert_eq!(violations(&[reading(1, torn.clone())], &[]).len(), 1, "{torn:?} passed");
        }
    }
}
