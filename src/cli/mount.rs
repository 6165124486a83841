//! `tidelock mount`: a point as a file system, until it is unmounted.

use std::{path::PathBuf, sync::Arc, sync::atomic::Ordering, thread, time::Duration};

use tidelock_failover::{At, MountOptions, Unmounted, mount};
use tidelock_proto::VolumeName;

use super::{
    exit::Failure,
    logging::{self, LogArgs},
    output,
    restore::Accept,
    sidecar::parse_bytes,
    signals,
    source::Source,
};

/// How often it is looked whether the mount is still wanted.
const POLL: Duration = Duration::from_millis(50);

/// Mount a recovery point as a file system, whatever its size; replication goes on
///
/// Content is fetched when it is read. The command goes on until Ctrl-C, SIGTERM or `umount DIR`, and leaves nothing behind. Killed otherwise it leaves a mount
/// that answers with errors; `umount DIR` takes it away.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// Where; created for the time being, or must be empty
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The point: `latest`, EPOCH.SEQ, tag:NAME, the newest not after a time (2026-01-31T12:30:00Z), or an age (-5m)
    #[arg(long, default_value_t, value_name = "WHEN", allow_hyphen_values = true)]
    at: At,
    /// Let programs write; what is written is never part of the volume, and gone with the mount
    #[arg(long)]
    writable: bool,
    /// Keep what is written on the file system of this directory, instead of that of DIR
    #[arg(long, value_name = "DIR", requires = "writable")]
    scratch: Option<PathBuf>,
    /// Content to keep in memory, at most
    #[arg(long, value_name = "BYTES", default_value = "256M", value_parser = parse_bytes)]
    cache: u64,
    /// Take what is refused otherwise
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    accept: Vec<Accept>,
    /// Print JSON, once it is mounted
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    log: LogArgs,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    logging::init(&args.log)?;
    let options = MountOptions {
        at: args.at.clone(),
        accept_fuzzy: args.accept.contains(&Accept::Fuzzy),
        cache_bytes: args.cache,
        writable: args.writable,
        scratch: args.scratch.clone(),
    };
    let stopped = signals::stopped()?;
    let access = Arc::new(args.source.open()?);
    let mounted = mount(access, args.source.reach(), &args.volume, &args.directory, &options)
        .map_err(Failure::failover)?;
    let report = mounted.report();
    if args.json {
        output::json(report)?;
    } else {
        output::facts(&[
            ("mounted", format!("{} {} at {}", report.volume, report.point.id, report.directory.display())),
            ("cut at", format!("{} ({})", report.point.time, report.point.consistency)),
            ("took", output::duration(report.took_ms)),
        ]);
    }
    while !stopped.load(Ordering::Relaxed) && !mounted.is_gone() {
        thread::sleep(POLL);
    }
    if mounted.end().map_err(Failure::failover)? == Unmounted::Used {
        eprintln!("tidelock: {} was still in use: what is open there fails now", args.directory.display());
    }
    Ok(())
}
