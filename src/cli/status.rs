//! `tidelock status`: how the volumes are, once or over and over.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write},
    time::{Duration, Instant, SystemTime},
};

use tidelock_failover::{
    Access, HydratingReport, TestReport, ThroughputReport, VolumeReport, quoted, status,
};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    output::{self, or_dash},
    source::Source,
    subject::Subject,
    workload::volumes_of,
};

/// Show the state and lag of all volumes, of one, or of those of a workload
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME; or a workload of Kubernetes: statefulset/NAME or deployment/NAME
    #[arg(value_name = "VOLUME|WORKLOAD")]
    subject: Option<Subject>,
    /// The workload's namespace
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    namespace: String,
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

const HEADING: [&str; 15] = [
    "VOLUME",
    "STATE",
    "LAG",
    "BEHIND",
    "THROUGHPUT",
    "EPOCH",
    "LAST POINT",
    "CUT",
    "CONSISTENCY",
    "TRACKER",
    "POINTS",
    "PER SECOND",
    "REACHES BACK",
    "DATA",
    "LAST TEST",
];

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.watch {
        return watch(args);
    }
    let found = find(args, &args.source.open()?)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    lines(&found, &Rates::default()).iter().for_each(|line| output::print(line));
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
                show(&lines(&found, &rates));
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
    find(args, access)
}

fn find(args: &Args, access: &Access) -> Result<Vec<VolumeReport>, Failure> {
    let of = |volume: Option<&VolumeName>| status(access, volume).map_err(Failure::failover);
    match &args.subject {
        None => of(None),
        Some(Subject::Volume(volume)) => of(Some(volume)),
        Some(Subject::Workload(workload)) => {
            let mut found = Vec::new();
            for volume in volumes_of(access, &args.namespace, workload)? {
                found.extend(of(Some(&volume))?);
            }
            Ok(found)
        }
    }
}

/// On a terminal the next table takes the place of the last; elsewhere it follows.
fn clear() {
    if std::io::stdout().is_terminal() {
        let _ = write!(std::io::stdout().lock(), "\x1b[H\x1b[2J");
    }
}

/// One that does not fit is cut, so that what is watched stays where it is; the first columns are what matters most.
fn show(lines: &[String]) {
    let width = terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
    for line in lines {
        output::print(&width.map_or_else(|| line.clone(), |width| output::shortened(line, width)));
    }
}

fn lines(found: &[VolumeReport], rates: &Rates) -> Vec<String> {
    let rows: Vec<_> = found.iter().map(|volume| row(volume, rates)).collect();
    let mut lines = output::lines(HEADING, &rows);
    for volume in found.iter().filter(|volume| !volume.conditions.is_empty()) {
        lines.push(format!("{}: {}", volume.volume, volume.conditions.join(", ")));
    }
    for volume in found {
        lines.extend(
            volume.instants.iter().map(|instant| format!("{}: {}", volume.volume, hydrating(instant))),
        );
    }
    lines
}

fn row(volume: &VolumeReport, rates: &Rates) -> [String; 15] {
    let last = volume.last.as_ref();
    [
        volume.volume.clone(),
        state(volume),
        or_dash(volume.lag_ms.map(output::duration)),
        or_dash(volume.behind_bytes.map(output::bytes)),
        or_dash(volume.throughput.map(throughput)),
        volume.epoch.to_string(),
        or_dash(last.map(|last| last.id.clone())),
        or_dash(last.map(|last| last.time.clone())),
        or_dash(volume.consistency),
        or_dash(volume.tracker.clone()),
        volume.points.to_string(),
        or_dash(rates.of(volume)),
        or_dash(volume.span_s.map(|span| humantime::format_duration(coarse(span)))),
        or_dash(volume.data_bytes.map(output::bytes)),
        or_dash(volume.last_test.as_ref().map(last_test)),
    ]
}

/// Content, and in brackets what crosses the wire for it.
fn throughput(throughput: ThroughputReport) -> String {
    let ThroughputReport { content_bytes_per_s, wire_bytes_per_s } = throughput;
    format!("{}/s ({}/s)", output::bytes(content_bytes_per_s), output::bytes(wire_bytes_per_s))
}

/// One that is overdue says so first: how the last one went is old news then.
fn last_test(test: &TestReport) -> String {
    let ago = humantime::format_duration(coarse(test.age_s));
    let result = if test.passed { "ok" } else { "FAILED" };
    let overdue = if test.overdue { "OVERDUE, " } else { "" };
    format!("{overdue}{result} {ago} ago ({})", test.point)
}

/// What a glance can take in.
fn coarse(seconds: u64) -> Duration {
    let unit = [86_400, 3_600, 60].into_iter().find(|unit| seconds >= 2 * unit).unwrap_or(1);
    Duration::from_secs(seconds / unit * unit)
}

fn hydrating(instant: &HydratingReport) -> String {
    let HydratingReport { point, directory, hydration } = instant;
    let place = directory.display();
    let number = |field: &str| Some(hydration.as_ref()?[field].as_u64().unwrap_or_default());
    match number("absent_bytes").zip(number("total_bytes")) {
        Some((absent, total)) => format!(
            "promoted at once to {place}: {} of {} of {point} are still fetched",
            output::bytes(absent),
            output::bytes(total)
        ),
        None => {
            format!(
                "promoted at once to {place}: {point} is still fetched; there: tidelock hydration {}",
                quoted(directory)
            )
        }
    }
}

fn state(volume: &VolumeReport) -> String {
    match (volume.promoted, volume.connected) {
        (true, _) => "promoted".to_owned(),
        (false, Some(true)) => volume.state.clone().unwrap_or_else(|| "connected".to_owned()),
        (false, Some(false)) => "disconnected".to_owned(),
        (false, None) => "stored".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_still_fetched_is_told_with_the_place_to_ask() {
        let mut instant = HydratingReport {
            point: "2.7".to_owned(),
            directory: "/srv/db".into(),
            hydration: Some(serde_json::json!({"absent_bytes": 3 << 20, "total_bytes": 12 << 20})),
        };
        assert_eq!(
            hydrating(&instant),
            "promoted at once to /srv/db: 3.00 MiB of 12.00 MiB of 2.7 are still fetched"
        );
        instant.hydration = None;
        assert!(hydrating(&instant).ends_with("tidelock hydration /srv/db"));
    }

    #[test]
    fn a_test_is_told_in_a_few_words() {
        let mut test = TestReport {
            point: "1.42".to_owned(),
            passed: true,
            time: String::new(),
            age_s: 59,
            rto_ms: Some(7),
            reason: None,
            every_s: Some(21_600),
            overdue: false,
        };
        assert_eq!(last_test(&test), "ok 59s ago (1.42)");
        test.age_s = 3 * 3_600 + 59;
        assert_eq!(last_test(&test), "ok 3h ago (1.42)");
        (test.age_s, test.passed, test.overdue) = (9 * 86_400 + 3_700, false, true);
        assert_eq!(last_test(&test), "OVERDUE, FAILED 9days ago (1.42)");
    }
}
