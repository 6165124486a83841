//! What a copy of a PostgreSQL data directory must prove before it is called good.

use std::path::Path;

use super::{Beat, Pg};
use crate::process::{output, tail};

/// What the copy must hold.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Scale of the pgbench tables; their books must balance.
    pub scale: u32,
    /// All rows that were ever acknowledged.
    pub beats: &'a [Beat],
    /// The copy's instant, in nanoseconds since 1970: what was acknowledged before it must be there, what began after it must not.
    pub cut_ns: u64,
}

/// Starts the copy in `data`, lets it recover, checks data and indexes, stops it, and checks every page's checksum.
/// Returns everything that is wrong. The directory is changed by this.
pub fn check_copy(data: &Path, run: &Path, expected: Expected<'_>) -> Vec<String> {
    let mut copy = Pg::at(data, run);
    if let Err(log) = copy.try_start() {
        return vec![format!("does not start:\n{}", tail(&log, 15))];
    }
    let mut wrong = check_books(&copy, expected);
    wrong.extend(failure(&copy, "pg_amcheck", &["--heapallindexed", "--install-missing", "postgres"]));
    copy.stop();
    let data = data.to_str().expect("test paths are UTF-8");
    wrong.extend(failure(&copy, "pg_checksums", &["--check", "-D", data]));
    wrong
}

fn check_books(copy: &Pg, expected: Expected<'_>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut client = copy.connect();
    let mut number = |what: &str| -> Result<i64, String> {
        let row = client.query_one(&format!("SELECT ({what})::bigint"), &[]);
        row.and_then(|row| row.try_get(0)).map_err(|error| format!("{what}: {error}"))
    };
    let sums: Vec<Result<i64, String>> = [
        "SELECT sum(abalance) FROM pgbench_accounts",
        "SELECT sum(bbalance) FROM pgbench_branches",
        "SELECT sum(tbalance) FROM pgbench_tellers",
        "SELECT coalesce(sum(delta), 0) FROM pgbench_history",
    ]
    .map(&mut number)
    .into();
    if sums.iter().any(|sum| sum.is_err() || *sum != sums[0]) {
        wrong.push(format!("the books do not balance: accounts, branches, tellers, history = {sums:?}"));
    }
    let accounts = number("SELECT count(DISTINCT aid) FROM pgbench_accounts");
    if accounts != Ok(i64::from(expected.scale) * 100_000) {
        wrong.push(format!("{accounts:?} accounts instead of {} × 100000", expected.scale));
    }
    let Expected { beats, cut_ns, .. } = expected;
    if let Some(last) = beats.iter().filter(|beat| beat.acked_ns < cut_ns).map(|beat| beat.id).max() {
        let held = number(&format!("SELECT count(*) FROM heartbeat WHERE id <= {last}"));
        if held != Ok(last) {
            wrong.push(format!("{held:?} heartbeats up to {last}, whose commit was acknowledged"));
        }
    }
    if let Some(later) = beats.iter().filter(|beat| beat.begun_ns > cut_ns).map(|beat| beat.id).min() {
        let newest = number("SELECT coalesce(max(id), 0) FROM heartbeat");
        if newest.as_ref().map_or(true, |newest| *newest >= later) {
            wrong.push(format!("heartbeat {newest:?} is held, but {later} began later"));
        }
    }
    wrong
}

fn failure(copy: &Pg, program: &str, arguments: &[&str]) -> Option<String> {
    let out = output(copy.command(program).args(arguments));
    let said = [out.stdout, out.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    (!out.status.success()).then(|| format!("{program} fails:\n{}", tail(&said, 10)))
}
