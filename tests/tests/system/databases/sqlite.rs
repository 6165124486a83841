//! SQLite, with its write-ahead log and with a rollback journal: the commit is a frame of the log, or an unlinked file.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use rusqlite::{Connection, TransactionBehavior, params};
use tidelock_tests::{ledger::Writer, mount::Format};

use super::{Database, Story, WRITERS};

const ACCOUNTS: u64 = 2000;
const TOTAL: i64 = 1000 * ACCOUNTS as i64;
/// A reader may be in the way.
const BUSY: Duration = Duration::from_secs(20);

#[test]
fn random_points_with_a_write_ahead_log_hold_every_commit() {
    let story = Story { format: Format::Ext4, programs: &[], whole: 50, slack: Duration::ZERO };
    story.tell(|data, _| Sqlite::create(data, "wal"));
}

#[test]
fn random_points_with_a_rollback_journal_hold_every_commit() {
    let story = Story { format: Format::Xfs, programs: &[], whole: 50, slack: Duration::ZERO };
    story.tell(|data, _| Sqlite::create(data, "delete"));
}

struct Sqlite {
    file: PathBuf,
    /// SQLite lets writers that wait starve; these take turns.
    turn: Arc<Mutex<()>>,
    /// Kept, so that the log is not folded in and removed when a writer leaves.
    _open: Connection,
}

impl Sqlite {
    fn create(data: &Path, mode: &str) -> Self {
        let file = data.join("bank.db");
        let open = connect(&file).expect("new");
        let set: String =
            open.query_row(&format!("PRAGMA journal_mode={mode}"), [], |row| row.get(0)).expect("a mode");
        assert_eq!(set, mode);
        open.execute_batch(&format!(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
             CREATE TABLE counter (writer INTEGER PRIMARY KEY, value INTEGER NOT NULL);
             CREATE TABLE journal (writer INTEGER, value INTEGER, note TEXT, PRIMARY KEY (writer, value));
             WITH RECURSIVE n(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n WHERE id + 1 < {ACCOUNTS})
             INSERT INTO account SELECT id, 1000 FROM n;
             WITH RECURSIVE n(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM n WHERE id + 1 < {WRITERS})
             INSERT INTO counter SELECT id, 0 FROM n;"
        ))
        .expect("the schema");
        Self { file, turn: Arc::default(), _open: open }
    }
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(BUSY)?;
    // Often, so that points fall into checkpoints, too.
    connection.execute_batch("PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=100;")?;
    Ok(connection)
}

impl Database for Sqlite {
    fn writer(&self, number: usize) -> Box<dyn Writer> {
        let connection = connect(&self.file).expect("it is there");
        Box::new(Teller { connection, number: number as u64, turn: Arc::clone(&self.turn) })
    }

    fn check(&self, copy: &Path, _run: &Path) -> Result<Vec<u64>, String> {
        check(&copy.join("bank.db")).map_err(|error| error.to_string())?
    }
}

fn check(file: &Path) -> rusqlite::Result<Result<Vec<u64>, String>> {
    let connection = connect(file)?;
    let said: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    let total: i64 = connection.query_row("SELECT sum(balance) FROM account", [], |row| row.get(0))?;
    let unwritten: i64 = connection.query_row(
        "SELECT count(*) FROM counter c
         WHERE value <> (SELECT count(*) FROM journal j WHERE j.writer = c.writer AND j.value <= c.value)
            OR value <> (SELECT count(*) FROM journal j WHERE j.writer = c.writer)",
        [],
        |row| row.get(0),
    )?;
    let mut counters = connection.prepare("SELECT value FROM counter ORDER BY writer")?;
    let counters = counters.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<u64>>>()?;
    Ok(if said != "ok" || total != TOTAL || unwritten != 0 {
        Err(format!(
            "{said}; {total} in all instead of {TOTAL}; {unwritten} counters differ from the journal"
        ))
    } else {
        Ok(counters)
    })
}

struct Teller {
    connection: Connection,
    number: u64,
    turn: Arc<Mutex<()>>,
}

impl Writer for Teller {
    fn commit(&mut self, value: u64) -> Result<(), String> {
        let turn = Arc::clone(&self.turn);
        let _turn = turn.lock().map_err(|_| "another writer died")?;
        self.transfer(value).map_err(|error| error.to_string())
    }
}

impl Teller {
    fn transfer(&mut self, value: u64) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (from, to) = (value * 7 % ACCOUNTS, (value * 13 + self.number) % ACCOUNTS);
        transaction.execute("UPDATE account SET balance = balance - 5 WHERE id = ?", [from])?;
        transaction.execute("UPDATE account SET balance = balance + 5 WHERE id = ?", [to])?;
        transaction.execute(
            "INSERT INTO journal VALUES (?, ?, ?)",
            params![self.number, value, format!("{from} to {to}").repeat(20)],
        )?;
        transaction.execute("UPDATE counter SET value = ? WHERE writer = ?", params![value, self.number])?;
        transaction.commit()
    }
}
