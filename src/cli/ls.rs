//! `tidelock ls`: what a recovery point holds.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use tidelock_failover::{At, Entry, EntryKind, VolumePath, ls};
use tidelock_proto::VolumeName;

use super::{exit::Failure, output, source::Source};

/// List a directory of a recovery point; no content is read
///
/// Names are shown so that the shell's $'…' gives their bytes back. Links are not followed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// A directory or file, from the volume's root
    path: Option<OsString>,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// All below it, too
    #[arg(long, short = 'R')]
    recursive: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let path = path(args.path.as_ref())?;
    let found =
        ls(&args.source.open()?, &args.volume, &args.at, &path, args.recursive).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    let rows: Vec<_> = found.entries.iter().map(row).collect();
    output::table(["MODE", "NAMES", "OWNER", "SIZE", "MODIFIED", "NAME"], &rows);
    Ok(())
}

/// A path as it was typed; the root if none was.
pub(crate) fn path(typed: Option<&OsString>) -> Result<VolumePath, Failure> {
    VolumePath::parse(typed.map_or(&[][..], |path| path.as_bytes())).map_err(Failure::usage)
}

fn row(entry: &Entry) -> [String; 6] {
    let size = match entry.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => entry.size.map_or_else(String::new, |size| size.to_string()),
    };
    let target = entry.target.as_ref().map_or_else(String::new, |target| format!(" -> {target}"));
    [
        mode(entry.kind, entry.mode),
        entry.names.to_string(),
        format!("{}:{}", entry.uid, entry.gid),
        size,
        entry.mtime(),
        format!("{}{target}", entry.path),
    ]
}

/// As `ls -l` writes it.
fn mode(kind: EntryKind, mode: u32) -> String {
    let bit = |bit: u32, letter: char| if mode & bit != 0 { letter } else { '-' };
    let execute = |bit: u32, special: u32, letter: char| match (mode & bit != 0, mode & special != 0) {
        (true, true) => letter,
        (false, true) => letter.to_ascii_uppercase(),
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind.letter(),
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        execute(0o100, 0o4000, 's'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        execute(0o010, 0o2000, 's'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        execute(0o001, 0o1000, 't'),
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_reads_as_in_a_long_listing() {
        assert_eq!(mode(EntryKind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(mode(EntryKind::File, 0o4650), "-rwSr-x---");
    }
}
