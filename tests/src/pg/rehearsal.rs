//! What a test failover runs: the server itself.

use std::path::Path;

use super::find_programs;

/// A shell command for the directory of a copy: a server that recovers, finds the books of pgbench balanced, and is stopped again. Its socket and log are in `sockets`, which the
/// database's user must own. Another machine than the primary's has no process of its number, so the file that says it goes first.
pub fn books_balance(sockets: &Path, scale: u32) -> String {
    let programs = find_programs().unwrap_or_else(|reason| panic!("{reason}"));
    let (programs, sockets) = (programs.display(), sockets.display());
    let postgres = "setpriv --reuid=postgres --regid=postgres --clear-groups";
    let start = format!(
        "-k {sockets} -c listen_addresses= -c port=5433 -c shared_buffers=32MB -c logging_collector=off"
    );
    let books = "SELECT CASE WHEN (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches) \
                 THEN count(*) ELSE 0 END FROM pgbench_branches";
    format!(
        "rm -f postmaster.pid && {postgres} {programs}/pg_ctl -s -w -t 120 -D . -l {sockets}/log -o '{start}' start || exit 1
         found=$({postgres} {programs}/psql -h {sockets} -p 5433 -U postgres -qAt -c '{books}' postgres)
         {postgres} {programs}/pg_ctl -s -w -m fast -D . stop || exit 1
         test \"$found\" = {scale}"
    )
}
