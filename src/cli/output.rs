//! What people see: aligned tables, human units, and progress bars where there is a terminal. And JSON for programs.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tidelock_failover::{Event, Step};
use tidelock_receiver::reconcile::{Phase, Progress};

/// Prints to standard output. A reader that went away, as of `tidelock points | head`, is no failure.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints a value for programs.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints rows below their heading, columns aligned.
pub(crate) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) {
    lines(heading, rows).iter().for_each(|line| print(line));
}

/// A line of a terminal, with a sign if it does not fit.
pub(crate) fn shortened(line: &str, width: usize) -> String {
    match line.chars().count() > width {
        false => line.to_owned(),
        true => line.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Rows below their heading, columns aligned.
pub(crate) fn lines<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = heading.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    [line(heading)].into_iter().chain(rows).collect()
}

/// Prints facts, one a line, values aligned.
pub(crate) fn facts(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    for (what, value) in rows {
        print(&format!("{what:<width$}  {value}"));
    }
}

/// What is not known.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Bytes with a binary unit.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Milliseconds, or a longer unit where that reads better.
pub(crate) fn duration(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.1} s", ms / 1e3),
        ms => humantime::format_duration(Duration::from_secs((ms / 1e3) as u64)).to_string(),
    }
}

/// A progress bar for a restore or promotion; invisible without a terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    pub(crate) fn on(&self, event: Event) {
        match event {
            Event::Step(step) => self.0.set_message(match step {
                Step::Select => "choosing the point",
                Step::Check => "reading the point",
                Step::Place => "taking the directory",
                Step::Fence => "fencing the old primary",
                Step::Journal | Step::Mount => "mounting",
                Step::Restore => "writing the directory",
                Step::Difference => "writing what came since",
                Step::Handover => "taking the image",
                Step::Complete | Step::Done => "completing the directory",
                Step::Move | Step::Clear => "putting it in its place",
            }),
            Event::Progress(Progress { phase, done, total }) => {
                let (message, units) = match phase {
                    Phase::Names => ("creating files", "{pos}/{len}"),
                    Phase::Content => {
                        ("writing content", "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}")
                    }
                    Phase::Attributes => ("setting attributes", "{pos}/{len}"),
                    Phase::Sync => ("waiting for the disk", ""),
                };
                self.set(message, done, total, units);
            }
        }
    }

    /// How far a piece of work has come, in bytes or in things.
    pub(crate) fn at(&self, message: &'static str, done: u64, total: u64, bytes: bool) {
        let units = if bytes {
            "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}"
        } else {
            "{pos}/{len} {per_sec}"
        };
        self.set(message, done, total, units);
    }

    fn set(&self, message: &'static str, done: u64, total: u64, units: &str) {
        let style = ProgressStyle::with_template(&format!("{{spinner}} {{msg:<20}} {{wide_bar}} {units}"));
        self.0.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.0.set_message(message);
        self.0.set_length(total);
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_does_not_fit_is_cut_to_fit() {
        let cut = ["short", "exact", "longer", "längerer"].map(|line| shortened(line, 5));
        assert_eq!(cut, ["short", "exact", "long…", "läng…"]);
    }

    #[test]
    fn durations_read_well() {
        let shown = [0.4, 85.0, 9_999.0, 12_340.0, 7_200_000.0].map(duration);
        assert_eq!(shown, ["0.40 ms", "85 ms", "9999 ms", "12.3 s", "2h"]);
    }
}
