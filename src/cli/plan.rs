//! `tidelock store plan`: what retention, compaction and the size cap would do.

use tidelock_failover::{CapReport, PlanReport, SizesReport, VolumePlanReport, plan};
use tidelock_proto::VolumeName;
use tidelock_receiver::retention::Policy;

use super::{exit::Failure, output, output::bytes, source::Source};

/// Show which points a retention policy would keep and drop now, how much space that gives back, and what the size cap would do; nothing is changed
#[derive(Debug, clap::Args)]
pub(crate) struct PlanArgs {
    /// The volume, as TENANT/NAME; all of them if absent
    volume: Option<VolumeName>,
    /// Tiers STEP:AGE from young to old; `all` keeps every point, `forever` has no end. Absent, the running receiver's own; with --store the default
    #[arg(long, value_name = "POLICY")]
    keep: Option<Policy>,
    /// A size cap to ask about. Absent, the running receiver's own
    #[arg(long, value_name = "BYTES", value_parser = super::receiver::cap_bytes)]
    store_cap: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let found = plan(&args.source.open()?, args.volume.as_ref(), args.keep.as_ref(), args.store_cap)
        .map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    print_volumes(&found);
    if let Some(reason) = &found.unknown {
        output::print(&format!("\nno sizes: {reason}"));
    }
    if let Some(sizes) = &found.sizes {
        output::print("");
        print_sizes(&found, sizes);
    }
    for estimate in &found.estimates {
        output::print(&format!("estimate: {estimate}"));
    }
    Ok(())
}

fn print_volumes(found: &PlanReport) {
    let mut rows = Vec::new();
    for volume in &found.volumes {
        let VolumePlanReport { volume: name, kept, dropped, capped, .. } = volume;
        let row = |rule: &str, kept: u64, dropped: u64, freed: String, written: String| {
            [name.clone(), rule.to_owned(), kept.to_string(), dropped.to_string(), freed, written]
        };
        let empty = String::new;
        rows.extend(
            volume.rules.iter().map(|rule| row(&rule.rule, rule.kept, rule.dropped, empty(), empty())),
        );
        let size = |bytes: Option<u64>| output::or_dash(bytes.map(output::bytes));
        rows.push(row("in all", *kept, *dropped, size(volume.freed_bytes), size(volume.written_bytes)));
        if *capped > 0 {
            rows.push(row("size cap", kept - capped, *capped, empty(), empty()));
        }
    }
    output::table(["VOLUME", "RULE", "KEPT", "DROPPED", "GIVES BACK", "WRITES FIRST"], &rows);
}

fn print_sizes(found: &PlanReport, sizes: &SizesReport) {
    let gives = |rest: u64| {
        let back = sizes.log_bytes.saturating_sub(rest);
        format!("{} (gives back {})", bytes(rest), bytes(back))
    };
    let mut facts = vec![
        ("policy", found.keep.clone()),
        ("log now", bytes(sizes.log_bytes)),
        ("points need", bytes(sizes.needed_bytes)),
        ("sessions count on", bytes(sizes.owed_bytes)),
        ("the policy lets go", bytes(sizes.freed_bytes)),
        ("and writes first", bytes(sizes.written_bytes)),
        ("points need then", bytes(sizes.needed_after_bytes)),
        ("log once compacted", gives(sizes.stopped_bytes)),
        ("running receiver", running(sizes)),
    ];
    if let Some(cap) = &sizes.cap {
        facts.push(("size cap", capped(cap)));
    }
    output::facts(&facts);
}

/// What a running receiver does about it.
fn running(sizes: &SizesReport) -> String {
    let SizesReport { log_bytes, running_bytes, written_bytes, .. } = *sizes;
    let acts_bytes = sizes.cap.map_or(u64::MAX, |cap| cap.acts_bytes);
    let begins_bytes = sizes.begins_bytes.min(acts_bytes);
    let back = bytes(log_bytes.saturating_sub(running_bytes));
    match log_bytes + written_bytes > begins_bytes {
        true => format!("leaves about {} (gives back {back})", bytes(running_bytes)),
        false => format!("gives nothing back before the log is {} long", bytes(begins_bytes)),
    }
}

fn capped(cap: &CapReport) -> String {
    let CapReport { cap_bytes, acts_bytes, fits_bytes, acts, dropped, needed_bytes, exhausted } = *cap;
    let all = bytes(cap_bytes);
    if !acts {
        return format!("{all}: drops nothing before the log is {} long", bytes(acts_bytes));
    }
    if exhausted {
        return format!(
            "{all}: drops {dropped} points, all that may go, and what is needed then ({}) is more than {}: COMMITS WILL WAIT",
            bytes(needed_bytes),
            bytes(fits_bytes)
        );
    }
    match dropped {
        0 => format!("{all}: drops nothing, compaction is enough"),
        _ => format!(
            "{all}: drops the {dropped} oldest points; what is needed then is {}",
            bytes(needed_bytes)
        ),
    }
}
