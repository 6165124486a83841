//! MariaDB's InnoDB: a circular log, doublewritten pages, asynchronous and direct I/O.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use tidelock_tests::{
    ledger::Writer,
    mount::Format,
    process::{Process, die_with_parent, output, run, tail},
    wait,
};

use super::{Database, Story, WRITERS};

const PROGRAMS: &[&str] = &["mariadbd", "mariadb", "mariadb-install-db"];
const ACCOUNTS: u64 = 20_000;
const START_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn random_points_with_direct_io_hold_every_commit() {
    let story = Story { format: Format::Xfs, programs: PROGRAMS, whole: 20, slack: Duration::ZERO };
    story.tell(|data, run| MariaDb::create(data, run, "O_DIRECT"));
}

#[test]
fn random_points_with_fsync_hold_every_commit() {
    let story = Story { format: Format::Ext4, programs: PROGRAMS, whole: 20, slack: Duration::ZERO };
    story.tell(|data, run| MariaDb::create(data, run, "fsync"));
}

struct MariaDb {
    server: Process,
    socket: PathBuf,
    flush: &'static str,
}

impl MariaDb {
    fn create(data: &Path, run_dir: &Path, flush: &'static str) -> Self {
        let mut install = Command::new("mariadb-install-db");
        install.args(["--no-defaults", "--user=root", "--skip-test-db"]);
        run(install.args(["--auth-root-authentication-method=normal", "--datadir"]).arg(data));
        let database = Self::start(data, run_dir, flush);
        let database = database.unwrap_or_else(|log| panic!("MariaDB does not start:\n{log}"));
        let schema = format!(
            "CREATE DATABASE bank; USE bank;
             CREATE TABLE account (id INT PRIMARY KEY, balance INT NOT NULL) ENGINE=InnoDB;
             CREATE TABLE counter (writer INT PRIMARY KEY, value INT NOT NULL) ENGINE=InnoDB;
             CREATE TABLE journal (writer INT, value INT, note TEXT, PRIMARY KEY (writer, value)) ENGINE=InnoDB;
             INSERT INTO account SELECT seq, 1000 FROM seq_0_to_{};
             INSERT INTO counter SELECT seq, 0 FROM seq_0_to_{};",
            ACCOUNTS - 1,
            WRITERS - 1
        );
        run(client(&database.socket).args(["-e", &schema]));
        database
    }

    fn start(data: &Path, run: &Path, flush: &'static str) -> Result<Self, String> {
        let socket = run.join("mariadb.sock");
        let mut command = Command::new("mariadbd");
        command.args(["--no-defaults", "--user=root", "--skip-networking", "--skip-grant-tables"]);
        // Small, so that pages are written and the log goes round while points are cut.
        command.args(["--innodb-buffer-pool-size=16M", "--innodb-log-file-size=4M"]);
        command.arg(format!("--innodb-flush-method={flush}"));
        for (option, path) in [("datadir", data), ("socket", &socket), ("tmpdir", run)] {
            command.arg(format!("--{option}={}", path.display()));
        }
        command.arg(format!("--pid-file={}", run.join("pid").display()));
        let mut server = Process::spawn("mariadbd", &mut command, &run.join("mariadb.log"));
        // Its words are judged by `check`.
        server.allow("");
        wait::until("MariaDB takes connections", START_LIMIT, || {
            if server.ended().is_some() {
                return Some(Err(tail(&server.log(), 30)));
            }
            let asked = socket.exists() && output(client(&socket).args(["-e", "SELECT 1"])).status.success();
            asked.then_some(Ok(()))
        })?;
        Ok(Self { server, socket, flush })
    }
}

fn client(socket: &Path) -> Command {
    let mut command = Command::new("mariadb");
    command.args(["--no-defaults", "--batch", "--skip-column-names", "--unbuffered", "--user=root"]);
    command.arg(format!("--socket={}", socket.display()));
    command
}

impl Database for MariaDb {
    fn writer(&self, number: usize) -> Box<dyn Writer> {
        let mut command = client(&self.socket);
        command.arg("bank").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        die_with_parent(&mut command);
        let mut child = command.spawn().expect("the client can be started");
        let ask = child.stdin.take().expect("it is piped");
        let answer = BufReader::new(child.stdout.take().expect("it is piped"));
        Box::new(Teller { child, ask, answer, number: number as u64 })
    }

    fn check(&self, copy: &Path, run: &Path) -> Result<Vec<u64>, String> {
        let server = Self::start(copy, run, self.flush)?;
        let questions = "CHECK TABLE account, counter, journal EXTENDED;
            SELECT 'total', sum(balance) FROM account;
            SELECT 'differ', count(*) FROM counter c
                WHERE value <> (SELECT count(*) FROM journal j WHERE j.writer = c.writer)
                OR value <> (SELECT coalesce(max(value), 0) FROM journal j WHERE j.writer = c.writer);
            SELECT 'counter', value FROM counter ORDER BY writer;";
        let out = output(client(&server.socket).args(["bank", "-e", questions]));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let erred = String::from_utf8_lossy(&out.stderr).into_owned();
        let has = |line: &str| said.lines().any(|said| said == line);
        let whole =
            ["account", "counter", "journal"].iter().all(|t| has(&format!("bank.{t}\tcheck\tstatus\tOK")));
        let balanced = has(&format!("total\t{}", ACCOUNTS * 1000)) && has("differ\t0");
        let log = server.server.log();
        let complaint = log.lines().find(|line| line.contains("[ERROR]") || line.contains("orrupt"));
        if !out.status.success() || !whole || !balanced || complaint.is_some() {
            return Err(format!("{said}{erred}{complaint:?}"));
        }
        let counters = said.lines().filter_map(|line| line.strip_prefix("counter\t"));
        counters.map(|value| value.parse().map_err(|_| said.clone())).collect()
    }
}

/// A client that is fed by a pipe and answers by another.
struct Teller {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    number: u64,
}

impl Writer for Teller {
    fn commit(&mut self, value: u64) -> Result<(), String> {
        let n = self.number;
        // In the order of their keys, so that writers do not wait for each other in a circle.
        let (a, b) = (value * 7919 % (ACCOUNTS / 2), ACCOUNTS / 2 + (value * 104_729 + n) % (ACCOUNTS / 2));
        let question = format!(
            "START TRANSACTION; UPDATE account SET balance = balance - 5 WHERE id = {a}; \
             UPDATE account SET balance = balance + 5 WHERE id = {b}; \
             INSERT INTO journal VALUES ({n}, {value}, repeat('{a} to {b} ', 40)); \
             UPDATE counter SET value = {value} WHERE writer = {n}; COMMIT; SELECT {value};\n"
        );
        self.ask.write_all(question.as_bytes()).map_err(|error| error.to_string())?;
        let mut answer = String::new();
        self.answer.read_line(&mut answer).map_err(|error| error.to_string())?;
        (answer.trim_end() == value.to_string()).then_some(()).ok_or_else(|| format!("{value}: {answer:?}"))
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
