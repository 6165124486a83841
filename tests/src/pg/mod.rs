//! A real PostgreSQL 15 on a data directory of our choice, and the checks that a copy of it must pass.
//!
//! Of damaged copies that file tools make, nearly all start and pass `pg_checksums`. What finds them is
//! `pg_amcheck --heapallindexed` together with invariants of the data and the rows known to be committed; see [`check`].

pub mod check;
mod heartbeat;
mod load;
mod rehearsal;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

pub use heartbeat::{Beat, Heartbeat};
pub use load::{Load, pgbench_init};
pub use rehearsal::books_balance;

use crate::{
    needs,
    process::{self, Process},
    procfs, wait,
};

/// Recovery of a copy may replay a few hundred MiB on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A data directory and perhaps a running server on it.
pub struct Pg {
    data: PathBuf,
    run: PathBuf,
    settings: Vec<String>,
    starts: u32,
    server: Option<Process>,
}

impl Pg {
    /// Makes a new cluster with data checksums in `data`; sockets and logs go to `run`, outside of it.
    pub fn init(data: &Path, run: &Path) -> Self {
        let pg = Self::at(data, run);
        fs::create_dir_all(data).expect("the data directory can be made");
        pg.own(data);
        let mut initdb = pg.command("initdb");
        initdb.arg("-D").arg(data);
        initdb.args([
            "--data-checksums",
            "--no-sync",
            "-A",
            "trust",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--locale=C",
        ]);
        process::run(&mut initdb);
        pg
    }

    /// An existing data directory, for example a restored copy.
    pub fn at(data: &Path, run: &Path) -> Self {
        fs::create_dir_all(run).expect("the run directory can be made");
        let pg = Self {
            data: data.to_owned(),
            run: run.to_owned(),
            settings: Vec::new(),
            starts: 0,
            server: None,
        };
        pg.own(run);
        pg
    }

    /// Adds a server setting, as `name=value`.
    pub fn set(&mut self, setting: &str) -> &mut Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// CPU time that the running server has used so far, all its processes together, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> u64 {
        procfs::family_cpu_ticks(self.server.as_ref().expect("the server runs").pid())
    }

    /// The directory of the socket and the logs.
    pub fn socket_dir(&self) -> &Path {
        &self.run
    }

    /// Starts the server and waits until it takes connections.
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|log| panic!("PostgreSQL does not start:\n{log}"));
    }

    /// Starts the server; its log if it ends instead.
    pub fn try_start(&mut self) -> Result<(), String> {
        self.starts += 1;
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data).arg("-k").arg(&self.run);
        let fixed = [
            "listen_addresses=",
            "port=5432",
            "shared_buffers=64MB",
            "max_wal_size=512MB",
            "logging_collector=off",
        ];
        for setting in fixed.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        let log = self.run.join(format!("server-{}.log", self.starts));
        let mut server = Process::spawn("postgres", &mut command, &log);
        let outcome = wait::until("PostgreSQL takes connections", START_LIMIT, || {
            if server.ended().is_some() {
                return Some(Err(server.log()));
            }
            self.try_connect().map(|_| Ok(()))
        });
        // Its words are not ours: they are judged by `check`.
        server.allow("");
        self.server = Some(server);
        outcome
    }

    /// A connection to the database `postgres`.
    pub fn connect(&self) -> postgres::Client {
        self.try_connect().expect("PostgreSQL takes connections")
    }

    fn try_connect(&self) -> Option<postgres::Client> {
        postgres::Config::new()
            .host_path(&self.run)
            .port(5432)
            .user("postgres")
            .dbname("postgres")
            .connect(postgres::NoTls)
            .ok()
    }

    /// Stops in an orderly way, with a checkpoint.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.signal(libc::SIGINT);
        let status = server.wait(START_LIMIT);
        assert!(status.success(), "PostgreSQL stopped with {status}:\n{}", server.log());
    }

    /// SIGKILL for the server and all its children at once; none is left on return.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        let children = children(server.pid());
        let memory = shared_memory(server.pid());
        server.kill();
        for child in children {
            // SAFETY: plain system call on a child of the server that we have just killed.
            unsafe { libc::kill(child, libc::SIGKILL) };
            wait::until_true("PostgreSQL's children are gone", wait::SOON, || {
                let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
                !stat.contains("(postgres)") || stat.contains(") Z ")
            });
        }
        for file in memory {
            let _ = fs::remove_file(file);
        }
    }

    /// One of PostgreSQL's programs, run as the user that may: `postgres` if we are root.
    pub fn command(&self, program: &str) -> Command {
        let dir = find_programs().unwrap_or_else(|reason| panic!("{reason}"));
        let mut command = Command::new(dir.join(program));
        command.current_dir(&self.run).env("PGHOST", &self.run).env("PGUSER", "postgres").env("LC_ALL", "C");
        if let Some((uid, gid)) = database_user() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Gives a path to the user the server runs as, if that is not us.
    pub fn own(&self, path: &Path) {
        if let Some((uid, gid)) = database_user() {
            chown(path, Some(uid), Some(gid)).expect("root can give files away");
        }
    }
}

impl Drop for Pg {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
    }
}

/// Where PostgreSQL 15's programs are, or why they cannot be used.
pub fn find_programs() -> Result<PathBuf, String> {
    let dir = PathBuf::from("/usr/lib/postgresql/15/bin");
    if !dir.join("postgres").is_file() || !dir.join("pg_amcheck").is_file() {
        return Err(format!("PostgreSQL 15 is not in {}", dir.display()));
    }
    if needs::is_root() && database_user().is_none() {
        return Err("PostgreSQL will not run as root, and there is no user postgres".to_owned());
    }
    Ok(dir)
}

/// User and group `postgres` if we are root, who must not run the server.
fn database_user() -> Option<(u32, u32)> {
    if !needs::is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Files in `/dev/shm` that only the next start in the same data directory would remove.
fn shared_memory(pid: u32) -> BTreeSet<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.find("/dev/shm/PostgreSQL.").map(|at| &line[at..]));
    files.map(PathBuf::from).collect()
}

fn children(parent: u32) -> Vec<i32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
