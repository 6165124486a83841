//! Numbers for people and for programs.

use std::{fmt, fs, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

/// CPU time, in clock ticks of 10 ms.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Cpu {
    /// Of the server, what sends to a streaming replica included.
    pub(crate) server: u64,
    /// Of the sidecar.
    pub(crate) sidecar: u64,
    /// Of what would run on another machine: the receiver, or the streaming replica.
    pub(crate) standby: u64,
}

impl Cpu {
    /// What was used since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            server: self.server - before.server,
            sidecar: self.sidecar - before.sidecar,
            standby: self.standby - before.standby,
        }
    }
}

/// What a turn under load gave.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) seconds: u64,
    pub(crate) tps: f64,
    pub(crate) cpu: Cpu,
}

/// What one of the three did, over all its turns.
#[derive(Debug, Default)]
pub(crate) struct Series {
    tps: Vec<f64>,
    transactions: f64,
    cpu: Cpu,
    lags_ns: Vec<u64>,
}

impl Series {
    /// Adds a turn.
    pub(crate) fn add(&mut self, turn: &Turn, lags_ns: impl IntoIterator<Item = u64>) {
        self.tps.push(turn.tps);
        self.transactions += turn.tps * Duration::from_secs(turn.seconds).as_secs_f64();
        self.cpu.server += turn.cpu.server;
        self.cpu.sidecar += turn.cpu.sidecar;
        self.cpu.standby += turn.cpu.standby;
        self.lags_ns.extend(lags_ns);
        self.lags_ns.sort_unstable();
    }

    fn mean_tps(&self) -> f64 {
        let turns = u32::try_from(self.tps.len()).unwrap_or(u32::MAX);
        self.tps.iter().sum::<f64>() / f64::from(turns.max(1))
    }

    /// CPU time for each transaction in microseconds: of the server, the sidecar, and the other side.
    fn cpu_us(&self) -> [f64; 3] {
        let cpu = [self.cpu.server, self.cpu.sidecar, self.cpu.standby];
        cpu.map(|ticks| Duration::from_millis(ticks * 10).as_secs_f64() * 1e6 / self.transactions.max(1.0))
    }

    /// The lag that this part of all commits did not exceed, in milliseconds.
    fn quantile_ms(&self, part: f64) -> Option<f64> {
        let last = self.lags_ns.len().checked_sub(1)?;
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = ((last as f64) * part).ceil() as usize;
        Some(Duration::from_nanos(self.lags_ns[index]).as_secs_f64() * 1e3)
    }
}

/// Everything measured, and where.
#[derive(Debug)]
pub(crate) struct Report {
    machine: Value,
    rows: [(&'static str, Series); 3],
}

impl Report {
    #[allow(
        clippy::too_many_arguments,
        reason = "one call, and a struct of the same fields would say no more"
    )]
    pub(crate) fn new(
        scale: u32,
        clients: u32,
        turn: Duration,
        rounds: u64,
        data: &Path,
        alone: Series,
        tidelock: Series,
        streaming: Series,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let machine = json!({
            "cores": cores,
            "memory_gib": memory_gib(),
            "kernel": said(Command::new("uname").arg("-r")),
            "filesystem": said(Command::new("findmnt").args(["-n", "-o", "FSTYPE", "-T"]).arg(data)),
            "postgresql": said(Command::new("/usr/lib/postgresql/15/bin/postgres").arg("--version")),
            "scale": scale,
            "clients": clients,
            "turn_seconds": turn.as_secs(),
            "rounds": rounds,
        });
        Self { machine, rows: [("unprotected", alone), ("tidelock", tidelock), ("streaming", streaming)] }
    }

    /// All of it as one document.
    pub(crate) fn json(&self) -> Value {
        let base = self.rows[0].1.mean_tps();
        let rows = self.rows.iter().map(|(name, series)| {
            let [server, sidecar, standby] = series.cpu_us();
            let row = json!({
                "cpu_us": { "server": server, "sidecar": sidecar, "standby": standby },
                "tps": series.mean_tps(),
                "tps_of_unprotected": series.mean_tps() / base,
                "commits": series.lags_ns.len(),
                "lag_p50_ms": series.quantile_ms(0.5),
                "lag_p99_ms": series.quantile_ms(0.99),
                "lag_max_ms": series.quantile_ms(1.0),
            });
            ((*name).to_owned(), row)
        });
        json!({ "machine": self.machine, "results": rows.collect::<serde_json::Map<_, _>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(machine) = self.machine.as_object() {
            let facts: Vec<String> = machine.iter().map(|(name, value)| format!("{name} {value}")).collect();
            writeln!(f, "{}", facts.join(", ").replace('"', ""))?;
        }
        writeln!(f, "lag: from a commit's acknowledgement until it is durable on the other side, in ms")?;
        writeln!(
            f,
            "{:<12} {:>8} {:>9} {:>9} {:>9} {:>8} {:>8}   CPU µs of a transaction: server, sidecar, standby",
            "", "commits", "p50", "p99", "max", "TPS", "of alone"
        )?;
        let base = self.rows[0].1.mean_tps();
        for (name, series) in &self.rows {
            write!(f, "{name:<12} {:>8}", series.lags_ns.len())?;
            for part in [0.5, 0.99, 1.0] {
                match series.quantile_ms(part) {
                    Some(lag) => write!(f, " {lag:>9.2}")?,
                    None => write!(f, " {:>9}", "-")?,
                }
            }
            write!(f, " {:>8.0} {:>8.2}", series.mean_tps(), series.mean_tps() / base)?;
            let [server, sidecar, standby] = series.cpu_us();
            writeln!(f, "   {server:>6.0} {sidecar:>5.0} {standby:>5.0}")?;
        }
        Ok(())
    }
}

fn said(command: &mut Command) -> String {
    let out = command.output().map(|out| out.stdout).unwrap_or_default();
    String::from_utf8_lossy(&out).trim().to_owned()
}

fn memory_gib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0u64) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_lags_that_were_seen() {
        let mut series = Series::default();
        assert_eq!(series.quantile_ms(0.5), None);
        let turn = Turn { seconds: 10, tps: 1.0, cpu: Cpu { server: 5, ..Cpu::default() } };
        series.add(&turn, (1..=100).rev().map(|lag| lag * 1_000_000));
        assert_eq!(series.cpu_us(), [5_000.0, 0.0, 0.0]);
        let lags: Vec<_> =
            [0.0, 0.5, 0.99, 1.0].map(|part| series.quantile_ms(part).expect("there are lags")).into();
        assert_eq!(lags, [1.0, 51.0, 100.0, 100.0]);
    }
}
