//! Bumps a chain of counters until it is killed: `witness calls|all ROOT... LOG PAUSE_MICROSECONDS`.

use std::{path::Path, time::Duration};

use anyhow::Context;
use tidelock_tests::witness::{ALL, CALLS, Writer};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [chain, roots @ .., log, pause] = arguments.as_slice() else {
        anyhow::bail!("usage: witness calls|all ROOT... LOG PAUSE_MICROSECONDS");
    };
    let chain = match chain.as_str() {
        "calls" => CALLS,
        "all" => ALL,
        other => anyhow::bail!("no chain is called {other}"),
    };
    let roots: Vec<&Path> = roots.iter().map(Path::new).collect();
    let pause = Duration::from_micros(pause.parse().context("PAUSE_MICROSECONDS is no number")?);
    let mut writer = Writer::create(chain, &roots, Path::new(log))?;
    loop {
        writer.bump(pause)?;
    }
}
