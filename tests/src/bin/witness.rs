//! Bumps the chain of counters until it is killed: `witness ROOT... LOG PAUSE_MICROSECONDS`.

use std::{path::Path, time::Duration};

use anyhow::Context;
use tidelock_tests::witness::Writer;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [roots @ .., log, pause] = arguments.as_slice() else {
        anyhow::bail!("usage: witness ROOT... LOG PAUSE_MICROSECONDS");
    };
    let roots: Vec<&Path> = roots.iter().map(Path::new).collect();
    let pause = Duration::from_micros(pause.parse().context("PAUSE_MICROSECONDS is no number")?);
    let mut writer = Writer::create(&roots, Path::new(log))?;
    loop {
        writer.bump(pause)?;
    }
}
