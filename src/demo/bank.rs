//! The demo's application: a bank in SQLite that moves money between accounts in transactions and writes every
//! acknowledged one to a witness outside the protected volume.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, ensure};
use rand::Rng;
use rusqlite::{Connection, params};

const ACCOUNTS: i64 = 100;
const OPENING_BALANCE: i64 = 1_000;

/// Runs transfers until killed. `witness` gets a line `NUMBER TIME_NS` after each commit has returned.
pub(crate) fn run(volume: &Path, witness: &Path) -> anyhow::Result<()> {
    let mut bank = open(volume)?;
    create(&mut bank)?;
    let mut witness =
        OpenOptions::new().create(true).append(true).open(witness).context("cannot open the witness file")?;
    let mut rng = rand::rng();
    for number in 1_i64.. {
        let (from, to) = (rng.random_range(0..ACCOUNTS), rng.random_range(0..ACCOUNTS));
        transfer(&mut bank, number, from, to, rng.random_range(1..100))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        witness.write_all(format!("{number} {now}\n").as_bytes())?;
    }
    Ok(())
}

fn open(volume: &Path) -> anyhow::Result<Connection> {
    let bank = Connection::open(volume.join("bank.sqlite")).context("cannot open the bank")?;
    bank.pragma_update(None, "journal_mode", "WAL")?;
    bank.pragma_update(None, "synchronous", "FULL")?;
    bank.pragma_update(None, "wal_autocheckpoint", 200)?;
    Ok(bank)
}

fn create(bank: &mut Connection) -> rusqlite::Result<()> {
    let setup = bank.transaction()?;
    setup.execute_batch(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
         CREATE TABLE transfer (number INTEGER PRIMARY KEY, origin INTEGER, target INTEGER, amount INTEGER);",
    )?;
    for id in 0..ACCOUNTS {
        setup.execute("INSERT INTO account VALUES (?1, ?2)", params![id, OPENING_BALANCE])?;
    }
    setup.commit()
}

fn transfer(bank: &mut Connection, number: i64, from: i64, to: i64, amount: i64) -> rusqlite::Result<()> {
    let moved = bank.transaction()?;
    moved.execute("UPDATE account SET balance = balance - ?2 WHERE id = ?1", params![from, amount])?;
    moved.execute("UPDATE account SET balance = balance + ?2 WHERE id = ?1", params![to, amount])?;
    moved.execute("INSERT INTO transfer VALUES (?1, ?2, ?3, ?4)", params![number, from, to, amount])?;
    moved.commit()
}

/// What a promoted copy of the bank shows.
#[derive(Debug)]
pub(crate) struct Audit {
    /// Acknowledged transfers, as the witness has them.
    pub(crate) acknowledged: usize,
    /// Acknowledged transfers that are not in the copy.
    pub(crate) lost: usize,
    /// How long before the disaster the oldest lost one was acknowledged, in nanoseconds; 0 if none was lost.
    pub(crate) lost_span_ns: u64,
}

/// Checks a promoted copy: SQLite's own integrity check, the sum of all balances, and no gap in the transfers.
pub(crate) fn audit(copy: &Path, witness: &Path, disaster_ns: u64) -> anyhow::Result<Audit> {
    let bank = Connection::open(copy.join("bank.sqlite"))?;
    let integrity: String = bank.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(integrity == "ok", "PRAGMA integrity_check says {integrity}");
    let sum: i64 = bank.query_row("SELECT sum(balance) FROM account", [], |row| row.get(0))?;
    ensure!(
        sum == ACCOUNTS * OPENING_BALANCE,
        "the balances sum to {sum}, not {}",
        ACCOUNTS * OPENING_BALANCE
    );
    let (count, newest): (i64, i64) =
        bank.query_row("SELECT count(*), coalesce(max(number), 0) FROM transfer", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    ensure!(count == newest, "{count} transfers, but the newest has number {newest}");
    let acknowledged = read_witness(witness)?;
    let lost: Vec<_> = acknowledged.iter().filter(|(number, _)| *number > newest).collect();
    Ok(Audit {
        acknowledged: acknowledged.len(),
        lost: lost.len(),
        lost_span_ns: lost.first().map_or(0, |(_, time_ns)| disaster_ns.saturating_sub(*time_ns)),
    })
}

fn read_witness(path: &Path) -> anyhow::Result<Vec<(i64, u64)>> {
    let lines = BufReader::new(File::open(path).context("the bank acknowledged nothing")?).lines();
    let mut acknowledged = Vec::new();
    for line in lines {
        // The last line may have been cut short by the kill.
        let line = line?;
        if let Some((number, time)) = line.split_once(' ')
            && let (Ok(number), Ok(time)) = (number.parse(), time.parse())
        {
            acknowledged.push((number, time));
        }
    }
    Ok(acknowledged)
}
