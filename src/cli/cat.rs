//! `tidelock cat`: the content of a file at a point.

use std::{
    ffi::OsString,
    io::{ErrorKind, Write},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use tidelock_failover::{At, CatReport, FailoverError, cat};
use tidelock_proto::VolumeName;

use super::{exit::Failure, ls, output, source::Source};

/// With `--json` the content is held in memory: no more than this, in bytes.
const JSON_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Write a file of a recovery point to standard output; only the chunks of what is asked for are fetched
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The file, from the volume's root
    path: OsString,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, a time, or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// Begin at this byte
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
    /// Write at most so many bytes
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
    /// Print JSON with the content in base64, at most 64 MiB of it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

#[derive(Serialize)]
struct Content {
    #[serde(flatten)]
    report: CatReport,
    content_base64: String,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let path = ls::path(Some(&args.path))?;
    let access = args.source.open()?;
    let most = if args.json { args.length.unwrap_or(u64::MAX).min(JSON_MAX_BYTES) } else { u64::MAX };
    let end = args.offset.saturating_add(args.length.unwrap_or(u64::MAX).min(most));
    let range = args.offset..end;
    if args.json {
        let mut content = Vec::new();
        let report =
            cat(&access, &args.volume, &args.at, &path, range, &mut content).map_err(Failure::failover)?;
        let left = report.size - report.offset - report.bytes;
        if left > 0 && args.length.is_none() {
            return Err(Failure::usage(format!(
                "the file has {left} more bytes than --json prints: use --offset and --length, or leave --json out"
            )));
        }
        return Ok(output::json(&Content { report, content_base64: STANDARD.encode(&content) })?);
    }
    let mut out = std::io::stdout().lock();
    match cat(&access, &args.volume, &args.at, &path, range, &mut out) {
        // Whoever reads has enough, as of `tidelock cat … | head`.
        Err(FailoverError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => {
            done.map_err(Failure::failover)?;
            Ok(out.flush()?)
        }
    }
}
