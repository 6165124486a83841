//! PostgreSQL's own asynchronous streaming replica.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use postgres::Row;
use tidelock_tests::{
    pg::Pg,
    process::run,
    site::Site,
    wait::{self, now_ns},
};

use super::{Beat, CATCH_UP};

/// How often the standby is asked how far it is.
const POLL: Duration = Duration::from_micros(200);

/// A position of a log as a number, from `lsn - '0/0'`.
pub(crate) fn lsn(row: &Row) -> u64 {
    row.get::<_, Numeric>(0).0
}

/// PostgreSQL gives differences of positions as `numeric`.
struct Numeric(u64);

impl<'a> postgres::types::FromSql<'a> for Numeric {
    fn from_sql(
        _: &postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        // Header of four 16-bit words: digits, weight, sign, scale; then digits to the base 10,000.
        let words: Vec<u16> =
            raw.chunks_exact(2).map(|word| u16::from_be_bytes([word[0], word[1]])).collect();
        let [_, weight, _, _, digits @ ..] = words.as_slice() else { return Err("a short numeric".into()) };
        let places = usize::from(*weight) + 1;
        let digit = |place| u64::from(digits.get(place).copied().unwrap_or(0));
        Ok(Self((0..places).fold(0, |number, place| number * 10_000 + digit(place))))
    }

    fn accepts(kind: &postgres::types::Type) -> bool {
        *kind == postgres::types::Type::NUMERIC
    }
}

/// The standby's server.
pub(crate) struct Standby(Pg);

impl Standby {
    /// Copies the running primary.
    pub(crate) fn make(primary: &Pg, site: &Site) -> Self {
        let parent = site.new_dir("standby");
        let standby = Pg::at(&parent.join("data"), &parent.join("run"));
        standby.own(&parent);
        run(primary
            .command("pg_basebackup")
            .args(["-R", "-X", "stream", "-c", "fast", "-p", "5432", "-D"])
            .arg(standby.data()));
        Self(standby)
    }

    /// Starts it and waits until it has what the primary has.
    pub(crate) fn start(&mut self, primary: &Pg) {
        self.0.start();
        let row = primary.connect().query_one("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn", &[]);
        let target = lsn(&row.expect("the primary runs"));
        let mut client = self.0.connect();
        wait::until_true("the standby has caught up", CATCH_UP, || {
            received(&mut client).is_some_and(|position| position >= target)
        });
    }

    /// CPU time that it has used since it was started, in clock ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        self.0.cpu_ticks()
    }

    /// Stops it.
    pub(crate) fn stop(&mut self) {
        self.0.stop();
    }

    /// Begins to note when it got how far.
    pub(crate) fn watch(&self) -> Watch {
        let mut client = self.0.connect();
        let last = Arc::new(AtomicU64::new(u64::MAX));
        let until = Arc::clone(&last);
        let thread = thread::spawn(move || {
            let mut seen: Vec<(u64, u64)> = Vec::new();
            loop {
                let position = received(&mut client).unwrap_or_default();
                if seen.last().is_none_or(|(before, _)| position > *before) {
                    seen.push((position, now_ns()));
                }
                if position >= until.load(Ordering::Relaxed) {
                    return Progress(seen);
                }
                thread::sleep(POLL);
            }
        });
        Watch { last, thread }
    }
}

fn received(client: &mut postgres::Client) -> Option<u64> {
    let query =
        "SELECT pg_last_wal_receive_lsn() - '0/0'::pg_lsn WHERE pg_last_wal_receive_lsn() IS NOT NULL";
    client.query_opt(query, &[]).expect("the standby runs").map(|row| lsn(&row))
}

/// A thread that notes the standby's position.
pub(crate) struct Watch {
    last: Arc<AtomicU64>,
    thread: JoinHandle<Progress>,
}

impl Watch {
    /// Ends once the standby has reached `position`.
    pub(crate) fn stop_after(self, position: u64) -> Progress {
        self.last.store(position, Ordering::Relaxed);
        self.thread.join().expect("the standby ran to the end")
    }
}

/// Positions and when they were first seen, in order.
pub(crate) struct Progress(Vec<(u64, u64)>);

impl Progress {
    /// How long after its acknowledgement the commit was on the standby's disk.
    pub(crate) fn lag_ns(&self, beat: &Beat) -> Option<u64> {
        let first = self.0.partition_point(|(position, _)| *position < beat.lsn);
        self.0.get(first).map(|(_, seen_ns)| seen_ns.saturating_sub(beat.acked_ns))
    }
}

#[cfg(test)]
mod tests {
    use postgres::types::{FromSql, Type};

    use super::*;

    #[test]
    fn a_numeric_is_read_as_a_whole_number() {
        // 1 2345 6789 and 5 0000, as PostgreSQL sends them.
        let words = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let read = |raw: &[u16]| Numeric::from_sql(&Type::NUMERIC, &words(raw)).expect("a numeric").0;
        assert_eq!(read(&[3, 2, 0, 0, 1, 2345, 6789]), 123_456_789);
        assert_eq!(read(&[1, 1, 0, 0, 5]), 50_000);
    }

    #[test]
    fn lag_counts_to_the_first_position_not_before_the_commit() {
        let progress = Progress(vec![(100, 1000), (200, 2000)]);
        let lag = |lsn, acked_ns| progress.lag_ns(&Beat { acked_ns, lsn });
        assert_eq!((lag(100, 900), lag(101, 900), lag(201, 900)), (Some(100), Some(1100), None));
    }
}
