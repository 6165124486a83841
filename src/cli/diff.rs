//! `tidelock diff`: what is different between two points.

use tidelock_failover::{At, Change, ChangeKind, DiffReport, diff};
use tidelock_proto::VolumeName;

use super::{exit::Failure, output, source::Source};

/// Show what is different between two recovery points; no content is read
///
/// `+` added, `-` removed, `R` renamed, `T` another kind of thing, `M` other content (with the bytes that differ, at
/// most), `U` other attributes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The first point: EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(value_name = "POINT", allow_hyphen_values = true)]
    from: At,
    /// The second point
    #[arg(value_name = "POINT", allow_hyphen_values = true, default_value_t)]
    to: At,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let found = diff(&args.source.open()?, &args.volume, &args.from, &args.to).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    found.changes.iter().for_each(|change| output::print(&line(change)));
    output::print(&summary(&found));
    Ok(())
}

fn line(change: &Change) -> String {
    let mut notes = change.attributes.iter().map(ToString::to_string).collect::<Vec<_>>();
    if change.changed_bytes > 0 {
        notes.insert(0, output::bytes(change.changed_bytes));
    }
    let notes = if notes.is_empty() { String::new() } else { format!("  ({})", notes.join(", ")) };
    let from = change.from.as_ref().map_or_else(String::new, |from| format!("{from} -> "));
    format!("{} {from}{}{notes}", letter(change.change), change.path)
}

fn letter(kind: ChangeKind) -> char {
    match kind {
        ChangeKind::Added => '+',
        ChangeKind::Removed => '-',
        ChangeKind::Renamed => 'R',
        ChangeKind::Replaced => 'T',
        ChangeKind::Modified => 'M',
        ChangeKind::Attributes => 'U',
    }
}

fn summary(found: &DiffReport) -> String {
    let of = |kind| found.changes.iter().filter(|change| change.change == kind).count();
    format!(
        "{} ({}) to {} ({}): {} added, {} removed, {} renamed, {} replaced, {} modified, {} with other attributes, \
         {} unchanged; {} differ",
        found.from.id,
        found.from.time,
        found.to.id,
        found.to.time,
        of(ChangeKind::Added),
        of(ChangeKind::Removed),
        of(ChangeKind::Renamed),
        of(ChangeKind::Replaced),
        of(ChangeKind::Modified),
        of(ChangeKind::Attributes),
        found.unchanged,
        output::bytes(found.changed_bytes)
    )
}
