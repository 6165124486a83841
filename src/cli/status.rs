//! `tidelock status`: how the volumes are, once or over and over.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    time::{Duration, Instant, SystemTime},
};

use tidelock_failover::{Access, VolumeReport, status};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    output::{self, or_dash},
    source::Source,
};

/// Show the state and lag of all volumes, or of one
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: Option<VolumeName>,
    /// Show it again and again, until Ctrl-C; of a receiver that is away, as soon as it is back
    #[arg(long, short = 'w', conflicts_with_all = ["json", "store"])]
    watch: bool,
    /// How often, with --watch
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

const HEADING: [&str; 13] = [
    "VOLUME",
    "STATE",
    "LAG",
    "BEHIND",
    "EPOCH",
    "LAST POINT",
    "CUT",
    "CONSISTENCY",
    "TRACKER",
    "POINTS",
    "PER SECOND",
    "OLDEST",
    "DATA",
];

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.watch {
        return watch(args);
    }
    let found = status(&args.source.open()?, args.volume.as_ref()).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    show(&found, &Rates::default());
    Ok(())
}

/// Points a second, from one look to the next.
#[derive(Default)]
struct Rates {
    points: HashMap<String, u64>,
    since: Option<Instant>,
    elapsed: Duration,
}

impl Rates {
    fn of(&self, volume: &VolumeReport) -> Option<String> {
        let before = self.points.get(&volume.volume)?;
        let seconds = self.elapsed.as_secs_f64();
        (seconds > 0.0).then(|| format!("{:.1}", volume.points.saturating_sub(*before) as f64 / seconds))
    }

    fn look(&mut self) {
        let now = Instant::now();
        self.elapsed = self.since.map_or(Duration::ZERO, |since| now - since);
        self.since = Some(now);
    }

    fn remember(&mut self, found: &[VolumeReport]) {
        self.points = found.iter().map(|volume| (volume.volume.clone(), volume.points)).collect();
    }
}

/// The first look must succeed: a mistyped address is not waited for.
fn watch(args: &Args) -> Result<(), Failure> {
    let mut access = Some(args.source.open()?);
    let mut rates = Rates::default();
    loop {
        rates.look();
        match look(args, &mut access) {
            Ok(found) => {
                clear();
                show(&found, &rates);
                rates.remember(&found);
            }
            Err(failure) => {
                access = None;
                rates = Rates::default();
                clear();
                output::print(&format!("not to be had now: {}", failure.line()));
            }
        }
        output::print(&format!("\n{}", humantime::format_rfc3339_seconds(SystemTime::now())));
        std::thread::sleep(args.interval);
    }
}

fn look(args: &Args, access: &mut Option<Access>) -> Result<Vec<VolumeReport>, Failure> {
    let access = match access {
        Some(access) => access,
        None => access.insert(args.source.open()?),
    };
    status(access, args.volume.as_ref()).map_err(Failure::failover)
}

/// On a terminal the next table takes the place of the last; elsewhere it follows.
fn clear() {
    if std::io::stdout().is_terminal() {
        let _ = write!(std::io::stdout().lock(), "\x1b[H\x1b[2J");
    }
}

fn show(found: &[VolumeReport], rates: &Rates) {
    let rows: Vec<_> = found.iter().map(|volume| row(volume, rates)).collect();
    output::table(HEADING, &rows);
    for volume in found.iter().filter(|volume| !volume.conditions.is_empty()) {
        output::print(&format!("{}: {}", volume.volume, volume.conditions.join(", ")));
    }
}

fn row(volume: &VolumeReport, rates: &Rates) -> [String; 13] {
    let last = volume.last.as_ref();
    [
        volume.volume.clone(),
        state(volume),
        or_dash(volume.lag_ms.map(output::duration)),
        or_dash(volume.behind_bytes.map(output::bytes)),
        volume.epoch.to_string(),
        or_dash(last.map(|last| last.id.clone())),
        or_dash(last.map(|last| last.time.clone())),
        or_dash(volume.consistency),
        or_dash(volume.tracker.clone()),
        volume.points.to_string(),
        or_dash(rates.of(volume)),
        or_dash(volume.oldest.clone()),
        or_dash(volume.data_bytes.map(output::bytes)),
    ]
}

fn state(volume: &VolumeReport) -> String {
    match (volume.promoted, volume.connected) {
        (true, _) => "promoted".to_owned(),
        (false, Some(true)) => volume.state.clone().unwrap_or_else(|| "connected".to_owned()),
        (false, Some(false)) => "disconnected".to_owned(),
        (false, None) => "stored".to_owned(),
    }
}
