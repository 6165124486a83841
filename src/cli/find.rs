//! `tidelock find`: at which points a name exists.

use tidelock_failover::{At, FindOptions, FoundReport, Span, find};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    output::{self, or_dash},
    source::Source,
};

/// Find the points at which names exist, and when they changed; no content is read
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// Without a slash: a name, anywhere; with one: a path from the root. `*` stops at slashes, `**` does not
    pattern: String,
    /// The first point to look at; the oldest if absent
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    from: Option<At>,
    /// The last point to look at, along the line that leads to it
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, default_value_t)]
    to: At,
    /// List every point at which a name changed
    #[arg(long)]
    changes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let options = FindOptions {
        pattern: args.pattern.clone(),
        from: args.from.clone(),
        to: args.to.clone(),
        changes: args.changes,
    };
    let found = find(&args.source.open()?, &args.volume, &options).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    let rows: Vec<_> = found.found.iter().flat_map(rows).collect();
    output::table(["NAME", "FROM", "TIME", "UNTIL", "TIME", "CHANGES", "LAST", "SIZE"], &rows);
    for (path, span) in found.found.iter().flat_map(|it| it.spans.iter().map(move |span| (&it.path, span))) {
        if !span.changed.is_empty() {
            output::print(&format!("{path} changed at {}", span.changed.join(" ")));
        }
    }
    if found.truncated {
        eprintln!("tidelock: there is more than is listed: narrow the pattern, or --from and --to");
    }
    Ok(())
}

fn rows(found: &FoundReport) -> impl Iterator<Item = [String; 8]> {
    found.spans.iter().map(|span| row(&found.path.to_string(), span))
}

fn row(path: &str, span: &Span) -> [String; 8] {
    [
        path.to_owned(),
        if span.created { span.first.clone() } else { format!("({})", span.first) },
        span.first_time.clone(),
        or_dash(span.removed.as_ref()),
        or_dash(span.removed_time.as_ref()),
        span.changes.to_string(),
        or_dash(span.last_change.as_ref()),
        span.size.to_string(),
    ]
}
