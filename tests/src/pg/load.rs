//! pgbench: PostgreSQL's own bank, whose books must balance.

use std::{path::PathBuf, time::Duration};

use super::Pg;
use crate::process::{self, Process};

/// Fills the tables: `scale` × 100,000 accounts, about 16 MiB each.
pub fn pgbench_init(pg: &Pg, scale: u32) {
    process::run(pg.command("pgbench").args(["-i", "-q", "-s", &scale.to_string(), "postgres"]));
}

/// A running pgbench.
pub struct Load {
    process: Process,
    log: PathBuf,
    length: Duration,
}

impl Load {
    /// Starts TPC-B-like transactions from `clients` connections.
    pub fn start(pg: &Pg, clients: u32, length: Duration) -> Self {
        Self::start_at(pg, clients, length, None)
    }

    /// With at most this many transactions a second, if a number is given.
    pub fn start_at(pg: &Pg, clients: u32, length: Duration, rate: Option<u32>) -> Self {
        let log = pg.socket_dir().join("pgbench.log");
        let mut command = pg.command("pgbench");
        command.args([
            "-n",
            "-c",
            &clients.to_string(),
            "-j",
            "1",
            "-T",
            &length.as_secs().to_string(),
            "postgres",
        ]);
        command.args(rate.map(|rate| format!("--rate={rate}")));
        Self { process: Process::spawn("pgbench", &mut command, &log), log, length }
    }

    /// Waits for its end and returns the transactions per second, without the time to connect.
    pub fn finish(mut self) -> f64 {
        let status = self.process.wait(self.length + Duration::from_secs(60));
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        assert!(status.success(), "pgbench ended with {status}:\n{said}");
        let tps = said.lines().find_map(|line| line.strip_prefix("tps = "));
        let tps = tps.and_then(|rest| rest.split(' ').next()).and_then(|number| number.parse().ok());
        tps.unwrap_or_else(|| panic!("pgbench names no tps:\n{said}"))
    }

    /// Ends it now.
    pub fn kill(mut self) {
        self.process.kill();
    }
}
