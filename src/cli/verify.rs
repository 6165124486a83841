//! `tidelock verify`: re-reads a store and says what is damaged and which points that touches.

use tidelock_failover::{FindingReport, VerifyReport, VerifyStep, verify};
use tidelock_proto::VolumeName;

use super::{
    exit::{DAMAGED, Failure, USAGE},
    output,
    source::Source,
};

/// Re-read the store: every record, chunk and checkpoint, and what each damage touches
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Replay only this volume, as TENANT/NAME; the log is read whole in any case
    volume: Option<VolumeName>,
    /// Fetch what is damaged again: from the receiver's archive, and chunks from the sidecars that are connected. What is told is what is left
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let access = args.source.open()?;
    let bar = output::Bar::new(args.json);
    let done = verify(&access, args.volume.as_ref(), args.repair, &|step| match step {
        VerifyStep::Log(done, total) => bar.at("reading the log", done, total, true),
        VerifyStep::Points(done, total) => bar.at("replaying points", done, total, false),
    });
    drop(bar);
    let report = done.map_err(Failure::failover)?;
    if args.json {
        output::json(&report)?;
    } else {
        print(&report);
    }
    judge(&report)
}

/// Damage is the worse news; that a tenant was not looked at is told beside it.
fn judge(report: &VerifyReport) -> Result<(), Failure> {
    let (damage, locked): (Vec<_>, Vec<_>) = report.findings.iter().partition(|finding| finding.is_damage());
    let unseen: Vec<&str> = locked.iter().map(|finding| finding.what.as_str()).collect();
    let unseen = unseen.join("; ");
    let all = if unseen.is_empty() { "every point" } else { "every point that was looked at" };
    let hit = match report.damaged_points {
        0 => format!("{all} can be restored"),
        points => format!("{points} of {} points cannot be restored", report.points),
    };
    let (code, line) = match (damage.len(), unseen.is_empty()) {
        (0, true) => return Ok(()),
        (0, false) => (USAGE, format!("no damage was found, and {hit}, but {unseen}")),
        (count, true) => (DAMAGED, format!("{count} things are damaged; {hit}")),
        (count, false) => (DAMAGED, format!("{count} things are damaged; {hit}; and {unseen}")),
    };
    Err(Failure::new(code, anyhow::anyhow!("{line}")))
}

fn print(report: &VerifyReport) {
    let mut facts = vec![
        ("log", format!("{} in {} records", output::bytes(report.log_bytes), report.records)),
        ("chunks", report.chunks.to_string()),
        ("volumes", report.volumes.to_string()),
        ("points", format!("{}, {} of them damaged", report.points, report.damaged_points)),
        ("checkpoints", report.checkpoints.to_string()),
        ("findings", report.findings.len().to_string()),
    ];
    if report.resent_chunks > 0 {
        facts.push(("sent again", format!("{} chunks", report.resent_chunks)));
    }
    if report.restored_bytes > 0 {
        facts.push(("from the archive", output::bytes(report.restored_bytes)));
    }
    output::facts(&facts);
    if !report.findings.is_empty() {
        let rows: Vec<_> = report.findings.iter().map(row).collect();
        output::table(["VOLUME", "POINTS", "FIRST", "LAST", "FILE", "WHAT"], &rows);
    }
}

fn row(finding: &FindingReport) -> [String; 6] {
    let or_dash = |text: &Option<String>| output::or_dash(text.as_ref());
    [
        or_dash(&finding.volume),
        finding.points.to_string(),
        or_dash(&finding.first),
        or_dash(&finding.last),
        or_dash(&finding.file),
        finding.what.clone(),
    ]
}
